"""What ``training.evaluate`` prints: the comparable rows, how sure they are, and the key words, as fixed-width text."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from training.scoring.keyword_f1 import AVERAGE, KEY_WORDS
from training.scoring.metrics import METRICS

_SHORT = {
    "label_f1_micro": "F1 micro",
    "label_f1_macro": "F1 macro",
    "no_finding_f1": "F1 none",
    "mean_length": "length",
}  # in the printed table
_NAME = 24  # width of the first column


def format_table(result: Mapping[str, Any]) -> str:
    """The comparable rows of a metrics file as fixed-width text: a dash for a missing figure, a reason for a row."""
    rows: dict[str, Mapping[str, float | None] | None] = {"system": result["system"]}
    rows |= {row_title(result, name): result[name] for name in result["n_beside"]}
    rows |= {name.replace("_", " "): row for name, row in result["baselines"].items()}
    header = "".join(f"{_SHORT.get(name, name):>9}" for name in METRICS)
    lines = [f"{result['split']}, n = {result['n']}", " " * _NAME + header]
    for name, row in rows.items():
        if row is None:
            lines.append(f"{name:{_NAME}} {result['baseline_reasons'].get(name.replace(' ', '_'), '')}")
            continue
        figures = (row[metric] for metric in METRICS)
        cells = ("        –" if value is None else f"{value:9.3f}" for value in figures)
        lines.append(f"{name:{_NAME}}" + "".join(cells))
    if result["copied"] is not None:
        lines.append(f"drafts that equal a training report: {result['copied']:.3f}")
    return "\n".join([*lines, *_certainty(result), *_by_chance(result), *_key_words(result), *_not_run(result)])


def row_title(result: Mapping[str, Any], row: str) -> str:
    """``images exchanged`` of ``system_images_exchanged``, with the number of studies where not all are in the row."""
    name, n = row.removeprefix("system_").replace("_", " "), result["n_beside"][row]
    return name if n == result["n"] else f"{name} ({n})"


def _key_words(result: Mapping[str, Any]) -> list[str]:
    """F1 of the key words by category, with what is denied and without."""
    tables = {"": result["forte"], "*": result["forte_without_negated"]}
    header = "".join(f"{category + mark:>13}" for mark in tables for category in (*KEY_WORDS, AVERAGE))
    lines = ["", "key words, F1".ljust(_NAME) + header]
    for name in ("system", *result["n_beside"], *result["baselines"]):
        parts = [table.get(name) or table["baselines"].get(name) for table in tables.values()]
        if all(parts):
            values = (part[category]["f1"] for part in parts for category in (*KEY_WORDS, AVERAGE))
            shown = row_title(result, name) if name in result["n_beside"] else name.replace("_", " ")
            lines.append(f"{shown:{_NAME}}" + "".join(f"{value:13.3f}" for value in values))
    return [*lines, "* without the sentences that deny something"]


def _by_chance(result: Mapping[str, Any]) -> list[str]:
    """Lines on what the same drafts score when they are dealt out anew; none where they were not."""
    if result["by_chance"] is None:
        return []
    lines = ["", "dealt out anew".ljust(_NAME) + f"{'mean':>9}{'95 % of deals':>20}{'system':>9}{'p':>9}"]
    for name, entry in result["by_chance"].items():
        ends = f"{entry['interval_95'][0]:.3f} … {entry['interval_95'][1]:.3f}"
        figures = f"{entry['mean']:9.3f}{ends:>20}{result['system'][name]:9.3f}{entry['p']:9.3f}"
        lines.append(f"{_SHORT.get(name, name):{_NAME}}{figures}")
    return lines


def _not_run(result: Mapping[str, Any]) -> list[str]:
    return ["", *(f"not run: {name}: {why}" for name, why in result["not_run"].items())] if result["not_run"] else []


def _certainty(result: Mapping[str, Any]) -> list[str]:
    """Lines on the system's intervals and its differences to the other rows; none where nothing was drawn."""
    intervals = result["confidence_95"].get("system")
    if intervals is None:
        return []
    shown = ("BLEU_4", "ROUGE_L", "CIDEr", "label_f1_micro")

    def line(name: str, entries: Mapping[str, Sequence[float]], more: Mapping[str, str]) -> str:
        parts = (f"{entries[metric][0]:7.3f} …{entries[metric][1]:7.3f}{more.get(metric, '')}" for metric in shown)
        return f"{name:{_NAME}}" + "".join(f"{part:>28}" for part in parts)

    lines = ["", "95 % of draws".ljust(_NAME) + "".join(f"{_SHORT.get(name, name):>28}" for name in shown)]
    lines.append(line("system", intervals, {}))
    for name, entry in result["system_minus"].items():
        p = {metric: f" (p {entry[metric]['p']:.3f})" for metric in shown}
        ends = {metric: entry[metric]["confidence_95"] for metric in shown}
        shown_name = row_title(result, name) if name in result["n_beside"] else name.replace("_", " ")
        lines.append(line(f"- {shown_name}", ends, p))
    return lines
