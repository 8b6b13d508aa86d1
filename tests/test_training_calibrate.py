"""``python -m training.calibrate`` end to end on phantoms, and drafts of the bundle that it writes."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from model.bundle import load_bundle
from model.drafter import Drafter
from model.types import Draft, DraftWarning, StudyView, View
from tests.support.tiny import open_drafter, write_tiny_bundle
from training.calibrate import main
from training.calibration.records import is_supported_by_report
from training.data.openi import open_openi
from training.data.pixel_cache import build_pixel_cache
from training.evaluation.inference import study_views
from training.phantoms import write_phantom_root
from training.scoring.binary import auroc, brier, calibration_error, fit_logistic, folds, held_out, reliability

VAL = 8
UNSURE = ("views_swapped", "view_corrected", "same_view", "unusual_image")


# --- fits and their quality -------------------------------------------------------------------------------------------


def test_logistic_regression_recovers_the_true_weights() -> None:
    rng = np.random.default_rng(0)
    rows = rng.normal(size=(20_000, 2))
    truth = rng.random(20_000) < 1 / (1 + np.exp(-(1.5 * rows[:, 0] - 0.5 * rows[:, 1] + 0.7)))
    fitted = fit_logistic(rows, truth, ridge=1e-6)
    assert fitted.weights == pytest.approx([1.5, -0.5], abs=0.07)
    assert fitted.bias == pytest.approx(0.7, abs=0.07)
    assert fitted.probabilities(rows).mean() == pytest.approx(truth.mean(), abs=1e-6)  # the bias is free


def test_fit_maximises_the_penalised_likelihood() -> None:
    """At the maximum the slope of the log-likelihood equals the pull of the ridge, and the bias feels no ridge."""
    rng = np.random.default_rng(1)
    rows = rng.normal(size=(300, 40)) * rng.uniform(0.5, 2, 40)
    truth = rng.random(300) < 1 / (1 + np.exp(-rows[:, :3].sum(1)))
    for ridge in (1.0, 100.0):
        fitted = fit_logistic(rows, truth, ridge=ridge)
        residual = truth - fitted.probabilities(rows)
        assert rows.T @ residual == pytest.approx(ridge * fitted.weights, abs=1e-6)
        assert residual.sum() == pytest.approx(0, abs=1e-6)


def test_separable_classes_keep_finite_weights() -> None:
    rows = np.array([[-1.0], [-2.0], [1.0], [2.0]])
    assert 0 < fit_logistic(rows, rows[:, 0] > 0).weights[0] < 10
    certain = fit_logistic(rows, np.ones(4, bool))
    assert certain.probabilities(rows) == pytest.approx(0.9)  # 4.5 of 5


def test_folds_keep_studies_together() -> None:
    studies = [f"CXR{number // 2}" for number in range(40)]
    fold = folds(studies, 4, seed=1)
    assert all(len(set(fold[start : start + 2])) == 1 for start in range(0, 40, 2))
    assert np.bincount(fold).tolist() == [10] * 4
    truth = fold == 0  # the other folds hold negatives only
    assert held_out(np.zeros((40, 0)), truth, fold)[truth] == pytest.approx(0.5 / 31)


def test_quality_of_probabilities_by_hand() -> None:
    values, truth = np.array([0.2, 0.2, 0.2, 0.2, 0.8, 0.8]), np.array([1, 0, 0, 0, 1, 1], bool)
    low, high = reliability(values, truth, bins=2)
    assert (low.mean, low.rate, low.count) == (pytest.approx(0.2), pytest.approx(1 / 3), 3)
    assert (high.mean, high.rate, high.count) == (pytest.approx(0.6), pytest.approx(2 / 3), 3)
    assert brier(values, truth) == pytest.approx((0.64 + 3 * 0.04 + 2 * 0.04) / 6)
    assert calibration_error(values, truth) == pytest.approx((0.8 + 3 * 0.2 + 2 * 0.2) / 6)  # a bin each
    assert auroc(values, truth) == pytest.approx((3 * 2 + 3 * 0.5) / 9)
    assert auroc(values, np.ones(6, bool)) is None
    rng = np.random.default_rng(0)
    scores, positive = rng.integers(0, 12, 60).astype(float), rng.random(60) < 0.4  # with ties
    pairs = [(high > low) + (high == low) / 2 for high in scores[positive] for low in scores[~positive]]
    assert auroc(scores, positive) == pytest.approx(np.mean(pairs))


@pytest.mark.parametrize(
    ("text", "labels", "correct"),
    [
        ("the heart is enlarged .", {"Cardiomegaly": "present"}, True),
        ("the heart is normal in size .", {"Cardiomegaly": "absent"}, False),
        ("there may be an effusion .", {"Pleural Effusion": "uncertain"}, True),
        ("no pneumothorax .", {"Pneumothorax": "absent"}, True),  # the report is silent
        ("there is a fracture .", {"Fracture": "present"}, False),
        ("large heart and fracture .", {"Cardiomegaly": "present", "Fracture": "present"}, False),
        ("the aorta is tortuous .", {}, True),
        ("osseous structures intact .", {}, False),
    ],
)
def test_sentence_is_correct_if_the_report_supports_it(text: str, labels: dict[str, str], correct: bool) -> None:
    report = "The heart is enlarged. Small left pleural effusion. The thoracic aorta is tortuous."
    assert is_supported_by_report(text, labels, report) is correct  # type: ignore[arg-type]


# --- end to end -------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_phantom_root(tmp_path_factory.mktemp("phantoms"), train=20, val=VAL, seed=3, size=96)


@pytest.fixture(scope="module")
def made(root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with ``plain``, ``calibrated``, ``work`` and ``report``."""
    folder = tmp_path_factory.mktemp("made")
    write_tiny_bundle(folder / "plain")
    assert main(arguments(root, folder, "--out", str(folder / "calibrated"), "--report", str(folder / "report"),
                          "--external", str(root / "images"))) == 0  # fmt: skip
    return folder


