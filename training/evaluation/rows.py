"""The rows in the content of a metrics file: names, titles, scores, intervals."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

ROWS = {
    "system": "this bundle",
    "system_images_exchanged": "images exchanged",
    "system_cases_exchanged": "only cases exchanged",
    "system_patches_exchanged": "only patch tokens exchanged",
    "system_frontal_only": "frontal only",
    "system_lateral_only": "lateral only",
    "constant": "one constant report",
    "most_frequent": "most frequent report",
    "random": "random report",
    "nearest": "nearest case's report",
}
COUNTERFACTUAL = ("system_images_exchanged", "system_cases_exchanged", "system_patches_exchanged")
KEYWORD_F1 = {"keyword_f1": True, "keyword_f1_without_negated": False}  # key -> whether negated sentences count
OLD_KEYS = {"keyword_f1": "forte", "keyword_f1_without_negated": "forte_without_negated"}  # of 0.2; still written
SINGLE_VIEW = ("system_frontal_only", "system_lateral_only")


def row_title(result: Mapping[str, Any], row: str) -> str:
    """What tables and plots call a row; results of ``training.score`` name their systems."""
    title: str = result.get("row_names", {}).get(row) or ROWS[row]
    return title


def ends_of(result: Mapping[str, Any], row: str, metric: str) -> Sequence[float] | None:
    """Interval of a metric of a comparable row; None without draws."""
    known = result["confidence_95"]
    entries = known.get(row) or known.get("baselines", {}).get(row) or {}
    found: Sequence[float] | None = entries.get(metric)
    return found


def scores_of(result: Mapping[str, Any], row: str) -> Mapping[str, float | None]:
    """Scores of a comparable row; empty for a row that was not made."""
    found: Mapping[str, float | None] = result.get(row) or result["baselines"].get(row) or {}
    return found


def made(result: Mapping[str, Any], rows: Sequence[str]) -> list[str]:
    """The rows that were made, of those given."""
    return [row for row in rows if scores_of(result, row)]


def keyword_table(result: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    """F1 of key words under a key of ``KEYWORD_F1``, or under its old name."""
    found: Mapping[str, Any] = result.get(key) or result[OLD_KEYS[key]]
    return found


def full_name(name: str) -> str:
    """``system_full_images_exchanged`` of ``system_images_exchanged``."""
    return name.replace("system", "system_full", 1)


def split_of(result: Mapping[str, Any]) -> str:
    """``test``, ``val (half that reports)``; empty for a file without splits."""
    half = result.get("selection", {}).get("half")
    return f"{result['split']} (half that {half}s)" if half else result["split"] or ""


def data_of(result: Mapping[str, Any]) -> str:
    """``test split of annotation.json``, or the name of a file without splits."""
    return f"{split_of(result)} split of {result['dataset']}" if result["split"] else str(result["dataset"])
