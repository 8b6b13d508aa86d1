"""A second system in the content of a metrics file: its row, and its paired differences to the first."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from training.evaluation.counterfactuals import CounterfactualRow, score_counterfactual_rows
from training.evaluation.plan import ScoringPlan
from training.evaluation.scoring import KnownTexts, ReferenceSet
from training.scoring.paired_permutation import paired_permutation_test


def add_system(
    result: dict[str, Any], name: str, findings: Sequence[str], of_first: Sequence[str], references: ReferenceSet,
    texts: KnownTexts, plan: ScoringPlan,
) -> None:  # fmt: skip
    """Score the texts ``findings`` of another system for the same studies as a row ``system_against_NAME``.

    ``system_minus`` gets the differences of the first system, which wrote ``of_first``: for each metric the paired
    bootstrap interval and its ``p``, and ``p_permutation`` by the paired permutation test.
    """
    row = f"system_against_{name}"
    result["row_names"][row] = name
    rows = {row: CounterfactualRow(range(len(findings)), findings)}
    score_counterfactual_rows(result, rows, references, of_first, plan)
    pairs = [references.draft_pairs(drafts)[0] for drafts in (of_first, findings)]
    for metric, p in (paired_permutation_test(*pairs, draws=plan.draws, seed=plan.seed) or {}).items():
        result["system_minus"][row][metric]["p_permutation"] = p
    result["against"][name] = {"row": row, "copied": references.copied(findings, texts.train.values())}
    if (language := references.language(findings, texts.train.values())) is not None:
        result["language"][row] = language["system"]
