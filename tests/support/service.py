"""The service in tests: the real app over a tiny real bundle, behind a real uvicorn; drawn images."""

from __future__ import annotations

import contextlib
import dataclasses
import io
import random
import socket
import struct
import threading
import time
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import httpx
import numpy as np
import pytest
import uvicorn
from fastapi import FastAPI
from PIL import Image

from model.drafter import Drafter
from model.types import Draft, DraftOptions, StudyView
from service.app import create_app
from service.inference import runtime
from service.inference.loader import LoadedBundle, load
from service.settings import Settings
from service.web.protocol import LimitedHttpProtocol

PROBLEM = "application/problem+json"
WAIT_S = 60.0
KEY = "correct-horse-battery-staple"
AUTHORIZED = {"Authorization": f"Bearer {KEY}"}


def settings_for(bundle: Path, **changes: Any) -> Settings:
    """Settings that serve `bundle` on the CPU; a second decoder would take a third of a second to start."""
    values: dict[str, Any] = {"bundle": bundle, "device": "cpu", "port": 0, "decode_workers": 1, **changes}
    return Settings(**values)


def wait_until_ready(client: httpx.Client) -> None:
    """Poll /health until it returns 200."""
    deadline = time.monotonic() + WAIT_S
    while (answer := client.get("/health")).status_code != 200:
        assert answer.json()["code"] == "loading", answer.json()
        assert time.monotonic() < deadline, "the service did not become ready"
        time.sleep(0.02)


def free_port() -> int:
    """A TCP port that is free now, below the range from which the system takes the ports of connections."""
    while True:
        with socket.socket() as probe, contextlib.suppress(OSError):
            port = random.SystemRandom().randrange(20_000, 32_000)
            probe.bind(("0.0.0.0", port))
            return port


def answer(client: socket.socket) -> bytes:
    """The next answer on a raw connection; it must have a length."""
    head = b""
    while not head.endswith(b"\r\n\r\n"):
        byte = client.recv(1)
        assert byte, f"the server closed after {head!r}"
        head += byte
    length = int(head.lower().partition(b"content-length: ")[2].split(b"\r\n")[0])
    return head + b"".join(client.recv(1) for _ in range(length))


def start_decoder(client: httpx.Client) -> None:
    """Start a decode worker, which takes longer than the deadline of some tests."""
    until(lambda: client.post("/preview", files={"image": ("i", png())}).status_code == 200)


def until(condition: Callable[[], object]) -> None:
    """Poll until it holds."""
    deadline = time.monotonic() + WAIT_S
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


@dataclass(frozen=True)
class Live:
    """A running server: where it listens, and the app inside it."""

    url: str
    port: int
    app: FastAPI
    server: uvicorn.Server

    def stop(self) -> None:
        """Ask it to stop, as SIGTERM does."""
        self.server.should_exit = True

    def client(self) -> httpx.Client:
        """A client of this server. It reads no certificates, which would take 20 ms."""
        return httpx.Client(base_url=self.url, timeout=WAIT_S, verify=False)


@contextmanager
def live_server(
    bundle: Path, *, http: Literal["httptools", "h11"] = "httptools", wait: bool = True, **changes: Any
) -> Iterator[Live]:
    """The app behind a real uvicorn on 127.0.0.1; ready, unless not to `wait`."""
    app = create_app(settings_for(bundle, **changes))
    protocol = LimitedHttpProtocol if http == "httptools" else http  # as python -m service has it
    config = uvicorn.Config(app, host="127.0.0.1", port=0, http=protocol, access_log=False, log_config=None)
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    try:
        deadline = time.monotonic() + WAIT_S
        while not server.started:
            assert time.monotonic() < deadline, "uvicorn did not start"
            assert thread.is_alive(), "uvicorn stopped"
            time.sleep(0.01)
        port = server.servers[0].sockets[0].getsockname()[1]
        live = Live(f"http://127.0.0.1:{port}", port, app, server)
        if wait:
            with live.client() as client:
                wait_until_ready(client)
        yield live
    finally:
        server.should_exit = True
        thread.join(WAIT_S)
    assert not thread.is_alive(), "uvicorn did not stop"


@contextmanager
def ready_client(bundle: Path, **changes: Any) -> Iterator[httpx.Client]:
    """A client of such a server."""
    with live_server(bundle, **changes) as live, live.client() as client:
        yield client


# --- drafters that wait ---------------------------------------------------------------------------------------------


class Gate(Drafter):
    """The real drafter behind a gate; counts its batches, and fails with `error` when that is set."""

    def __init__(self, real: Drafter) -> None:
        super().__init__(real.bundle, real.index, device=real.device)
        self.begun, self.go, self.batches = threading.Event(), threading.Event(), list[int]()
        self.error: BaseException | None = None

    def draft(
        self,
        studies: Sequence[Sequence[StudyView]],
        options: DraftOptions = DraftOptions(),  # noqa: B008
        **more: Any,
    ) -> list[Draft]:
        self.begun.set()
        assert self.go.wait(WAIT_S)
        self.batches.append(len(studies))
        if self.error is not None:
            raise self.error
        return super().draft(studies, options, **more)


def gate_drafters(monkeypatch: pytest.MonkeyPatch) -> list[Gate]:
    """Puts a gate before every drafter that the service loads."""
    made: list[Gate] = []

    def load_gated(settings: Settings) -> LoadedBundle:
        loaded = load(settings)
        made.append(Gate(loaded.drafter))
        return dataclasses.replace(loaded, drafters=(made[-1],))

    monkeypatch.setattr(runtime, "load", load_gated)
    return made


# --- images -----------------------------------------------------------------------------------------------------


def scene(width: int = 90, height: int = 120) -> np.ndarray[Any, np.dtype[np.uint8]]:
    """(H, W) uint8: a soft gradient with a bright disc off its centre, so that turning it matters."""
    y, x = np.mgrid[0:height, 0:width].astype(np.float32)
    disc = ((x - 0.3 * width) ** 2 + (y - 0.25 * height) ** 2) < (0.18 * width) ** 2
    return np.where(disc, 235, 40 + 120 * y / height).astype(np.uint8)


def encode(image: Image.Image, kind: str = "PNG", **options: Any) -> bytes:
    """The file of an image."""
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def png(width: int = 90, height: int = 120) -> bytes:
    """An 8-bit grey PNG."""
    return encode(Image.fromarray(scene(width, height)))


def png_claiming(width: int, height: int) -> bytes:
    """A small PNG file whose header claims any size."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(bytes(1000))) + chunk(b"IEND", b"")
    )
