"""The service with the shipped bundle over HTTP: DICOM pairs in, every format out, on phantoms."""

from __future__ import annotations

import copy
import io
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image

from model.types import View
from service.schemas.models import ReportResponse
from tests.support.chat_server import Completions, completion, completions_server
from tests.support.dicom import dicom, png
from tests.support.formats import facts, facts_of_fhir, facts_of_sr
from tests.support.http import respond_with
from tests.support.paths import DRAWN, SHIPPED
from tests.support.service import KEY, ready_client
from training.data.openi import open_openi

REWRITTEN = "The heart is normal in size."
Grey = npt.NDArray[np.uint8]


@pytest.fixture(scope="module")
def model() -> Iterator[Completions]:
    with completions_server() as model:
        model.answer = respond_with(completion(REWRITTEN))
        yield model


@pytest.fixture(scope="module")
def client(model: Completions, tmp_path_factory: pytest.TempPathFactory) -> Iterator[httpx.Client]:
    settings = {"refine_url": model.url, "refine_model": "local-llm", "prefer_hydrated": False, "warm_up": False}
    cases = tmp_path_factory.mktemp("shipped") / "cases"
    with ready_client(SHIPPED, api_key=KEY, user_cases_dir=cases, **settings) as client:
        client.headers["X-API-Key"] = KEY
        yield client


@pytest.fixture(scope="module")
def answer(client: httpx.Client) -> dict[str, Any]:
    """The report on a pair of DICOM files with all options; other formats are compared with it."""
    body: dict[str, Any] = ask(client, *PAIR, include="attention", refine="true").json()
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
    """Facts that every format contains, without ids, times and the rewritten draft."""
    return comparable(facts(ReportResponse.model_validate(body)))


def comparable(found: dict[str, Any]) -> dict[str, Any]:
    warnings = [one for one in found["warnings"] if not one["code"].startswith("refine_")]
    return {**{name: found[name] for name in found.keys() - {"report_id", "refined"}}, "warnings": warnings}


# --- the report -----------------------------------------------------------------------------------------------------


def test_draft_has_sentences_labels_cases_and_checks(answer: dict[str, Any]) -> None:
    assert answer["findings"] == " ".join(sentence["text"] for sentence in answer["sentences"])
    assert len(answer["sentences"]) >= 3
    assert any(answer["labels"].values())
    assert [case["rank"] for case in answer["reference_cases"]] == list(range(1, len(answer["reference_cases"]) + 1))
    assert len(answer["reference_cases"]) >= 5
    assert [check["view"] for check in answer["image_checks"]] == ["frontal", "lateral"]
    assert all(0 <= check["unusual"] <= 1 for check in answer["image_checks"])
    assert any(sentence["supported"] is None for sentence in answer["sentences"])


def test_attention_of_each_sentence_sums_to_1(answer: dict[str, Any]) -> None:
    for sentence in answer["sentences"]:
        patches, cases = sentence["attention"]["patches"], sentence["attention"]["cases"]
        assert {view: np.shape(grid) for view, grid in patches.items()} == {"frontal": (7, 7), "lateral": (7, 7)}
        assert sum(map(np.sum, patches.values())) + sum(cases) == pytest.approx(1, abs=1e-3)


def test_language_model_rewrites_the_draft(answer: dict[str, Any], model: Completions) -> None:
    assert answer["refined"] == {"text": REWRITTEN, "model": "local-llm"}
    ((_, _, sent),) = model.seen
    assert json.loads(sent["messages"][1]["content"])["findings"] == answer["findings"] != REWRITTEN


def test_stream_sends_the_same_report(client: httpx.Client, answer: dict[str, Any]) -> None:
    blocks = ask(client, *PAIR, stream="true").text.strip().split("\n\n")
    events = [block.splitlines() for block in blocks if not block.startswith(":")]
    parts = [(name.removeprefix("event: "), json.loads(data.removeprefix("data: "))) for name, data in events]
    sentences = [data["sentence"]["text"] for name, data in parts if name == "sentence"]
    assert [name for name, _ in parts] == ["cases", *["sentence"] * len(sentences), "report"]
    assert " ".join(sentences) == parts[-1][1]["findings"] == answer["findings"]


