"""Val is split into a half that chooses and a half that reports; what was chosen on scored studies is disclosed."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from model.bundle import load_bundle
from tests.support.tiny import write_tiny_bundle
from training import calibrate, evaluate, score, tune_decoding
from training.data.openi import open_openi
from training.data.r2gen import open_r2gen
from training.data.selection import CHOSEN_ON, half_of, selection_of, selection_record
from training.data.studies import Study
from training.openi import main as write_annotation
from training.phantoms import write_phantom_root
from training.prepared_run import PreparedRun
from training.presets import preset
from training.stages.common import RunInputs
from training.trainer.context import RunContext

VAL = 12


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_phantom_root(tmp_path_factory.mktemp("data") / "root", train=10, val=VAL, size=64)


@pytest.fixture(scope="module")
def tuned(root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle whose decoding settings were tuned on the half that chooses."""
    folder = tmp_path_factory.mktemp("tuned")
    plain = write_tiny_bundle(folder / "plain")
    arguments = ["--bundle", str(plain), "--root", str(root), "--out", str(folder / "tuned.json"), "--device", "cpu"]
    assert tune_decoding.main([*arguments, "--split-val", "choose", "--write-bundle", str(folder / "B")]) == 0
    return folder / "B"


def _studies(count: int, patient: Callable[[int], str | None] = lambda _: None) -> list[Study]:
    return [Study(f"s{row}", f"s{row}", "val", "Clear.", (), patient=patient(row)) for row in range(count)]


def _evaluated(bundle: Path, root: Path, folder: Path, *more: str) -> dict[str, Any]:
    out = folder / "val.json"
    arguments = ["--bundle", str(bundle), "--root", str(root), "--out", str(out), "--device", "cpu", "--no-meteor",
                 "--draws", "20"]  # fmt: skip
    assert evaluate.main([*arguments, *more]) == 0
    result: dict[str, Any] = json.loads(out.read_text())
    return result


def _ids(studies: Sequence[Study]) -> list[str]:
    return [study.study_id for study in studies]


# --- halves -----------------------------------------------------------------------------------------------------------


def test_halves_are_disjoint_and_keep_their_studies_among_others() -> None:
    studies = _studies(400)
    choose, report = _ids(half_of(studies, "choose")), _ids(half_of(studies, "report"))
    assert sorted([*choose, *report]) == sorted(_ids(studies))
    assert abs(len(choose) - len(report)) < 60
    assert _ids(half_of(studies[100:], "report")) == [study for study in report if int(study[1:]) >= 100]
    assert half_of(studies, None) == studies


def test_studies_of_a_patient_stay_together(tmp_path: Path) -> None:
    studies = _studies(300, lambda row: str(row % 60))
    patients = [{study.patient for study in half_of(studies, half)} for half in ("choose", "report")]
    assert not patients[0] & patients[1]
    entry = {"report": "Clear.", "image_path": ["a.png"]}
    (tmp_path / "a.json").write_text(json.dumps({"val": [{**entry, "id": "x", "subject_id": 7}, {**entry, "id": "y"}]}))
    assert [study.patient for study in open_r2gen(tmp_path / "a.json", tmp_path).studies] == ["7", None]


