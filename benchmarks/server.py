"""Start, pause and stop servers as processes of their own on the loopback address."""

from __future__ import annotations

import argparse
import logging
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx

log = logging.getLogger(__name__)
BUNDLE = Path("bundles/iu-xray")
READY_WITHIN_S = 300.0  # a new process imports torch, which takes long where all cores are taken
STOP_WITHIN_S = 60.0


@dataclass(frozen=True)
class Server:
    """A server that answers at ``url``; ``process`` is None where it was not started here, ``log`` its output."""

    url: str
    process: subprocess.Popen[bytes] | None = None
    log: Path | None = None

    @property
    def pid(self) -> int | None:
        """Process id, if it was started here."""
        return None if self.process is None else self.process.pid

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Suspend all its processes, so that they use no core; does nothing if it was not started here."""
        if self.process is not None:
            os.killpg(self.process.pid, signal.SIGSTOP)
        try:
            yield
        finally:
            if self.process is not None:
                os.killpg(self.process.pid, signal.SIGCONT)


@contextmanager
def running(
    command: Sequence[str], *, environment: Mapping[str, str], health: str = "/health", log: Path | None = None
) -> Iterator[Server]:
    """``python COMMAND`` with a free port in place of ``{port}``; ready when yielded, stopped at the end.

    Args:
        command: arguments of the interpreter, one of which holds ``{port}``.
        environment: additional variables.
        health: path that answers 200 once the server is ready.
        log: file for its output; None discards it.

    Raises:
        RuntimeError: the process ended before it was ready.
        TimeoutError: it was not ready in time.
    """
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = int(probe.getsockname()[1])
    with tempfile.TemporaryFile() if log is None else log.open("wb") as output:
        process = subprocess.Popen(
            [sys.executable, *(argument.format(port=port) for argument in command)],
            env={**os.environ, **environment}, stdout=output, stderr=subprocess.STDOUT, start_new_session=True,
        )  # fmt: skip
        server = Server(f"http://127.0.0.1:{port}", process, log)
        try:
            _wait_until_ready(server, health)
            yield server
        finally:
            process.terminate()
            with suppress(subprocess.TimeoutExpired):
                process.wait(STOP_WITHIN_S)
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)  # workers that outlived it
            process.wait()


@contextmanager
def service(bundle: Path, *, device: str, log: Path | None = None, **settings: object) -> Iterator[Server]:
    """``python -m service`` over ``bundle``; ``settings`` are those of ``service.settings``."""
    environment = {"REPORT_PREFER_HYDRATED": "false", "REPORT_LOG_LEVEL": "WARNING"}
    environment |= {f"REPORT_{name.upper()}": str(value) for name, value in settings.items()}
    command = ["-m", "service", "--bundle", str(bundle), "--device", device, "--port", "{port}"]
    with running(command, environment=environment, log=log) as server:
        yield server


@contextmanager
def bundle_of(arguments: argparse.Namespace) -> Iterator[Path]:
    """The bundle of ``--bundle``, or with ``--tiny`` a temporary untrained one: the one that the tests use."""
    if not arguments.tiny:
        yield arguments.bundle
        return
    from tests.support.tiny import write_tiny_bundle

    with tempfile.TemporaryDirectory() as folder:
        yield write_tiny_bundle(Path(folder) / "tiny")


@contextmanager
def server_of(arguments: argparse.Namespace, **settings: object) -> Iterator[Server]:
    """The server of ``--url``, or one that is started over the bundle, with its log in ``--out``."""
    if arguments.url:
        yield Server(arguments.url.rstrip("/"))
        return
    arguments.out.mkdir(parents=True, exist_ok=True)
    with bundle_of(arguments) as bundle:
        log.info("starting the service over %s", bundle)
        with service(bundle, device=arguments.device, log=arguments.out / "service.log", **settings) as server:
            yield server


def add_server_arguments(parser: argparse.ArgumentParser, *, url: bool = True, device: str = "auto") -> None:
    """``--url``, ``--bundle``, ``--tiny`` and ``--device``."""
    which = parser.add_mutually_exclusive_group()
    if url:
        which.add_argument("--url", help="a service that runs already; its memory is not measured")
    which.add_argument("--bundle", type=Path, default=BUNDLE)
    which.add_argument("--tiny", action="store_true", help="serve a tiny untrained bundle")
    parser.add_argument("--device", default=device, help="of the service: auto, cpu, cuda")


def idle(url: str, *, within_s: float = 30.0) -> dict[str, Any]:
    """The answer of ``/health``, with ``status_code``, once its queue is empty or ``within_s`` have passed.

    Raises:
        httpx.TransportError: there is no answer.
    """
    deadline = time.monotonic() + within_s
    while True:
        answer = httpx.get(url + "/health", timeout=30)
        body: dict[str, Any] = {"status_code": answer.status_code, **answer.json()}
        if body.get("queue", {}).get("depth") == 0 or time.monotonic() > deadline:
            return body
        time.sleep(0.1)


def _wait_until_ready(server: Server, path: str) -> None:
    deadline = time.monotonic() + READY_WITHIN_S
    while time.monotonic() < deadline:
        if server.process is not None and (status := server.process.poll()) is not None:
            raise RuntimeError(f"the server ended with status {status} before it was ready; run it by hand to see why")
        with suppress(httpx.TransportError):
            if httpx.get(server.url + path, timeout=5).status_code == 200:
                return
        time.sleep(0.02)
    raise TimeoutError(f"{server.url}{path} did not answer 200 within {READY_WITHIN_S:.0f} s")
