"""Plots as PNG files."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Inches of a panel of curves and of the title. Fixed, because measuring the panels takes 1 s, longer
# than an epoch of a small model.
PANEL, HEAD = (4.2, 2.8), 0.4


def plot_history(rows: Sequence[dict[str, float]], path: Path, *, title: str) -> None:
    """Draw one small panel for each logged metric over epochs into ``path``."""
    from matplotlib.ticker import MaxNLocator

    names = [n for n in dict.fromkeys(k for row in rows for k in row) if n not in {"epoch", "seconds"}]
    columns = min(3, len(names))
    lines = -(-len(names) // columns)
    width, height = PANEL[0] * columns, PANEL[1] * lines + HEAD
    figure = pyplot().figure(figsize=(width, height))
    for number, name in enumerate(names):
        line, column = divmod(number, columns)
        left, bottom = PANEL[0] * column + 0.65, PANEL[1] * (lines - 1 - line) + 0.55
        axis = figure.add_axes((left / width, bottom / height, 3.35 / width, 1.9 / height))
        points = [(row["epoch"], row[name]) for row in rows if name in row]
        axis.plot(*zip(*points, strict=True), marker="o", markersize=3, linewidth=1.5,
                  color="#1f6f8b" if name.startswith("val_") else "#8a5a2b")  # fmt: skip
        axis.set_title(name, fontsize=10)
        axis.set_xlabel("epoch", fontsize=8)
        axis.xaxis.set_major_locator(MaxNLocator(integer=True))
        axis.tick_params(labelsize=8)
        axis.grid(alpha=0.3)
    figure.suptitle(title, fontsize=11, y=1 - HEAD / 2 / height)
    save_figure(figure, path)


def save_plot(draw: Callable[[Axes], None], path: Path, *, size: tuple[float, float]) -> None:
    """Let ``draw`` fill one panel of ``size`` inches; write it to ``path``."""
    figure, axis = pyplot().subplots(figsize=size, layout="constrained")
    draw(axis)
    axis.grid(alpha=0.3)
    for side in ("top", "right"):
        axis.spines[side].set_visible(False)
    save_figure(figure, path)


def pyplot() -> Any:
    """Matplotlib without a display, imported on first use."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    return plt


def save_figure(figure: Figure, path: Path) -> None:
    """Write a figure as PNG, atomically, and close it."""
    partial = path.with_suffix(".tmp.png")
    figure.savefig(partial, dpi=110)
    pyplot().close(figure)
    os.replace(partial, path)
