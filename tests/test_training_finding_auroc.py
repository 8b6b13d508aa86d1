"""AUROC of each finding with bootstrap intervals, of pretraining and of an evaluation."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from training.evaluation.metric_tables import _finding_auroc
from training.scoring.bootstrap import Bootstrap
from training.scoring.finding_auroc import MIN_CASES, finding_aurocs, weighted_auroc

NAMES = ("common", "rare", "none", "all")


def drawn(count: int = 60) -> tuple[np.ndarray, np.ndarray, list[str]]:
    """Scores with ties, truth of the four findings, and studies of two images each."""
    rng = np.random.default_rng(3)
    truth = np.zeros((count, 4), bool)
    truth[:25, 0], truth[: MIN_CASES - 1, 1], truth[:, 3] = True, True, True
    scores = np.round(rng.normal(size=(count, 4)) + truth, 1)
    return scores, truth, [f"study{row // 2}" for row in range(count)]


def test_weighted_auroc_counts_rows_as_often_as_they_are_drawn() -> None:
    scores, truth, _ = drawn()
    times = np.random.default_rng(1).integers(0, 4, (5, 60)).astype(float)
    expected = [roc_auc_score(np.repeat(truth[:, 0], row), np.repeat(scores[:, 0], row)) for row in times.astype(int)]
    assert weighted_auroc(scores[:, 0], truth[:, 0], times).tolist() == pytest.approx(expected)
    assert np.isnan(weighted_auroc(scores[:, 3], truth[:, 3], times)).all()


def test_reports_findings_with_enough_cases_and_an_interval_over_studies() -> None:
    scores, truth, studies = drawn()
    found = finding_aurocs(scores, truth, NAMES, studies, draws=400, seed=2)
    assert set(found["findings"]) == {"common"}
    common = found["findings"]["common"]
    assert (found["n"], common["cases"]) == (60, 25)
    assert common["auroc"] == pytest.approx(roc_auc_score(truth[:, 0], scores[:, 0]))
    assert found["mean"] == {name: common[name] for name in ("auroc", "confidence_95")}
    low, high = common["confidence_95"]
    times = Bootstrap(30, draws=400, seed=2).times[1:].repeat(2, axis=1).astype(int)  # both images of a study
    areas = [roc_auc_score(np.repeat(truth[:, 0], row), np.repeat(scores[:, 0], row)) for row in times]
    assert [low, high] == pytest.approx(np.percentile(areas, (2.5, 97.5)).tolist())
    assert low < common["auroc"] < high


def test_a_finding_asked_for_is_reported_outside_the_mean() -> None:
    scores, truth, studies = drawn()
    found = finding_aurocs(scores, truth, NAMES, studies, always=("rare", "none"), draws=0)
    assert set(found["findings"]) == {"common", "rare"}
    assert found["findings"]["rare"] == {
        "cases": MIN_CASES - 1, "auroc": pytest.approx(roc_auc_score(truth[:, 1], scores[:, 1]))
    }  # fmt: skip
    assert found["mean"] == {"auroc": found["findings"]["common"]["auroc"]}
    assert finding_aurocs(scores, truth[:, 2:], NAMES[2:], studies)["mean"] is None


def test_table_lists_findings_by_cases_and_the_mean() -> None:
    scores, truth, studies = drawn()
    labeler = finding_aurocs(scores, truth, NAMES, studies, always=("rare",), draws=50)
    table = finding_aurocs(scores[:40], truth[:40], NAMES, studies[:40], draws=0)
    shown = _finding_auroc({"finding_auroc": {"labeler": labeler, "table": table}})
    assert shown is not None
    assert list(shown.head) == ["finding", "cases (labeler)", "AUROC (labeler)", "cases (table)", "AUROC (table)"]
    assert [row[:2] for row in shown.rows] == [["common", "25"], ["rare", "4"], ["mean", ""]]
    assert [row[3] for row in shown.rows] == ["25", "", ""]
    assert shown.rows[0][2].startswith(f"{labeler['findings']['common']['auroc']:.3f}".lstrip("0") + " (")
    assert _finding_auroc({"finding_auroc": None}) is None
