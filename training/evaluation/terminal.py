"""What ``training.evaluate`` and ``training.score`` print."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from training.evaluation.metric_tables import all_tables, metrics_of
from training.evaluation.rows import ROWS, split_of
from training.evaluation.tables import title

SHORT_TITLES = {
    "label_f1_micro": "F1 micro", "label_f1_macro": "F1 macro", "no_finding_f1": "F1 none", "mean_length": "length",
}  # fmt: skip


def format_table(result: Mapping[str, Any]) -> str:
    """The comparable rows, intervals, permutations, key words."""
    tables = all_tables(result)
    comparable = tables["comparable"]
    assert comparable is not None
    head = ["reports", *(SHORT_TITLES.get(metric, title(metric)) for metric in metrics_of(result))]
    parts = [f"{split_of(result) or result['dataset']}, n = {result['n']}\n{replace(comparable, head=head).text()}"]
    parts += [result["selection"]["statement"]] if "statement" in result.get("selection", {}) else []
    parts += [f"{ROWS[name]}: {reason}" for name, reason in result["baseline_reasons"].items()]
    if result["copied"] is not None:
        parts.append(f"drafts that equal a training report: {result['copied']:.3f}")
    parts += [f"of {name}: {other['copied']:.3f}" for name, other in result.get("against", {}).items()
              if other["copied"] is not None]  # fmt: skip
    if (annotations := tables["annotations"]) is not None:
        parts.append(f"side, region and degree of findings that report and draft both name\n{annotations.text()}")
    shown = (tables[name] for name in ("language", "differences", "paired", "counterfactual"))
    parts += [table.text() for table in shown if table is not None]
    for name, note in (("key_words", "key words, F1"), ("key_words_without_negated", "without negated sentences")):
        table = tables[name]
        assert table is not None
        parts.append(f"{note}\n{table.text()}")
    if (table := tables["forte"]) is not None:
        file = result["forte_published"]["keywords"]["file"]
        parts.append(f"FORTE as published, F1, key words of {file}\n{table.text()}")
    if (areas := tables["finding_auroc"]) is not None:
        parts.append(f"finding classifier\n{areas.text()}")
    parts += [f"not run: {name}: {reason}" for name, reason in result["not_run"].items()]
    return "\n\n".join(parts)
