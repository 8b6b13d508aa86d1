"""The service against the bare pipeline and a naive handler: time to be ready, and what HTTP adds to a draft.

Real servers in processes of their own, on the loopback address, with the shipped bundle and the drawn radiographs of
the documentation.
"""

from __future__ import annotations

import logging
import os
import socket
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import httpx
import torch

from benchmarks.table import Row, below
from model.bundle import INDEX_DIR, load_bundle
from model.drafter import Drafter, StudyView
from model.images import load_pixels
from model.views import View
from retrieval_index.index import ReportIndex

log = logging.getLogger(__name__)
BUNDLE = Path("bundles/iu-xray")
IMAGES = {"frontal": Path("docs/images/effusion-frontal.png"), "lateral": Path("docs/images/effusion-lateral.png")}
ROUNDS = 15
READY_WITHIN_S = 120.0
REST_S = 0.05  # until the OpenMP threads of the process that computed before no longer wait on a core


def rows(device: torch.device) -> list[Row]:
    """Start to ready, server overhead, and the whole request beside a naive handler's."""
    files = {name: path.read_bytes() for name, path in IMAGES.items()}
    drafter = _drafter(device)
    started = time.perf_counter()
    with _server(["-m", "service", "--bundle", str(BUNDLE), "--device", str(device)]) as ours:
        ready = _until_answers(f"{ours}/health") - started
        with _server(["-m", "benchmarks.naive_server", str(BUNDLE), str(device)], port_last=True) as naive:
            _until_answers(f"{naive}/openapi.json")
            log.info("%d rounds of service, bare pipeline and naive handler", ROUNDS)
            through_http, bare, naively = _rounds(ours, naive, drafter, files)
    overhead = statistics.median(a - b for a, b in zip(through_http, bare, strict=True))
    return [
        below(10.0, figure="start to ready, shipped bundle", value=ready),
        below(0.010, figure="POST /report, server overhead over the bare pipeline, median", value=overhead,
              note=f"whole request {statistics.median(through_http) * 1e3:.0f} ms"),
        Row("POST /report, median", statistics.median(through_http), "s", "naive FastAPI handler, one at a time",
            statistics.median(naively)),
    ]  # fmt: skip


def _rounds(
    ours: str, naive: str, drafter: Drafter, files: dict[str, bytes]
) -> tuple[list[float], list[float], list[float]]:
    """Times of the three, turn by turn, so that whatever else the machine does meets them alike."""
    taken: tuple[list[float], list[float], list[float]] = ([], [], [])
    with httpx.Client(timeout=READY_WITHIN_S) as client:

        def post(url: str) -> None:
            answer = client.post(f"{url}/report", files=files)
            answer.raise_for_status()

        calls: tuple[Callable[[], None], ...] = (
            lambda: post(ours), lambda: _bare(drafter, files), lambda: post(naive),
        )  # fmt: skip
        for turn in range(ROUNDS + 2):
            for call, times in zip(calls, taken, strict=True):
                time.sleep(REST_S)
                began = time.perf_counter()
                call()
                if turn >= 2:
                    times.append(time.perf_counter() - began)
    return taken


def _bare(drafter: Drafter, files: dict[str, bytes]) -> None:
    views = [StudyView(load_pixels(data, drafter.image_size), View(name)) for name, data in files.items()]
    drafter.draft([views])


def _drafter(device: torch.device) -> Drafter:
    bundle = load_bundle(BUNDLE, device=device)
    bundle.model.prepare()  # as the service does
    return Drafter(bundle, ReportIndex.load(BUNDLE / INDEX_DIR, expected_sha256=bundle.index_sha256()), device=device)


@contextmanager
def _server(command: Sequence[str], *, port_last: bool = False) -> Iterator[str]:
    """A server in a process of its own; yields its address, stops it in the end."""
    port = _free_port()
    arguments = [str(port)] if port_last else ["--port", str(port)]
    environment = {**os.environ, "REPORT_PREFER_HYDRATED": "false", "REPORT_LOG_LEVEL": "WARNING"}
    process = subprocess.Popen([sys.executable, *command, *arguments], env=environment, stdout=subprocess.DEVNULL)
    try:
        yield f"http://127.0.0.1:{port}"
    finally:
        process.terminate()
        process.wait(30)


def _until_answers(url: str) -> float:
    """The moment at which ``url`` first answers 200."""
    deadline = time.perf_counter() + READY_WITHIN_S
    while time.perf_counter() < deadline:
        try:
            if httpx.get(url, timeout=5).status_code == 200:
                return time.perf_counter()
        except httpx.TransportError:
            pass
        time.sleep(0.02)
    raise TimeoutError(f"{url} did not answer within {READY_WITHIN_S:.0f} s")


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
