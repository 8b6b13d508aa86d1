"""Plots of the benchmarks: memory, latencies, throughput, growth of decoding, index size."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.memory import Sample, slope
from training.trainer.plots import panels

WINDOW_S, WINDOW_FROM = 30.0, 100  # of the percentiles; answers, below which no percentile is drawn
SIZE = (8.0, 3.4)  # inches of a single plot
_BLUE, _ORANGE, _RED, _LIGHT = "#1f6f8b", "#c4703a", "#8a2b2b", "#9db8d6"


def memory(samples: Sequence[Sample], path: Path, *, across: str, per: float) -> None:
    """Resident memory over ``across``, and the line through its second half, its slope given for ``per`` units."""
    x, y = np.array(samples, dtype=np.float64).T / [[1], [2**20]]  # (N,), (N,)
    with panels(path, size=SIZE) as (axis,):
        axis.plot(x, y, linewidth=1.2, color=_BLUE)
        if (each := slope(samples)) is not None:
            each, late = each / 2**20, x >= (x[0] + x[-1]) / 2
            label = f"second half: {each * per:+.3f} MiB per {per:,g} {across.split()[0]}"
            line = np.median(y[late] - each * x[late]) + each * x[late]
            axis.plot(x[late], line, "--", linewidth=1.5, color=_RED, label=label)
        axis.set(ylim=(0, max(y) * 1.15), xlabel=across, ylabel="resident memory of the service, MiB")


def latencies(answered: Sequence[tuple[float, float]], refused: Sequence[tuple[float, float]], path: Path) -> None:
    """Every answer and refusal over the time it was due, (seconds, seconds taken), on a logarithmic scale."""
    with panels(path, size=SIZE) as (axis,):
        for points, colour, label in ((answered, _BLUE, "answered"), (refused, _ORANGE, "refused, 503 busy")):
            x, y = np.array(points, dtype=np.float64).reshape(-1, 2).T
            axis.scatter(x, y * 1e3, s=5, alpha=0.5, linewidths=0, color=colour, label=f"{label} ({len(points):,})")
        if len(answered) >= WINDOW_FROM:
            due, taken = np.array(sorted(answered), dtype=np.float64).T
            windows = np.split(np.arange(len(due)), np.searchsorted(due, np.arange(WINDOW_S, due[-1], WINDOW_S)))
            windows = [window for window in windows if len(window)]
            for share, style in ((50, "-"), (95, "--"), (99, ":")):
                line = [(due[window].mean(), np.percentile(taken[window], share) * 1e3) for window in windows]
                label = f"p{share} of {WINDOW_S:g} s"
                axis.plot(*zip(*line, strict=True), style, linewidth=1.2, color="black", label=label)
        axis.axhline(50, linestyle=":", linewidth=1, color="black")
        axis.set(yscale="log", xlabel="seconds since the start", ylabel="time to the answer, ms")


def side_by_side(values: Mapping[str, Mapping[int, Sequence[float]]], path: Path, *, label: str) -> None:
    """Bars of the median with the range over the rounds: name -> clients -> one value per round."""
    width, clients = 0.8 / len(values), sorted(next(iter(values.values())))
    with panels(path, size=SIZE) as (axis,):
        for group, (name, rounds) in enumerate(values.items()):
            low, middle, high = np.array([np.percentile(rounds[number], (0, 50, 100)) for number in clients]).T
            axis.bar(np.arange(len(clients)) + group * width, middle, width, color=(_BLUE, _LIGHT, _ORANGE)[group % 3],
                     label=name, yerr=(middle - low, high - middle), capsize=3)  # fmt: skip
        axis.set_xticks(np.arange(len(clients)) + 0.4 - width / 2, [f"{number} clients" for number in clients])
        axis.set_ylabel(label)


def growth(points: Sequence[tuple[str, int, float, float]], path: Path) -> None:
    """Milliseconds per report over words, beams, slots and batch: (axis, value, ms before the first word, ms)."""
    titles = {"words": "words written", "beams": "beams", "slots": "memory slots", "batch": "studies in a batch"}
    with panels(path, size=(14, 3.4), columns=4) as row:
        for panel, (name, title) in zip(row, titles.items(), strict=True):
            values, before, whole = zip(*(point[1:] for point in points if point[0] == name), strict=True)
            panel.bar(range(len(values)), whole, color=_LIGHT, label="whole report")
            panel.bar(range(len(values)), before, color=_BLUE, label="before its first word")
            panel.set_xticks(range(len(values)), [f"{value:,}" for value in values])
            panel.set(xlabel=title, ylabel="ms a report")
        row[0].figure.suptitle("Beam search: 60 words, beam 3, 2,048 slots, one study, unless varied")


def index_curve(exact: Sequence[Any], chosen: Sequence[Any], path: Path, *, exact_below: int) -> None:
    """Search time, recall and build time over the size of the index, from ``benchmarks.index.Point``."""
    sizes = [point.vectors for point in chosen]
    with panels(path, size=(15, 3.4), columns=3) as (speed, recall, cost):
        for points, name, colour in ((exact, "exact", "tab:gray"), (chosen, "chosen kind", "tab:blue")):
            for key, label, style in (("median_ms", "median", "o-"), ("p95_ms", "95th percentile", ":")):
                speed.plot(sizes, [getattr(p, key) for p in points], style, color=colour, label=f"{name}, {label}")
            cost.plot(sizes, [p.build_s for p in points], "o-", color=colour, label=f"build, {name}")
        for key, label in (("recall_reports", "held-out reports"), ("recall_images", "radiographs")):
            if all(getattr(point, key) is not None for point in chosen):
                recall.plot(sizes, [getattr(point, key) for point in chosen], "o-", label=label)
        speed.axhline(1, color=_RED, linewidth=1, label="goal, 1 ms")
        recall.axhline(0.99, color=_RED, linewidth=1, label="goal, .99")
        speed.set(title="One query, k = 5", ylabel="milliseconds", yscale="log")
        recall.set(title="Recall@5 of the chosen kind", ylabel="share of the exact five", ylim=(0.98, 1.001))
        cost.set(title="Build", ylabel="seconds", yscale="log")
        for axis in (speed, recall, cost):
            axis.set(xscale="log", xlabel="cases in the index")
            axis.axvline(exact_below, color="black", linewidth=1, linestyle="--", label="exact below")
