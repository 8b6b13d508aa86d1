"""The end of the service: requests that are still in the house are answered before it comes."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from starlette.types import ASGIApp, Receive, Scope, Send

from service.web.problems import Noted, stopping


class End:
    """A moment that requests do not outlast. Used on the event loop only."""

    def __init__(self) -> None:
        self._open: set[asyncio.Timeout] = set()
        self._over = False

    @asynccontextmanager
    async def before(self) -> AsyncIterator[None]:
        """Work that is cancelled when the end comes, or at once where it has come.

        Raises:
            TimeoutError: it came.
        """
        async with asyncio.timeout(0 if self._over else None) as limit:
            self._open.add(limit)
            try:
                yield
            finally:
                self._open.discard(limit)

    def come(self) -> int:
        """Let it come; how many were still at work."""
        self._over = True
        now = asyncio.get_running_loop().time()
        for limit in self._open:
            limit.reschedule(now)
        return len(self._open)


class AnsweredInTheEnd:
    """Middleware: a request that the end overtakes is answered 503 with the code ``stopping``; a stream is cut."""

    def __init__(self, app: ASGIApp, end: End) -> None:
        self.app, self._end = app, end

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        noted = Noted(send)
        try:
            async with self._end.before():
                await self.app(scope, receive, noted)
        except TimeoutError:
            await noted.tell(stopping(), scope, receive)
