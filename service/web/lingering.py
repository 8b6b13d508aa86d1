"""A refusal that reaches a client still sending: the connection is closed once the client had time to read it."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Iterable

from starlette.types import ASGIApp, Message, Receive, Scope, Send

LINGER_S = 2.0
LINGER_BYTES = 128 * 1024 * 1024


class LingeringClose:
    """Middleware: where an answer is complete before the request, and the connection is to close, read on for a while.

    It is to close where the client or the answer says so.

    A server that closes with bytes unread resets the connection, and the reset destroys the answer on its way (RFC
    9112, 9.6). So the answer is sent whole at once, but its end only after the rest of the request has come, or
    ``LINGER_S`` seconds or ``LINGER_BYTES`` bytes have passed. Connections that stay open need none of this.
    """

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        closes, received_all, withheld = _closes(scope), False, False

        async def watched() -> Message:
            nonlocal received_all
            message = await receive()
            received_all = received_all or not message.get("more_body", False)  # the last part, or the client left
            return message

        async def without_end(message: Message) -> None:
            nonlocal closes, withheld
            if message["type"] == "http.response.start":
                closes = closes or _says_close(message["headers"])
            elif closes and not message.get("more_body", False) and not received_all:
                withheld, message = True, {**message, "more_body": True}
            await send(message)

        await self.app(scope, watched, without_end)
        if withheld:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(LINGER_S):
                    left = LINGER_BYTES
                    while not received_all and left > 0:
                        left -= len((await watched()).get("body", b""))
            await send({"type": "http.response.body", "body": b"", "more_body": False})


def _closes(scope: Scope) -> bool:
    """Whether the client asked for the connection to be closed after the answer."""
    if scope["http_version"] == "1.0":
        return b"keep-alive" not in _connection(scope["headers"])
    return _says_close(scope["headers"])


def _says_close(headers: Iterable[tuple[bytes, bytes]]) -> bool:
    return b"close" in _connection(headers)


def _connection(headers: Iterable[tuple[bytes, bytes]]) -> bytes:
    return b",".join(value for name, value in headers if name.lower() == b"connection").lower()
