"""The table of the ablation as Markdown and CSV."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from typing import Any

from training.ablation.published import published_markdown
from training.ablation.rows import CHANGE, TITLE
from training.evaluation.tables import NO_VALUE, Table, interval, number, title
from training.scoring.metrics import METRICS
from training.scoring.permutation_across_studies import MEASURES

COLUMNS = tuple(name for name in METRICS if name != "no_finding_f1")
EXTERNAL = ("label_f1_micro", "label_f1_macro")
STEPS = ("BLEU_4", "ROUGE_L", "CIDEr", "label_f1_micro", "label_f1_macro", "distinct")
HOW = (
    "Mean over the seeds. Below it the 95 % interval over **studies**: bootstrap of the validation studies, the same "
    "draws for every seed and row (METEOR and distinct are not drawn); and the 95 % interval over **seeds**: Student's "
    "t on the single trainings. Images exchanged: each study gets the images of another. "
    "Label F1 counts the 13 findings without No Finding."
)


def markdown(result: Mapping[str, Any]) -> str:
    """The whole document, from the content of ``ablation.json``."""
    table = result["table"]
    done, planned = len(result["cells_done"]), result["cells_planned"]
    size = "; ".join(f"{name}: {value}" for name, value in result["size"].items() if value is not None)
    parts = ["# Ablation", f"{size}."]
    if done < planned:
        parts.append(f"**Partial: {done} of {planned} cells are finished.**")
    parts += [*_looks(table), _main(table, result["outside"] is not None).markdown(), HOW]
    if result["outside"] is not None:
        parts.append(result["outside"])
    parts += _steps(table, result["changes"])
    if failed := result["cells_failed"]:
        reasons = (f"- {cell['row']}, seed {cell['seed']}: {cell['reason']}" for cell in failed)
        parts += ["## Cells without scores", "\n".join(reasons)]
    return "\n\n".join([*parts, *published_markdown(result["published"]["table"])]) + "\n"


def _main(table: Mapping[str, Any], external: bool) -> Table:
    outside = EXTERNAL if external else ()
    rows: list[list[str]] = []
    for row, entry in table["rows"].items():
        scores, other = entry["figures"], entry["external"] or {}
        cells = [scores.get(name) for name in COLUMNS] + [other.get(name) for name in outside]
        rows.append([f"**{_named(row)}**", *(number(cell and cell["mean"]) for cell in cells)])
        rows.append(["95 %, studies", *(interval(cell and cell["studies_95"]) or NO_VALUE for cell in cells)])
        if (seeds := len(entry["seeds"])) > 1:
            rows.append([f"95 %, {seeds} seeds", *map(_half_width, cells)])
        exchanged = [entry["images_exchanged"].get(name) for name in COLUMNS]
        rows.append(["images exchanged", *map(number, exchanged), *(NO_VALUE for _ in outside)])
    for name, entry in table["trivial"].items():
        label = f"*{name.replace('_', ' ')}*" + (f" ({entry['of']})" if entry["of"] else "")
        rows.append([label, *(number(entry["figures"].get(name)) for name in COLUMNS), *(NO_VALUE for _ in outside)])
    return Table(["row", *map(title, COLUMNS), *(f"external {title(name)}" for name in outside)], rows)


def _named(row: str) -> str:
    return TITLE.get(row, row)


def _half_width(cell: Mapping[str, Any] | None) -> str:
    """Half of the interval over seeds, which is symmetric around the mean."""
    return NO_VALUE if cell is None or not cell["seeds_95"] else f"± {number(cell['seeds_95'][1] - cell['mean'])}"


def _steps(table: Mapping[str, Any], changes: Mapping[str, Sequence[str]]) -> list[str]:
    if not table["steps"]:
        return []
    rows = [
        [f"{row} − {_named(entry['before'])}", f"{CHANGE.get(row, '')} (`{', '.join(changes.get(row, ()))}`)".lstrip(),
         *(_gain(entry["figures"].get(name)) for name in STEPS)]
        for row, entry in table["steps"].items()
    ]  # fmt: skip
    note = (
        "Difference to the row before on the seeds that both have; its 95 % interval and p over the same draws of the "
        "studies (p: twice the share of draws in the rarer direction)."
    )
    head = ["row", "change", *map(title, STEPS)]
    return ["## What each step adds", note, Table(head, rows, left=2).markdown()]


def _gain(cell: Mapping[str, Any] | None) -> str:
    text = number(cell["difference"] if cell else None, sign=True)
    if not cell or cell["studies_95"] is None:
        return text
    return f"{text} ({interval(cell['studies_95'], sign=True)}; p {number(cell['p'])})"


def _looks(table: Mapping[str, Any]) -> list[str]:
    """Which rows use the images, in words and with the differences that show it."""
    known = {row: entry["looks"] for row, entry in table["rows"].items() if entry["looks"]}
    if not known:
        return []
    rows, shown = [], []
    for row, looks in known.items():
        above = [name for name in MEASURES if all(one["confidence_95"][0] > 0 for one in looks[name])]
        if above:
            shown.append(_named(row) if len(above) == len(MEASURES) else f"{_named(row)} ({title(above[0])} only)")
        rows.append([_named(row), *(_by_seed(looks[name]) for name in MEASURES)])
    text = (
        f"**Rows that look at the images: {', '.join(shown) or 'none'}.** Score with the right images minus the score "
        "with those of another study, by seed; a row looks where every interval (95 %, bootstrap of the studies) is "
        "above 0. Any constant report has 0."
    )
    return [text, Table(["row", *map(title, MEASURES)], rows).markdown()]


def _by_seed(differences: Sequence[Mapping[str, Any]]) -> str:
    parts = (
        f"{number(one['difference'], sign=True)} ({interval(one['confidence_95'], sign=True)})" for one in differences
    )
    return "; ".join(parts)


def comma_separated(table: Mapping[str, Any]) -> str:
    """CSV with one line for each row, set and metric; ``values`` holds the single seeds, joined by spaces."""
    text = io.StringIO()
    lines = csv.writer(text, lineterminator="\n")
    lines.writerow(["row", "set", "figure", "seeds", "mean", "studies_low", "studies_high", "seeds_low", "seeds_high",
                    "values"])  # fmt: skip
    for row, entry in table["rows"].items():
        for kind, where in (("val", "figures"), ("external", "external")):
            for name, one in (entry[where] or {}).items():
                ends = [*(one["studies_95"] or ("", "")), *(one["seeds_95"] or ("", ""))]
                values = " ".join(map(str, one["values"].values()))
                lines.writerow([row, kind, name, len(one["values"]), one["mean"], *ends, values])
    for name, entry in table["trivial"].items():
        for metric in METRICS:
            if metric in entry["figures"]:
                ends = [*(entry["studies_95"].get(metric) or ("", "")), "", ""]
                lines.writerow([name, "val", metric, "", entry["figures"][metric], *ends, ""])
    return text.getvalue()
