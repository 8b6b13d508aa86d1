"""Logging without patient data, as text or as JSON lines, with the id of the request.

A line names the route, not the address as typed; no query, no header, no file name. An exception is logged by type
and place, never by message. Libraries that read uploads may quote them, so their words are withheld.
"""

from __future__ import annotations

import json
import logging
import time
from datetime import UTC, datetime
from typing import Any, Literal

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from service.web.problems import places
from service.web.request_ids import current_request_id

ACCESS_FIELDS = ("method", "route", "status", "ms", "bytes")
_READ_UPLOADS = {
    "PIL",
    "pydicom",
    "highdicom",
    "python_multipart",
    "multipart",
    "httpx",
    "httpcore",
}  # libraries whose words may quote an upload, or what the language model's server answers
_PROBES = {"/health", "/livez", "/metrics"}  # asked every few seconds
log = logging.getLogger("service.access")


def configure(level: str, form: Literal["json", "text"] = "text") -> None:
    """Send all log lines to standard error, uvicorn's too, unless the process has set up logging itself.

    Uvicorn's access log prints addresses with their queries and its trace prints headers; both are silenced, and
    ``AccessLog`` takes their place.
    """
    logging.getLogger("service").setLevel(level)
    for name in ("uvicorn.access", "uvicorn.asgi"):
        logging.getLogger(name).disabled = True
    for name in ("uvicorn", "uvicorn.error"):
        uvicorn = logging.getLogger(name)
        uvicorn.handlers = [handler for handler in uvicorn.handlers if not _is_uvicorns(handler)]
        uvicorn.propagate = uvicorn.propagate or not uvicorn.handlers
        if not any(isinstance(existing, _WithoutAddresses) for existing in uvicorn.filters):
            uvicorn.addFilter(_WithoutAddresses())
    root = logging.getLogger()
    root.handlers = [handler for handler in root.handlers if not isinstance(handler, _Handler)]
    if not root.handlers:
        handler = _Handler()
        handler.setFormatter(JsonLines() if form == "json" else TextLines())
        root.addHandler(handler)
        logging.captureWarnings(True)


class _Handler(logging.StreamHandler[Any]):
    """Standard error; a class of its own so that a second ``configure`` replaces it."""


def _is_uvicorns(handler: logging.Handler) -> bool:
    return type(handler.formatter).__module__.startswith("uvicorn.")


class _WithoutAddresses(logging.Filter):
    """Drops the lines of uvicorn's WebSocket side, which nothing here uses: they print addresses and headers."""

    def filter(self, record: logging.LogRecord) -> bool:
        return '"WebSocket' not in str(record.msg) and "websockets" not in record.pathname


class TextLines(logging.Formatter):
    """``time level logger [request id]: message``, for people."""

    def format(self, record: logging.LogRecord) -> str:
        line = f"{_time(record)} {record.levelname} {record.name} [{current_request_id() or '-'}]: {_words(record)}"
        error = _error(record)
        return f"{line}\n{error[0]}\n{error[1]}" if error else line


class JsonLines(logging.Formatter):
    """One JSON object a line: time, level, logger, message, request_id, and ``ACCESS_FIELDS`` of a request."""

    def format(self, record: logging.LogRecord) -> str:
        line: dict[str, Any] = {
            "time": _time(record),
            "level": record.levelname,
            "logger": record.name,
            "message": _words(record),
            "request_id": current_request_id(),
        }
        line |= {name: record.__dict__[name] for name in ACCESS_FIELDS if name in record.__dict__}
        if error := _error(record):
            line["error"], line["places"] = error[0], error[1].splitlines()
        return json.dumps(line)


def _time(record: logging.LogRecord) -> str:
    return datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def _words(record: logging.LogRecord) -> str:
    source = record.name.partition(".")[0]
    if source in _READ_UPLOADS:
        return f"{record.module}:{record.lineno} spoke; its words are withheld, they may quote an upload"
    words = record.getMessage().strip()
    if source == "asyncio":
        return words.partition("\n")[0]  # what follows shows exceptions with their messages
    if record.name == "py.warnings" and any(f"/{name}/" in words for name in _READ_UPLOADS):
        return ":".join(words.split(":", 3)[:3])  # file, line, kind
    return words


def _error(record: logging.LogRecord) -> tuple[str, str] | None:
    """Type and places of the exception that a line is about; its message might quote a report."""
    error = record.exc_info[1] if record.exc_info else None
    return (type(error).__name__, places(error)) if error else None


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
            elapsed_ms = round((time.perf_counter() - began) * 1000, 1)
            fields = dict(
                zip(ACCESS_FIELDS, (_method(scope), route_of(scope), status or None, elapsed_ms, received), strict=True)
            )
            level = logging.DEBUG if fields["route"] in _PROBES and status == 200 else logging.INFO
            line = "%s %s %s %.0f ms %d bytes"
            log.log(level, line, fields["method"], fields["route"], status or "-", elapsed_ms, received, extra=fields)


def _method(scope: Scope) -> str:
    method = str(scope["method"])
    return method if method in {"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"} else "OTHER"


def route_of(scope: Scope) -> str:
    """The route's template; what a client made up is not repeated."""
    if scope["path"].startswith("/static/"):  # a mount, which leaves no route in the scope
        return "/static"
    path = getattr(scope.get("route"), "path", None)
    return str(path) if path else "(no route)"
