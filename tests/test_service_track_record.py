"""The track record of a bundle over HTTP: model card, probabilities, findings not assessed, hidden percentages."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from model.calibration.schema import TrackRecord
from tests.support.calibration import add_plain_calibration, plain_track_record
from tests.support.service import png, ready_client
from tests.support.tiny import write_denying_bundle

MISSED = plain_track_record({"Pneumothorax": (9, 8, 0), "Fracture": (2, 0, 0)}, separation={"absent": 0.9})


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory) -> Iterator[httpx.Client]:
    """Of a bundle that denies pneumothoraces and has never called one right."""
    with served(tmp_path_factory.mktemp("bundles"), MISSED) as client:
        yield client


def served(folder: Path, record: TrackRecord | None) -> Any:
    return ready_client(add_plain_calibration(write_denying_bundle(folder / "tiny"), track_record=record))


def post(client: httpx.Client, accept: str = "application/json") -> httpx.Response:
    answer = client.post("/report", files={"frontal": ("f", png())}, headers={"Accept": accept})
    assert answer.status_code == 200
    return answer


def test_model_card_and_health_have_the_counts(client: httpx.Client) -> None:
    expected = {
        "Pneumothorax": {"studies": 9, "called": 8, "right": 0},
        "Fracture": {"studies": 2, "called": 0, "right": 0},
    }
    assert post(client).json()["model"]["findings"] == expected
    assert client.get("/health").json()["model"]["findings"] == expected


def test_answer_has_probabilities_and_findings_not_assessed(client: httpx.Client) -> None:
    answer = post(client).json()
    assert answer["labels"]["Pneumothorax"] == "absent"
    assert answer["not_assessed"] == ["Pneumothorax"]
    assert list(answer["finding_probabilities"]) == ["Pneumothorax"]
    assert 0 < answer["finding_probabilities"]["Pneumothorax"] < 1
    assert [sentence["show_confidence"] for sentence in answer["sentences"]] == [False] * len(answer["sentences"])
    assert all(isinstance(sentence["confidence"], float) for sentence in answer["sentences"])


def test_other_formats_say_what_is_not_assessed(client: httpx.Client) -> None:
    text = post(client, "text/plain").text
    assert "\nNot assessed by this model: Pneumothorax\n" in text
    assert "Pneumothorax: absent" not in text.split("Reference cases")[0]
    assert "%  " not in text
    resource = post(client, "application/fhir+json").json()
    assert "label-pneumothorax" not in [part["id"] for part in resource["contained"]]


def test_bundle_without_a_track_record_answers_as_before(tmp_path: Path) -> None:
    with served(tmp_path, None) as client:
        answer = post(client).json()
        assert client.get("/health").json()["model"]["findings"] is None
        assert "label-pneumothorax" in post(client, "application/fhir+json").text
    assert answer["labels"]["Pneumothorax"] == "absent"
    assert (answer["finding_probabilities"], answer["not_assessed"]) == (None, [])
    assert all(sentence["show_confidence"] for sentence in answer["sentences"])
