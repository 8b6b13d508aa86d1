"""Uvicorn's HTTP protocol, with limits on what clients send, on how slowly they read, and on connections.

Uvicorn alone reads headers and trailers of any length, queues any number of pipelined requests,
and keeps connections whose clients neither send nor read.
"""

from __future__ import annotations

import asyncio
import itertools
import math
import re
import resource
from contextlib import suppress
from typing import Any, Literal

from starlette.requests import ClientDisconnect
from starlette.types import Message, Receive, Scope, Send
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol, RequestResponseCycle

from service.web.request_body import MIN_BYTES_PER_S

MAX_HEADER_BYTES = 64 * 1024  # of headers, of trailers, and of the framing of small chunks
MAX_HEADERS = 256
HEADER_TIMEOUT_S = 15.0  # after the connection was made or the previous response was sent
WRITE_TIMEOUT_S = 30.0  # within which a client must read what was sent, or MIN_BYTES_PER_S of it
MAX_PIPELINED = 8  # requests of one connection whose responses are not complete
MAX_CONNECTIONS = 512
_SLICE = 16 * 1024  # bytes after which the limits are checked; one read has up to 256 KiB
_FRAMING_SHARE = 8  # chunk framing is not counted up to this fraction of the body
_FRAMING = (b"content-length", b"transfer-encoding")
_UPGRADE = re.compile(rb"\r\nupgrade[ \t]*:", re.IGNORECASE)  # some clients offer HTTP/2 with every request
_order = itertools.count()


