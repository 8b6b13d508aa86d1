"""Uvicorn's HTTP protocol with a limit on the headers of a request, in bytes and in time.

Uvicorn reads a request line and headers of any length at any rate before it calls the application.
One client could fill the memory, and many idle clients could take all connections.
"""

from __future__ import annotations

import asyncio

from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol

MAX_HEADER_BYTES = 64 * 1024  # after the first read, which takes 256 KiB at most
HEADER_TIMEOUT_S = 15.0  # after the connection was made or the previous response was sent


class HeaderLimitedHttpProtocol(HttpToolsProtocol):
    """One connection: responds 431 to large headers and 408 to slow ones, then closes."""

    _reading_headers = False
    _header_bytes = 0  # bytes of incomplete headers
    _timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # as uvicorn has it
        super().connection_made(transport)
        self._start_timer()

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop_timer()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        reading = self._reading_headers
        super().data_received(data)
        if reading and self._reading_headers and not self.transport.is_closing():
            self._header_bytes += len(data)
            if self._header_bytes > MAX_HEADER_BYTES:
                self._refuse(431, f"The headers of the request are larger than {MAX_HEADER_BYTES} bytes.")

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self._reading_headers, self._header_bytes = True, 0

    def on_headers_complete(self) -> None:
        self._stop_timer()
        self._reading_headers = False
        super().on_headers_complete()

    def on_response_complete(self) -> None:
        last = not self.pipeline
        super().on_response_complete()
        if last and not self.transport.is_closing():
            self._start_timer()

    def _start_timer(self) -> None:
        self._stop_timer()
        self._timer = self.loop.call_later(HEADER_TIMEOUT_S, self._on_timeout)

    def _stop_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _on_timeout(self) -> None:
        if self._reading_headers:
            self._refuse(408, f"The headers of the request did not arrive within {HEADER_TIMEOUT_S:g} s.")
        else:
            self.transport.close()

    def _refuse(self, status: int, detail: str) -> None:
        head = "content-type: text/plain; charset=utf-8\r\ncontent-length: {}\r\nconnection: close\r\n\r\n{}"
        self.transport.write(STATUS_LINE[status] + head.format(len(detail), detail).encode())
        self.transport.close()
