"""The track record of a bundle decides which percentages and denials of a draft count."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from model.calibration.schema import LinearScore
from model.calibration.track_record import calibrated_findings, finding_logits, not_assessed, shows_confidence
from model.types import Label, View
from tests.support.calibration import add_plain_calibration, plain_calibration, plain_track_record
from tests.support.tiny import noise_study, open_drafter, write_denying_bundle

RECORD = plain_track_record()
EFFUSION: dict[str, Label] = {"Pleural Effusion": "absent"}
BOTH_ABSENT: dict[str, Label] = {**EFFUSION, "Pneumothorax": "absent"}
STUDY = noise_study(1, View.FRONTAL, View.LATERAL)


def test_probability_of_a_finding_follows_its_line() -> None:
    found = calibrated_findings(RECORD, {"Pleural Effusion": 0.8, "Pneumothorax": 0.8, "Fracture": 0.0})
    assert found is not None
    assert set(found) == {"Pleural Effusion", "Fracture"}, "a finding without a fit has no probability"
    assert found["Pleural Effusion"] == pytest.approx(1 / (1 + np.exp(1) * 0.25**0.5))
    assert 0 < found["Fracture"] < 1e-3
    assert finding_logits([0.0, 0.5, 1.0]) == pytest.approx([-13.8155, 0, 13.8155], abs=1e-3)
    assert calibrated_findings(RECORD, {}) is None
    assert calibrated_findings(None, {"Fracture": 0.5}) is None


def test_denied_finding_is_assessed_only_if_a_draft_has_called_it_right() -> None:
    labels = {
        "No Finding": "absent", "Edema": "absent", "Fracture": "absent", "Pneumothorax": "absent",
        "Pleural Effusion": "absent", "Pneumonia": "uncertain", "Atelectasis": "present", "Lung Lesion": None,
    }  # fmt: skip
    assert not_assessed(RECORD, labels) == ("Edema", "Fracture", "Pneumothorax")
    assert not_assessed(None, labels) == ()


@pytest.mark.parametrize(
    ("labels", "unusual", "shown"),
    [
        ({"Fracture": "present"}, False, True),
        (EFFUSION, False, True),
        (EFFUSION, True, False),
        (BOTH_ABSENT, False, False),
        ({**BOTH_ABSENT, "Edema": "present"}, False, False),
        ({}, False, False),  # AUROC .53
    ],
)
def test_confidence_is_shown_where_it_separates(labels: dict[str, Label], unusual: bool, shown: bool) -> None:
    unassessed = not_assessed(RECORD, labels)
    assert shows_confidence(RECORD, labels, unassessed, unusual=unusual) is shown
    assert shows_confidence(None, labels, (), unusual=unusual)


def test_kind_of_sentence_separates_from_an_auroc_of_six_tenths() -> None:
    for area, shown in ((0.6, True), (0.5999, False)):
        record = plain_track_record(separation={"other": area})
        assert shows_confidence(record, {}, (), unusual=False) is shown
        assert not shows_confidence(record, EFFUSION, (), unusual=False), "a kind without an AUROC does not separate"


def drafted(folder: Path, **changes: Any) -> Any:
    (draft,) = open_drafter(add_plain_calibration(write_denying_bundle(folder / "tiny"), **changes)).draft([STUDY])
    return draft


def test_draft_shows_what_the_track_record_allows(tmp_path: Path) -> None:
    caught = plain_track_record({"Pneumothorax": (9, 8, 6)})
    known = drafted(tmp_path / "known", track_record=caught)
    plain = drafted(tmp_path / "plain")
    missed = drafted(tmp_path / "missed", track_record=plain_track_record({"Pneumothorax": (9, 8, 0)}))
    assert known.labels["Pneumothorax"] == "absent"
    (denial,) = (number for number, one in enumerate(known.sentences) if one.labels)
    assert (known.not_assessed, missed.not_assessed) == ((), ("Pneumothorax",))
    assert known.sentences[denial].show_confidence
    assert not missed.sentences[denial].show_confidence
    assert [one.show_confidence for one in known.sentences if not one.labels] == [False] * (len(known.sentences) - 1)
    assert known.calibrated_findings == calibrated_findings(caught, known.finding_probabilities)
    assert set(known.calibrated_findings) == {"Pneumothorax"}
    assert (plain.calibrated_findings, plain.not_assessed) == (None, ())
    assert all(one.show_confidence for one in plain.sentences), "a calibration without a track record shows all"
    assert [one.confidence for one in known.sentences] == [one.confidence for one in plain.sentences]
    assert known.findings == plain.findings


def test_unusual_image_hides_every_confidence(tmp_path: Path) -> None:
    every_image = (LinearScore(slope=0.0, bias=5.0),) * 2
    unusual = plain_calibration().unusual.model_copy(update={"units": every_image})
    draft = drafted(tmp_path, track_record=plain_track_record({"Pneumothorax": (9, 8, 6)}), unusual=unusual)
    assert "unusual_image" in [warning.code for warning in draft.warnings]
    assert not any(one.show_confidence for one in draft.sentences)