def test_refuses_an_empty_half_and_a_half_of_test(root: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (alone,) = _studies(1)
    empty = "choose" if not half_of_or_none(alone, "choose") else "report"
    with pytest.raises(ValueError, match="leave --split-val out"):
        half_of([alone], empty)  # type: ignore[arg-type]
    bundle = write_tiny_bundle(tmp_path / "B")
    arguments = ["--bundle", str(bundle), "--root", str(root), "--out", str(tmp_path / "o.json"), "--device", "cpu"]
    assert evaluate.main([*arguments, "--split", "test", "--split-val", "report"]) == 2
    assert "--split-val report is a half of val, and --split is test" in caplog.text


def half_of_or_none(study: Study, half: Any) -> list[Study] | None:
    try:
        return half_of([study], half)
    except ValueError:
        return None


# --- what was chosen --------------------------------------------------------------------------------------------------


def test_record_counts_the_scored_studies_without_naming_them() -> None:
    studies = _studies(10)
    record = selection_record("decoding settings", "openi", None, studies[:6])
    assert not any(study.study_id in json.dumps(record["ids"]) for study in studies)
    found = selection_of([record], studies[4:], "val", None)
    assert found["chosen_on"] == [{"what": "decoding settings", "half": None, "n": 6, "of_scored": 2}]
    assert found["statement"] == "chosen on these studies: decoding settings (2 of 6)"
    found = selection_of([record], studies[6:], "test", None)
    assert found["statement"] == "nothing of the bundle was chosen on these studies"


def test_tuning_on_one_half_is_disclosed_on_it_alone(tuned: Path, root: Path, tmp_path: Path) -> None:
    val = open_openi(root).split("val")
    record = load_bundle(tuned).metrics[CHOSEN_ON][-1]
    assert (record["half"], record["n"]) == ("choose", len(half_of(val, "choose")))
    results = {half: _evaluated(tuned, root, tmp_path, "--split-val", half) for half in ("choose", "report")}
    for half, result in results.items():
        lines = [json.loads(line) for line in (tmp_path / "val.predictions.jsonl").read_text().splitlines()]
        assert result["n"] == len(half_of(val, half))  # type: ignore[arg-type]
        assert result["selection"]["half"] == half
        assert result["constant_chosen_on"].startswith("half that chooses of the val split of openi")
    assert [line["id"] for line in lines] == _ids(half_of(val, "report"))
    shared = {half: result["selection"]["chosen_on"][-1]["of_scored"] for half, result in results.items()}
    assert shared == {"choose": len(half_of(val, "choose")), "report": 0}
    assert "decoding settings" in results["choose"]["selection"]["statement"]
    assert "decoding settings" not in results["report"]["selection"]["statement"]


def test_bundle_without_a_record_is_disclosed_on_val_alone(root: Path, tmp_path: Path, capsys: Any) -> None:
    result = _evaluated(write_tiny_bundle(tmp_path / "B"), root, tmp_path)
    statement = "probably chosen on these studies: its epoch and settings (the bundle has no record)"
    assert result["selection"]["statement"] == statement
    assert any(note.startswith(statement) for note in result["notes"])
    assert statement in capsys.readouterr().out
    assert result["constant_chosen_on"] == f"val split of openi, {VAL} reports"


def test_calibration_records_its_studies(root: Path, tmp_path: Path) -> None:
    plain = write_tiny_bundle(tmp_path / "plain", full_stops=3.0)
    arguments = ["--bundle", str(plain), "--root", str(root), "--out", str(tmp_path / "B"), "--device", "cpu"]
    assert calibrate.main([*arguments, "--work", str(tmp_path / "work"), "--split-val", "choose"]) == 0
    calibration = load_bundle(tmp_path / "B").calibration
    assert calibration is not None
    val = open_openi(root).split("val")
    expected = selection_record("its calibration", "openi", "choose", half_of(val, "choose"))
    assert calibration.fitted_on[CHOSEN_ON] == expected


def test_training_chooses_epochs_on_one_half_where_it_is_configured(root: Path, tmp_path: Path) -> None:
    config = preset("baseline").model_copy(update={"validate_on": "choose", "image_size": 64})
    small = config.model_copy(update={"shape": preset("smoke").shape, "pretrain": None, "backbone_weights": "none"})
    source = open_openi(root)
    context = RunContext(torch.device("cpu"), 1, "fp32", tmp_path / "work")
    run = PreparedRun.prepare(small, RunInputs(source, tmp_path / "B"), context)
    chooses = half_of(source.split("val"), "choose")
    assert _ids(run.studies.val) == _ids(chooses)
    run.write_bundle(tmp_path / "B", keep_texts=True, metrics={})
    expected = selection_record("the epochs of training", "openi", "choose", chooses)
    assert load_bundle(tmp_path / "B").metrics[CHOSEN_ON] == [expected]


def test_score_takes_the_same_half(root: Path, tuned: Path, tmp_path: Path) -> None:
    annotation = tmp_path / "annotation.json"
    assert write_annotation(["--root", str(root), "--out", str(annotation)]) == 0
    expected = _evaluated(tuned, root, tmp_path, "--split-val", "report")
    assert score.main(["--predictions", str(tmp_path / "val.predictions.jsonl"), "--references", str(annotation),
                       "--training-reports", str(annotation), "--split-val", "report", "--draws", "20", "--no-meteor",
                       "--out", str(tmp_path / "out")]) == 0  # fmt: skip
    result = json.loads((tmp_path / "out" / "metrics.json").read_text())
    assert result["system"] == expected["system"]
    assert result["baselines"]["constant"] == expected["baselines"]["constant"]
    assert "val (half that reports) split of annotation.json" in (tmp_path / "out" / "report.md").read_text()
