"""The plots of the page, each as SVG in the colours of the page and as PNG on white."""

from __future__ import annotations

import io
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import matplotlib
import numpy as np
from matplotlib.figure import Figure

from training.evaluation.metric_tables import TESTED, by_prevalence
from training.evaluation.page.gallery import EvaluatedSplit
from training.evaluation.rows import ends_of, keyword_table, made, row_title, scores_of
from training.evaluation.tables import number, title
from training.scoring.keyword_f1 import KEY_WORDS

# the light theme of page.css by the name of its variable; the SVG names the variable instead
COLOURS = {
    "ink": "#172027", "soft": "#4c5a65", "line": "#d3dbe1", "accent": "#0a5f7e", "trivial": "#6b7a86",
    "counterfactual": "#a3560d", "one": "#0a5f7f", "two": "#5b9bb5", "three": "#b9743a", "four": "#8c97a1",
}  # fmt: skip
_WIDTH = 10.0  # inches


@dataclass(frozen=True)
class Plot:
    """One plot as ``svg`` for HTML and as ``png``; ``description`` is for screen readers."""

    name: str
    description: str
    svg: str
    png: bytes


def all_plots(result: Mapping[str, Any], drafted: EvaluatedSplit) -> dict[str, Plot]:
    """Every plot of the page by name."""
    style = {
        "svg.fonttype": "none", "text.color": COLOURS["ink"], "axes.labelcolor": COLOURS["soft"], "font.size": 10,
        "axes.edgecolor": COLOURS["line"], "xtick.color": COLOURS["soft"], "ytick.color": COLOURS["soft"],
        "axes.spines.top": False, "axes.spines.right": False, "axes.titlesize": 10, "grid.color": COLOURS["line"],
        "axes.axisbelow": True, "legend.frameon": False, "text.parse_math": False, "font.family": "DejaVu Sans",
        "xtick.major.size": 0, "ytick.major.size": 0,
    }  # fmt: skip
    plots = {}
    for name, draw, description in (
        ("intervals", _intervals, "metrics of each row with their 95 % intervals"),
        ("labels", _labels, "precision, recall and F1 of each finding and how often reports name it"),
        ("spread", _spread, "how CIDEr and length are spread over studies, and the share of different reports"),
        ("key_words", _key_words, "F1 of key words by category, without negated sentences"),
    ):
        settings: Any = {**style, "svg.hashsalt": name}  # the stubs list every key as a literal
        with matplotlib.rc_context(settings):
            drawn = draw(result, drafted)
            svg = _svg(drawn, description)
            drawn.set_layout_engine("none")  # the panels stay; to compute them again takes half of a drawing
            plots[name] = Plot(name, description, svg, _save(drawn, "png"))
    return plots


def _intervals(result: Mapping[str, Any], _: EvaluatedSplit) -> Figure:
    rows = made(result, ("system", *result["n_beside"], *result["baselines"]))
    drawn = Figure(figsize=(_WIDTH, 0.9 + 0.3 * len(rows)), layout="constrained")
    axes = drawn.subplots(1, len(TESTED), sharey=True)
    for axis, metric in zip(axes, TESTED, strict=True):
        for line, row in enumerate(rows):
            value, ends = scores_of(result, row).get(metric), ends_of(result, row, metric)
            kind = "accent" if row == "system" else "counterfactual" if row in result["n_beside"] else "trivial"
            colour = COLOURS[kind]
            if ends is not None:
                axis.plot(ends, (line, line), color=colour, linewidth=2, solid_capstyle="round")
            axis.plot([value], [line], marker="o", markersize=6, color=colour)
        if (system := ends_of(result, "system", metric)) is not None:
            axis.axvspan(*system, color=COLOURS["accent"], alpha=0.08, linewidth=0)
        axis.set_title(title(metric))
        axis.set_xlim(left=min(0.0, axis.get_xlim()[0]) if axis.get_xlim()[0] < 0.1 else None)
        axis.locator_params(axis="x", nbins=4)
        axis.grid(axis="x")
    axes[0].set_yticks(range(len(rows)), [row_title(result, row) for row in rows])
    axes[0].invert_yaxis()
    return drawn


