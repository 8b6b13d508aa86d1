"""The table as Markdown and CSV."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from typing import Any

from training.ablation.published import published_markdown
from training.ablation.rows import CHANGE
from training.scoring.metrics import METRICS

COLUMNS = {
    "BLEU_1": "BLEU-1", "BLEU_2": "BLEU-2", "BLEU_3": "BLEU-3", "BLEU_4": "BLEU-4", "METEOR": "METEOR",
    "ROUGE_L": "ROUGE-L", "CIDEr": "CIDEr", "label_f1_micro": "F1 micro", "label_f1_macro": "F1 macro",
    "distinct": "distinct", "mean_length": "length",
}  # fmt: skip
OUTSIDE = {"label_f1_micro": "external F1 micro", "label_f1_macro": "external F1 macro"}
STEPS = ("BLEU_4", "ROUGE_L", "CIDEr", "label_f1_micro", "label_f1_macro", "distinct")
EXCHANGED = ("BLEU_4", "CIDEr", "label_f1_micro")
HOW = (
    "Mean over the seeds. Below it the 95 % interval over **studies**: the validation studies drawn again with "
    "replacement, the same draws for every seed and row (how far other patients would move the mean; METEOR and "
    "distinct are not drawn); and the 95 % interval over **seeds**: Student's t on the single trainings (how far "
    "training again would move it). Label F1 counts the 13 findings without No Finding."
)


def shown(value: float | None, name: str = "", *, sign: bool = False) -> str:
    """A figure as it stands in a table: ``.123``, words with one decimal, a dash for none."""
    if value is None:
        return "–"
    text = f"{value:{'+' if sign else ''}.{1 if name == 'mean_length' else 3}f}"
    if text.lstrip("+-").strip("0") == ".":
        text = text.lstrip("+-")
    return text if name == "mean_length" else text.replace("0.", ".", 1) if text.lstrip("+-")[0] == "0" else text


def _between(ends: Sequence[float] | None, name: str, *, sign: bool = False) -> str:
    return "–" if ends is None else f"{shown(ends[0], name, sign=sign)} … {shown(ends[1], name, sign=sign)}"


def _about(one: Mapping[str, Any] | None, name: str) -> str:
    """Half of the interval over seeds, which lies evenly around the mean."""
    if one is None or one["seeds_95"] is None:
        return "–"
    return f"± {shown(one['seeds_95'][1] - one['mean'], name)}"


def markdown(result: Mapping[str, Any]) -> str:
    """The whole document of ``ablation.json``'s content."""
    table = result["table"]
    done, planned = len(result["cells_done"]), result["cells_planned"]
    lines = ["# Ablation", "", _size(result), ""]
    if done < planned:
        lines += [f"**Partial: {done} of {planned} cells are finished.**", ""]
    lines += _main(table, result["outside"] is not None)
    lines += ["", HOW]
    if result["outside"] is not None:
        lines += ["", result["outside"]]
    lines += _steps(table, result["changes"])
    lines += _exchanged(table)
    lines += _failed(result["cells_failed"])
    return "\n".join([*lines, "", *published_markdown(), ""])


def _size(result: Mapping[str, Any]) -> str:
    size = result["size"]
    words = [f"{name}: {value}" for name, value in size.items() if value is not None]
    return "; ".join(words) + "."


def _main(table: Mapping[str, Any], external: bool) -> list[str]:
    outside = OUTSIDE if external else {}
    header = ["row", *COLUMNS.values(), *outside.values()]
    lines = [_line(header), "|---|" + "---:|" * (len(header) - 1)]
    for row, entry in table["rows"].items():
        own, other = entry["figures"], entry["external"] or {}
        cells = [(name, own.get(name)) for name in COLUMNS] + [(name, other.get(name)) for name in outside]
        lines += [
            _line([f"**{row}**", *(shown(one and one["mean"], name) for name, one in cells)]),
            _line(["95 %, studies", *(_between(one and one["studies_95"], name) for name, one in cells)]),
        ]
        if (seeds := len(entry["seeds"])) > 1:
            lines.append(_line([f"95 %, {seeds} seeds", *(_about(one, name) for name, one in cells)]))
    for name, entry in table["trivial"].items():
        label = f"*{name.replace('_', ' ')}*" + (f" ({entry['of']})" if entry["of"] else "")
        figures = [shown(entry["figures"].get(column), column) for column in COLUMNS]
        lines.append(_line([label, *figures, *("–" for _ in outside)]))
    return lines


