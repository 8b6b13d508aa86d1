"""Request headers that are too large or too slow, on raw connections to a real server."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Iterator
from contextlib import suppress

import pytest
import uvicorn
from starlette.types import Receive, Scope, Send

from service.web import protocol
from service.web.protocol import MAX_HEADER_BYTES, LimitedHttpProtocol
from tests.support.service import WAIT_S, answer, until

WITHIN_S = 0.5
ASK = b"GET / HTTP/1.1\r\nHost: x\r\n"


async def count_body(scope: Scope, receive: Receive, send: Send) -> None:
    """Answers with the number of bytes of the body, at once for /early."""
    size, more = 0, scope["path"] != "/early"
    while more:
        message = await receive()
        size, more = size + len(message.get("body", b"")), message.get("more_body", False)
    body = str(size).encode()
    headers = [(b"content-length", str(len(body)).encode())]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": body})


@pytest.fixture(scope="module")
def port() -> Iterator[int]:
    config = uvicorn.Config(count_body, http=LimitedHttpProtocol, lifespan="off", log_config=None, ws="none")
    server = uvicorn.Server(config)
    with pytest.MonkeyPatch.context() as patch, socket.create_server(("127.0.0.1", 0)) as listening:
        patch.setattr(protocol, "HEADER_TIMEOUT_S", WITHIN_S)
        thread = threading.Thread(target=server.run, args=([listening],), daemon=True)
        thread.start()
        until(lambda: server.started)
        yield listening.getsockname()[1]
        server.should_exit = True
        thread.join(WAIT_S)


@pytest.fixture
def client(port: int) -> Iterator[socket.socket]:
    with socket.create_connection(("127.0.0.1", port), timeout=WAIT_S) as client:
        yield client


def test_accepts_usual_headers_on_one_connection(client: socket.socket) -> None:
    for _ in range(2):
        client.sendall(ASK + b"X-Long: " + bytes(b"a" * 50_000) + b"\r\n\r\n")
        assert answer(client).startswith(b"HTTP/1.1 200 ")


@pytest.mark.parametrize("start", [ASK + b"X-Endless: ", b"GET /"])
def test_rejects_endless_headers(client: socket.socket, start: bytes) -> None:
    client.sendall(start)
    with pytest.raises(OSError, match=r"reset|Broken pipe"):
        client.sendall(b"a" * 256 * MAX_HEADER_BYTES)  # more than the buffers of both sides hold


def test_large_headers_are_answered_431(client: socket.socket) -> None:
    client.sendall(ASK)
    for _ in range(2):
        time.sleep(0.05)  # two pieces, which the server reads apart
        client.sendall(b"X-Large: " + b"a" * (MAX_HEADER_BYTES // 2) + b"\r\n")
    response = answer(client)
    assert response.startswith(b"HTTP/1.1 431 ")
    assert b"connection: close" in response
    assert client.recv(1) == b""


def test_slow_headers_are_answered_408_and_silent_connections_closed(client: socket.socket, port: int) -> None:
    client.sendall(ASK)
    with socket.create_connection(("127.0.0.1", port), timeout=WAIT_S) as silent:
        assert answer(client).startswith(b"HTTP/1.1 408 ")
        assert silent.recv(1) == b""


def test_blank_lines_do_not_keep_a_connection_open(client: socket.socket) -> None:
    def closed() -> bool:
        try:
            client.sendall(b"\r\n")
        except OSError:
            return True
        return False

    until(closed)


def test_header_timeout_does_not_apply_to_bodies(client: socket.socket) -> None:
    client.sendall(b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 4\r\n\r\nab")
    time.sleep(1.5 * WITHIN_S)
    client.sendall(b"cd")
    assert answer(client).endswith(b"\r\n\r\n4")
    client.sendall(ASK + b"\r\n")
    assert answer(client).endswith(b"\r\n\r\n0")
    assert client.recv(1) == b"", "an idle connection is closed"


def test_rest_of_an_early_answered_body_is_not_counted_as_headers(client: socket.socket) -> None:
    client.sendall(b"POST /early HTTP/1.1\r\nHost: x\r\nContent-Length: 300000\r\n\r\n")
    assert answer(client).endswith(b"\r\n\r\n0")
    client.sendall(bytes(300_000) + ASK + b"\r\n")
    assert answer(client).endswith(b"\r\n\r\n0")


UPLOAD = (
    b"POST / HTTP/1.1\r\nHost: x\r\nConnection: Upgrade, HTTP2-Settings\r\n",
    b"Upgrade: h2c\r\nHTTP2-Settings: AAMAAABk\r\n",
)
SMUGGLED = ASK + b"\r\n"


@pytest.mark.parametrize("pause_s", [0.0, 0.1])
def test_reads_the_body_of_a_request_that_offers_an_upgrade(client: socket.socket, pause_s: float) -> None:
    """Java's client offers HTTP/2 with its first request."""
    for _ in range(2):
        client.sendall(b"".join(UPLOAD) + b"Content-Length: %d\r\n\r\n" % len(SMUGGLED))
        time.sleep(pause_s)
        client.sendall(SMUGGLED)
        assert answer(client).endswith(b"\r\n\r\n%d" % len(SMUGGLED))


@pytest.mark.parametrize("framing", [b"Content-Length: %d\r\n\r\n", b"Transfer-Encoding: chunked\r\n\r\n%x\r\n"])
def test_body_after_an_upgrade_is_not_taken_for_requests(client: socket.socket, framing: bytes) -> None:
    """A proxy would give the second answer to its next client."""
    for part in (*UPLOAD, framing % len(SMUGGLED), SMUGGLED):
        client.sendall(part)
        time.sleep(0.05)
    assert answer(client).startswith(b"HTTP/1.1 400 ")
    with suppress(ConnectionError):
        assert client.recv(1) == b""
