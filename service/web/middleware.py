"""ASGI middleware, outermost first: ``service.app.create_app`` stacks the classes in this order."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import re
import time
import uuid
from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence

from starlette.datastructures import Headers, MutableHeaders
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import ClientDisconnect
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from service.metrics import Metrics
from service.web.logging import ACCESS_FIELDS, request_id_var
from service.web.problems import (
    CLIENT_DISCONNECTED,
    PROBLEM_CODE_SCOPE_KEY,
    Problem,
    internal_error,
    stopping,
)
from service.web.shutdown import ShutdownDeadline

DRAIN_TIMEOUT_S = 2.0
DRAIN_MAX_BYTES = 128 * 1024 * 1024
REQUEST_ID_HEADER = "X-Request-ID"
STORED_HEADER = "X-Stored-Report"  # of studies of the PACS
CONTENT_SECURITY_POLICY = "; ".join(
    (
        "default-src 'none'",
        "script-src 'self'",
        "style-src 'self'",
        "img-src 'self' blob:",  # blob: previews of the chosen files
        "connect-src 'self'",
        "base-uri 'none'",
        "form-action 'none'",
        "frame-ancestors 'none'",
    )
)
_SECURITY_HEADERS = {
    "Content-Security-Policy": CONTENT_SECURITY_POLICY,
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Permissions-Policy": "camera=(), microphone=(), geolocation=()",
}
_CORS_PATHS = ("/report", "/preview", "/export", "/health")
_CASES = "/cases/"  # read only; POST /cases is never shared with other origins
_STUDIES = "/studies/"  # shared only if a key protects them
_ACCEPTED_REQUEST_ID = re.compile(r"[0-9a-fA-F]{8}(-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}|[0-9a-fA-F]{32}")
_METHODS = {"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"}
_PROBE_ROUTES = {"/health", "/livez", "/metrics"}  # requested every few seconds
log = logging.getLogger(__name__)
access_log = logging.getLogger("service.access")


class HttpMiddleware(ABC):
    """Base class: calls ``handle`` for HTTP requests and passes every other scope through."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            await self.handle(scope, receive, send)
        else:
            await self.app(scope, receive, send)

    @abstractmethod
    async def handle(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one HTTP request."""


class DrainRequestBodyMiddleware(HttpMiddleware):
    """Reads the rest of a request body before it closes the connection (nginx: lingering_close).

    A server that closes with unread bytes resets the connection, and the reset can destroy the
    response on its way (RFC 9112, 9.6). So the whole response is sent at once, but its end only
    after the rest of the request has arrived, or after ``DRAIN_TIMEOUT_S`` seconds or
    ``DRAIN_MAX_BYTES`` bytes. Connections that stay open are unaffected.
    """

    async def handle(self, scope: Scope, receive: Receive, send: Send) -> None:
        closes, complete, withheld = _client_closes(scope), False, False

        async def watch_receive() -> Message:
            nonlocal complete
            message = await receive()
            complete = complete or not message.get("more_body", False)  # the last part, or a disconnect
            return message

        async def send_without_end(message: Message) -> None:
            nonlocal closes, withheld
            if message["type"] == "http.response.start":
                closes = closes or _has_close(message["headers"])
            elif closes and not message.get("more_body", False) and not complete:
                withheld, message = True, {**message, "more_body": True}
            await send(message)

        await self.app(scope, watch_receive, send_without_end)
        if withheld:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(DRAIN_TIMEOUT_S):
                    left = DRAIN_MAX_BYTES
                    while not complete and left > 0:
                        left -= len((await watch_receive()).get("body", b""))
            await send({"type": "http.response.body", "body": b"", "more_body": False})


def _client_closes(scope: Scope) -> bool:
    """Whether the client asked for the connection to be closed after the response."""
    if scope["http_version"] == "1.0":
        return b"keep-alive" not in _connection_header(scope["headers"])
    return _has_close(scope["headers"])


def _has_close(headers: Iterable[tuple[bytes, bytes]]) -> bool:
    return b"close" in _connection_header(headers)


def _connection_header(headers: Iterable[tuple[bytes, bytes]]) -> bytes:
    return b",".join(value for name, value in headers if name.lower() == b"connection").lower()


class RequestIdMiddleware(HttpMiddleware):
    """Sets the request's id for the log and returns it in ``X-Request-ID``.

    A client's id may be an accession number or a patient's name. Only a UUID or 32 hex digits are
    accepted; any other value is replaced by a random UUID.
    """

    async def handle(self, scope: Scope, receive: Receive, send: Send) -> None:
        sent = Headers(scope=scope).getlist(REQUEST_ID_HEADER)
        request_id = sent[0] if len(sent) == 1 and _ACCEPTED_REQUEST_ID.fullmatch(sent[0]) else str(uuid.uuid4())

        async def send_with_id(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message)[REQUEST_ID_HEADER] = request_id
            await send(message)

        token = request_id_var.set(request_id)
        try:
            await self.app(scope, receive, send_with_id)
        finally:
            request_id_var.reset(token)


class AccessLogMiddleware(HttpMiddleware):
    """Logs one line per request: method, route, status, time and size of the received body."""

    async def handle(self, scope: Scope, receive: Receive, send: Send) -> None:
        started, received, watch = time.perf_counter(), 0, _StatusWatch(send)

        async def count_receive() -> Message:
            nonlocal received
            message = await receive()
            received += len(message.get("body", b""))
            return message

        try:
            await self.app(scope, count_receive, watch)
        finally:
            elapsed_ms = round((time.perf_counter() - started) * 1000, 1)
            method = str(scope["method"]) if scope["method"] in _METHODS else "OTHER"
            values = (method, route_template(scope), watch.status or None, elapsed_ms, received)
            fields = dict(zip(ACCESS_FIELDS, values, strict=True))
            level = logging.DEBUG if fields["route"] in _PROBE_ROUTES and watch.status == 200 else logging.INFO
            line = "%s %s %s %.0f ms %d bytes"
            access_log.log(
                level, line, method, fields["route"], watch.status or "-", elapsed_ms, received, extra=fields
            )


class _StatusWatch:
    """Passes messages on and keeps the status of the response; 0 until its start was sent."""

    def __init__(self, send: Send) -> None:
        self.status, self._send = 0, send

    async def __call__(self, message: Message) -> None:
        await self._send(message)
        if message["type"] == "http.response.start":
            self.status = message["status"]


def route_template(scope: Scope) -> str:
    """The template of the matched route; unmatched paths are never logged."""
    if scope["path"].startswith("/static/"):  # a mounted app does not set a route in the scope
        return "/static"
    path = getattr(scope.get("route"), "path", None)
    return str(path) if path else "(no route)"


class SecurityHeadersMiddleware(HttpMiddleware):
    """Adds headers that isolate the page, and ``no-store`` where a response has no caching rule."""

    async def handle(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                for name, value in _SECURITY_HEADERS.items():
                    headers[name] = value
                headers.setdefault("Cache-Control", "no-store")
            await send(message)

        await self.app(scope, receive, send_with_headers)


class PathScopedCORSMiddleware(HttpMiddleware):
    """Allows pages of these `origins` to use ``_CORS_PATHS``, read ``_CASES``, with `studies` use ``_STUDIES``."""

    def __init__(self, app: ASGIApp, origins: Sequence[str], *, studies: bool) -> None:
        super().__init__(app)
        self._prefixes = (_CASES, _STUDIES) if studies else (_CASES,)
        self._shared = _ProblemCORSMiddleware(
            app,
            allow_origins=tuple(origins),
            allow_methods=("GET", "POST"),
            allow_headers=("Authorization", "X-API-Key", REQUEST_ID_HEADER),
            expose_headers=(REQUEST_ID_HEADER, STORED_HEADER, "Retry-After"),
        )

    async def handle(self, scope: Scope, receive: Receive, send: Send) -> None:
        shared = scope["path"] in _CORS_PATHS or scope["path"].startswith(self._prefixes)
        await (self._shared if shared else self.app)(scope, receive, send)


class _ProblemCORSMiddleware(CORSMiddleware):
    """Starlette's middleware, with a refused preflight answered as a problem."""

    def preflight_response(self, request_headers: Headers) -> Response:
        response = super().preflight_response(request_headers)
        if response.status_code < 400:
            return response
        kept = {name: value for name, value in response.headers.items() if not name.startswith("content-")}
        detail = "Pages of this origin, or this method or header, are not allowed. See REPORT_CORS_ORIGINS."
        return Problem("cross_origin", detail, headers=kept).response()


class MetricsMiddleware(HttpMiddleware):
    """Counts each response once, by route template and status, and each problem by its code."""

    def __init__(self, app: ASGIApp, metrics: Metrics) -> None:
        super().__init__(app)
        self._metrics = metrics

    async def handle(self, scope: Scope, receive: Receive, send: Send) -> None:
        watch = _StatusWatch(send)
        try:
            await self.app(scope, receive, watch)
        finally:
            code = scope.get(PROBLEM_CODE_SCOPE_KEY)
            if code == CLIENT_DISCONNECTED or not watch.status:
                self._metrics.abandoned.inc()
            else:
                self._metrics.requests.labels(route_template(scope), str(watch.status)).inc()
                if code is not None:
                    self._metrics.refusals.labels(code).inc()


class ShutdownMiddleware(HttpMiddleware):
    """Answers 503 ``stopping`` to requests that the shutdown deadline cancels; ends streams."""

    def __init__(self, app: ASGIApp, deadline: ShutdownDeadline) -> None:
        super().__init__(app)
        self._deadline = deadline

    async def handle(self, scope: Scope, receive: Receive, send: Send) -> None:
        guard = ResponseStartGuard(send)
        try:
            async with self._deadline.guard():
                await self.app(scope, receive, guard)
        except TimeoutError:
            await guard.send_problem(stopping(), scope, receive)


class UnhandledExceptionMiddleware(HttpMiddleware):
    """Answers 500 ``internal`` to an unexpected exception, whose message is not logged."""

    async def handle(self, scope: Scope, receive: Receive, send: Send) -> None:
        guard = ResponseStartGuard(send)
        try:
            await self.app(scope, receive, guard)
        except ClientDisconnect:
            scope[PROBLEM_CODE_SCOPE_KEY] = CLIENT_DISCONNECTED
            log.info("the client disconnected before its response")
        except Exception as error:
            await guard.send_problem(internal_error(error), scope, receive)


class ResponseStartGuard:
    """Passes a response on, and sends a problem instead as long as the response has not started."""

    def __init__(self, send: Send) -> None:
        self._started, self._send = False, send

    async def __call__(self, message: Message) -> None:
        self._started = self._started or message["type"] == "http.response.start"
        await self._send(message)

    async def send_problem(self, problem: Problem, scope: Scope, receive: Receive) -> None:
        """Record the problem's code, and send the problem unless the response has started."""
        scope[PROBLEM_CODE_SCOPE_KEY] = problem.code
        if not self._started:
            await problem.response()(scope, receive, self._send)
