"""Image checks of a calibrated bundle over HTTP, combined with DICOM headers."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from model.calibration.schema import LinearScore, ViewCheck
from tests.support.calibration import add_plain_calibration, plain_calibration
from tests.support.formats import dicom, facts_of_fhir
from tests.support.service import png, ready_client
from tests.support.tiny import write_tiny_bundle


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory) -> Iterator[httpx.Client]:
    """Of a service whose bundle takes every image for a lateral."""
    path = write_tiny_bundle(tmp_path_factory.mktemp("bundles") / "tiny")
    lateral = ViewCheck(line=LinearScore(slope=0.0, bias=-9.0), certain=0.99)
    with ready_client(add_plain_calibration(path, view=lateral)) as client:
        yield client


def post(client: httpx.Client, accept: str = "application/json", **images: bytes) -> httpx.Response:
    files = {name: ("f", data) for name, data in images.items()}
    answer = client.post("/report", files=files, headers={"Accept": accept})
    assert answer.status_code == 200
    return answer


def codes(answer: Any) -> list[str]:
    return [warning["code"] for warning in answer["warnings"]]


def test_view_check_corrects_the_view_and_the_header_counts(client: httpx.Client) -> None:
    agrees = post(client, frontal=dicom(ViewPosition="LL")).json()
    assert codes(agrees)[:2] == ["view_corrected", "missing_view"]
    assert agrees["warnings"][1]["message"].startswith("No frontal image")
    assert agrees["image_checks"] == [{"view": "lateral", "frontal": 0.0001, "unusual": pytest.approx(0, abs=0.5)}]
    silent = post(client, frontal=dicom(ViewPosition=None)).json()
    assert codes(silent) == codes(agrees)
    oblique = post(client, frontal=dicom(ViewPosition="LAO")).json()
    assert "view_mismatch" in codes(oblique)  # neither view: the warning stays


@pytest.mark.parametrize("calibrated", [True, False])
def test_exchanged_views_of_unusual_images_are_read_as_both_headers_say(tmp_path: Path, calibrated: bool) -> None:
    path = write_tiny_bundle(tmp_path / "tiny")
    if calibrated:
        every_image = (LinearScore(slope=0.0, bias=5.0),) * 2
        add_plain_calibration(path, unusual=plain_calibration().unusual.model_copy(update={"units": every_image}))
    frontal, lateral = dicom(ViewPosition="PA"), dicom(ViewPosition="LL", PhotometricInterpretation="MONOCHROME1")
    silent = dicom(ViewPosition=None, PhotometricInterpretation="MONOCHROME1")
    with ready_client(path) as client:
        right = post(client, frontal=frontal, lateral=lateral).json()
        exchanged = post(client, frontal=lateral, lateral=frontal).json()
        half = post(client, frontal=silent, lateral=frontal).json()
    answers = (right, exchanged, half)
    unusual = ["unusual_image"] * 2 if calibrated else []
    found = [[code for code in codes(answer) if "view" in code or code == "unusual_image"] for answer in answers]
    assert found == [unusual, [*unusual, "views_swapped"], ["view_mismatch", *unusual]]  # one header is not enough
    assert exchanged["sentences"] == right["sentences"]
    if calibrated:
        read = [[check["view"] for check in answer["image_checks"]] for answer in answers]
        assert read == [["frontal", "lateral"], ["lateral", "frontal"], ["frontal", "lateral"]]


def test_two_images_of_one_view_get_one_warning(client: httpx.Client) -> None:
    answer = post(client, frontal=dicom(ViewPosition="PA"), lateral=png()).json()
    assert [code for code in codes(answer) if "view" in code] == ["same_view"]
    assert "lateral views" in answer["warnings"][0]["message"]
    assert [check["view"] for check in answer["image_checks"]] == ["frontal", "lateral"]


def test_every_format_has_the_checks(client: httpx.Client) -> None:
    report = post(client, frontal=png()).json()
    resource = facts_of_fhir(post(client, "application/fhir+json", frontal=png()).json())
    assert resource["image_checks"] == report["image_checks"]
    assert [sentence["supported"] for sentence in resource["sentences"]] == [
        s["supported"] for s in report["sentences"]
    ]
    text = post(client, "text/plain", frontal=png()).text
    assert "Image 1: read as lateral; frontal with probability 0.0%" in text
    assert "Warning (view_corrected): The image sent as frontal looks like a lateral and was read as one." in text
