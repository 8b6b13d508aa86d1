"""How the cost of a report grows with its words, beams, memory slots and batch: a CSV and a picture."""

from __future__ import annotations

import csv
import io
import logging
from collections.abc import Sequence
from pathlib import Path

import torch

from benchmarks.decoding import written_by
from benchmarks.published_size import LENGTH, Pair, features, pair, patches
from benchmarks.table import seconds
from model.files import write_atomic

log = logging.getLogger(__name__)
LENGTHS, BEAMS, SLOTS, BATCHES = (
    (15, 30, 45, 60),
    (1, 2, 3, 4, 6, 8),
    (512, 1024, 2048, 4096, 8192),
    (1, 2, 4, 8, 16, 32),
)
Point = tuple[str, int, float, float]  # axis, value, seconds a report before the first word, seconds a report


def measure(device: torch.device) -> list[Point]:
    """All points; what is not varied stays at 60 words, beam 3, 2,048 slots and one study."""
    points: list[Point] = []
    usual = _pair(device)
    for length in LENGTHS:
        points.append(_point("words", length, usual if length == LENGTH else _pair(device, length=length), 1, 3))
    for beams in BEAMS:
        points.append(_point("beams", beams, usual, 1, beams))
    for slots in SLOTS:
        points.append(_point("slots", slots, usual if slots == 2048 else _pair(device, slots=slots), 1, 3))
    for batch in BATCHES:
        points.append(_point("batch", batch, usual, batch, 3))
    return points


def write(points: Sequence[Point], out: Path) -> None:
    """``growth.csv`` and ``growth.png`` in ``out``."""
    out.mkdir(parents=True, exist_ok=True)
    text = io.StringIO()
    table = csv.writer(text, lineterminator="\n")
    table.writerow(("axis", "value", "encode_ms", "report_ms"))
    table.writerows((axis, value, f"{before * 1e3:.2f}", f"{taken * 1e3:.2f}") for axis, value, before, taken in points)
    write_atomic(out / "growth.csv", text.getvalue().encode())
    _plot(points, out / "growth.png")


def _pair(device: torch.device, *, slots: int = 2048, length: int = LENGTH) -> Pair:
    both = pair(device, slots=slots, length=length)
    both.ours.precompute_inference_tables()
    return both


@torch.inference_mode()
def _point(axis: str, value: int, both: Pair, batch: int, beams: int) -> Point:
    drawn = features(batch, both.device)
    seen = patches(drawn)
    before = seconds(lambda: both.ours.encode(seen)) / batch
    taken = seconds(written_by(both, drawn, beams)) / batch
    log.info("%s %d: %.1f ms a report", axis, value, taken * 1e3)
    return axis, value, before, taken


def _plot(points: Sequence[Point], path: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    titles = {"words": "words written", "beams": "beams", "slots": "memory slots", "batch": "studies in a batch"}
    figure, panels = plt.subplots(1, 4, figsize=(14, 3.4), sharey=False, layout="constrained")
    for panel, (axis, title) in zip(panels, titles.items(), strict=True):
        mine = [(value, before * 1e3, taken * 1e3) for name, value, before, taken in points if name == axis]
        places = range(len(mine))
        panel.bar(places, [taken for _, _, taken in mine], color="#9db8d6", label="whole report")
        panel.bar(places, [before for _, before, _ in mine], color="#2f5d8a", label="before its first word")
        panel.set_xticks(places, [f"{value:,}" for value, _, _ in mine])
        panel.set_xlabel(title)
        panel.spines[["top", "right"]].set_visible(False)
    panels[0].set_ylabel("ms a report")
    panels[0].legend(frameon=False)
    figure.suptitle("Beam search at the published size: 60 words, beam 3, 2,048 slots, one study, unless varied")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=120)
    plt.close(figure)
