"""Logging without patient data: a line names the route, not the address as typed, no query, no file name."""

from __future__ import annotations

import logging
import time

from starlette.types import ASGIApp, Message, Receive, Scope, Send

log = logging.getLogger("service.access")


def configure(level: str) -> None:
    """Send the service's log lines to standard error, unless the process has set up logging itself.

    Uvicorn's access log prints addresses with their queries; this silences it in favour of ``AccessLog``.
    """
    service = logging.getLogger("service")
    service.setLevel(level)
    if not service.hasHandlers():
        handler = logging.StreamHandler()
        handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
        service.addHandler(handler)
    logging.getLogger("uvicorn.access").disabled = True


class AccessLog:
    """Middleware: one line a request with method, route, status, time and size of the body that came."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        began, status, received = time.perf_counter(), 0, 0

        async def counting() -> Message:
            nonlocal received
            message = await receive()
            received += len(message.get("body", b""))
            return message

        async def watching(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            await self.app(scope, counting, watching)
        finally:
            route = route_of(scope)
            elapsed_ms = (time.perf_counter() - began) * 1000
            level = logging.DEBUG if route == "/health" and status == 200 else logging.INFO  # probes come often
            line = "%s %s %s %.0f ms %d bytes"
            log.log(level, line, _method(scope), route, status or "-", elapsed_ms, received)


def _method(scope: Scope) -> str:
    method = str(scope["method"])
    return method if method in {"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"} else "OTHER"


def route_of(scope: Scope) -> str:
    """The route's template; what a client made up is not repeated."""
    if scope["path"].startswith("/static/"):  # a mount, which leaves no route in the scope
        return "/static"
    path = getattr(scope.get("route"), "path", None)
    return str(path) if path else "(no route)"
