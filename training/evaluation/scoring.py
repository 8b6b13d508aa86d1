"""The rows of an evaluation: a system's drafts and the trivial rows, scored against the reports of a split."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from model.bundle import Bundle
from model.protocols import CaseIndex
from model.text.labeler import FINDINGS
from model.types import Draft, ReferenceCase
from training.data.comparisons import with_rewritten
from training.data.selection import Half, half_of
from training.data.studies import Source, Study
from training.evaluation.plan import ScoringPlan
from training.evaluation.rows import KEYWORD_F1, OLD_KEYS
from training.protocols import IU_XRAY, Protocol
from training.scoring.annotation_errors import annotation_errors, merged_errors
from training.scoring.baselines import TrivialRow, trivial_rows
from training.scoring.bootstrap import Bootstrap
from training.scoring.finding_auroc import finding_aurocs
from training.scoring.forte import PARTS, forte
from training.scoring.keyword_f1 import keyword_f1
from training.scoring.language import language_faults
from training.scoring.metrics import Pair, Scores, label_scores, label_table, present_findings, score
from training.scoring.protocol import (
    comparable_prediction,
    comparable_reference,
    comparable_vocabulary,
    full_prediction,
    full_reference,
)

CHOOSE_ON = 500  # training reports on which the constant is chosen where there is no validation split
TRIVIAL = ("constant", "most_frequent", "random", "nearest")


class ReferenceSet:
    """Scores texts against the reports of a split, on both rows; ``vocabulary`` is that of the comparable row."""

    def __init__(
        self, reports: Sequence[str], vocabulary: frozenset[str], meteor: bool, protocol: Protocol = IU_XRAY
    ) -> None:
        self.protocol = protocol
        self.comparable = [comparable_reference(report, vocabulary, protocol=protocol) for report in reports]
        self.full = [full_reference(report) for report in reports]
        self._reports, self._vocabulary, self._meteor = reports, vocabulary, meteor

    def subset(self, rows: Sequence[int]) -> ReferenceSet:
        """Some of the reports; CIDEr then takes document frequencies from these alone."""
        return ReferenceSet([self._reports[row] for row in rows], self._vocabulary, self._meteor, self.protocol)

    def drafts(self, texts: Sequence[str]) -> tuple[Scores, Scores]:
        """Comparable and full scores of drafts."""
        return self._score(*self.draft_pairs(texts))

    def reports(self, texts: Sequence[str]) -> tuple[Scores, Scores]:
        """Comparable and full scores of training reports used as drafts; ``<unk>`` matches ``<unk>``."""
        return self._score(*self.report_pairs(texts))

    def copied(self, texts: Sequence[str], train: Iterable[str]) -> float | None:
        """Share of drafts that equal a training report, its rare words kept or ``<unk>``; None without reports."""
        known = {text for report in train for text in (self._as_reference(report), self._as_prediction(report))}
        return sum(self._as_prediction(text) in known for text in texts) / len(texts) if known else None

    def language(self, texts: Sequence[str], train: Iterable[str]) -> dict[str, dict[str, float]] | None:
        """Faults of language of the drafts and of the references; None without training reports.

        Words are attested by training reports as published or without comparisons.
        """
        known = with_rewritten(train)
        if not known:
            return None
        return {"system": language_faults(texts, known), "references": language_faults(self._reports, known)}

    def draft_pairs(self, texts: Sequence[str]) -> tuple[list[Pair], list[Pair]]:
        """(reference, draft) pairs of comparable and of full strings."""
        return self._pairs([self._as_prediction(text) for text in texts], texts)

    def report_pairs(self, texts: Sequence[str]) -> tuple[list[Pair], list[Pair]]:
        """The same for training reports used as drafts."""
        return self._pairs([self._as_reference(text) for text in texts], texts)

    def _as_reference(self, report: str) -> str:
        return comparable_reference(report, self._vocabulary, protocol=self.protocol)

    def _as_prediction(self, text: str) -> str:
        return comparable_prediction(text, protocol=self.protocol)

    def _pairs(self, comparable: Sequence[str], texts: Sequence[str]) -> tuple[list[Pair], list[Pair]]:
        full = [full_prediction(text) for text in texts]
        return list(zip(self.comparable, comparable, strict=True)), list(zip(self.full, full, strict=True))

    def _score(self, comparable: Sequence[Pair], full: Sequence[Pair]) -> tuple[Scores, Scores]:
        return score(comparable, meteor=self._meteor), score(full, meteor=self._meteor)


@dataclass(frozen=True)
class KnownTexts:
    """Training reports by study id, what the constant is chosen on, and where they came from."""

    train: Mapping[str, str]
    choose: Sequence[str]
    origin: str
    chosen_on: str | None
    vocabulary: frozenset[str] = field(repr=False)
    protocol: Protocol = IU_XRAY
    cases: Mapping[str, str] = field(default_factory=dict, repr=False)  # the training reports by case id
    headings: bool = False  # the texts are headings, and those of the cases of a bundle are reports

    def of_case(self, case: ReferenceCase) -> str | None:
        """The text of a retrieved case; None where it is unknown."""
        known = self.cases.get(case.case_id)
        return known if self.headings else case.findings or known


def known_texts(bundle: Bundle, index: CaseIndex | None, source: Source, half: Half | None = None) -> KnownTexts:
    """Training and validation reports: of the data set, else of the bundle's cases where they hold texts.

    The constant is chosen on val; with a ``half`` of val scored, on the half that chooses.
    """
    train = {study.study_id: study.reference for study in source.split("train")}
    by_case = {study.case_id: study.reference for study in source.split("train")}
    origin = f"train split of {source.name}, {len(train)} reports"
    if not train and index is not None:
        cases = [index.case(row) for row in range(len(index))]
        train = by_case = {case.case_id: case.findings for case in cases if case.findings}
        origin = f"reference cases of the bundle, {len(train)} reports"
    choose = [study.reference for study in half_of(source.split("val"), "choose" if half else None)]
    part = "half that chooses of the val split" if half else "val split"
    if not train:
        origin = "tokenizer of the bundle; no training report is known"
    texts = texts_of(train, choose, origin=origin, chosen_on=f"{part} of {source.name}, {len(choose)} reports",
                     protocol=source.protocol, cases=by_case)  # fmt: skip
    texts = replace(texts, headings=any(study.target is not None for study in source.studies))
    return texts if train else replace(texts, vocabulary=frozenset(bundle.tokenizer.tokens))


def texts_of(
    train: Mapping[str, str], choose: Sequence[str], *, origin: str, chosen_on: str, protocol: Protocol = IU_XRAY,
    cases: Mapping[str, str] | None = None,
) -> KnownTexts:  # fmt: skip
    """Training reports by study id; the constant is chosen on ``choose``, else on some of them.

    ``cases`` has the reports by case id; None where the ids of the studies are those of the cases.
    """
    on: str | None = chosen_on
    if not choose:
        step = max(1, len(train) // CHOOSE_ON)
        choose = list(train.values())[::step][:CHOOSE_ON]
        on = f"{len(choose)} training reports; there is no val split" if choose else None
    vocabulary = comparable_vocabulary(train.values(), protocol)
    return KnownTexts(train, choose, origin, on, vocabulary, protocol, train if cases is None else cases)


def make_rows(texts: KnownTexts, drafts: Sequence[Draft], count: int) -> tuple[dict[str, TrivialRow], dict[str, str]]:
    """The trivial rows that can be made, and for each other one the reason."""
    rows: dict[str, TrivialRow] = {}
    reasons: dict[str, str] = {}
    if texts.train:
        rows |= trivial_rows(list(texts.train.values()), texts.choose, count, texts.vocabulary,
                             texts.protocol)  # fmt: skip
    else:
        reason = "no training report is known; give a data set with a train split, or a hydrated bundle"
        reasons |= dict.fromkeys(("constant", "most_frequent", "random"), reason)
    first = [draft.reference_cases[0] for draft in drafts if draft.reference_cases]
    known = [text for case in first if (text := texts.of_case(case))]
    if len(known) == count:
        rows["nearest"] = TrivialRow({"nearest": known})
    elif not first:
        reasons["nearest"] = "this bundle retrieves no reference cases"
    else:
        reasons["nearest"] = f"texts of {count - len(known)} of {count} first cases are unknown; hydrate the bundle"
    return rows, reasons


def score_rows(references: ReferenceSet, rows: Mapping[str, TrivialRow], reasons: Mapping[str, str]) -> dict[str, Any]:
    """The entries of ``metrics.json`` about the trivial rows: null, with a reason, for a row that was not made."""
    comparable: dict[str, Scores | None] = dict.fromkeys(TRIVIAL)
    full: dict[str, Scores | None] = dict.fromkeys(TRIVIAL)
    parts: dict[str, Scores] = {}
    for name, row in rows.items():
        scored = {variant: references.reports(texts) for variant, texts in row.variants.items()}
        comparable[name], full[name] = (row.merged(scores) for scores in zip(*scored.values(), strict=True))
        if name == "constant":
            parts = {variant: scores for variant, (scores, _) in scored.items()}
    return {
        "baselines": comparable,
        "baselines_full": full,
        "baseline_reasons": dict(reasons),
        "constant_parts": parts,
    }


def intervals_and_differences(
    references: ReferenceSet, findings: Sequence[str], rows: Mapping[str, TrivialRow], *, draws: int, seed: int
) -> dict[str, Any]:
    """Intervals and paired differences, on the same draws for all rows.

    Returns:
        ``confidence_95`` with an interval of each metric of ``system``, ``system_full`` and the comparable trivial
        rows, and ``system_minus`` with the differences to the trivial rows.
    """
    if not draws:
        return {"confidence_95": {"note": "not asked for"}, "system_minus": {}}
    bootstrap = Bootstrap(len(findings), draws=draws, seed=seed)
    comparable, full = references.draft_pairs(findings)
    system = bootstrap.of(comparable)
    trivial = {
        name: bootstrap.of_row(row, [references.report_pairs(texts)[0] for texts in row.variants.values()])
        for name, row in rows.items()
    }
    return {
        "confidence_95": {
            "method": f"percentiles of {draws} draws of studies with replacement",
            "draws": draws,
            "seed": seed,
            "system": system.intervals(),
            "system_full": bootstrap.of(full).intervals(),
            "baselines": {name: row.intervals() for name, row in trivial.items()},
        },
        "system_minus": {name: system.minus(row) for name, row in trivial.items()},
    }


def word_tables(references: ReferenceSet, findings: Sequence[str], rows: Mapping[str, TrivialRow]) -> dict[str, Any]:
    """F1 of key words, on the strings of the full row, and metrics of each finding."""

    def table(negated: bool) -> dict[str, Any]:
        found: dict[str, Any] = {"system": keyword_f1(references.draft_pairs(findings)[1], negated=negated)}
        merged: dict[str, Any] = dict.fromkeys(TRIVIAL)
        for name, row in rows.items():
            parts = [keyword_f1(references.report_pairs(texts)[1], negated=negated) for texts in row.variants.values()]
            merged[name] = {category: row.merged([part[category] for part in parts]) for category in parts[0]}
        return {**found, "baselines": merged}

    tables = {key: table(negated) for key, negated in KEYWORD_F1.items()}
    return {
        **tables,
        **{old: tables[key] for key, old in OLD_KEYS.items()},
        "labels": {"system": label_table(references.draft_pairs(findings)[0])},
    }


def annotation_table(
    references: ReferenceSet, findings: Sequence[str], rows: Mapping[str, TrivialRow], plan: ScoringPlan
) -> dict[str, Any]:
    """Errors of side, region and degree, on the strings of the full row."""
    bootstrap = Bootstrap(len(findings), draws=plan.draws, seed=plan.seed)
    trivial: dict[str, Any] = dict.fromkeys(TRIVIAL)
    for name, row in rows.items():
        parts = [annotation_errors(references.report_pairs(texts)[1]) for texts in row.variants.values()]
        trivial[name] = merged_errors(row, parts)
    return {"system": annotation_errors(references.draft_pairs(findings)[1], bootstrap), "baselines": trivial}


def forte_table(
    references: ReferenceSet, findings: Sequence[str], rows: Mapping[str, TrivialRow], plan: ScoringPlan
) -> dict[str, Any] | None:
    """FORTE with the published lists, on the strings of the full row; None without them."""
    keywords = plan.forte_keywords
    if keywords is None:
        return None
    bootstrap = Bootstrap(len(findings), draws=plan.draws, seed=plan.seed)
    trivial: dict[str, Any] = dict.fromkeys(TRIVIAL)
    for name, row in rows.items():
        parts = [forte(references.report_pairs(texts)[1], keywords) for texts in row.variants.values()]
        trivial[name] = {
            category: row.merged([{metric: part[category][metric] for metric in PARTS} for part in parts])
            for category in parts[0]
        }
    return {
        "keywords": {"file": keywords.name, "sha256": keywords.sha256},
        "system": forte(references.draft_pairs(findings)[1], keywords, bootstrap),
        "baselines": trivial,
    }


def against_table(
    name: str, table: Mapping[str, frozenset[str]], studies: Sequence[Study], findings: Sequence[str],
    rows: Mapping[str, TrivialRow], references: ReferenceSet,
) -> dict[str, Any]:  # fmt: skip
    """Label F1 with the references' labels taken from a table, for the studies it names."""
    known = [i for i, study in enumerate(studies) if study.uid in table]
    truth = [table[studies[i].uid] for i in known]

    def of(texts: Sequence[str]) -> Scores:
        return {**label_scores(truth, [present_findings(full_prediction(texts[i])) for i in known])}

    return {
        "table": name,
        "n": len(known),
        "labeler_on_references": of(references.full),
        "system": of(findings),
        "baselines": {key: row.merged([of(texts) for texts in row.variants.values()]) for key, row in rows.items()},
    }


