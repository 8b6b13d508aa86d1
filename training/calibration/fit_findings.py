"""Fits the track record: findings that the drafts catch, their probabilities, sentences whose confidence separates."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, get_args

import numpy as np

from model.calibration.schema import FindingRecord, Kind, LinearScore, TrackRecord
from model.calibration.track_record import finding_logits
from model.text.labeler import FINDINGS, NO_FINDING
from training.calibration.records import POSITIVE, Record
from training.scoring.binary import Bools, Floats, Logistic, auroc, brier, fit_recalibration, folds, held_out
from training.scoring.finding_auroc import MIN_CASES

_FOLDS = 10


def fit_track_record(records: Sequence[Record], confidence: Mapping[str, Any]) -> TrackRecord:
    """The track record; ``confidence`` are the metrics of ``confidence_metrics``, held out."""
    areas = {kind: confidence[kind]["calibrated"]["auroc"] for kind in get_args(Kind) if kind in confidence}
    separation = {kind: round(area, 5) for kind, area in areas.items() if area is not None}
    return TrackRecord(findings={name: _finding(name, records) for name in _named()}, separation=separation)


def finding_metrics(records: Sequence[Record], *, seed: int) -> dict[str, Any]:
    """By finding the counts of the track record and, where it has a fit, the quality of the probabilities.

    ``auroc`` is that of the classifier. ``brier`` has the error of the classifier, of the calibrated probability by
    fits to other studies, and of the rate of the finding in other studies.
    """
    metrics: dict[str, Any] = {}
    fold = folds([record.study_id for record in records], _FOLDS, seed)
    for name in _named():
        found = _finding(name, records)
        metrics[name] = {"studies": found.studies, "called": found.called, "right": found.right}
        if found.line is not None:
            rows, truth = _classified(name, records)
            sources = {
                "classifier": Logistic(np.ones(1), 0.0).probabilities(rows),
                "calibrated": held_out(rows, truth, fold, fit=fit_recalibration),
                "rate": held_out(rows[:, :0], truth, fold),
            }
            metrics[name]["auroc"] = auroc(rows[:, 0], truth)
            metrics[name]["brier"] = {source: brier(values, truth) for source, values in sources.items()}
    return metrics


def _named() -> list[str]:
    return [name for name in FINDINGS if name != NO_FINDING]


def _finding(name: str, records: Sequence[Record]) -> FindingRecord:
    called = [any(one.labels.get(name) in POSITIVE for one in record.sentences) for record in records]
    truth = [name in record.positive for record in records]
    right = sum(said and there for said, there in zip(called, truth, strict=True))
    line = None
    if sum(truth) >= MIN_CASES and all(record.evidence.images for record in records):
        fitted = fit_recalibration(*_classified(name, records))
        line = LinearScore(slope=round(float(fitted.weights[0]), 5), bias=round(fitted.bias, 5))
    return FindingRecord(studies=sum(truth), called=sum(called), right=right, line=line)


def _classified(name: str, records: Sequence[Record]) -> tuple[Floats, Bools]:
    """(N, 1) logits of the classifier for a finding, and (N,) whether the reports have it."""
    logits = finding_logits([record.evidence.images[name] for record in records])
    return logits[:, None], np.array([name in record.positive for record in records], bool)
