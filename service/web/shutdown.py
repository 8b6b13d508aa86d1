"""The deadline of a shutdown, which cancels all requests in flight."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager


class ShutdownDeadline:
    """Cancels guarded work once it is triggered. Used on the event loop only."""

    def __init__(self) -> None:
        self._guarded: set[asyncio.Timeout] = set()
        self._triggered = False

    @asynccontextmanager
    async def guard(self) -> AsyncIterator[None]:
        """Run work that is cancelled when the deadline is triggered, or at once if it already is.

        Raises:
            TimeoutError: the deadline was triggered.
        """
        async with asyncio.timeout(0 if self._triggered else None) as limit:
            self._guarded.add(limit)
            try:
                yield
            finally:
                self._guarded.discard(limit)

    def trigger(self) -> int:
        """Cancel all guarded work and return how many pieces were still running."""
        self._triggered = True
        now = asyncio.get_running_loop().time()
        for limit in self._guarded:
            limit.reschedule(now)
        return len(self._guarded)
