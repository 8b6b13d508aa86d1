"""The plot of the table: one panel for each metric, one line for each row."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from training.ablation.report import EXTERNAL
from training.evaluation.tables import title
from training.trainer.plots import save_figure

PANELS = ("BLEU_4", "METEOR", "ROUGE_L", "CIDEr", "label_f1_micro", "label_f1_macro", "distinct", "mean_length")
_BAR, _SEED, _CONSTANT = "#1f6f8b", "#8a5a2b", "#9a9a9a"


def plot_table(table: Mapping[str, Any], rows: Sequence[str], path: Path) -> None:
    """Draw mean, single seeds and the interval over studies of each row into the PNG ``path``.

    ``table`` is that of ``tabulate``, with at least one row; ``rows`` are all planned rows, so that the layout stays
    the same while results come in.
    """
    panels = _panels(table)
    columns = min(5 if len(panels) > 8 else 4, len(panels))
    lines = -(-len(panels) // columns)
    size = (3.1 * columns + 1.2, 0.36 * lines * len(rows) + 0.95 * lines + 0.6)
    figure = Figure(figsize=size, layout="constrained")
    axes = figure.subplots(lines, columns, squeeze=False, sharey=True)
    for axis, (heading, name, values) in zip(axes.flat, panels, strict=False):
        constant = table["trivial"].get("constant") if not heading.startswith("external") else None
        if constant and name in constant["figures"]:
            axis.axvline(constant["figures"][name], color=_CONSTANT, linestyle="--", linewidth=1.2, zorder=0)
        for line, row in enumerate(rows):
            if row in values:
                _draw(axis, line, values[row])
        axis.set_title(heading, fontsize=10)
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
    save_figure(figure, path)


def _panels(table: Mapping[str, Any]) -> list[tuple[str, str, dict[str, Any]]]:
    """(title, metric, row -> its summary) of the metrics that some row has."""
    panels = [(title(name), name, "figures") for name in PANELS]
    panels += [(f"external {title(name)}", name, "external") for name in EXTERNAL]
    rows = table["rows"].items()
    found = [(head, name, {row: e[where][name] for row, e in rows if name in (e[where] or {})})
             for head, name, where in panels]  # fmt: skip
    return [panel for panel in found if panel[2]]


def _draw(axis: Any, line: int, one: Mapping[str, Any]) -> None:
    if one["studies_95"] is not None:
        axis.plot(one["studies_95"], [line, line], color=_BAR, linewidth=2.5, solid_capstyle="round")
    axis.plot([one["mean"]], [line], color=_BAR, marker="D", markersize=6)
    seeds = list(one["values"].values())
    axis.plot(seeds, [line + 0.22] * len(seeds), color=_SEED, marker="o", markersize=4, fillstyle="none", linewidth=0)
