"""Clients that hold connections: endless trailers, pipelining, responses that are not read, idle sockets."""

from __future__ import annotations

import asyncio
import gc
import logging
import socket
import threading
import time
import weakref
from collections.abc import Iterator
from contextlib import suppress
from typing import Literal

import httpx
import pytest
import uvicorn
from starlette.requests import ClientDisconnect
from starlette.types import Receive, Scope, Send

from service.web import protocol
from service.web.protocol import MAX_HEADER_BYTES, MAX_PIPELINED, LimitedHttpProtocol
from tests.support.hostile_clients import (
    ENDLESS,
    chunked,
    connect,
    idle_connections,
    pipelining_clients,
    send_without_end,
)
from tests.support.service import WAIT_S, Live, answer, until

WITHIN_S = 0.3
MIB = 1024 * 1024
LARGE = 64 * MIB  # more than the buffers of both sides hold
GET = b"GET %s HTTP/1.1\r\nHost: x\r\n\r\n"


class Application:
    """Answers without reading the body: a short text, or many mebibytes in pieces; /wait… answers after ``go``."""

    def __init__(self) -> None:
        self.sending = self.disconnected = 0
        self.go = threading.Event()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        large, body = scope["path"].endswith("large"), scope["path"].encode()
        if body == b"/body":
            while (await receive()).get("more_body"):
                pass
        while body.startswith(b"/wait") and not self.go.is_set():
            await asyncio.sleep(0.01)
        headers = [] if large else [(b"content-length", str(len(body)).encode())]
        self.sending += 1
        try:
            await send({"type": "http.response.start", "status": 200, "headers": headers})
            for _ in range(LARGE // MIB if large else 0):
                await send({"type": "http.response.body", "body": bytes(MIB), "more_body": True})
            await send({"type": "http.response.body", "body": b"" if large else body})
        except ClientDisconnect:
            self.disconnected += 1
            raise
        finally:
            self.sending -= 1


@pytest.fixture(params=["asyncio", "uvloop"])
def loop(request: pytest.FixtureRequest) -> Literal["asyncio", "uvloop"]:
    return request.param  # type: ignore[no-any-return]


@pytest.fixture
def application() -> Application:
    return Application()


@pytest.fixture
def server(
    application: Application, loop: Literal["asyncio", "uvloop"], monkeypatch: pytest.MonkeyPatch
) -> Iterator[uvicorn.Server]:
    monkeypatch.setattr(protocol, "WRITE_TIMEOUT_S", WITHIN_S)
    config = uvicorn.Config(
        application, http=LimitedHttpProtocol, lifespan="off", log_config=None, ws="none", loop=loop
    )
    server = uvicorn.Server(config)
    with socket.create_server(("127.0.0.1", 0)) as listening:
        thread = threading.Thread(target=server.run, args=([listening],), daemon=True)
        thread.start()
        until(lambda: server.started)
        yield server
        application.go.set()
        server.should_exit = True
        thread.join(WAIT_S)


@pytest.fixture
def port(server: uvicorn.Server) -> int:
    return int(server.servers[0].sockets[0].getsockname()[1])


def responds(port: int) -> bool:
    with connect(port) as client:
        client.sendall(GET % b"/livez")
        return answer(client).startswith(b"HTTP/1.1 200 ")


# --- requests without end ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", ["/livez", "/body"])
@pytest.mark.parametrize("what", ENDLESS)
def test_closes_a_request_without_end(port: int, path: str, what: str) -> None:
    with connect(port) as client:
        client.sendall(chunked(f"POST {path}"))
        assert send_without_end(client, *ENDLESS[what], limit=256 * MIB) < 32 * MIB  # what buffers hold
    assert responds(port)


def test_rejects_large_headers_that_arrive_at_once(port: int) -> None:
    with connect(port) as client, suppress(ConnectionError):  # a reset may destroy the response
        client.sendall(b"GET / HTTP/1.1\r\nHost: x\r\nX-Large: " + b"a" * 2 * MAX_HEADER_BYTES + b"\r\n\r\n")
        assert answer(client).startswith(b"HTTP/1.1 431 ")


def test_endless_trailer_is_answered_431(port: int) -> None:
    with connect(port) as client:
        client.sendall(chunked("POST /body") + b"3\r\nabc\r\n0\r\nX-Large: ")
        for _ in range(2):
            time.sleep(0.05)
            client.sendall(b"a" * (MAX_HEADER_BYTES // 2 + 100))
        assert answer(client).startswith(b"HTTP/1.1 431 ")
        assert client.recv(1) == b""


def test_accepts_trailers_and_small_chunks(port: int) -> None:
    with connect(port) as client:
        for _ in range(2):
            client.sendall(chunked("POST /body") + b"1\r\nx\r\n" * 5000 + b"10;name=value\r\n" + bytes(16) + b"\r\n")
            client.sendall((b"40\r\n" + bytes(64) + b"\r\n") * 20_000 + b"0\r\nX-Sum: 1\r\n\r\n")
            assert answer(client).startswith(b"HTTP/1.1 200 ")


def test_rejects_too_many_headers_and_drops_trailers(port: int) -> None:
    with connect(port) as client:
        client.sendall(chunked("POST /body").replace(b"Host", b"a: b\r\n" * 200 + b"Host"))
        client.sendall(b"0\r\n" + b"a: b\r\n" * 1000 + b"\r\n")
        assert answer(client).startswith(b"HTTP/1.1 200 ")
        client.sendall(b"GET / HTTP/1.1\r\nHost: x\r\n" + b"a: b\r\n" * 300 + b"\r\n")
        assert answer(client).startswith(b"HTTP/1.1 400 ")


@pytest.mark.parametrize(("name", "status"), [("Accept", 406), ("Content-Type", 400)])
def test_service_parses_no_long_header(client: httpx.Client, name: str, status: int) -> None:
    assert client.post("/report", headers={name: "multipart/form-data;" + "q=0,a/b," * 5000}).status_code == status


# --- pipelining -----------------------------------------------------------------------------------------------------


def test_answers_pipelined_requests_in_order(port: int) -> None:
    with connect(port) as client:
        client.sendall(b"".join(GET % f"/{number}".encode() for number in range(MAX_PIPELINED)))
        for number in range(MAX_PIPELINED):
            assert answer(client).endswith(f"\r\n\r\n/{number}".encode())


def test_closes_after_the_first_of_too_many_pipelined_requests(port: int, application: Application) -> None:
    with connect(port) as client:
        client.sendall(GET % b"/wait" + (GET % b"/next") * 200)
        time.sleep(0.1)
        application.go.set()
        for _ in range(MAX_PIPELINED):
            assert answer(client).startswith(b"HTTP/1.1 200 ")
        assert client.recv(1) == b""


def test_answers_earlier_requests_before_it_refuses_a_malformed_one(port: int, application: Application) -> None:
    with connect(port) as client:
        client.sendall(GET % b"/wait" + b"\0\0\0\r\n\r\n")
        time.sleep(0.1)
        application.go.set()
        assert answer(client).startswith(b"HTTP/1.1 200 ")
        assert client.recv(1) == b""


# --- responses that are not read ------------------------------------------------------------------------------------


@pytest.mark.parametrize("closing", [b"", b"Connection: close\r\n"])
def test_disconnects_a_client_that_does_not_read(
    port: int, server: uvicorn.Server, application: Application, closing: bytes
) -> None:
    with connect(port, reads=False) as client:
        client.sendall(b"GET /large HTTP/1.1\r\nHost: x\r\n" + closing + b"\r\n")
        until(lambda: application.sending)
        until(lambda: not server.server_state.connections)
        until(lambda: not application.sending)
    assert application.disconnected == 1


def test_keeps_a_client_that_reads_slowly(port: int) -> None:
    with connect(port) as client:
        client.sendall(GET % b"/large")
        began, received = time.monotonic(), 0
        while received < LARGE and (part := client.recv(MIB)):
            received += len(part)
            if time.monotonic() - began < 4 * WITHIN_S:
                time.sleep(0.01)
        assert received >= LARGE


def test_ends_all_pipelined_requests_of_a_client_that_left(
    port: int, server: uvicorn.Server, application: Application, caplog: pytest.LogCaptureFixture
) -> None:
    with connect(port, reads=False) as client:
        client.sendall((GET % b"/large") * protocol.MAX_PIPELINED)
        until(lambda: application.sending)
    until(lambda: application.disconnected == 1)
    until(lambda: not server.server_state.connections)
    assert not server.server_state.connections
    assert not [record for record in caplog.records if record.levelno >= logging.ERROR]


def test_ends_a_request_whose_client_left_before_the_first_byte(
    port: int, server: uvicorn.Server, application: Application
) -> None:
    """Pipelined requests pause reading, so that only writing shows that the client left."""
    with connect(port, reads=False) as client:
        client.sendall((GET % b"/wait-large") * protocol.MAX_PIPELINED)
        until(lambda: server.server_state.tasks)
    time.sleep(0.05)
    application.go.set()
    until(lambda: not server.server_state.connections)
    until(lambda: not application.sending)
    assert application.disconnected == 1


def test_service_counts_clients_that_left_as_abandoned(
    page_server: Live, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(protocol, "MAX_PIPELINED", 200)  # their responses exceed the buffers of both sides
    with pipelining_clients(page_server.port, 2, requests=200), page_server.client() as client:
        until(lambda: sum(each.flow.write_paused for each in page_server.server.server_state.connections) == 2)
        assert client.get("/livez").status_code == client.get("/health").status_code == 200
    with page_server.client() as client:
        until(lambda: not page_server.server.server_state.tasks)
        metrics = client.get("/metrics").text
    assert 'cause="internal"' not in metrics
    assert "report_abandoned_total 0.0" not in metrics
    assert not [record for record in caplog.records if record.levelno >= logging.ERROR]


# --- idle connections -----------------------------------------------------------------------------------------------


def test_closes_the_oldest_idle_connection_at_the_limit(
    port: int, server: uvicorn.Server, application: Application, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(protocol, "MAX_CONNECTIONS", 8)
    with connect(port) as working:
        working.sendall(GET % b"/wait")
        until(lambda: server.server_state.tasks)
        with idle_connections(port, 40) as idle:
            assert idle[0].recv(1) == b""
            assert responds(port)
            until(lambda: len(server.server_state.connections) <= 8)
            idle[-1].sendall(GET % b"/still")
            assert answer(idle[-1]).endswith(b"/still")
        application.go.set()
        assert answer(working).endswith(b"/wait")


def test_connections_use_half_of_the_file_descriptors(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(protocol.resource, "getrlimit", lambda _: (512, 512))
    assert protocol.connection_limit() == 256


def test_closes_an_answered_upload_before_a_running_request(
    port: int, server: uvicorn.Server, application: Application, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(protocol, "MAX_CONNECTIONS", 2)
    with connect(port) as working, connect(port) as draining:
        working.sendall(GET % b"/wait")
        draining.sendall(b"POST /large HTTP/1.1\r\nHost: x\r\nContent-Length: 10\r\n\r\n")
        until(lambda: application.sending)
        assert responds(port)
        application.go.set()
        assert answer(working).endswith(b"/wait")


@pytest.mark.parametrize("loop", ["uvloop"], indirect=True)  # asyncio itself keeps the last connection
def test_frees_a_closed_connection_without_garbage_collection(port: int, server: uvicorn.Server) -> None:
    gc.disable()
    try:
        with connect(port) as client:
            client.sendall(GET % b"/livez")
            assert answer(client)
            (connection,) = map(weakref.ref, server.server_state.connections)
        until(lambda: connection() is None)
    finally:
        gc.enable()


# --- Host -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        (b"HTTP/1.1\r\nHost: x", 200),
        (b"HTTP/1.1\r\nHost:", 200),
        (b"HTTP/1.0", 200),
        (b"HTTP/1.1", 400),
        (b"HTTP/1.1\r\nHost: x\r\nHost: x", 400),
        (b"HTTP/1.0\r\nHost: x\r\nhost: y", 400),
    ],
)
def test_requires_one_host(port: int, headers: bytes, status: int) -> None:
    with connect(port) as client:
        client.sendall(b"GET /livez " + headers + b"\r\n\r\n")
        assert answer(client).startswith(f"HTTP/1.1 {status} ".encode())


def test_service_repeats_no_host_in_a_redirect(page_server: Live) -> None:
    with page_server.client() as client:
        for path in ("/report/", "/health/", "/static"):
            response = client.get(path, headers={"Host": "evil.example"})
            assert response.status_code == 404
            assert "evil.example" not in str(response.headers) + response.text
