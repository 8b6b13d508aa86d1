"""Fits the sentence checks: the probability that a sentence is right, and the support that the images give it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import get_args

import numpy as np
import numpy.typing as npt

from model.calibration.schema import Confidence, Kind, SentenceWeights, Support
from model.calibration.sentence_confidence import features, kind_of, supported
from model.text.labeler import FINDINGS, NO_FINDING
from training.calibration.records import Record
from training.scoring.binary import Bools, Floats, Logistic, fit_logistic, folds, held_out

RIDGE = 1.0
FOLDS = 10
SPECIFICITY = 0.9  # share of studies without a finding whose images must not support it
_MIN_STUDIES = 3  # with a finding, to fit its threshold


@dataclass(frozen=True)
class SentenceTable:
    """Sentences of all studies, N rows."""

    kind: npt.NDArray[np.str_]
    values: Floats  # (N, 3) of ``model.calibration.sentence_confidence.features``
    words: Floats  # geometric mean of the word probabilities
    correct: Bools  # whether the report supports the sentence
    study: Sequence[str]  # its id

    @classmethod
    def of(cls, records: Sequence[Record]) -> SentenceTable:
        """The sentences of drafted studies."""
        found = [(record, sentence) for record in records for sentence in record.sentences]
        return cls(
            np.array([kind_of(sentence.labels) for _, sentence in found]),
            np.array([features(one.words, one.labels, record.evidence) for record, one in found]).reshape(-1, 3),
            np.array([sentence.words for _, sentence in found]),
            np.array([sentence.correct for _, sentence in found], bool),
            [record.study_id for record, _ in found],
        )


def fit_confidence(rows: SentenceTable) -> Confidence:
    """The weights for each kind of sentence."""
    return Confidence(**{kind: _weights(rows, rows.kind == kind) for kind in get_args(Kind)})


def held_out_by_kind(rows: SentenceTable, values: Floats, *, seed: int) -> Floats:
    """(N,) probability of each sentence by fits of each kind to ``values`` (N, F) of other studies.

    Without features, F = 0, it is the rate of the kind in other studies: a baseline that ignores the sentence.
    """
    fold = folds(rows.study, FOLDS, seed)
    found = np.zeros(len(rows.correct))
    for kind in get_args(Kind):
        chosen = rows.kind == kind
        found[chosen] = held_out(values[chosen], rows.correct[chosen], fold[chosen], ridge=RIDGE)
    return found


def _weights(rows: SentenceTable, chosen: Bools) -> SentenceWeights:
    fitted = Logistic(np.array([1.0, 0.0, 0.0]), 0.0)  # without such a sentence: the probability of its words
    if chosen.any():
        fitted = fit_logistic(rows.values[chosen], rows.correct[chosen], ridge=RIDGE)
    words, cases, images = (round(float(weight), 5) for weight in fitted.weights)
    return SentenceWeights(bias=round(fitted.bias, 5), words=words, cases=cases, images=images)


def fit_support(records: Sequence[Record]) -> Support:
    """For each finding the probability below which ``SPECIFICITY`` of the studies without it lie."""
    thresholds = {}
    for name in FINDINGS:
        without = [r.evidence.images[name] for r in records if r.evidence.images and name not in r.positive]
        with_it = sum(name in record.positive for record in records)
        if name != NO_FINDING and without and with_it >= _MIN_STUDIES:
            thresholds[name] = round(float(np.quantile(without, SPECIFICITY)), 5)
    return Support(thresholds=thresholds)


def support_metrics(support: Support, records: Sequence[Record]) -> dict[str, Mapping[str, float | int | None]]:
    """Of sentences that call a finding present or possible: the count with and without support, and the share correct.

    ``images`` holds, by finding, the share of studies with it whose images support it.
    """
    marks = [
        (supported(support, sentence.labels, record.evidence), sentence.correct)
        for record in records
        for sentence in record.sentences
    ]
    found: dict[str, Mapping[str, float | int | None]] = {}
    for name, mark in (("supported", True), ("not_supported", False)):
        right = [ok for one, ok in marks if one is mark]
        found[name] = {"sentences": len(right), "right": float(np.mean(right)) if right else None}
    found["images"] = {
        name: float(np.mean([record.evidence.images[name] >= bar for record in records if name in record.positive]))
        for name, bar in support.thresholds.items()
    }
    return found
