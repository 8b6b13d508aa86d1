"""The service against the bare pipeline and a naive handler: start, the overhead of HTTP, and batches.

Real servers as processes on the loopback address, with the shipped bundle and the drawn radiographs
of the docs.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import httpx
import torch

from benchmarks.measure import Row, below, in_turn
from benchmarks.naive_server import load_drafter
from benchmarks.server import BUNDLE, running, service
from model.images import load_pixels
from model.types import StudyView, View
from training.phantoms import make_phantom

IMAGES = {"frontal": Path("docs/images/effusion-frontal.png"), "lateral": Path("docs/images/effusion-lateral.png")}
ROUNDS, WARM_UP, REST_S = 15, 2, 0.05
STUDIES, BATCHES, BATCH_ROUNDS = 8, (1, 2, 4, 8), 3


def rows(device: torch.device, *, bundle: Path = BUNDLE, rounds: int = ROUNDS) -> list[Row]:
    files = {name: path.read_bytes() for name, path in IMAGES.items()}
    drafter = load_drafter(bundle, str(device))

    def bare() -> None:
        pixels = [StudyView(load_pixels(data, drafter.image_size), View(name)) for name, data in files.items()]
        drafter.draft([pixels])

    def post(url: str) -> Callable[[], object]:
        return lambda: client.post(f"{url}/report", files=files).raise_for_status()

    started = time.perf_counter()
    with service(bundle, device=str(device)) as ours:
        ready = time.perf_counter() - started
        with (
            running("benchmarks.naive_server", bundle, device, health="/openapi.json") as naive,
            httpx.Client(timeout=120.0) as client,
        ):
            calls = (post(ours.url), bare, post(naive.url))
            through_http, pipeline, naively = in_turn(calls, rounds=rounds, warm_up=WARM_UP, rest_s=REST_S)
    overhead = statistics.median(a - b for a, b in zip(through_http, pipeline, strict=True))
    whole, peer = statistics.median(through_http), statistics.median(naively)
    name = "POST /report, server overhead over the bare pipeline, median"
    return [
        below(10.0, Row(f"start to ready, {'shipped' if bundle == BUNDLE else 'tiny'} bundle", ready)),
        below(0.010, Row(name, overhead, note=f"whole request {whole * 1e3:.0f} ms")),
        Row("POST /report, median", whole, peer="naive FastAPI handler, one at a time", peer_value=peer),
    ]


def batch_rows(device: torch.device) -> list[Row]:
    """Time per study of the same studies in batches of different sizes, against one at a time."""
    drafter = load_drafter(BUNDLE, str(device))
    drawn = [make_phantom(seed, frozenset(), size=drafter.image_size) for seed in range(STUDIES)]
    studies = [[StudyView(each.frontal, View.FRONTAL), StudyView(each.lateral, View.LATERAL)] for each in drawn]

    def draft_all(size: int) -> None:
        for first in range(0, STUDIES, size):
            drafter.draft(studies[first : first + size])

    calls = [partial(draft_all, size) for size in BATCHES]
    alone, *batches = (statistics.median(taken) / STUDIES for taken in in_turn(calls, rounds=BATCH_ROUNDS))
    return [
        Row(f"draft in a batch of {size}, per study", seconds, peer="one at a time", peer_value=alone)
        for size, seconds in zip(BATCHES[1:], batches, strict=True)
    ]
