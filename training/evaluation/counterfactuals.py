"""Counterfactual rows: the same bundle with inputs swapped between studies, or with the images of one view alone.

A swap gives each study the images of another study (and so its reference cases), or only its reference cases, or only
its patch tokens. What remains of the scores does not depend on what was swapped.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from model.types import View
from training.data.studies import Study
from training.evaluation.inference import DraftWriter, swap_images
from training.evaluation.plan import EvaluationPlan, ScoringPlan, Swap
from training.evaluation.rows import KEYWORD_F1, full_name
from training.evaluation.scoring import ReferenceSet
from training.scoring.annotation_errors import annotation_errors
from training.scoring.bootstrap import Bootstrap
from training.scoring.forte import forte
from training.scoring.keyword_f1 import keyword_f1


@dataclass(frozen=True)
class CounterfactualRow:
    """Drafts for n of the system's studies: ``rows`` (n,) are their positions, ``findings`` the texts."""

    rows: Sequence[int]
    findings: Sequence[str]


def make_counterfactual_rows(
    writer: DraftWriter, studies: Sequence[Study], plan: EvaluationPlan, *, retrieval: bool
) -> tuple[dict[str, CounterfactualRow], dict[str, str]]:
    """The rows of ``plan`` by name, and by name the reason for each row that cannot be made.

    ``studies`` are those of the system, every view decided; ``retrieval``: whether the bundle has reference cases.
    """
    rows: dict[str, CounterfactualRow] = {}
    reasons: dict[str, str] = {}
    for swap in plan.swaps:
        name = f"system_{swap}_exchanged"
        if len(studies) < 2:
            reasons[name] = "a swap needs two studies"
        elif swap != "images" and not retrieval:
            reasons[name] = "this bundle has no reference cases that could be swapped apart from its images"
        else:
            rows[name] = swapped_row(writer, studies, swap, plan.seed)
    for view in View if plan.single_views else ():
        name = f"system_{view.value}_only"
        row = single_view_row(writer, studies, view)
        if row.rows:
            rows[name] = row
        else:
            reasons[name] = f"no study has a {view.value} image"
    return rows, reasons


def swapped_row(writer: DraftWriter, studies: Sequence[Study], swap: Swap, seed: int) -> CounterfactualRow:
    """Drafts on the images, only the reference cases, or only the patch tokens of another study.

    All else stays: a study keeps its embedding, and with it the similarity that reranking uses.

    Raises:
        ValueError: there are fewer than two studies.
    """
    others = swap_images(studies, seed)
    drafts = writer.write(
        others if swap == "images" else studies,
        what=f"{swap} exchanged",
        counterfactual_patches=others if swap == "patches" else None,
        counterfactual_retrieval=others if swap == "cases" else None,
    )
    return CounterfactualRow(range(len(studies)), [draft.findings for draft in drafts])


def single_view_row(writer: DraftWriter, studies: Sequence[Study], view: View) -> CounterfactualRow:
    """Drafts from the images of one view, for the studies that have it."""
    alone = [replace(study, images=tuple(ref for ref in study.images if ref.view == view)) for study in studies]
    rows = [row for row, study in enumerate(alone) if study.images]
    drafts = writer.write([alone[row] for row in rows], what=f"{view.value} only")
    return CounterfactualRow(rows, [draft.findings for draft in drafts])


def score_counterfactual_rows(
    result: dict[str, Any], counterfactuals: Mapping[str, CounterfactualRow], references: ReferenceSet,
    findings: Sequence[str], plan: ScoringPlan,
) -> None:  # fmt: skip
    """Add scores, intervals, differences, key words and annotations of the rows to the content of a metrics file.

    ``references`` and the drafts ``findings`` are the system's; a difference compares drafts of the same studies.
    Without draws there are no intervals and differences.
    """
    result["n_beside"] = result.get("n_beside", {}) | {name: len(row.rows) for name, row in counterfactuals.items()}
    for name, row in counterfactuals.items():
        subset = references if len(row.rows) == len(findings) else references.subset(row.rows)
        result[name], result[full_name(name)] = subset.drafts(row.findings)
        comparable, full = subset.draft_pairs(row.findings)
        for key, negated in KEYWORD_F1.items():
            result[key][name] = keyword_f1(full, negated=negated)
        bootstrap = Bootstrap(len(row.rows), draws=plan.draws, seed=plan.seed)
        result["annotations"][name] = annotation_errors(full, bootstrap)
        if plan.forte_keywords is not None:
            result["forte_published"][name] = forte(full, plan.forte_keywords, bootstrap)
        if plan.draws:
            resampled = bootstrap.of(comparable)
            system = bootstrap.of(subset.draft_pairs([findings[number] for number in row.rows])[0])
            result["confidence_95"][name] = resampled.intervals()
            result["system_minus"][name] = system.minus(resampled)
