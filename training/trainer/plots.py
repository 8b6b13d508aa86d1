"""Plots as PNG files."""

from __future__ import annotations

import io
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from model.files import write_atomic


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
