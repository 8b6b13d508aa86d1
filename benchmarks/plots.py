"""Pictures of the proofs: memory, latencies over time, throughput side by side."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.black_box import Sample, slope
from model.files import write_atomic

WINDOW_S = 30.0  # of which percentiles are drawn
LEAST = 100  # answers, below which they would say nothing
_ANSWERED, _REFUSED, _LINE = "#1f6f8b", "#c4703a", "#8a2b2b"


def memory(samples: Sequence[Sample], path: Path, *, across: str, per: float) -> None:
    """Resident memory and the line through its second half.

    Args:
        samples: (``across``, bytes).
        path: PNG to write.
        across: what the first column counts.
        per: units of it that the slope is given for.
    """
    x, y = np.array(samples, dtype=np.float64).T  # (N,), (N,)
    y = y / 2**20
    figure, axis = _panels(1)
    axis.plot(x, y, linewidth=1.2, color=_ANSWERED)
    late = x >= (x[0] + x[-1]) / 2
    if (each := slope(samples)) is not None:
        each /= 2**20
        label = f"second half: {each * per:+.3f} MiB per {per:,g} {across.split()[0]}"
        start = np.median(y[late] - each * x[late])
        axis.plot(x[late], start + each * x[late], "--", linewidth=1.5, color=_LINE, label=label)
        axis.legend(frameon=False)
    axis.set_ylim(0, max(y) * 1.15)
    axis.set_xlabel(across)
    axis.set_ylabel("resident memory of the service, MiB")
    _write(figure, path)


def latencies(answered: Sequence[tuple[float, float]], refused: Sequence[tuple[float, float]], path: Path) -> None:
    """Every answer and refusal over the time it was due, (seconds, seconds taken), on a logarithmic scale."""
    figure, axis = _panels(1)
    for points, colour, label in ((answered, _ANSWERED, "answered"), (refused, _REFUSED, "refused, 503 busy")):
        if points:
            x, y = np.array(points, dtype=np.float64).T
            axis.scatter(x, y * 1e3, s=5, alpha=0.5, linewidths=0, color=colour, label=f"{label} ({len(points):,})")
    if len(answered) >= LEAST:
        due, taken = np.array(sorted(answered), dtype=np.float64).T
        windows = [(due >= at) & (due < at + WINDOW_S) for at in np.arange(0, due.max(), WINDOW_S)]
        for share, style in ((50, "-"), (95, "--"), (99, ":")):
            points = [(due[window].mean(), np.percentile(taken[window], share)) for window in windows if window.any()]
            x, y = np.array(points).T
            axis.plot(x, y * 1e3, style, linewidth=1.2, color="black", label=f"p{share} of {WINDOW_S:g} s")
    axis.axhline(50, linestyle=":", linewidth=1, color="black")
    axis.set_yscale("log")
    axis.set_xlabel("seconds since the start")
    axis.set_ylabel("time to the answer, ms")
    if answered or refused:
        axis.legend(frameon=False, markerscale=3)
    _write(figure, path)


def side_by_side(values: Mapping[str, Mapping[int, Sequence[float]]], path: Path, *, label: str) -> None:
    """Bars of the median with the range over the rounds: name -> clients -> one value a round."""
    figure, axis = _panels(1)
    width = 0.8 / len(values)
    clients = sorted({number for rounds in values.values() for number in rounds})
    for place, ((name, rounds), colour) in enumerate(
        zip(values.items(), (_ANSWERED, "#9db8d6", _REFUSED), strict=False)
    ):
        medians = np.array([np.median(rounds[number]) for number in clients])
        spread = np.array([[np.min(rounds[number]), np.max(rounds[number])] for number in clients]).T
        axis.bar(np.arange(len(clients)) + place * width, medians, width, color=colour, label=name,
                 yerr=np.abs(spread - medians), capsize=3)  # fmt: skip
    axis.set_xticks(np.arange(len(clients)) + 0.4 - width / 2, [f"{number} clients" for number in clients])
    axis.set_ylabel(label)
    axis.legend(frameon=False)
    _write(figure, path)


def _panels(rows: int) -> tuple[Any, Any]:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    figure, axis = plt.subplots(rows, figsize=(8, 3.4 * rows), layout="constrained")
    axis.spines[["top", "right"]].set_visible(False)
    return figure, axis


def _write(figure: Any, path: Path) -> None:
    from matplotlib import pyplot as plt

    file = io.BytesIO()
    figure.savefig(file, format="png", dpi=120)
    plt.close(figure)
    write_atomic(path, file.getvalue())
