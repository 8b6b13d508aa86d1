"""Uploads to a real server: limited while they stream, never on disk, slow ones cancelled."""

from __future__ import annotations

import resource
import socket
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from service.settings import MIB
from service.web import request_body
from tests.support.service import WAIT_S, Live, encode, live_server, png, scene, until

MULTIPART = "multipart/form-data; boundary=b"
OPEN = b'--b\r\nContent-Disposition: form-data; name="frontal"; filename="f.png"\r\nContent-Type: image/png\r\n\r\n'
CHUNK = bytes(MIB)
CAP = 2 * 32 * MIB  # of a whole body, by default


@pytest.fixture(scope="module", params=["httptools", "h11"])
def server(bundle: Path, request: pytest.FixtureRequest) -> Iterator[Live]:
    with live_server(bundle, http=request.param, warm_up=False) as live:
        yield live


def drafts(live: Live) -> bool:
    """Whether the server still drafts."""
    with live.client() as client:
        return client.post("/report", files={"frontal": ("f", png())}, data={"beam_size": "1"}).status_code == 200


def huge(megabytes: int) -> Iterator[bytes]:
    yield OPEN
    for _ in range(megabytes):
        yield CHUNK
    yield b"\r\n--b--\r\n"


def peak_mib() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


@pytest.mark.parametrize("declared", [True, False], ids=["Content-Length", "chunked"])
def test_rejects_200_megabytes_without_buffering_them(server: Live, declared: bool) -> None:
    length = len(OPEN) + 200 * MIB + len(b"\r\n--b--\r\n")
    headers = {"Content-Type": MULTIPART} | ({"Content-Length": str(length)} if declared else {})
    before = peak_mib()
    with server.client() as client:
        answer = client.post("/report", content=huge(200), headers=headers)
    assert answer.status_code == 413
    assert answer.headers["content-type"] == "application/problem+json"
    body = answer.json()
    assert body["code"] == "upload_too_large"
    assert body["field"] == (None if declared else "frontal")
    assert peak_mib() - before < 120
    assert drafts(server)


def connect(live: Live, head: str) -> socket.socket:
    connection = socket.create_connection(("127.0.0.1", live.port), timeout=WAIT_S)
    lines = f"POST /report HTTP/1.1\r\nHost: localhost\r\nContent-Type: {MULTIPART}\r\n{head}\r\n\r\n"
    connection.sendall(lines.encode())
    return connection


@pytest.mark.parametrize(
    "head", [f"Content-Length: {CAP + MIB}", f"Content-Length: {200 * MIB}\r\nExpect: 100-continue"]
)
def test_rejects_large_content_length_before_the_body(server: Live, head: str) -> None:
    with connect(server, head) as connection:
        assert connection.recv(65536).startswith(b"HTTP/1.1 413")


def test_rejects_chunked_body_soon_after_the_limit(server: Live) -> None:
    sent = 0
    with connect(server, "Transfer-Encoding: chunked") as connection:
        answered = threading.Event()
        answer = bytearray()

        def listen() -> None:
            answer.extend(connection.recv(65536))
            answered.set()

        thread = threading.Thread(target=listen, daemon=True)
        thread.start()
        connection.sendall(b"%x\r\n%s\r\n" % (len(OPEN), OPEN))
        while not answered.is_set() and sent < 200 * MIB:
            connection.sendall(b"%x\r\n%s\r\n" % (len(CHUNK), CHUNK))
            sent += len(CHUNK)
        thread.join(WAIT_S)
    assert answer.startswith(b"HTTP/1.1 413")
    assert 32 * MIB <= sent < 100 * MIB  # beyond the cap only what the sockets buffered and the server let pass
    assert drafts(server)


def test_false_small_content_length_does_not_bypass_the_limit(server: Live) -> None:
    """The server reads what was declared; the rest is no valid request."""
    with connect(server, "Content-Length: 100") as connection:
        connection.sendall(OPEN + bytes(1000))
        assert connection.recv(65536).startswith(b"HTTP/1.1 400")
    assert drafts(server)


def test_disconnect_during_upload_frees_the_slot(server: Live) -> None:
    with connect(server, f"Content-Length: {MIB}") as connection:
        connection.sendall(OPEN + bytes(1000))
        wait_for_depth(server, 1)
    wait_for_depth(server, 0)
    assert drafts(server)


def wait_for_depth(live: Live, depth: int) -> None:
    with live.client() as client:
        until(lambda: client.get("/health").json()["queue"]["depth"] == depth)


def test_slow_upload_times_out(bundle: Path) -> None:
    with (
        live_server(bundle, warm_up=False, upload_timeout_s=0.3) as live,
        connect(live, f"Content-Length: {MIB}") as connection,
    ):
        connection.sendall(OPEN)
        answer = connection.recv(65536)
        assert answer.startswith(b"HTTP/1.1 408")
        assert b"0.3 s" in answer
        assert drafts(live)


