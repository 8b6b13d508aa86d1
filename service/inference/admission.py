"""Admission control: one limit on concurrent requests bounds uploads, queue and memory."""

from __future__ import annotations

import asyncio
import contextlib
import math
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

    One limiter serves all routes that cost time or memory. Used on the event loop only; ``in_use``
    may be read from any thread.
    """

    def __init__(self, capacity: int, seconds_per_request: Callable[[], float] = lambda: 0.0) -> None:
        """Create ``capacity`` free slots.

        Args:
            capacity: number of slots.
            seconds_per_request: returns the mean time between two responses under load; the
                ``Retry-After`` header of a refusal follows from it.
        """
        self.capacity = capacity
        self.in_use = 0
        self._seconds_per_request = seconds_per_request

    @contextmanager
    def acquire_slot(self) -> Iterator[None]:
        """Hold one slot until the context ends.

        Raises:
            BusyError: all slots are in use.
        """
        if self.in_use >= self.capacity:
            wait_s = math.ceil(self._seconds_per_request() * self.in_use / 2)
            raise BusyError(f"all {self.capacity} slots are in use", min(max(wait_s, 1), 60))
        self.in_use += 1
        try:
            yield
        finally:
            self.in_use -= 1

    async def wait_idle(self, timeout_s: float) -> None:
        """Return when no slot is in use, or after ``timeout_s``."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(timeout_s):
                while self.in_use:
                    await asyncio.sleep(0.05)
