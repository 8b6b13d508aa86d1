"""The service with the shipped bundle over HTTP: DICOM pairs in, every format out, on phantoms."""

from __future__ import annotations

import io
from collections.abc import Iterator
from typing import Any

import httpx
import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image

from model.types import View
from service.schemas.models import ReportResponse
from tests.support.dicom import dicom, png
from tests.support.formats import facts, facts_of_fhir, facts_of_sr, fhir_validators
from tests.support.paths import DRAWN, SHIPPED
from tests.support.service import ready_client

Grey = npt.NDArray[np.uint8]


@pytest.fixture(scope="module")
def client() -> Iterator[httpx.Client]:
    with ready_client(SHIPPED, prefer_hydrated=False, warm_up=False) as client:
        yield client


@pytest.fixture(scope="module")
def answer(client: httpx.Client) -> dict[str, Any]:
    """The report on a pair of DICOM files; other formats are compared with it."""
    body: dict[str, Any] = ask(client, *PAIR, include="attention").json()
    return body


def grey(name: str) -> Grey:
    return np.asarray(Image.open(DRAWN / f"{name}.png").convert("L"))


def film(view: str, position: str) -> bytes:
    """A drawn chest as a digital detector sends it: 12 bits, inverted."""
    values = 4095 - grey(f"effusion-{view}").astype(np.uint16) * 16
    tags = {"PatientID": "PID-471", "StudyInstanceUID": "1.2.3", "SeriesInstanceUID": "1.2.3.4", "Modality": "DX"}
    tags |= {"SOPInstanceUID": f"1.2.3.4.{view == 'lateral':d}", "ViewPosition": position}
    return dicom(values, stored=12, photometric="MONOCHROME1", **tags)


PAIR = [film("frontal", "PA"), film("lateral", "LL")]


def ask(client: httpx.Client, *images: bytes, accept: str = "application/json", **fields: str) -> httpx.Response:
    """The answer to a frontal and perhaps a lateral image."""
    files = {view.value: ("f", data) for view, data in zip(View, images, strict=False)}
    found = client.post("/report", files=files, data=fields, headers={"Accept": accept})
    assert found.status_code == 200, found.text
    return found


def codes(body: dict[str, Any]) -> set[str]:
    return {warning["code"] for warning in body["warnings"]}


def expected_facts(body: dict[str, Any]) -> dict[str, Any]:
    """Facts that every format contains, without ids."""
    return comparable(facts(ReportResponse.model_validate(body)))


def comparable(found: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in found.items() if name != "report_id"}


def test_draft_has_sentences_labels_cases_checks_and_attention(answer: dict[str, Any]) -> None:
    assert answer["findings"] == " ".join(sentence["text"] for sentence in answer["sentences"])
    assert len(answer["sentences"]) >= 3
    assert any(answer["labels"].values())
    assert [case["rank"] for case in answer["reference_cases"]] == list(range(1, len(answer["reference_cases"]) + 1))
    assert len(answer["reference_cases"]) >= 5
    assert [check["view"] for check in answer["image_checks"]] == ["frontal", "lateral"]
    assert all(0 <= check["unusual"] <= 1 for check in answer["image_checks"])
    assert any(sentence["supported"] is None for sentence in answer["sentences"])
    for sentence in answer["sentences"]:
        patches, cases = sentence["attention"]["patches"], sentence["attention"]["cases"]
        assert {view: np.shape(grid) for view, grid in patches.items()} == {"frontal": (7, 7), "lateral": (7, 7)}
        assert sum(map(np.sum, patches.values())) + sum(cases) == pytest.approx(1, abs=1e-3)


def test_fhir_is_valid_and_has_the_same_facts(client: httpx.Client, answer: dict[str, Any]) -> None:
    resource = ask(client, *PAIR, accept="application/fhir+json").json()
    assert comparable(facts_of_fhir(resource)) == expected_facts(answer)
    for validate in fhir_validators():
        validate(resource)


def test_structured_report_has_the_same_facts(client: httpx.Client, answer: dict[str, Any]) -> None:
    highdicom = pytest.importorskip("highdicom", reason="needs pip install highdicom")
    report = highdicom.sr.srread(io.BytesIO(ask(client, *PAIR, accept="application/dicom").content))
    assert (report.StudyInstanceUID, report.PatientID, report.Modality) == ("1.2.3", "PID-471", "SR")
    assert comparable(facts_of_sr(report)) == expected_facts(answer)


def test_swapped_drawings_are_detected(client: httpx.Client, answer: dict[str, Any]) -> None:
    """Both drawings look more like laterals; only real radiographs are corrected."""
    body = ask(client, *reversed(PAIR)).json()
    assert [(check["frontal"], check["unusual"]) for check in body["image_checks"]] == [
        (check["frontal"], check["unusual"]) for check in reversed(answer["image_checks"])
    ]
    assert codes(body) & {"views_swapped", "same_view"}
    assert not codes(answer) & {"views_swapped", "same_view"}


def test_upside_down_radiograph_gets_a_warning(client: httpx.Client, answer: dict[str, Any]) -> None:
    """A drawing may be unusual itself; that real radiographs are not, `test_project_calibration` shows."""
    body = ask(client, png(np.ascontiguousarray(grey("effusion-frontal")[::-1, ::-1]))).json()
    assert {"unusual_image", "missing_view"} <= codes(body)
    assert body["image_checks"][0]["unusual"] >= max(0.99, answer["image_checks"][0]["unusual"])
