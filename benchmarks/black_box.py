"""The service from outside: a real process on the loopback address, its memory, its health, requests as bytes."""

from __future__ import annotations

import argparse
import logging
import os
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import numpy.typing as npt

log = logging.getLogger(__name__)
READY_WITHIN_S = 300.0  # a new process imports torch, which takes long where all cores are taken
STOP_WITHIN_S = 60.0
Sample = tuple[float, int]  # what the memory is drawn over (seconds, or inputs sent), resident bytes


@dataclass(frozen=True)
class Server:
    """A server that answers at ``url``; ``process`` is None where somebody else started it."""

    url: str
    process: subprocess.Popen[bytes] | None = None

    @property
    def pid(self) -> int | None:
        """Of the process, where it is ours."""
        return None if self.process is None else self.process.pid

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Stop all its processes for a while, so that they take nothing of the machine; not where it is not ours."""
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
    """``python COMMAND`` with a free port put for ``{port}``; ready when yielded, stopped in the end.

    Args:
        command: arguments of the interpreter, one of which holds ``{port}``.
        environment: variables beside those of this process.
        health: path that answers 200 once the server is ready.
        log: where its output goes; None throws it away.

    Raises:
        RuntimeError: the process ended before it was ready.
        TimeoutError: it was not ready in time.
    """
    port = free_port()
    arguments = [argument.format(port=port) for argument in command]
    with tempfile.TemporaryFile() if log is None else log.open("wb") as output:
        process = subprocess.Popen(
            [sys.executable, *arguments], env={**os.environ, **environment}, stdout=output, stderr=subprocess.STDOUT,
            start_new_session=True,
        )  # fmt: skip
        server = Server(f"http://127.0.0.1:{port}", process)
        try:
            wait_until_ready(server, health)
            yield server
        finally:
            process.terminate()
            try:
                process.wait(STOP_WITHIN_S)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)  # workers that outlived it


@contextmanager
def service(bundle: Path, *, device: str, log: Path | None = None, **settings: object) -> Iterator[Server]:
    """``python -m service`` over ``bundle``; ``settings`` are those of ``service.settings``."""
    environment = {"REPORT_PREFER_HYDRATED": "false", "REPORT_LOG_LEVEL": "WARNING"}
    environment |= {f"REPORT_{name.upper()}": str(value) for name, value in settings.items()}
    command = ["-m", "service", "--bundle", str(bundle), "--device", device, "--port", "{port}"]
    with running(command, environment=environment, log=log) as server:
        yield server


@contextmanager
def server_from_arguments(arguments: argparse.Namespace, *, tiny: bool, **settings: object) -> Iterator[Server]:
    """The server that a command's ``--url`` names, or else one over ``--bundle``, its log in ``--out``.

    Args:
        arguments: ``url``, ``bundle``, ``device``, ``out``.
        tiny: serve a tiny bundle instead.
        settings: as of ``service``, for a server that is started.
    """
    if arguments.url:
        yield Server(arguments.url.rstrip("/"))
        return
    arguments.out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        bundle = tiny_bundle(Path(folder)) if tiny else arguments.bundle
        log.info("starting the service over %s", bundle)
        with service(bundle, device=arguments.device, log=arguments.out / "service.log", **settings) as server:
            yield server


def wait_until_ready(server: Server, path: str = "/health") -> None:
    """Return once ``path`` answers 200; raises what ``running`` raises."""
    deadline = time.monotonic() + READY_WITHIN_S
    while time.monotonic() < deadline:
        if server.process is not None and (status := server.process.poll()) is not None:
            raise RuntimeError(f"the server ended with status {status} before it was ready; run it by hand to see why")
        try:
            if httpx.get(server.url + path, timeout=5).status_code == 200:
                return
        except httpx.TransportError:
            pass
        time.sleep(0.02)
    raise TimeoutError(f"{server.url}{path} did not answer 200 within {READY_WITHIN_S:.0f} s")


def free_port() -> int:
    """A TCP port that nobody listened on a moment ago."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def idle(url: str, *, within_s: float = 30.0) -> dict[str, Any]:
    """What ``/health`` says once its queue is empty, or the last it said within ``within_s``.

    Raises:
        httpx.TransportError: nobody answers.
    """
    deadline = time.monotonic() + within_s
    while True:
        answer = httpx.get(url + "/health", timeout=30)
        body: dict[str, Any] = {"status_code": answer.status_code, **answer.json()}
        if body.get("queue", {}).get("depth") == 0 or time.monotonic() > deadline:
            return body
        time.sleep(0.1)


def tiny_bundle(folder: Path) -> Path:
    """A real, untrained bundle of a few kilobytes' model, fast to answer: the one that the tests use."""
    from tests.support.tiny import write_tiny_bundle

    return write_tiny_bundle(folder / "tiny")


# --- memory -------------------------------------------------------------------------------------------------------


def resident_bytes(pid: int) -> int:
    """Resident set of one process.

    Raises:
        ProcessLookupError: there is no such process.
    """
    try:
        pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
        return pages * os.sysconf("SC_PAGE_SIZE")
    except FileNotFoundError:  # not Linux, or gone
        shown = subprocess.run(["ps", "-o", "rss=", "-p", str(pid)], capture_output=True, text=True).stdout.strip()
        if not shown:
            raise ProcessLookupError(f"process {pid} has ended") from None
        return int(shown) * 1024


class MemoryWatch:
    """Reads the resident set of a process twice a second, in a thread of its own, while inside ``with``."""

    def __init__(self, pid: int | None, *, every_s: float = 0.5) -> None:
        self.samples: list[Sample] = []
        self._pid, self._every_s = pid, every_s
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> MemoryWatch:
        if self._pid is not None:
            self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        if self._thread.ident is not None:
            self._thread.join()

    def _watch(self) -> None:
        assert self._pid is not None
        began = time.monotonic()
        while not self._stop.wait(self._every_s):
            try:
                self.samples.append((time.monotonic() - began, resident_bytes(self._pid)))
            except ProcessLookupError:
                return


def slope(samples: Sequence[Sample]) -> float | None:
    """Bytes a unit of the first column over its second half; None with too few samples to tell.

    The median of the slopes between all pairs (Theil 1950, Sen 1968): a leak raises it, one step of an allocator does
    not, wherever it falls; ``rise`` bounds the steps.
    """
    late = _second_half(samples)
    if len(late) < 10 or np.ptp(late[:, 0]) == 0:
        return None
    first, second = np.triu_indices(len(late), 1)
    across, up = (late[second] - late[first]).T
    return float(np.median(up[across > 0] / across[across > 0]))


def rise(samples: Sequence[Sample]) -> float:
    """Bytes from the first sample of the second half to its last."""
    late = _second_half(samples)
    return float(late[-1, 1] - late[0, 1]) if len(late) else 0.0


def _second_half(samples: Sequence[Sample]) -> npt.NDArray[np.float64]:
    """Rows of samples, (N, 2)."""
    rows = np.array(samples, dtype=np.float64).reshape(-1, 2)
    return rows[rows[:, 0] >= (rows[0, 0] + rows[-1, 0]) / 2] if len(rows) else rows
