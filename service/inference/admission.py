"""Places in the house: one number bounds uploads, queue and memory, whatever runs the model."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager


class BusyError(RuntimeError):
    """Every place is taken; try again after ``retry_after_s``."""

    def __init__(self, message: str, retry_after_s: int = 1) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


class Places:
    """``capacity`` places, of which ``taken`` are held. Used on the event loop only; ``taken`` may be read anywhere."""

    def __init__(self, capacity: int, retry_after_s: Callable[[], int] = lambda: 1) -> None:
        """All free.

        Args:
            capacity: requests in the house at once.
            retry_after_s: asked for a refusal's advice, in whole seconds.
        """
        self.capacity = capacity
        self.taken = 0
        self._retry_after_s = retry_after_s

    @contextmanager
    def hold(self) -> Iterator[None]:
        """One place, for as long as the context lasts.

        Raises:
            BusyError: none is free.
        """
        if self.taken >= self.capacity:
            raise BusyError(f"all {self.capacity} places are taken", self._retry_after_s())
        self.taken += 1
        try:
            yield
        finally:
            self.taken -= 1

    async def emptied(self, until: float) -> None:
        """Return once nobody holds one, or at ``until`` of ``time.monotonic``."""
        while self.taken and time.monotonic() < until:
            await asyncio.sleep(0.05)