def connection_limit() -> int:
    """``MAX_CONNECTIONS``, or half of the file descriptors that the process may open."""
    return min(MAX_CONNECTIONS, resource.getrlimit(resource.RLIMIT_NOFILE)[0] // 2)


class LimitedHttpProtocol(HttpToolsProtocol):
    """One connection.

    Large headers, trailers or framing are answered 431, slow headers 408, and a wrong Host 400; the
    connection is then closed. Clients that do not read are disconnected. Above
    ``connection_limit`` the connection that has waited longest for its client is closed.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._unanswered: list[RequestResponseCycle] = []
        self._receiving: Literal["headers", "body"] | None = None
        self._overhead = 0  # received bytes that are no body, since the last complete headers or request
        self._refused = self._lost = False
        self._unsent = self._order = 0
        self._header_timer: asyncio.TimerHandle | None = None
        self._write_timer: asyncio.TimerHandle | None = None
        self._wrapped, self.app = self.app, self._run_until_disconnect

    # -- connection ---------------------------------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # as uvicorn has it
        super().connection_made(transport)
        transport.set_write_buffer_limits(high=0)  # writing is paused as long as any byte is unsent
        self._start_header_timer()
        if len(self.connections) > connection_limit():
            kept = [each for each in self.connections if isinstance(each, LimitedHttpProtocol) and not each._lost]
            if len(kept) > connection_limit():
                min(kept, key=LimitedHttpProtocol._waiting_since)._abort()

    def connection_lost(self, exc: Exception | None) -> None:
        self._lost = True
        self._stop_header_timer()
        self._stop_write_timer()
        for cycle in self._unanswered:  # uvicorn marks the last one only
            cycle.disconnected = True
            cycle.message_event.set()
            cycle.on_response = lambda: None  # it refers to this connection, as does self.app
        self.app = self._wrapped
        super().connection_lost(exc)

    def _abort(self) -> None:
        self._lost = True
        self.transport.abort()

    def _waiting_since(self) -> float:
        """When the connection began to wait for its client, in an order of all; infinity while a request runs."""
        answered = self._receiving == "body" and self.cycle.response_started
        waits = answered or self._header_timer is not None or self._write_timer is not None
        return self._order if waits else math.inf

    async def _run_until_disconnect(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Run the application, and end it at its first message after the client disconnected."""

        async def send_if_connected(message: Message) -> None:
            await send(message)
            if message.get("more_body") and self.transport.is_closing():
                await asyncio.sleep(0)  # the loop reports a failed write only after the application yields
            if self._lost:
                raise ClientDisconnect

        with suppress(ClientDisconnect):
            await self._wrapped(scope, receive, send_if_connected)

    # -- reading ------------------------------------------------------------------------------------------------------

    def data_received(self, data: bytes) -> None:
        if self._receiving is None and _UPGRADE.search(data, 0, headers_end := max(data.find(b"\r\n\r\n"), 0)):
            data = _UPGRADE.sub(b"\r\nX-Upgrade:", data[:headers_end]) + data[headers_end:]
        for start in range(0, len(data), _SLICE):
            if self._refused or self.transport.is_closing():
                return
            part = data[start : start + _SLICE]
            self._overhead += len(part)
            super().data_received(part)
            if self._overhead > MAX_HEADER_BYTES and not self._refused:
                self._refuse(431, f"Headers, trailers or chunk framing of the request exceed {MAX_HEADER_BYTES} bytes.")

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self._receiving = "headers"

    def on_header(self, name: bytes, value: bytes) -> None:
        if self._receiving == "headers":  # uvicorn would add trailers to the headers
            if len(self.headers) == MAX_HEADERS:
                raise ValueError("too many headers")  # uvicorn calls send_400_response
            super().on_header(name, value)

    def on_headers_complete(self) -> None:
        hosts = sum(name == b"host" for name, _ in self.headers)
        if hosts > 1 or (hosts == 0 and self.parser.get_http_version() == "1.1"):
            raise ValueError("no Host header, or several")
        if self.parser.should_upgrade() and any(name in _FRAMING for name, _ in self.headers):
            raise ValueError("the parser would take the body for further requests")
        if len(self._unanswered) == MAX_PIPELINED:
            raise ValueError("too many pipelined requests")
        super().on_headers_complete()
        self._unanswered.append(self.cycle)
        self._receiving, self._overhead = "body", 0
        self._stop_header_timer()

    def on_body(self, body: bytes) -> None:
        self._overhead = max(self._overhead - len(body) - len(body) // _FRAMING_SHARE, 0)
        super().on_body(body)

    def on_message_complete(self) -> None:
        self._receiving, self._overhead = None, 0
        super().on_message_complete()

    def send_400_response(self, msg: str) -> None:
        self._refuse(400, msg)

    def _refuse(self, status: int, detail: str) -> None:
        """Answer the request that is received now and close; or close after the responses to earlier requests."""
        self._refused = True
        current = self.cycle if self._receiving == "body" else None
        if any(cycle is not current or cycle.response_started for cycle in self._unanswered):
            self._unanswered[-1].keep_alive = False
            self.flow.pause_reading()
            return
        if current is None or not current.response_complete:
            head = "content-type: text/plain; charset=utf-8\r\ncontent-length: {}\r\nconnection: close\r\n\r\n{}"
            self.transport.write(STATUS_LINE[status] + head.format(len(detail), detail).encode())
        self.transport.close()

    def _start_header_timer(self) -> None:
        self._order = next(_order)
        self._header_timer = self.loop.call_later(HEADER_TIMEOUT_S, self._on_header_timeout)

    def _stop_header_timer(self) -> None:
        if self._header_timer is not None:
            self._header_timer.cancel()
            self._header_timer = None

    def _on_header_timeout(self) -> None:
        if self._receiving == "headers":
            self._refuse(408, f"The headers of the request did not arrive within {HEADER_TIMEOUT_S:g} s.")
        else:
            self.transport.close()

    # -- writing ------------------------------------------------------------------------------------------------------

    def on_response_complete(self) -> None:
        del self._unanswered[0]
        super().on_response_complete()
        if not self._unanswered and not self.transport.is_closing():
            self._start_header_timer()

    def pause_writing(self) -> None:
        super().pause_writing()
        self._start_write_timer()

    def resume_writing(self) -> None:
        super().resume_writing()
        self._stop_write_timer()

    def _start_write_timer(self) -> None:
        self._order = next(_order)
        self._unsent = self.transport.get_write_buffer_size()
        self._write_timer = self.loop.call_later(WRITE_TIMEOUT_S, self._on_write_timeout)

    def _stop_write_timer(self) -> None:
        if self._write_timer is not None:
            self._write_timer.cancel()
            self._write_timer = None

    def _on_write_timeout(self) -> None:
        if self._unsent - self.transport.get_write_buffer_size() < WRITE_TIMEOUT_S * MIN_BYTES_PER_S:
            self._abort()
        else:
            self._start_write_timer()