def classifier_aurocs(
    drafts: Sequence[Draft], studies: Sequence[Study], table: Mapping[str, frozenset[str]], *, draws: int, seed: int
) -> dict[str, Any] | None:
    """AUROC of the finding classifier: ``labeler`` against the reports, ``table`` against a table where it names
    studies; None for a bundle without the classifier.
    """
    given = [draft.finding_probabilities for draft in drafts]
    scores = np.array([[row[name] for name in FINDINGS] for row in given if row is not None])
    if len(scores) != len(studies):
        return None
    truths = {"labeler": {study.uid: present_findings(study.report) for study in studies}, "table": table}

    def against(truth: Mapping[str, frozenset[str]]) -> dict[str, Any] | None:
        known = [row for row, study in enumerate(studies) if study.uid in truth]
        if not known:
            return None
        present = np.array([[name in truth[studies[row].uid] for name in FINDINGS] for row in known])
        names = [studies[row].study_id for row in known]
        return finding_aurocs(scores[known], present, FINDINGS, names, draws=draws, seed=seed)

    return {name: against(truth) for name, truth in truths.items()}


def prediction_lines(studies: Sequence[Study], drafts: Sequence[Draft], references: ReferenceSet) -> bytes:
    """The file of predictions: JSON lines, one a study. It holds report texts: see ``training.evaluation.privacy``.

    ``reference`` and ``prediction`` are the strings that ``system`` scores.
    """
    lines = (
        {
            "id": study.study_id,
            "reference": comparable,
            "prediction": comparable_prediction(draft.findings, protocol=references.protocol),
            "retrieved": [case.case_id for case in draft.reference_cases],
            "similarity": [round(case.similarity, 6) for case in draft.reference_cases],
            "reference_full": full,
            "prediction_full": full_prediction(draft.findings),
            "findings": draft.findings,
        }
        for study, draft, comparable, full in zip(studies, drafts, references.comparable, references.full, strict=True)
    )
    return "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines).encode()
