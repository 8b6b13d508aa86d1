"""The service against the bare pipeline and a naive handler: time until ready, and the overhead of HTTP.

Real servers as processes on the loopback address, with the shipped bundle and the drawn radiographs of the docs.
"""

from __future__ import annotations

import logging
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import httpx
import torch

from benchmarks.server import BUNDLE, running, service
from benchmarks.table import Row, below
from model.bundle import INDEX_DIR, load_bundle
from model.drafter import Drafter
from model.images import load_pixels
from model.types import StudyView, View
from retrieval_index.index import ReportIndex

log = logging.getLogger(__name__)
IMAGES = {"frontal": Path("docs/images/effusion-frontal.png"), "lateral": Path("docs/images/effusion-lateral.png")}
ROUNDS = 15
ANSWER_WITHIN_S = 120.0
REST_S = 0.05  # until the OpenMP threads of the process that computed before have stopped spinning


def rows(device: torch.device) -> list[Row]:
    """Start to ready, server overhead, and the whole request against a naive handler."""
    files = {name: path.read_bytes() for name, path in IMAGES.items()}
    drafter = _drafter(device)
    naive_command = ["-m", "benchmarks.naive_server", str(BUNDLE), str(device), "{port}"]
    started = time.perf_counter()
    with service(BUNDLE, device=str(device)) as ours:
        ready = time.perf_counter() - started
        with running(naive_command, environment={}, health="/openapi.json") as naive:
            log.info("%d rounds of service, bare pipeline and naive handler", ROUNDS)
            through_http, bare, naively = _rounds(ours.url, naive.url, drafter, files)
    overhead = statistics.median(a - b for a, b in zip(through_http, bare, strict=True))
    whole = statistics.median(through_http)
    name = "POST /report, server overhead over the bare pipeline, median"
    return [
        below(10.0, Row("start to ready, shipped bundle", ready)),
        below(0.010, Row(name, overhead, note=f"whole request {whole * 1e3:.0f} ms")),
        Row("POST /report, median", whole, peer="naive FastAPI handler, one at a time",
            peer_value=statistics.median(naively)),
    ]  # fmt: skip


def _rounds(
    ours: str, naive: str, drafter: Drafter, files: dict[str, bytes]
) -> tuple[list[float], list[float], list[float]]:
    """Times of the three, measured in turn, so that other load on the machine affects all of them."""
    taken: tuple[list[float], list[float], list[float]] = ([], [], [])
    with httpx.Client(timeout=ANSWER_WITHIN_S) as client:

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
    bundle.model.precompute_inference_tables()  # as the service does
    return Drafter(bundle, ReportIndex.load(BUNDLE / INDEX_DIR, expected_sha256=bundle.index_sha256()), device=device)
