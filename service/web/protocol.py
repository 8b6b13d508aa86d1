"""Uvicorn's HTTP protocol with a bound on the head of a request, in bytes and in time.

Uvicorn takes a request line and header fields of any length, as slowly as they come, before the application hears of
the request: one client could fill the memory, and many that say nothing take all connections.
"""

from __future__ import annotations

import asyncio

from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol

MAX_HEAD_BYTES = 64 * 1024  # beside the first piece that comes of it, 256 KiB at most
HEAD_WITHIN_S = 15.0  # after the connection was made, or the request before was answered


class HeaderLimitedHttpProtocol(HttpToolsProtocol):
    """One connection: a head that is too large is answered 431, one that is too slow 408, and the connection closed."""

    _in_head = False
    _held = 0  # bytes of a head that has begun and is not complete
    _timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # as uvicorn has it
        super().connection_made(transport)
        self._expect_a_head()

    def connection_lost(self, exc: Exception | None) -> None:
        self._expect_none()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        begun = self._in_head
        super().data_received(data)
        if begun and self._in_head and not self.transport.is_closing():
            self._held += len(data)
            if self._held > MAX_HEAD_BYTES:
                self._refuse(431, f"The head of the request is larger than {MAX_HEAD_BYTES} bytes.")

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self._in_head, self._held = True, 0

    def on_headers_complete(self) -> None:
        self._expect_none()
        self._in_head = False
        super().on_headers_complete()

    def on_response_complete(self) -> None:
        last = not self.pipeline
        super().on_response_complete()
        if last and not self.transport.is_closing():
            self._expect_a_head()

    def _expect_a_head(self) -> None:
        self._expect_none()
        self._timer = self.loop.call_later(HEAD_WITHIN_S, self._too_slow)

    def _expect_none(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _too_slow(self) -> None:
        if self._in_head:
            self._refuse(408, f"The head of the request did not arrive within {HEAD_WITHIN_S:g} s.")
        else:
            self.transport.close()

    def _refuse(self, status: int, words: str) -> None:
        head = "content-type: text/plain; charset=utf-8\r\ncontent-length: {}\r\nconnection: close\r\n\r\n{}"
        self.transport.write(STATUS_LINE[status] + head.format(len(words), words).encode())
        self.transport.close()