def _labels(result: Mapping[str, Any], _: EvaluatedSplit) -> Figure:
    table = dict(by_prevalence(result))
    names = list(table)
    drawn = Figure(figsize=(_WIDTH, 5.6), layout="constrained")
    bars, shares = drawn.subplots(1, 2, sharey=True, width_ratios=(3, 1))
    lines = np.arange(len(names))
    for shift, (key, colour) in enumerate((("f1", "one"), ("precision", "two"), ("recall", "three"))):
        values = [table[name][key] for name in names]
        label = "F1" if key == "f1" else key
        bars.barh(lines + (shift - 1) * 0.27, values, height=0.25, color=COLOURS[colour], label=label)
    for shift, (key, colour, label) in enumerate((("prevalence", "four", "reports"), ("predicted", "one", "drafts"))):
        values = [table[name][key] for name in names]
        shares.barh(lines + (shift - 0.5) * 0.38, values, height=0.36, color=COLOURS[colour], label=label)
    bars.set_yticks(lines, names)
    bars.invert_yaxis()
    bars.set(xlim=(0, 1), xlabel="finding named present")
    shares.set(xlabel="share of studies", xlim=(0, None))
    shares.locator_params(axis="x", nbins=4)
    for axis in (bars, shares):
        axis.grid(axis="x")
        axis.legend(loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=3, fontsize=9)
    return drawn


def _spread(result: Mapping[str, Any], drafted: EvaluatedSplit) -> Figure:
    cider = drafted.study_scores()[1]
    drafts, reports = drafted.lengths()
    drawn = Figure(figsize=(_WIDTH, 2.9), layout="constrained")
    left, middle, right = drawn.subplots(1, 3)
    left.hist(cider, bins=np.linspace(0, max(1.0, *cider), 25), color=COLOURS["one"])  # equal scores have no range
    left.axvline(float(np.mean(cider)), color=COLOURS["three"], linewidth=1.5)
    left.set(title=f"CIDEr of a study; mean {number(float(np.mean(cider)))}", ylabel="studies")
    edges = np.histogram_bin_edges([*drafts, *reports], bins=24)
    middle.hist(reports, bins=edges, color=COLOURS["four"], alpha=0.75, label="reports")
    middle.hist(drafts, bins=edges, color=COLOURS["one"], alpha=0.75, label="drafts")
    middle.set_title("words")
    middle.legend(fontsize=9)
    rows = made(result, ("system", *result["baselines"]))
    shares = [scores_of(result, row).get("distinct") or 0.0 for row in rows]
    right.barh(range(len(rows)), shares, color=[COLOURS["one" if row == "system" else "four"] for row in rows])
    for line, share in enumerate(shares):
        right.text(share + 0.02, line, number(share), va="center", fontsize=9)
    right.set_yticks(range(len(rows)), [row_title(result, row) for row in rows])
    right.invert_yaxis()
    right.set(xlim=(0, 1.15), xticks=[0, 0.5, 1], title="share of different reports")
    return drawn


def _key_words(result: Mapping[str, Any], _: EvaluatedSplit) -> Figure:
    table = keyword_table(result, "keyword_f1_without_negated")
    rows = [("system", "one"), ("nearest", "two"), ("constant", "three"), ("random", "four")]
    shown = [(name, colour) for name, colour in rows if table.get(name) or table["baselines"].get(name)]
    drawn = Figure(figsize=(_WIDTH, 2.8), layout="constrained")
    axis = drawn.subplots()
    positions = np.arange(len(KEY_WORDS))
    for shift, (name, colour) in enumerate(shown):
        row = table.get(name) or table["baselines"][name]
        values = [row[category]["f1"] for category in KEY_WORDS]
        offset = (shift - (len(shown) - 1) / 2) * 0.2
        bars = axis.bar(positions + offset, values, width=0.18, color=COLOURS[colour], label=row_title(result, name))
        axis.bar_label(bars, [number(value, 2) for value in values], fontsize=8, color=COLOURS["soft"])
    axis.set_xticks(positions, list(KEY_WORDS))
    axis.set(ylabel="F1", ylim=(0, max(0.1, 1.08 * axis.get_ylim()[1])))
    axis.grid(axis="y")
    axis.legend(ncols=len(shown) or 1, loc="lower center", bbox_to_anchor=(0.5, 1.0), fontsize=9)
    return drawn


def _save(drawn: Figure, kind: str) -> bytes:
    file = io.BytesIO()
    more: dict[str, Any] = {"metadata": {"Date": None}} if kind == "svg" else {"dpi": 110}
    drawn.savefig(file, format=kind, transparent=kind == "svg", **more)
    return file.getvalue()


def _svg(drawn: Figure, description: str) -> str:
    """The SVG element alone, without a size, with the colour variables of the page."""
    text = _save(drawn, "svg").decode()
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    head, rest = text.split(">", 1)
    head = re.sub(r'\s(?:width|height)="[^"]*"', "", head)
    text = head.replace("<svg", f'<svg role="img" aria-label="{description}"') + ">" + rest
    for name, colour in COLOURS.items():
        text = text.replace(colour, f"var(--{name})")
    return text
