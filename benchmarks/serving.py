"""The service against the bare pipeline and a naive handler: start, and the overhead of HTTP.

Real servers as processes on the loopback address, with the shipped bundle and the drawn radiographs
of the docs.
"""

from __future__ import annotations

import logging
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import httpx
import torch

from benchmarks.naive_server import load_drafter
from benchmarks.server import BUNDLE, running, service
from benchmarks.table import Row, below
from model.images import load_pixels
from model.types import StudyView, View

log = logging.getLogger(__name__)
IMAGES = {"frontal": Path("docs/images/effusion-frontal.png"), "lateral": Path("docs/images/effusion-lateral.png")}
ROUNDS, WARM_UP = 15, 2
REST_S = 0.05  # until the OpenMP threads of the process that computed before have stopped spinning


def rows(device: torch.device) -> list[Row]:
    """Start to ready, server overhead, and the whole request against a naive handler."""
    files = {name: path.read_bytes() for name, path in IMAGES.items()}
    drafter = load_drafter(BUNDLE, str(device))
    naive_command = ["-m", "benchmarks.naive_server", str(BUNDLE), str(device), "{port}"]

    def bare() -> None:
        pixels = [StudyView(load_pixels(data, drafter.image_size), View(name)) for name, data in files.items()]
        drafter.draft([pixels])

    def post(url: str) -> Callable[[], object]:
        return lambda: client.post(f"{url}/report", files=files).raise_for_status()

    started = time.perf_counter()
    with service(BUNDLE, device=str(device)) as ours:
        ready = time.perf_counter() - started
        with (
            running(naive_command, environment={}, health="/openapi.json") as naive,
            httpx.Client(timeout=120.0) as client,
        ):
            log.info("%d rounds of service, bare pipeline and naive handler", ROUNDS)
            through_http, pipeline, naively = _in_turn((post(ours.url), bare, post(naive.url)))
    overhead = statistics.median(a - b for a, b in zip(through_http, pipeline, strict=True))
    whole = statistics.median(through_http)
    name = "POST /report, server overhead over the bare pipeline, median"
    return [
        below(10.0, Row("start to ready, shipped bundle", ready)),
        below(0.010, Row(name, overhead, note=f"whole request {whole * 1e3:.0f} ms")),
        Row("POST /report, median", whole, peer="naive FastAPI handler, one at a time",
            peer_value=statistics.median(naively)),
    ]  # fmt: skip


def _in_turn(calls: Sequence[Callable[[], object]]) -> list[list[float]]:
    """Seconds of each call in each round, measured in turn, so that other load affects all of them."""
    taken: list[list[float]] = [[] for _ in calls]
    for _ in range(ROUNDS + WARM_UP):
        for call, times in zip(calls, taken, strict=True):
            time.sleep(REST_S)
            began = time.perf_counter()
            call()
            times.append(time.perf_counter() - began)
    return [times[WARM_UP:] for times in taken]
