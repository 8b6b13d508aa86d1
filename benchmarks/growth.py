"""How the cost of a report grows with its words, beams, memory slots and batch: a CSV and a plot."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path

import torch

from benchmarks import plots
from benchmarks.decoding import report_writer
from benchmarks.published_size import LENGTH, Pair, features, pair, patches
from benchmarks.table import seconds
from model.files import write_atomic

log = logging.getLogger(__name__)
SLOTS = 2048
AXES = {
    "words": (15, 30, 45, 60),
    "beams": (1, 2, 3, 4, 6, 8),
    "slots": (512, 1024, 2048, 4096, 8192),
    "batch": (1, 2, 4, 8, 16, 32),
}
Point = tuple[str, int, float, float]  # axis, value, ms per report before the first word, ms per report


def measure(device: torch.device) -> list[Point]:
    """All points; what is not varied stays at 60 words, beam 3, 2,048 slots and one study."""
    usual = _pair(device, LENGTH, SLOTS)
    points: list[Point] = []
    for axis, values in AXES.items():
        for value in values:
            chosen = {"words": LENGTH, "beams": 3, "slots": SLOTS, "batch": 1, axis: value}
            changed = (chosen["words"], chosen["slots"]) != (LENGTH, SLOTS)
            both = _pair(device, chosen["words"], chosen["slots"]) if changed else usual
            points.append((axis, value, *_milliseconds(both, chosen["batch"], chosen["beams"])))
            log.info("%s %d: %.1f ms a report", axis, value, points[-1][3])
    return points


def write(points: Sequence[Point], out: Path) -> None:
    """``growth.csv`` and ``growth.png`` in ``out``."""
    lines = [f"{axis},{value},{before:.2f},{taken:.2f}" for axis, value, before, taken in points]
    write_atomic(out / "growth.csv", "\n".join(["axis,value,encode_ms,report_ms", *lines, ""]).encode())
    plots.growth(points, out / "growth.png")


def _pair(device: torch.device, length: int, slots: int) -> Pair:
    both = pair(device, slots=slots, length=length)
    both.ours.precompute_inference_tables()
    return both


@torch.inference_mode()
def _milliseconds(both: Pair, batch: int, beams: int) -> tuple[float, float]:
    drawn = features(batch, both.device)
    seen = patches(drawn)
    encoding, report = seconds(lambda: both.ours.encode(seen)), seconds(report_writer(both, drawn, beams))
    return encoding / batch * 1e3, report / batch * 1e3
