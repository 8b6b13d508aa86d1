"""Decoding at the published size against the published equations, and five samples against one."""

from __future__ import annotations

import logging
from collections.abc import Callable

import torch
from torch import Tensor

from benchmarks.machine import REFERENCE, Machine
from benchmarks.published_size import DECODING, LENGTH, Pair, features, pair, patches
from benchmarks.table import Row, seconds
from model.decoding.generate import generate
from model.decoding.search import Constraints, sample
from model.network.cpu_kernels import matmul_dtype

log = logging.getLogger(__name__)


def rows(machine: Machine, device: torch.device) -> list[Row]:
    """Beam search and greedy decoding in float32 and bfloat16, and sampling.

    Raises:
        AssertionError: the float32 output differs from that of the published equations.
    """
    both = pair(device)
    with torch.inference_mode():
        both.ours.precompute_inference_tables()
        return [
            *_compared(both, machine, "beam 3, batch 1", 1, 3, 30.0, REFERENCE.beam3_batch1),
            *_compared(both, machine, "beam 3, batch 16", 16, 3, 60.0, REFERENCE.beam3_batch16),
            *_compared(both, machine, "greedy, batch 16", 16, 1, 40.0, REFERENCE.greedy_batch16),
            _sampling(both),
        ]


def _compared(
    both: Pair, machine: Machine, name: str, batch: int, beams: int, goal: float, reference: float
) -> list[Row]:
    drawn = features(batch, both.device)
    log.info("%s: the published equations", name)
    written: list[Tensor] = []

    def plain() -> None:
        written[:] = [both.plain.greedy(drawn) if beams == 1 else both.plain.beam(drawn, beams)]

    taken = seconds(plain, repeats=3 if batch == 1 else 1, warm_up=0) / batch
    log.info("%s: this model", name)
    ours = report_writer(both, drawn, beams)
    assert torch.equal(both.published_ids(ours())[:, :LENGTH], written[0]), f"{name}: the outputs differ"
    fp32 = seconds(ours, repeats=5) / batch
    with matmul_dtype(torch.bfloat16):
        bf16 = seconds(ours, repeats=5) / batch
    peer, value, note = machine.peer(taken, reference)
    return [
        Row(f"{name}, a report, float32", fp32, "s", peer, value, f"{goal:g} ×", value / fp32 >= goal, note),
        Row(f"{name}, a report, bfloat16 products", bf16, "s", "ours in float32", fp32, "beyond float32", bf16 < fp32),
    ]


def report_writer(both: Pair, drawn: Tensor, beams: int) -> Callable[[], Tensor]:
    """A call that encodes studies and decodes their reports, to this model's ids (B, T)."""
    seen = patches(drawn)

    def write() -> Tensor:
        encoded = both.ours.encode(seen)
        return generate(both.ours, encoded, both.tokenizer, DECODING, beam_size=beams).ids

    return write


def _sampling(both: Pair) -> Row:
    """SCST draws five samples per image from one encoding."""
    seen = patches(features(16, both.device))
    constraints = Constraints.of(DECODING, both.tokenizer)

    def draw(count: int) -> Callable[[], object]:
        return lambda: sample(both.ours, both.ours.encode(seen), constraints, both.tokenizer.bos_id, count=count)

    one, five = seconds(draw(1)), seconds(draw(5))
    return Row(
        "SCST sampling, 5 samples of each of 16 studies", five, "s", "5 × one sample of each", 5 * one,
        "well under 5 × one", five < 4 * one, f"{five / one:.1f} × one",
    )  # fmt: skip
