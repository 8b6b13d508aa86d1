"""Plots as PNG files."""

from __future__ import annotations

import io
import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from model.files import write_atomic

# Inches of a panel of curves and of the title. Fixed, because measuring the panels takes 1 s, longer
# than an epoch of a small model.
PANEL, HEAD = (4.2, 2.8), 0.4


def plot_history(rows: Sequence[dict[str, float]], path: Path, *, title: str) -> None:
    """Draw one small panel for each logged metric over epochs into ``path``."""
    names = [n for n in dict.fromkeys(k for row in rows for k in row) if n not in {"epoch", "seconds"}]
    columns = min(3, len(names))
    lines = -(-len(names) // columns)
    width, height = PANEL[0] * columns, PANEL[1] * lines + HEAD
    figure = Figure(figsize=(width, height))
    for number, name in enumerate(names):
        line, column = divmod(number, columns)
        left, bottom = PANEL[0] * column + 0.65, PANEL[1] * (lines - 1 - line) + 0.55
        axis = figure.add_axes((left / width, bottom / height, 3.35 / width, 1.9 / height))
        points = [(row["epoch"], row[name]) for row in rows if name in row]
        axis.plot(*zip(*points, strict=True), marker="o", markersize=3, linewidth=1.5,
                  color="#1f6f8b" if name.startswith("val_") else "#8a5a2b")  # fmt: skip
        axis.set_title(name, fontsize=10)
        axis.set_xlabel("epoch", fontsize=8)
        values = [value for _, value in points if math.isfinite(value)] or [0.0]
        axis.set_xticks(sorted({points[0][0], points[-1][0]}))  # two ticks, because each takes 1 ms
        axis.set_yticks(sorted({min(values), max(values)}))
        axis.yaxis.set_major_formatter("{x:.3g}")
        axis.tick_params(labelsize=8)
        axis.grid(alpha=0.3)
    figure.suptitle(title, fontsize=11, y=1 - HEAD / 2 / height)
    save_figure(figure, path)


@contextmanager
def panels(path: Path, *, size: tuple[float, float], columns: int = 1) -> Iterator[list[Axes]]:
    """The axes of ``columns`` plots in a row of ``size`` inches, which are written to ``path`` afterwards."""
    figure = Figure(figsize=size, layout="constrained")
    row: list[Axes] = figure.subplots(1, columns, squeeze=False)[0].tolist()
    yield row
    for axis in row:
        axis.grid(alpha=0.3)
        axis.set_axisbelow(True)
        axis.spines[["top", "right"]].set_visible(False)
        if axis.get_legend_handles_labels()[0]:
            axis.legend(frameon=False, fontsize=9, markerscale=2)
    save_figure(figure, path)


def save_figure(figure: Figure, path: Path) -> None:
    """Write a figure as PNG, atomically."""
    file = io.BytesIO()
    figure.savefig(file, format="png", dpi=110)
    write_atomic(path, file.getvalue())