# --- formats --------------------------------------------------------------------------------------------------------


def test_fhir_is_valid_and_has_the_same_facts(client: httpx.Client, answer: dict[str, Any]) -> None:
    resource = ask(client, *PAIR, accept="application/fhir+json").json()
    assert comparable(facts_of_fhir(resource)) == expected_facts(answer)
    r4 = pytest.importorskip("fhirclient.models.diagnosticreport", reason="needs pip install fhirclient")
    assert r4.DiagnosticReport(copy.deepcopy(resource)).as_json() == resource
    r4b = pytest.importorskip("fhir.resources.R4B.diagnosticreport", reason="needs pip install fhir.resources")
    assert r4b.DiagnosticReport.model_validate(resource).status == "preliminary"


def test_structured_report_has_the_same_facts(client: httpx.Client, answer: dict[str, Any]) -> None:
    highdicom = pytest.importorskip("highdicom", reason="needs pip install highdicom")
    report = highdicom.sr.srread(io.BytesIO(ask(client, *PAIR, accept="application/dicom").content))
    assert (report.StudyInstanceUID, report.PatientID, report.Modality) == ("1.2.3", "PID-471", "SR")
    assert comparable(facts_of_sr(report)) == expected_facts(answer)


# --- wrong images ---------------------------------------------------------------------------------------------------


def test_swapped_drawings_are_detected(client: httpx.Client, answer: dict[str, Any]) -> None:
    """Both drawings look more like laterals; only real radiographs are corrected."""
    body = ask(client, *reversed(PAIR)).json()
    assert [(check["frontal"], check["unusual"]) for check in body["image_checks"]] == [
        (check["frontal"], check["unusual"]) for check in reversed(answer["image_checks"])
    ]
    assert codes(body) & {"views_swapped", "same_view"}
    assert not codes(answer) & {"views_swapped", "same_view"}


def test_swapped_radiographs_are_corrected(client: httpx.Client, real_data: Path) -> None:
    source = open_openi(real_data / "openi")
    study = next(one for one in source.split("val") if [ref.view for ref in one.ordered()] == list(View))
    data = dict(source.images.iter([ref.key for ref in study.images]))
    body = ask(client, *(data[ref.key] or b"" for ref in reversed(study.ordered()))).json()
    assert "views_swapped" in codes(body)
    assert [check["view"] for check in body["image_checks"]] == ["lateral", "frontal"]


def test_upside_down_radiograph_gets_a_warning(client: httpx.Client, answer: dict[str, Any]) -> None:
    assert "unusual_image" not in codes(answer)
    body = ask(client, png(np.ascontiguousarray(grey("effusion-frontal")[::-1, ::-1]))).json()
    assert {"unusual_image", "missing_view"} <= codes(body)
    assert body["image_checks"][0]["unusual"] >= 0.99


# --- cases ----------------------------------------------------------------------------------------------------------


def test_added_case_is_retrieved_for_a_similar_study(client: httpx.Client, answer: dict[str, Any]) -> None:
    """Last in this module: the index holds the case from then on."""
    fields = {"case_id": (None, "added-1"), "findings": (None, answer["findings"]), "frontal": ("f", PAIR[0])}
    added = client.post("/cases", files=fields)
    assert added.status_code == 201, added.text
    assert client.get("/cases/added-1").json() == added.json()
    found = {case["case_id"]: case for case in ask(client, *PAIR, top_k="50").json()["reference_cases"]}
    assert found["added-1"]["findings"] == answer["findings"]
    assert found["added-1"]["images"] == {"frontal": "cases/added-1/frontal"}
    assert client.get("/cases/added-1/frontal").headers["content-type"] == "image/jpeg"