def arguments(root: Path, folder: Path, *more: str) -> list[str]:
    return ["--bundle", str(folder / "plain"), "--root", str(root), "--work", str(folder / "work"), "--device", "cpu",
            *more]  # fmt: skip


def test_bundle_changes_only_by_its_calibration(made: Path) -> None:
    plain, calibrated = load_bundle(made / "plain"), load_bundle(made / "calibrated")
    assert plain.calibration is None
    assert calibrated.calibration is not None
    assert calibrated.calibration.fitted_on["val_studies"] == VAL
    assert dict(plain.manifest.files).items() <= dict(calibrated.manifest.files).items()


def test_report_holds_metrics_and_no_text(made: Path, root: Path) -> None:
    metrics = json.loads((made / "report" / "calibration.json").read_text())
    assert metrics["view"]["pairs"] == VAL
    assert metrics["view"]["accuracy"] > 0.9
    assert metrics["view"]["pairs_wrongly_exchanged"] == 0
    assert metrics["unusual"]["strange"]["noise"]["auroc"] > 0.9
    assert metrics["unusual"]["strange"]["negative"]["shown_to_the_fit"]
    assert metrics["unusual"]["external"]["n"] == 2 * (20 + VAL)
    assert metrics["confidence"]["sentences"] >= VAL
    page = (made / "report" / "calibration.md").read_text()
    assert "| pairs wrongly exchanged | 0 | 8 |" in page
    assert "| upside down * | " in page
    reports = [study.report for study in open_openi(root).split("val")]
    kept = page + (made / "work" / "drafts.jsonl").read_text() + (made / "report" / "calibration.json").read_text()
    assert not any(report in kept for report in reports)
    called = load_bundle(made / "calibrated").calibration
    assert called is not None
    assert called.track_record is not None
    for name, one in called.track_record.findings.items():
        assert f"| {name} | {one.studies} | {one.called} | {one.right} | " in page
    assert "| neither | " in page.split("## Percentages")[1]
    for name in ("view.png", "unusual.png", "confidence.png"):
        assert (made / "report" / name).read_bytes().startswith(b"\x89PNG")


