"""The table as a picture: a panel a figure, a line a row."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from training.ablation.report import COLUMNS, OUTSIDE

PANELS = ("BLEU_4", "METEOR", "ROUGE_L", "CIDEr", "label_f1_micro", "label_f1_macro", "distinct", "mean_length")
_BAR, _SEED, _CONSTANT = "#1f6f8b", "#8a5a2b", "#9a9a9a"


def plot_table(table: Mapping[str, Any], rows: Sequence[str], path: Path) -> None:
    """Draw mean, single seeds and the interval over studies of each row into ``path`` (written beside, then renamed).

    Args:
        table: of ``tabulate``, with at least one row.
        rows: all rows that are planned, so that the picture keeps its shape while they come in.
        path: the PNG.
    """
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt
    from matplotlib.lines import Line2D
    from matplotlib.ticker import MaxNLocator

    panels = _panels(table)
    columns = min(5 if len(panels) > 8 else 4, len(panels))
    lines = -(-len(panels) // columns)
    figure, axes = plt.subplots(
        lines, columns, figsize=(3.1 * columns + 1.2, 0.36 * lines * len(rows) + 0.95 * lines + 0.6), squeeze=False,
        sharey=True, layout="constrained",
    )  # fmt: skip
    for axis, (title, name, values) in zip(axes.flat, panels, strict=False):
        constant = table["trivial"].get("constant") if not title.startswith("external") else None
        if constant and name in constant["figures"]:
            axis.axvline(constant["figures"][name], color=_CONSTANT, linestyle="--", linewidth=1.2, zorder=0)
        for place, row in enumerate(rows):
            if row in values:
                _draw(axis, place, values[row])
        axis.set_title(title, fontsize=10)
        axis.tick_params(labelsize=8)
        axis.xaxis.set_major_locator(MaxNLocator(5))
        axis.grid(axis="x", alpha=0.3)
        axis.set_yticks(range(len(rows)), rows)
        axis.set_ylim(len(rows) - 0.5, -0.5)
    for axis in axes.flat[len(panels) :]:
        axis.axis("off")
    keys = [
        Line2D([], [], color=_BAR, marker="D", markersize=6, linewidth=2.5, label="mean, 95 % over studies"),
        Line2D([], [], color=_SEED, marker="o", markersize=5, linewidth=0, fillstyle="none", label="single seeds"),
        Line2D([], [], color=_CONSTANT, linestyle="--", linewidth=1.2, label="one constant report"),
    ]
    figure.legend(handles=keys, loc="outside lower center", ncols=3, fontsize=9, frameon=False)
    beside = path.with_suffix(".tmp.png")
    figure.savefig(beside, dpi=120)
    plt.close(figure)
    os.replace(beside, path)


def _panels(table: Mapping[str, Any]) -> list[tuple[str, str, dict[str, Any]]]:
    """(title, figure, row -> its summary) of the figures that some row has."""
    found = [(COLUMNS[name], name, "figures") for name in PANELS]
    found += [(title, name, "external") for name, title in OUTSIDE.items()]
    panels = []
    for title, name, where in found:
        values = {row: entry[where][name] for row, entry in table["rows"].items() if name in (entry[where] or {})}
        if values:
            panels.append((title, name, values))
    return panels


def _draw(axis: Any, place: int, one: Mapping[str, Any]) -> None:
    if one["studies_95"] is not None:
        axis.plot(one["studies_95"], [place, place], color=_BAR, linewidth=2.5, solid_capstyle="round")
    axis.plot([one["mean"]], [place], color=_BAR, marker="D", markersize=6)
    seeds = list(one["values"].values())
    axis.plot(seeds, [place + 0.22] * len(seeds), color=_SEED, marker="o", markersize=4, fillstyle="none", linewidth=0)
