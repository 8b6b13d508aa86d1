"""Middleware that counts requests for ``service.metrics``: by route and status, refusals by cause."""

from __future__ import annotations

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from service.metrics import Metrics
from service.web.logging import route_of
from service.web.problems import CAUSE, LEFT


class CountRequests:
    """Counts each answer once, by the route's template; what a client made up becomes no label."""

    def __init__(self, app: ASGIApp, metrics: Metrics) -> None:
        self.app = app
        self._metrics = metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        status = 0

        async def watching(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            await self.app(scope, receive, watching)
        finally:
            cause = scope.get(CAUSE)
            if cause == LEFT or not status:
                self._metrics.abandoned.inc()
            else:
                self._metrics.requests.labels(route_of(scope), str(status)).inc()
                if cause is not None:
                    self._metrics.refusals.labels(cause).inc()
