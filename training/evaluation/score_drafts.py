"""Everything in ``metrics.json`` that depends on texts alone; ``training.evaluate`` and ``training.score`` share it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from model.types import Draft
from training.data.studies import Study
from training.evaluation import scoring
from training.evaluation.external_scorers import external_scores
from training.evaluation.plan import ScoringPlan
from training.evaluation.scoring import KnownTexts, ReferenceSet
from training.scoring.baselines import TrivialRow
from training.scoring.permutation_across_studies import permutation_test
from training.scoring.protocol import describe


@dataclass(frozen=True)
class ScoredDrafts:
    """Entries of ``metrics.json``, the trivial rows, and the reason for each scorer that was not run."""

    entries: dict[str, Any]
    rows: Mapping[str, TrivialRow]
    not_run: dict[str, str]


def score_drafts(
    studies: Sequence[Study], drafts: Sequence[Draft], references: ReferenceSet, texts: KnownTexts, plan: ScoringPlan,
    labels: Mapping[str, frozenset[str]],
) -> ScoredDrafts:  # fmt: skip
    """Score one draft a study; ``references`` hold the reports of the studies, ``labels`` the table of the plan.

    A draft of a file has its text, and maybe reference cases; one of a bundle also has findings of the classifier.
    """
    findings = [draft.findings for draft in drafts]
    rows: dict[str, TrivialRow] = {}
    reasons: dict[str, str] = dict.fromkeys(scoring.TRIVIAL, "not asked for")
    if plan.baselines:
        rows, reasons = scoring.make_rows(texts, drafts, len(studies))
    system, system_full = references.drafts(findings)
    comparable, _ = references.draft_pairs(findings)
    entries: dict[str, Any] = {
        "schema_version": 1,
        "protocol": describe(references.protocol),
        "n": len(findings),
        "system": system,
        "system_full": system_full,
        "copied": references.copied(findings, texts.train.values()),
        "language": references.language(findings, texts.train.values()),
        **scoring.score_rows(references, rows, reasons),
        **scoring.intervals_and_differences(references, findings, rows, draws=plan.draws, seed=plan.seed),
        "by_chance": permutation_test(comparable, draws=plan.draws, seed=plan.seed),
        **scoring.word_tables(references, findings, rows),
        "annotations": scoring.annotation_table(references, findings, rows, plan),
        "forte_published": scoring.forte_table(references, findings, rows, plan),
        "finding_auroc": scoring.classifier_aurocs(drafts, studies, labels, draws=plan.draws, seed=plan.seed),
        "seed": plan.seed,
        "vocabulary": {"from": texts.origin, "words": len(texts.vocabulary)},
        "constant_chosen_on": texts.chosen_on if plan.baselines else None,
    }
    not_run: dict[str, str] = {}
    if plan.reference_labels is not None:
        name = plan.reference_labels.name
        entries["reference_labels"] = scoring.against_table(name, labels, studies, findings, rows, references)
    if plan.external_scorers:
        entries["clinical"], not_run = external_scores(references, findings, rows)
    return ScoredDrafts(entries, rows, not_run)