def _steps(table: Mapping[str, Any], changes: Mapping[str, Sequence[str]]) -> list[str]:
    if not table["steps"]:
        return []
    lines = [
        "", "## What each step adds", "",
        "Difference to the row before on the seeds that both have; its 95 % interval and p over the same draws of the "
        "studies (p: twice the share of draws in which the smaller of the two directions holds).", "",
    ]  # fmt: skip
    header = ["row", "change", *(COLUMNS[name] for name in STEPS)]
    lines += [_line(header), "|---|---|" + "---:|" * len(STEPS)]
    for row, entry in table["steps"].items():
        what = f"{CHANGE[row]} (`{', '.join(changes.get(row, ()))}`)"
        lines.append(_line([f"{row} − {entry['before']}", what, *(_gain(entry["figures"], name) for name in STEPS)]))
    return lines


def _gain(figures: Mapping[str, Any], name: str) -> str:
    if name not in figures:
        return "–"
    one = figures[name]
    text = shown(one["difference"], name, sign=True)
    if one["studies_95"] is None:
        return text
    return f"{text} ({_between(one['studies_95'], name, sign=True)}; p {shown(one['p'])})"


def _exchanged(table: Mapping[str, Any]) -> list[str]:
    if not table["rows"]:
        return []
    lines = [
        "", "## With the images exchanged between studies", "",
        "What is left when each study gets the images of another: a model that looks at its images loses there.", "",
    ]  # fmt: skip
    header = ["row", *(f"{COLUMNS[name]}, {how}" for name in EXCHANGED for how in ("own images", "exchanged"))]
    lines += [_line(header), "|---|" + "---:|" * (len(header) - 1)]
    for row, entry in table["rows"].items():
        pairs = ((entry["figures"][name]["mean"], entry["images_exchanged"].get(name)) for name in EXCHANGED)
        lines.append(_line([row, *(shown(value) for pair in pairs for value in pair)]))
    return lines


def _failed(failed: Sequence[Mapping[str, Any]]) -> list[str]:
    if not failed:
        return []
    return ["", "## Cells without figures", "",
            *(f"- {cell['row']}, seed {cell['seed']}: {cell['reason']}" for cell in failed)]  # fmt: skip


def _line(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cells) + " |"


def comma_separated(table: Mapping[str, Any]) -> str:
    """One line a row, set and figure: ``row,set,figure,seeds,mean,studies_low,studies_high,seeds_low,seeds_high``, and
    the single values joined by spaces. Empty where there is none."""
    text = io.StringIO()
    lines = csv.writer(text, lineterminator="\n")
    lines.writerow(["row", "set", "figure", "seeds", "mean", "studies_low", "studies_high", "seeds_low", "seeds_high",
                    "values"])  # fmt: skip
    for row, entry in table["rows"].items():
        for where in ("figures", "external"):
            for name, one in (entry[where] or {}).items():
                ends = [*(one["studies_95"] or ("", "")), *(one["seeds_95"] or ("", ""))]
                values = " ".join(map(str, one["values"].values()))
                kind = "val" if where == "figures" else where
                lines.writerow([row, kind, name, len(one["values"]), one["mean"], *ends, values])
    for name, entry in table["trivial"].items():
        for figure in METRICS:
            if figure in entry["figures"]:
                ends = [*(entry["studies_95"].get(figure) or ("", "")), "", ""]
                lines.writerow([name, "val", figure, "", entry["figures"][figure], *ends, ""])
    return text.getvalue()
