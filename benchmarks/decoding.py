"""Decoding at the published size against the published equations, and its cost by words, beams, slots and batch."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from benchmarks import plots
from benchmarks.measure import REFERENCE, Machine, Row, at_least, seconds
from benchmarks.published_size import DECODING, LENGTH, Pair, features, pair, patches
from model.decoding.generate import generate
from model.decoding.search import Constraints, sample
from model.files import write_atomic
from model.network.cpu_kernels import matmul_dtype

log = logging.getLogger(__name__)
WORKLOADS = (  # name, batch, beams, goal, seconds of the published code
    ("beam 3, batch 1", 1, 3, 30.0, REFERENCE.beam3_batch1),
    ("beam 3, batch 16", 16, 3, 60.0, REFERENCE.beam3_batch16),
    ("greedy, batch 16", 16, 1, 40.0, REFERENCE.greedy_batch16),
)
USUAL = {"words": LENGTH, "beams": 3, "slots": 2048, "batch": 1}
AXES = {
    "words": (15, 30, 45, 60), "beams": (1, 2, 3, 4, 6, 8), "slots": (512, 1024, 2048, 4096, 8192),
    "batch": (1, 2, 4, 8, 16, 32),
}  # fmt: skip
Point = tuple[str, int, float, float]  # axis, value, ms per report before the first word, ms per report


def report_writer(both: Pair, drawn: Tensor, beams: int) -> Callable[[], Tensor]:
    """A call that encodes studies and decodes their reports, to this model's ids (B, T)."""
    seen = patches(drawn)

    @torch.inference_mode()
    def write() -> Tensor:
        encoded = both.ours.encode(seen)
        return generate(both.ours, encoded, both.tokenizer, DECODING, beam_size=beams).ids

    return write


def writers(both: Pair) -> dict[str, Callable[[], Tensor]]:
    """``report_writer`` of each workload, by name."""
    both.ours.precompute_inference_tables()
    return {name: report_writer(both, features(batch, both.device), beams) for name, batch, beams, *_ in WORKLOADS}


@torch.inference_mode()
def rows(machine: Machine, device: torch.device) -> list[Row]:
    """Beam search and greedy decoding in float32 and bfloat16, and sampling.

    Raises:
        AssertionError: the float32 output differs from that of the published equations.
    """
    both = pair(device)
    found: list[Row] = []
    for (name, batch, beams, goal, reference), ours in zip(WORKLOADS, writers(both).values(), strict=True):
        log.info("%s", name)
        drawn = features(batch, device)
        plain = partial(both.plain.greedy, drawn) if beams == 1 else partial(both.plain.beam, drawn, beams)
        taken = seconds(plain, repeats=3 if batch == 1 else 1, warm_up=0) / batch
        assert torch.equal(both.published_ids(ours())[:, :LENGTH], plain()), f"{name}: the outputs differ"
        fp32 = seconds(ours, repeats=5) / batch
        with matmul_dtype(torch.bfloat16):
            bf16 = seconds(ours, repeats=5) / batch
        peer, value, note = machine.peer(taken, reference)
        found += [
            at_least(goal, Row(f"{name}, a report, float32", fp32, "s", peer, value, note=note)),
            Row(
                f"{name}, a report, bfloat16 products",
                bf16,
                "s",
                "ours in float32",
                fp32,
                "beyond float32",
                bf16 < fp32,
            ),
        ]
    return [*found, _sampling(both)]


def _sampling(both: Pair) -> Row:
    """SCST draws five samples per image from one encoding."""
    seen = patches(features(16, both.device))
    constraints = Constraints.of(DECODING, both.tokenizer)

    def drawn(count: int) -> Callable[[], object]:
        return lambda: sample(both.ours, both.ours.encode(seen), constraints, both.tokenizer.bos_id, count=count)

    one, five = seconds(drawn(1)), seconds(drawn(5))
    return Row(
        "SCST sampling, 5 samples of each of 16 studies", five, "s", "5 × one sample of each", 5 * one,
        "well under 5 × one", five < 4 * one, f"{five / one:.1f} × one",
    )  # fmt: skip


@torch.inference_mode()
def growth(device: torch.device) -> list[Point]:
    """Milliseconds per report along each of ``AXES``; what is not varied stays ``USUAL``."""
    points: list[Point] = []
    for axis, values in AXES.items():
        for value in values:
            chosen = {**USUAL, axis: value}
            both = pair(device, slots=chosen["slots"], length=chosen["words"])
            both.ours.precompute_inference_tables()
            drawn = features(chosen["batch"], device)
            calls = (partial(both.ours.encode, patches(drawn)), report_writer(both, drawn, chosen["beams"]))
            encoding, report = (seconds(call) / chosen["batch"] * 1e3 for call in calls)
            points.append((axis, value, encoding, report))
            log.info("%s %d: %.1f ms a report", *points[-1][:2], report)
    return points


def write_growth(points: Sequence[Point], out: Path) -> None:
    """``growth.csv`` and ``growth.png`` in ``out``."""
    lines = [f"{axis},{value},{before:.2f},{taken:.2f}" for axis, value, before, taken in points]
    write_atomic(out / "growth.csv", "\n".join(["axis,value,encode_ms,report_ms", *lines, ""]).encode())
    plots.growth(points, out / "growth.png")