def test_trickling_upload_loses_its_slot_early(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(request_body, "GRACE_S", 0.4)
    with (
        live_server(bundle, warm_up=False, upload_timeout_s=60) as live,
        connect(live, f"Content-Length: {MIB}") as connection,
    ):
        connection.sendall(OPEN)
        began = time.monotonic()
        connection.setblocking(False)
        response = b""
        while not response and time.monotonic() - began < WAIT_S:
            with suppress(BlockingIOError):
                connection.send(b"x")
                response = connection.recv(65536)
            time.sleep(0.02)
        assert response.startswith(b"HTTP/1.1 408")
        assert 0.4 <= time.monotonic() - began < 10
        body = OPEN + b"x" * 400_000  # fifty seconds' worth
        with connect(live, f"Content-Length: {MIB}") as steady:
            steady.sendall(body)
            wait_for_depth(live, 1)
            time.sleep(0.6)
            wait_for_depth(live, 1)


# --- nothing on disk --------------------------------------------------------------------------------------------


class Writes:
    """Every file that this process opens for writing or makes while `watching`, seen by the interpreter's audit."""

    def __init__(self) -> None:
        self.watching = False
        self.seen: list[str] = []
        sys.addaudithook(self._hook)

    def _hook(self, event: str, arguments: tuple[Any, ...]) -> None:
        if not self.watching:
            return
        if event == "open":
            path, mode, flags = arguments
            writes = any(letter in mode for letter in "wax+") if isinstance(mode, str) else bool(flags & 0o3)
            if writes and str(path) != "/dev/null":
                self.seen.append(f"open {path} {mode} {flags}")
        elif event.startswith(("tempfile.", "os.mkdir", "os.rename", "os.link", "os.symlink")):
            self.seen.append(f"{event} {arguments}")


@pytest.fixture(scope="module")
def writes() -> Writes:
    return Writes()  # an audit hook cannot be removed, so there is one


def test_uploads_never_touch_the_disk(
    page_server: Live, writes: Writes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    noise = np.random.default_rng(0).integers(0, 256, (1800, 1800), dtype=np.uint8)
    for status, data in ((200, encode(Image.fromarray(noise))), (422, bytes(20 * MIB)), (413, bytes(40 * MIB))):
        assert len(data) > 3 * MIB  # Starlette's files roll over to disk at 1 MB
        with page_server.client() as client:
            request = client.build_request("POST", "/report", files={"frontal": ("one.png", data)})
            writes.seen.clear()
            writes.watching = True
            try:
                answer = client.send(request)
            finally:
                writes.watching = False
        assert answer.status_code == status
        assert writes.seen == []
        assert list(tmp_path.iterdir()) == []


def test_write_watch_detects_spooled_files(writes: Writes) -> None:
    """A control for the test above: the watch sees a spooled file that rolls over."""
    writes.seen.clear()
    writes.watching = True
    try:
        with tempfile.SpooledTemporaryFile(max_size=10) as file:
            file.write(bytes(100))
    finally:
        writes.watching = False
    assert writes.seen


def test_accepts_body_in_any_chunk_size(server: Live) -> None:
    image = png()
    body = OPEN + image + b'\r\n--b\r\nContent-Disposition: form-data; name="beam_size"\r\n\r\n1\r\n--b--\r\nepilogue'

    def pieces(size: int) -> Iterator[bytes]:
        for start in range(0, len(body), size):
            yield body[start : start + size]

    with server.client() as client:
        for size in (1, 7, 64, len(body)):
            answer = client.post("/report", content=pieces(size), headers={"Content-Type": MULTIPART})
            assert answer.status_code == 200, (size, answer.text)


def test_keeps_data_that_resembles_the_boundary(server: Live) -> None:
    data = encode(Image.fromarray(scene()), "JPEG", comment=b"\r\n--\r\n--a\r\n-\r--\n--B--\r\n" * 50)
    with server.client() as client:
        plain = client.post("/report", files={"frontal": ("f", data)}).json()
        answer = client.post("/report", content=OPEN + data + b"\r\n--b--\r\n", headers={"Content-Type": MULTIPART})
    assert answer.status_code == 200
    assert answer.json()["sentences"] == plain["sentences"]


# --- refusals reach clients that are still sending --------------------------------------------------------------------


@pytest.mark.parametrize("closing", ["Connection: close", "X: y"], ids=["closing", "staying"])
@pytest.mark.parametrize("version", ["HTTP/1.1", "HTTP/1.0"])
def test_early_refusal_reaches_a_client_that_still_sends(server: Live, closing: str, version: str) -> None:
    """A close with unread bytes resets the connection, which can destroy the response."""
    body = OPEN + 8 * CHUNK
    head = f"POST /report?top_k=3 {version}\r\nHost: x\r\nContent-Type: {MULTIPART}\r\n{closing}\r\n"
    for _ in range(5):
        with socket.create_connection(("127.0.0.1", server.port), timeout=WAIT_S) as connection:
            connection.sendall(f"{head}Content-Length: {len(body)}\r\n\r\n".encode())
            connection.sendall(body)  # raises where the server reset the connection
            answer = connection.recv(65536)
        assert answer.startswith(b"HTTP/1.1 422")
        assert b"is in the query string" in answer
    assert drafts(server)


def test_draining_ends_for_a_client_that_never_stops_sending(server: Live, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("service.web.middleware.DRAIN_TIMEOUT_S", 0.3)
    head = f"POST /report?top_k=3 HTTP/1.1\r\nHost: x\r\nContent-Type: {MULTIPART}\r\nConnection: close\r\n"
    with socket.create_connection(("127.0.0.1", server.port), timeout=WAIT_S) as connection:
        connection.sendall(f"{head}Content-Length: 1000000\r\n\r\n".encode() + OPEN)
        began = time.monotonic()
        answer = b""
        while part := connection.recv(65536):
            answer += part
    assert answer.startswith(b"HTTP/1.1 422")
    assert 0.2 < time.monotonic() - began < WAIT_S / 2
