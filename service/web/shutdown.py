"""The deadlines of a shutdown: one cancels all requests in flight, a later one ends the process."""

from __future__ import annotations

import asyncio
import logging
import math
import os
import sys
import threading
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from types import TracebackType
from typing import NoReturn, Self

_POLL_S = 0.1
_FLUSH_TIMEOUT_S = 1.0
log = logging.getLogger(__name__)


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


class ExitWatchdog:
    """Ends the process at a deadline, whatever its threads and its event loop do. A context manager.

    Its thread polls the deadline, so that a signal handler can set it without a lock.
    """

    def __init__(self, status: Callable[[], int]) -> None:
        """Create a watchdog that ends the process with ``status()``."""
        self._status = status
        self._deadline = math.inf  # time.monotonic

    def end_within(self, seconds: float) -> None:
        """Set the deadline, unless an earlier one is set."""
        self._deadline = min(self._deadline, time.monotonic() + seconds)

    def __enter__(self) -> Self:
        self._done = False
        threading.Thread(target=self._watch, name="exit-watchdog", daemon=True).start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        self._done = True

    def _watch(self) -> None:
        while not self._done:
            if time.monotonic() >= self._deadline:
                threads = ", ".join(thread.name for thread in threading.enumerate() if not thread.daemon)
                end_process(self._status(), f"the process did not stop in time and is ended; its threads: {threads}")
            time.sleep(_POLL_S)


def end_process(status: int, warning: str | None = None) -> NoReturn:
    """Exit without waiting for threads, which the exit of the interpreter would join.

    Args:
        status: exit status.
        warning: is logged first, unless the log blocks.
    """
    abandon = threading.Timer(_FLUSH_TIMEOUT_S, os._exit, (status,))
    abandon.daemon = True
    abandon.start()
    if warning:
        log.warning("%s", warning)
    logging.shutdown()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)
