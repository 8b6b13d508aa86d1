"""A name for each request, in every log line and on every response: ``X-Request-ID``.

What a client makes up could be an accession number or a patient's. Only a UUID or 32 hex digits, which random
generators write and hospitals do not, is taken over; anything else is replaced by a fresh UUID and forgotten.
"""

from __future__ import annotations

import re
import uuid
from contextvars import ContextVar

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

HEADER = "X-Request-ID"
_ACCEPTED = re.compile(r"[0-9a-fA-F]{8}(-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}|[0-9a-fA-F]{32}")
_current: ContextVar[str | None] = ContextVar("request_id", default=None)


def current_request_id() -> str | None:
    """The id of the request that is being answered here, or None outside of one (start, stop, other threads)."""
    return _current.get()


class RequestIds:
    """Middleware, outermost: decides the request's id, keeps it for the log, and sends it back."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        request_id = _accepted(Headers(scope=scope).getlist(HEADER)) or str(uuid.uuid4())

        async def with_id(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message)[HEADER] = request_id
            await send(message)

        token = _current.set(request_id)
        try:
            await self.app(scope, receive, with_id)
        finally:
            _current.reset(token)


def _accepted(sent: list[str]) -> str | None:
    """The id as it was sent, where there is exactly one and it is a random one by its form."""
    return sent[0] if len(sent) == 1 and _ACCEPTED.fullmatch(sent[0]) else None
