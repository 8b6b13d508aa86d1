"""Admission control: one limit on concurrent requests bounds uploads, queue and memory."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from service.web.problems import Problem


class BusyError(Problem):
    """All slots are in use: 503 ``busy`` with a ``Retry-After`` header."""

    def __init__(self, reason: str, retry_after_s: int = 1) -> None:
        super().__init__("busy", f"Try again in a moment: {reason}.", headers={"Retry-After": str(retry_after_s)})
        self.reason, self.retry_after_s = reason, retry_after_s


class AdmissionLimiter:
    """Limits the number of concurrent requests.

    Used on the event loop only; ``in_use`` may be read from any thread.
    """

    def __init__(self, capacity: int, retry_after_s: Callable[[], int] = lambda: 1) -> None:
        """Create ``capacity`` free slots; ``retry_after_s`` returns the ``Retry-After`` value of a refusal."""
        self.capacity = capacity
        self.in_use = 0
        self._retry_after_s = retry_after_s

    @contextmanager
    def acquire_slot(self) -> Iterator[None]:
        """Hold one slot until the context ends.

        Raises:
            BusyError: all slots are in use.
        """
        if self.in_use >= self.capacity:
            raise BusyError(f"all {self.capacity} slots are in use", self._retry_after_s())
        self.in_use += 1
        try:
            yield
        finally:
            self.in_use -= 1

    async def wait_idle(self, deadline: float) -> None:
        """Return when no slot is in use, or at ``deadline`` (``time.monotonic``)."""
        while self.in_use and time.monotonic() < deadline:
            await asyncio.sleep(0.05)
