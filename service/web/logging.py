"""Logging without patient data, as text or as JSON lines, with the id of the request.

A line holds the route, not the path that the client sent; no query, no header, no file name. An
exception is logged by type and code locations, never by message. Libraries that read uploads may
quote them, so their messages are withheld.
"""

from __future__ import annotations

import json
import logging
from contextvars import ContextVar
from datetime import UTC, datetime
from typing import Any, Literal

from service.web.problems import format_traceback_locations

ACCESS_FIELDS = ("method", "route", "status", "ms", "bytes")
_UPLOAD_READERS = {
    "PIL",
    "pydicom",
    "highdicom",
    "python_multipart",
    "multipart",
    "httpx",
    "httpcore",
    "pynetdicom",
    "dicomweb_client",
    "requests",
    "retrying",
}  # libraries whose messages may quote an upload, or an answer of the language model's server, the PACS or a peer
request_id_var: ContextVar[str | None] = ContextVar("request_id", default=None)


def current_request_id() -> str | None:
    """The id of the current request, or None outside of one (start, stop, other threads)."""
    return request_id_var.get()


def configure(level: str, form: Literal["json", "text"] = "text") -> None:
    """Send all log lines to standard error unless the process has configured logging itself.

    Uvicorn's access log prints paths with their queries, and its trace prints headers; both are
    disabled. ``AccessLogMiddleware`` logs requests instead.
    """
    logging.getLogger("service").setLevel(level)
    for name in ("uvicorn.access", "uvicorn.asgi"):
        logging.getLogger(name).disabled = True
    for name in ("uvicorn", "uvicorn.error"):
        uvicorn = logging.getLogger(name)
        uvicorn.handlers = [handler for handler in uvicorn.handlers if not _is_uvicorn_handler(handler)]
        uvicorn.propagate = uvicorn.propagate or not uvicorn.handlers
        if not any(isinstance(existing, _WebSocketFilter) for existing in uvicorn.filters):
            uvicorn.addFilter(_WebSocketFilter())
    root = logging.getLogger()
    root.handlers = [handler for handler in root.handlers if not isinstance(handler, _Handler)]
    if not root.handlers:
        handler = _Handler()
        handler.setFormatter(JsonLines() if form == "json" else TextLines())
        root.addHandler(handler)
        logging.captureWarnings(True)


class _Handler(logging.StreamHandler[Any]):
    """Standard error; a subclass, so that a second ``configure`` finds and replaces it."""


def _is_uvicorn_handler(handler: logging.Handler) -> bool:
    return type(handler.formatter).__module__.startswith("uvicorn.")


class _WebSocketFilter(logging.Filter):
    """Drops uvicorn's WebSocket lines, which print paths and headers; the service has no WebSocket."""

    def filter(self, record: logging.LogRecord) -> bool:
        return '"WebSocket' not in str(record.msg) and "websockets" not in record.pathname


class TextLines(logging.Formatter):
    """``time level logger [request id]: message``, for terminals."""

    def format(self, record: logging.LogRecord) -> str:
        line = f"{_time(record)} {record.levelname} {record.name} [{current_request_id() or '-'}]: {_message(record)}"
        error = _error(record)
        return f"{line}\n{error[0]}\n{error[1]}" if error else line


class JsonLines(logging.Formatter):
    """One JSON object per line: time, level, logger, message, request_id, ``ACCESS_FIELDS``."""

    def format(self, record: logging.LogRecord) -> str:
        line: dict[str, Any] = {
            "time": _time(record),
            "level": record.levelname,
            "logger": record.name,
            "message": _message(record),
            "request_id": current_request_id(),
        }
        line |= {name: record.__dict__[name] for name in ACCESS_FIELDS if name in record.__dict__}
        if error := _error(record):
            line["error"], line["places"] = error[0], error[1].splitlines()
        return json.dumps(line)


def _time(record: logging.LogRecord) -> str:
    return datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def _message(record: logging.LogRecord) -> str:
    source = record.name.partition(".")[0]
    if source in _UPLOAD_READERS:
        return f"{record.module}:{record.lineno} logged a message; it is withheld because it may quote an upload"
    message = record.getMessage().strip()
    if source == "asyncio":
        return message.partition("\n")[0]  # the next lines show exceptions with their messages
    if record.name == "py.warnings" and any(f"/{name}/" in message for name in _UPLOAD_READERS):
        return ":".join(message.split(":", 3)[:3])  # file, line, kind
    return message


def _error(record: logging.LogRecord) -> tuple[str, str] | None:
    """Type and code locations of the exception of a record; its message might quote a report."""
    error = record.exc_info[1] if record.exc_info else None
    return (type(error).__name__, format_traceback_locations(error)) if error else None