def test_second_run_continues_and_fits_the_same(made: Path, root: Path) -> None:
    drafts = made / "work" / "drafts.jsonl"
    lines = drafts.read_text().splitlines()
    drafts.write_text("\n".join([*lines[:-1], lines[-1][: len(lines[-1]) // 2]]))  # a run that stopped in its last line
    assert main(arguments(root, made, "--out", str(made / "again"))) == 0
    assert (made / "again" / "calibration.json").read_bytes() == (made / "calibrated" / "calibration.json").read_bytes()
    assert [json.loads(line) for line in drafts.read_text().splitlines()] == [json.loads(line) for line in lines]


def test_refuses_to_overwrite_a_bundle(made: Path, root: Path) -> None:
    digest = load_bundle(made / "calibrated").digest
    assert main(arguments(root, made, "--out", str(made / "calibrated"))) == 2
    assert load_bundle(made / "calibrated").digest == digest


# --- drafts with the calibration --------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def drafter(made: Path) -> Drafter:
    return open_drafter(made / "calibrated")


@pytest.fixture(scope="module")
def studies(drafter: Drafter, root: Path, tmp_path_factory: pytest.TempPathFactory) -> list[list[StudyView]]:
    """Training studies without a warning of the checks, frontals first."""
    source = open_openi(root)
    chosen = source.split("train")
    cache = build_pixel_cache(source, chosen, drafter.image_size, tmp_path_factory.mktemp("pixels"))
    found = [study_views(replace(study, images=study.ordered()), cache) for study in chosen]
    sure = [one for one, draft in zip(found, drafter.draft(found), strict=True) if not codes(draft)]
    assert len(sure) >= 4
    return sure


def codes(draft: Draft) -> list[str]:
    return [warning.code for warning in draft.warnings if warning.code in UNSURE]


def exchanged(study: Sequence[StudyView]) -> list[StudyView]:
    frontal, lateral = study
    return [replace(frontal, view=View.LATERAL), replace(lateral, view=View.FRONTAL)]


def test_exchanged_images_give_the_draft_of_the_correct_order(drafter: Drafter, studies: list[list[StudyView]]) -> None:
    right = drafter.draft(studies)
    mixed = [exchanged(study) if number % 2 else study for number, study in enumerate(studies)]
    corrected = drafter.draft(mixed)
    swapped = [codes(draft) for draft in corrected]
    assert [found for found in swapped[::2] if found] == []
    assert sum(found == ["views_swapped"] for found in swapped[1::2]) >= len(swapped[1::2]) - 1
    for one, other, found in zip(right, corrected, swapped, strict=True):
        if found == ["views_swapped"]:
            assert other.findings == one.findings
            assert [s.confidence for s in other.sentences] == pytest.approx([s.confidence for s in one.sentences])
            assert [check.view for check in other.image_checks] == [View.LATERAL, View.FRONTAL]  # of the fields
            assert other.image_checks[0].frontal < 0.1 < 0.9 < other.image_checks[1].frontal
            assert [check.view for check in one.image_checks] == [View.FRONTAL, View.LATERAL]


def certain(drafter: Drafter, studies: list[list[StudyView]]) -> list[StudyView]:
    """A study whose exchanged images are corrected."""
    drafts = drafter.draft([exchanged(study) for study in studies])
    return next(study for study, draft in zip(studies, drafts, strict=True) if codes(draft) == ["views_swapped"])


def test_single_image_of_the_other_view_is_corrected(drafter: Drafter, studies: list[list[StudyView]]) -> None:
    frontal, lateral = certain(drafter, studies)
    (right,) = drafter.draft([[lateral]])
    (corrected,) = drafter.draft([[replace(lateral, view=View.FRONTAL)]])
    assert corrected.findings == right.findings
    found = {warning.code: warning.message for warning in corrected.warnings}
    assert {"view_corrected", "missing_view"} <= set(found)
    assert found["missing_view"].startswith("No frontal image")
    (same,) = drafter.draft([[frontal, replace(frontal, view=View.LATERAL)]])
    assert codes(same) == ["same_view"]
    assert [check.view for check in same.image_checks] == list(View)


def test_corrected_view_removes_the_header_warning(drafter: Drafter, studies: list[list[StudyView]]) -> None:
    _, lateral = certain(drafter, studies)
    header_warnings = (DraftWarning("view_mismatch", "header"), DraftWarning("not_a_chest", "header"))
    sent = replace(lateral, view=View.FRONTAL, warnings=header_warnings)
    (resolved,) = drafter.draft([[replace(sent, header_view=View.LATERAL)]])
    (open_,) = drafter.draft([[sent]])
    assert "view_mismatch" not in [warning.code for warning in resolved.warnings]
    assert "not_a_chest" in [warning.code for warning in resolved.warnings]
    assert "view_mismatch" in [warning.code for warning in open_.warnings]


def test_unusual_image_gets_a_warning_and_keeps_its_view(drafter: Drafter, studies: list[list[StudyView]]) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (drafter.image_size,) * 2, np.uint8)
    strange = StudyView(noise, View.LATERAL)
    together = drafter.draft([studies[0], [strange], [studies[1][0], strange]])
    assert [codes(draft) for draft in together] == [[], ["unusual_image"], ["unusual_image"]]
    assert together[1].image_checks[0].unusual == 1.0
    assert "lateral image" in next(w.message for w in together[1].warnings if w.code == "unusual_image")


def test_views_of_counterfactuals_are_corrected(drafter: Drafter, studies: list[list[StudyView]]) -> None:
    study, other = certain(drafter, studies), studies[-1]
    (right,) = drafter.draft([other], counterfactual_patches=[study], counterfactual_retrieval=[study])
    (corrected,) = drafter.draft(
        [other], counterfactual_patches=[exchanged(study)], counterfactual_retrieval=[exchanged(study)]
    )
    assert corrected.findings == right.findings
    assert codes(corrected) == []  # the warnings are those of the study itself


def test_bundle_without_calibration_checks_nothing(made: Path, studies: list[list[StudyView]]) -> None:
    (plain,) = open_drafter(made / "plain").draft([exchanged(studies[0])])
    assert plain.image_checks == ()
    assert codes(plain) == []
    assert all(sentence.supported is None for sentence in plain.sentences)


def test_bundle_with_view_order_as_given_keeps_the_order(drafter: Drafter, studies: list[list[StudyView]]) -> None:
    bundle = drafter.bundle
    preprocessing = bundle.config.preprocessing.model_copy(update={"view_order": "as_given"})
    config = bundle.config.model_copy(update={"preprocessing": preprocessing})
    as_given = Drafter(replace(bundle, config=config), drafter.index)
    (draft,) = as_given.draft([exchanged(certain(drafter, studies))])
    assert codes(draft) == []
    assert len(draft.image_checks) == 2
