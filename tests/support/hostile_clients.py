"""Clients that misuse connections, as raw sockets to a port of 127.0.0.1."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress

from tests.support.service import WAIT_S

_SMALL_BUFFER = 4096


def connect(port: int, *, reads: bool = True) -> socket.socket:
    """A connection; with a small receive buffer if its client never `reads`."""
    client = socket.socket()
    if not reads:
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _SMALL_BUFFER)
    client.settimeout(WAIT_S)
    client.connect(("127.0.0.1", port))
    return client


@contextmanager
def idle_connections(port: int, count: int) -> Iterator[list[socket.socket]]:
    """Connections that send nothing."""
    with ExitStack() as stack:
        yield [stack.enter_context(connect(port)) for _ in range(count)]


@contextmanager
def pipelining_clients(port: int, count: int, requests: int, path: str = "/openapi.json") -> Iterator[None]:
    """Connections that send many requests at once and read nothing; then they are reset."""
    with ExitStack() as stack:
        for _ in range(count):
            client = stack.enter_context(connect(port, reads=False))
            client.sendall(f"GET {path} HTTP/1.1\r\nHost: x\r\n\r\n".encode() * requests)
        yield


def chunked(method_and_path: str = "GET /livez") -> bytes:
    """The headers of a request with a chunked body."""
    return f"{method_and_path} HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n".encode()


ENDLESS = {  # what follows the headers of a chunked request: a start, then a piece that is repeated without end
    "trailer": (b"0\r\nX-Endless: ", b"a" * 4096),
    "trailers": (b"0\r\n", b"X-More: a\r\n" * 400),
    "chunk extension": (b"1;name=", b"a" * 4096),
    "chunk extensions": (b"", b"1;name=" + b"a" * 4096 + b"\r\nx\r\n"),
    "chunk size": (b"", b"0" * 4096),
    "tiny chunks": (b"", b"1\r\nx\r\n" * 700),
}


def send_without_end(client: socket.socket, start: bytes, piece: bytes, limit: int) -> int:
    """Send the piece again and again until the server closes; the number of sent bytes, at most `limit`."""
    sent = 0
    with suppress(ConnectionError):
        client.sendall(start)
        while sent < limit:
            client.sendall(piece)
            sent += len(piece)
    return sent
