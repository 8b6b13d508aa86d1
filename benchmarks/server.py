"""Servers as processes on the loopback address, and what the commands that load them share."""

from __future__ import annotations

import argparse
import json
import logging
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import httpx

from model.command_line import CommandParser
from model.files import write_atomic

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
        return None if self.process is None else self.process.pid

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Suspend all its processes, so that they use no core; does nothing if it was not started here."""
        if self.pid is not None:
            os.killpg(self.pid, signal.SIGSTOP)
        try:
            yield
        finally:
            if self.pid is not None:
                os.killpg(self.pid, signal.SIGCONT)


@contextmanager
def running(
    module: str, *arguments: object, health: str = "/health", log: Path | None = None, **settings: Any
) -> Iterator[Server]:
    """``python -m MODULE ARGUMENTS PORT`` with a free port; ready when yielded, stopped at the end.

    It is ready once the path ``health`` answers 200. Its output goes to ``log``, or is discarded. ``settings`` are
    those of ``service.settings``, passed as environment variables.

    Raises:
        RuntimeError: the process ended before it was ready.
        TimeoutError: it was not ready in time.
    """
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = int(probe.getsockname()[1])
    with tempfile.TemporaryFile() if log is None else log.open("wb") as output:
        process = subprocess.Popen(
            [sys.executable, "-m", module, *map(str, arguments), str(port)], stdout=output, stderr=subprocess.STDOUT,
            env=os.environ | {f"REPORT_{name.upper()}": str(value) for name, value in settings.items()},
            start_new_session=True,
        )  # fmt: skip
        server = Server(f"http://127.0.0.1:{port}", process, log)
        try:
            _wait_until_ready(server, process, health)
            yield server
        finally:
            process.terminate()
            with suppress(subprocess.TimeoutExpired):
                process.wait(STOP_WITHIN_S)
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)  # workers that outlived it
            process.wait()


def _wait_until_ready(server: Server, process: subprocess.Popen[bytes], path: str) -> None:
    deadline = time.monotonic() + READY_WITHIN_S
    with httpx.Client(timeout=5, verify=False) as client:  # reading certificates takes 20 ms of a core that starts it
        while time.monotonic() < deadline:
            if (status := process.poll()) is not None:
                raise RuntimeError(
                    f"the server ended with status {status} before it was ready; run it by hand to see why"
                )
            with suppress(httpx.TransportError):
                if client.get(server.url + path).status_code == 200:
                    return
            time.sleep(0.02)
    raise TimeoutError(f"{server.url}{path} did not answer 200 within {READY_WITHIN_S:.0f} s")


@contextmanager
def service(
    bundle: Path, *, device: str, log: Path | None = None, module: str = "service", **settings: Any
) -> Iterator[Server]:
    """``python -m service`` over ``bundle``; ``settings`` are those of ``service.settings``."""
    settings = {"prefer_hydrated": "false", "log_level": "WARNING", **settings}
    with running(module, "--bundle", bundle, "--device", device, "--port", log=log, **settings) as server:
        yield server


# --- commands ---------------------------------------------------------------------------------------------------------


def command_parser(
    name: str, description: str | None, *, bundle: Path | None = BUNDLE, url: bool = True, device: str = "auto"
) -> argparse.ArgumentParser:
    """A parser with the options that choose the service; without ``bundle`` the tiny one is the default."""
    parser = CommandParser(
        prog=f"python -m benchmarks.{name}", description=description,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    which = parser.add_mutually_exclusive_group()
    if url:
        which.add_argument("--url", help="a service that runs already; its memory is not measured")
    which.add_argument("--bundle", type=Path, default=bundle, help=f"the bundle to serve ({bundle or 'a tiny one'})")
    which.add_argument("--tiny", action="store_true", help="serve a tiny untrained bundle")
    parser.add_argument("--device", default=device, help=f"of the service: auto, cpu, cuda ({device})")
    parser.add_argument("--out", type=Path, default=Path("runs") / name)
    return parser


def run_command(command: Callable[[argparse.Namespace], int], arguments: argparse.Namespace) -> int:
    """The status of ``command``; 2 with the error in the log if nothing could be measured."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", datefmt="%H:%M:%S", stream=sys.stderr)
    for noisy in ("httpx", "PIL", "pydicom", "matplotlib"):
        logging.getLogger(noisy).setLevel(logging.ERROR)
    try:
        with _exit_on_signals():
            return command(arguments)
    except (OSError, RuntimeError, ValueError, httpx.HTTPError) as error:
        log.error("%s", error)
        return 2


@contextmanager
def _exit_on_signals() -> Iterator[None]:
    """SIGTERM and SIGHUP raise SystemExit, so that a command stops the processes that it started."""

    def leave(number: int, frame: object) -> NoReturn:
        signal.signal(number, signal.SIG_IGN)  # a second one must not interrupt the stop
        raise SystemExit(128 + number)

    before = {number: signal.signal(number, leave) for number in (signal.SIGTERM, signal.SIGHUP)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    write_atomic(path, json.dumps(content, indent=1).encode())
    log.info("written to %s", path.parent)


@contextmanager
def bundle_of(arguments: argparse.Namespace) -> Iterator[Path]:
    """The bundle of ``--bundle``, or a temporary untrained one: the one that the tests use."""
    if arguments.bundle is not None and not arguments.tiny:
        yield arguments.bundle
        return
    from tests.support.tiny import write_tiny_bundle

    with tempfile.TemporaryDirectory() as folder:
        yield write_tiny_bundle(Path(folder) / "tiny")


@contextmanager
def server_of(arguments: argparse.Namespace, **settings: Any) -> Iterator[Server]:
    """The server of ``--url``, or one that is started over the bundle, with its log in ``--out``."""
    if arguments.url:
        yield Server(arguments.url.rstrip("/"))
        return
    arguments.out.mkdir(parents=True, exist_ok=True)
    with bundle_of(arguments) as bundle:
        log.info("starting the service over %s", bundle)
        with service(bundle, device=arguments.device, log=arguments.out / "service.log", **settings) as server:
            yield server


def idle(url: str, *, within_s: float = 30.0) -> dict[str, Any]:
    """The answer of ``/health``, with ``status_code``, once its queue is empty or ``within_s`` have passed."""
    deadline = time.monotonic() + within_s
    while True:
        answer = httpx.get(url + "/health", timeout=30)
        body: dict[str, Any] = {"status_code": answer.status_code, **answer.json()}
        if body.get("queue", {}).get("depth") == 0 or time.monotonic() > deadline:
            return body
        time.sleep(0.1)
