"""Answers a second of a service process with batches, under the load generator's clients."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import httpx
import torch

from benchmarks.gpu.part import Job, Outcome
from benchmarks.load import Load, Record, count_outcomes, drawn_studies, generate, percentiles, rate, with_answers
from benchmarks.measure import show
from benchmarks.server import service

STUDIES, PIXELS = 12, 512
READING_S, DEADLINE_S = 10.0, 120.0
HEAD = ("clients", "answers/s", "p50", "p95", "studies in a batch", "outcomes")


def run(job: Job, size: int) -> Outcome:
    """Start the service with batches of ``size``, and load it with 1, ``size`` and twice as many clients."""
    cuda = job.torch_device.type == "cuda"
    free = torch.cuda.mem_get_info(job.torch_device)[0] if cuda else 0
    rows, values, notes = [], [], []
    settings: dict[str, Any] = {
        "max_batch_size": size,
        "max_concurrent_requests": 4 * size,
        "request_timeout_s": DEADLINE_S,
    }
    with job.bundle() as bundle, service(bundle, device=job.device, **settings) as server:
        drawn = drawn_studies(3 if job.dry_run else STUDIES, sizes=(PIXELS,), both_views=True)
        studies = with_answers(server.url, drawn, timeout_s=DEADLINE_S)
        counts = (2,) if job.dry_run else (1, size, 2 * size)
        for number, clients in enumerate(counts):
            seconds = 1.0 if job.dry_run else min(READING_S, job.seconds_left / (len(counts) - number + 1))
            before = _batches(server.url)
            records = generate(Load(server.url, seconds, clients, deadline_s=DEADLINE_S, quiet=True), studies)
            batch = _mean_batch(before, _batches(server.url))
            row, value = _reading(clients, batch, records)
            rows.append(row)
            values.append(value)
        peak = free - torch.cuda.mem_get_info(job.torch_device)[0] if cuda else None
    if changed := sum(value["outcomes"].get("wrong", 0) for value in values):
        notes.append(
            f"{changed} answers (wrong) differ from the one that the study got alone: a GPU adds numbers in another "
            "order for another batch size, and a near tie is then decided otherwise."
        )
    notes.append("The memory is that of the whole service on the device, its context included.")
    return Outcome(HEAD, rows, notes, {"max_batch_size": size, "readings": values}, peak)


def _reading(clients: int, batch: float | None, records: Sequence[Record]) -> tuple[tuple[str, ...], dict[str, Any]]:
    """A row of the table, and its numbers."""
    outcomes = count_outcomes(records)
    for record in records:
        if record.outcome == "wrong":  # another text than the study got alone, but an answer
            record.outcome = "answered"
    speed, times = rate(records), percentiles(one.seconds for one in records if one.outcome == "answered")
    if times is None:
        raise RuntimeError(f"{clients} clients got no answer: {outcomes}; {records[0].note if records else ''}")
    row = (
        str(clients), f"{speed:.2f}", *(show(times[name], "s") for name in ("p50", "p95")),
        "–" if batch is None else f"{batch:.1f}", ", ".join(f"{count} {name}" for name, count in outcomes.items()),
    )  # fmt: skip
    return row, {"clients": clients, "answers_per_second": speed, "seconds": times, "mean_batch": batch,
                 "outcomes": outcomes}  # fmt: skip


def _batches(url: str) -> tuple[float, float]:
    """Studies and batches so far, by the metrics of the service."""
    text = httpx.get(f"{url}/metrics", timeout=30).text
    found = [re.search(rf"^report_batch_size_{part} (\S+)$", text, re.MULTILINE) for part in ("sum", "count")]
    total, count = (float(match[1]) if match else 0.0 for match in found)
    return total, count


def _mean_batch(before: tuple[float, float], after: tuple[float, float]) -> float | None:
    batches = after[1] - before[1]
    return (after[0] - before[0]) / batches if batches else None
