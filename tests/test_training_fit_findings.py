"""The track record of a calibration: counts of findings, their calibrated probabilities, held out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pytest

from model.calibration.sentence_confidence import Evidence
from model.calibration.track_record import calibrated_findings
from model.text.labeler import FINDINGS, NO_FINDING
from model.types import Label
from training.calibration.fit_findings import finding_metrics, fit_track_record
from training.calibration.records import Record, ScoredSentence
from training.calibration.report import finding_table, separation_table
from training.scoring.binary import fit_recalibration

CONFIDENCE = {
    "present": {"calibrated": {"auroc": 0.7}},
    "absent": {"calibrated": {"auroc": None}},
    "other": {"calibrated": {"auroc": 0.53}},
}


def record(name: str, positive: Sequence[str], drafted: Sequence[Mapping[str, Label]], probability: float) -> Record:
    evidence = Evidence.of([], 0, np.full(len(FINDINGS), probability, np.float32))
    sentences = tuple(ScoredSentence(0.5, labels, True) for labels in drafted)
    return Record(name, evidence, frozenset(positive), sentences)


# --- counts -----------------------------------------------------------------------------------------------------------


def test_counts_studies_calls_and_right_calls_of_each_finding() -> None:
    records = [
        record("a", ["Fracture"], [{"Fracture": "present"}, {"Fracture": "absent"}], 0.9),  # one of two is a call
        record("b", ["Fracture"], [{"Fracture": "absent"}], 0.9),
        record("c", [], [{"Fracture": "uncertain"}], 0.2),
        record("d", ["Fracture"], [], 0.2),
    ]
    found = fit_track_record(records, CONFIDENCE)
    fracture = found.findings["Fracture"]
    assert (fracture.studies, fracture.called, fracture.right, fracture.line) == (3, 2, 1, None)
    assert set(found.findings) == set(FINDINGS) - {NO_FINDING}
    assert found.separation == {"present": 0.7, "other": 0.53}


def test_findings_with_five_studies_have_a_line() -> None:
    records = [record(str(number), ["Edema", "Fracture"][: 1 + (number < 4)], [], 0.3) for number in range(5)]
    found = fit_track_record([*records, record("x", [], [], 0.1)], CONFIDENCE).findings
    assert (found["Edema"].studies, found["Fracture"].studies) == (5, 4)
    assert found["Edema"].line is not None
    assert found["Fracture"].line is None


def test_model_without_a_classifier_has_counts_only() -> None:
    records = [Record(str(n), Evidence({}, {}, frozenset()), frozenset({"Edema"}), ()) for n in range(9)]
    edema = fit_track_record(records, CONFIDENCE).findings["Edema"]
    assert (edema.studies, edema.line) == (9, None)
    assert finding_metrics(records, seed=1)["Edema"] == {"studies": 9, "called": 0, "right": 0}


# --- probabilities ----------------------------------------------------------------------------------------------------


def test_recalibration_recovers_the_line_of_overrated_findings() -> None:
    rng = np.random.default_rng(0)
    logits = rng.normal(size=(20_000, 1))
    truth = rng.random(20_000) < 1 / (1 + np.exp(-(0.6 * logits[:, 0] - 3)))
    fitted = fit_recalibration(logits, truth)
    assert (fitted.weights[0], fitted.bias) == (pytest.approx(0.6, abs=0.06), pytest.approx(-3, abs=0.06))


def test_recalibration_of_little_or_contrary_data_keeps_the_order_of_the_classifier() -> None:
    one = fit_recalibration(np.array([[0.1], [-0.1]]), np.array([True, False]))
    assert (one.weights[0], one.bias) == (pytest.approx(1, abs=0.1), pytest.approx(0, abs=0.1))
    logits = np.linspace(-3, 3, 200)[:, None]
    assert fit_recalibration(logits, logits[:, 0] < 0).weights[0] == 0
    assert np.isfinite(fit_recalibration(logits, logits[:, 0] > 0).weights[0])
    assert fit_recalibration(logits, np.zeros(200, bool)).bias < -2


@pytest.fixture(scope="module")
def records() -> list[Record]:
    """600 studies whose classifier gives Edema ten times the odds that it has."""
    rng = np.random.default_rng(4)
    probabilities = 1 / (1 + np.exp(-rng.normal(-2, 1.5, 600)))
    odds = 10 * probabilities / (1 - probabilities)
    truth = rng.random(600) < probabilities
    return [
        record(f"CXR{number}", ["Edema"] if there else [], [], value)
        for number, (there, value) in enumerate(zip(truth, odds / (1 + odds), strict=True))
    ]


def test_calibrated_probability_is_better_on_unseen_studies(records: list[Record]) -> None:
    metrics = finding_metrics(records, seed=1)["Edema"]
    assert metrics["brier"]["calibrated"] < 0.9 * metrics["brier"]["rate"] < metrics["brier"]["classifier"]
    assert metrics["auroc"] > 0.75
    found = [calibrated_findings(fit_track_record(records, CONFIDENCE), one.evidence.images) for one in records]
    mean = np.mean([one["Edema"] for one in found if one])
    assert mean == pytest.approx(metrics["studies"] / 600, abs=0.005)


def test_page_has_a_row_of_each_finding_and_kind(records: list[Record]) -> None:
    metrics: dict[str, Any] = {"findings": finding_metrics(records, seed=1), "confidence": CONFIDENCE}
    edema = metrics["findings"]["Edema"]
    lines = finding_table(metrics).splitlines()
    assert f"| Edema | {edema['studies']} | 0 | 0 | {edema['auroc']:.3f} | " in "\n".join(lines)
    assert "| Fracture | 0 | 0 | 0 |  |  |  |  |" in lines
    kinds = separation_table(metrics)
    assert "| a finding is present | 0.700 | yes |" in kinds
    assert "| findings are absent |  | no |" in kinds
    assert "| neither | 0.530 | no |" in kinds
