"""POST /export: a report, edited or not, in another format; edits are attributed to the reader."""

from __future__ import annotations

import gzip
import json
from typing import Any

import httpx
import pytest

from service.formats.fhir import READER
from service.routes.export import MAX_BODY_BYTES
from service.schemas.examples import REPORT_EXAMPLE
from service.schemas.export import ExportRequest
from service.schemas.models import ReportResponse
from tests.support.formats import answers, facts, facts_of_fhir, fhir_validators
from tests.support.service import PROBLEM

FHIR = "application/fhir+json"
KEPT = REPORT_EXAMPLE["sentences"][0]["text"]
EDITED = f"{KEPT} No pleural effusion."
CANARY = "Wilhelmine-Canary"


def export(client: httpx.Client, body: Any, accept: str = "application/json") -> httpx.Response:
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    return client.post("/export", content=content, headers={"Content-Type": "application/json", "Accept": accept})


@pytest.mark.parametrize("name", answers())
def test_exports_a_report_in_every_format(client: httpx.Client, name: str) -> None:
    report = answers()[name]
    body = {"report": report.model_dump(), "views": ["frontal"]}
    plain = export(client, body)
    assert plain.headers["content-type"] == "application/json"
    assert ReportResponse.model_validate(plain.json()) == report
    assert facts_of_fhir(export(client, body, FHIR).json()) == facts(report)
    text = export(client, body, "text/plain")
    assert text.headers["vary"] == "Accept"
    assert (report.findings or "(nothing was written)") in text.text


def test_edited_findings_are_attributed_to_the_reader(client: httpx.Client) -> None:
    body = {"report": REPORT_EXAMPLE, "findings": EDITED, "views": ["frontal", "lateral"]}
    edited = export(client, body).json()
    assert edited["findings"] == EDITED
    assert [sentence["text"] for sentence in edited["sentences"]] == [KEPT], "a confidence is the model's alone"
    assert edited["labels"]["Pleural Effusion"] == "absent"
    assert edited["labels"]["Atelectasis"] is None
    (warning,) = [warning for warning in edited["warnings"] if warning["code"] == "edited"]
    assert warning["message"].endswith(REPORT_EXAMPLE["findings"])
    resource = export(client, body, FHIR).json()
    assert facts_of_fhir(resource) == facts(ReportResponse.model_validate(edited))
    assert resource["status"] == "preliminary"
    for validate in fhir_validators():
        validate(resource)
    contained = {part["id"]: part for part in resource["contained"]}
    assert contained["sentence-1"]["device"] == {"reference": "#model"}
    assert "device" not in contained["label-pleural-effusion"]
    assert [agent["who"] for agent in contained["provenance"]["agent"]] == [
        {"reference": "#model"},
        {"display": READER},
    ]
    assert EDITED in export(client, body, "text/plain").text


def test_edit_keeps_findings_not_assessed_that_the_model_still_denies() -> None:
    denied = {"text": "No pneumothorax.", "confidence": 0.9, "labels": {"Pneumothorax": "absent"}}
    labels = {**REPORT_EXAMPLE["labels"], "Pneumothorax": "absent", "Fracture": "absent"}
    sentences = [denied, {**denied, "text": "No fracture.", "labels": {"Fracture": "absent"}}]
    report = {**REPORT_EXAMPLE, "sentences": sentences, "labels": labels, "findings": "No pneumothorax. No fracture.",
              "not_assessed": ["Fracture", "Pneumothorax"]}  # fmt: skip
    for findings, unassessed in (
        ("No pneumothorax. No fracture.", ["Fracture", "Pneumothorax"]),
        ("No pneumothorax. No rib is fractured.", ["Pneumothorax"]),  # the reader denies the fracture
        ("Large pneumothorax. No pneumothorax. No fracture.", ["Fracture"]),
        ("Clear.", []),
    ):
        edited = ExportRequest.model_validate({"report": report, "findings": findings}).edited_report()
        assert edited.not_assessed == unassessed, findings


def test_unchanged_findings_stay_attributed_to_the_model(client: httpx.Client) -> None:
    body = {"report": REPORT_EXAMPLE, "findings": f" {REPORT_EXAMPLE['findings']}\n"}
    assert export(client, body).json() == export(client, {"report": REPORT_EXAMPLE}).json()


def test_edit_removes_warnings_about_the_draft(client: httpx.Client) -> None:
    doubtful = {**REPORT_EXAMPLE["sentences"][1], "supported": False}
    warnings = [{"code": code, "message": "Of the draft."} for code in ("unsupported_sentence", "refine_added")]
    report = {
        **REPORT_EXAMPLE,
        "sentences": [REPORT_EXAMPLE["sentences"][0], doubtful],
        "refined": {"text": "Fluid on the left.", "model": "qwen3:8b"},
        "warnings": [*REPORT_EXAMPLE["warnings"], *warnings],
    }
    for findings, codes in (
        (KEPT, ["missing_view", "edited"]),
        (f"{doubtful['text']} {doubtful['text']}", ["missing_view", "unsupported_sentence", "edited"]),
    ):
        edited = export(client, {"report": report, "findings": findings}).json()
        assert [warning["code"] for warning in edited["warnings"]] == codes
        assert len(edited["sentences"]) == 1, "the model wrote it once"
        assert edited["refined"] is None


@pytest.mark.parametrize(
    ("body", "code", "field"),
    [
        (b"", "invalid_request", None),
        (b"{", "invalid_request", None),
        (b"[1]", "invalid_request", None),
        ({}, "invalid_request", "report"),
        ({"report": {**REPORT_EXAMPLE, CANARY: 1}}, "invalid_request", "report"),
        ({"report": REPORT_EXAMPLE, CANARY: 1}, "invalid_request", None),
        ({"report": REPORT_EXAMPLE, "findings": CANARY * 2_000}, "invalid_request", "findings"),
        ({"report": REPORT_EXAMPLE, "views": ["oblique"]}, "invalid_request", "views"),
        ({"report": REPORT_EXAMPLE, "views": []}, "invalid_request", "views"),
        ({"report": REPORT_EXAMPLE, "views": ["frontal", "frontal"]}, "invalid_request", "views"),
        ({"report": {**REPORT_EXAMPLE, "report_id": CANARY}}, "invalid_request", "report"),
        ({"report": {**REPORT_EXAMPLE, "labels": {CANARY: "present"}}}, "invalid_request", "report"),
        ({"report": {**REPORT_EXAMPLE, "not_assessed": [CANARY]}}, "invalid_request", "report"),
        ({"report": {**REPORT_EXAMPLE, "finding_probabilities": {CANARY: 0.5}}}, "invalid_request", "report"),
        (
            {"report": {**REPORT_EXAMPLE, "warnings": [{"code": f"a {CANARY}", "message": ""}]}},
            "invalid_request",
            "report",
        ),
        ({"report": {**REPORT_EXAMPLE, "timings_ms": {"total": float("nan")}}}, "invalid_request", "report"),
        ({"report": {**REPORT_EXAMPLE, "timings_ms": {"total": "1.0"}}}, "invalid_request", "report"),
        (b" " * (MAX_BODY_BYTES + 1), "upload_too_large", None),
    ],
)
def test_rejects_wrong_body_without_quoting_it(client: httpx.Client, body: Any, code: str, field: str | None) -> None:
    answer = export(client, body)
    assert answer.headers["content-type"] == PROBLEM
    assert (answer.json()["code"], answer.json()["field"]) == (code, field)
    assert CANARY not in answer.text


def _with(**changes: Any) -> dict[str, Any]:
    return {"report": {**REPORT_EXAMPLE, **changes}}


@pytest.mark.parametrize(
    ("body", "detail"),
    [
        (
            _with(warnings=[{"code": "a", "message": ""}] * 101),
            "report.warnings does not match the schema: too long",
        ),
        (_with(sentences=[REPORT_EXAMPLE["sentences"][0]] * 1_025), "report.sentences does not match the schema"),
        (_with(reference_cases=REPORT_EXAMPLE["reference_cases"][:1] * 51), "report.reference_cases does not match"),
        (_with(image_checks=REPORT_EXAMPLE["image_checks"][:1] * 3), "report.image_checks does not match"),
        (_with(labels={f"{CANARY}{n}": None for n in range(15)}), "report.labels does not match the schema"),
        (_with(timings_ms={f"{CANARY}{n}": 1.0 for n in range(33)}), "report.timings_ms does not match the schema"),
        (
            _with(model={**REPORT_EXAMPLE["model"], "trained_on": {CANARY: [[]] * 10_000}}),
            "The body has more than 10,000 lists",
        ),
        (
            _with(model={**REPORT_EXAMPLE["model"], "trained_on": {f"{CANARY}{n}": 1 for n in range(12_000)}}),
            "The body has more than 12,000 names",
        ),
        (json.dumps(_with()).replace('"licence"', f'"{CANARY}": {"[" * 1000}{"]" * 1000}, "licence"').encode(), "json"),
        (json.dumps(_with()).encode().replace(b'"rank": 1', b'"rank": ' + b"1" * 4_000), "report.reference_cases"),
    ],
)
def test_bounds_every_list_and_number(client: httpx.Client, body: Any, detail: str) -> None:
    answer = export(client, body, FHIR)
    assert (answer.status_code, answer.json()["code"]) == (422, "invalid_request")
    assert detail in answer.json()["detail"]
    assert CANARY not in answer.text


def test_rejects_other_bodies_and_unsupported_formats(client: httpx.Client) -> None:
    assert client.post("/export", data={"report": "x"}).json()["code"] == "not_json"
    refused = export(client, {"report": REPORT_EXAMPLE}, "application/dicom")
    assert (refused.status_code, refused.json()["code"]) == (406, "not_acceptable")
    assert "only POST /report" in refused.json()["detail"]
    unstreamed = export(client, {"report": REPORT_EXAMPLE}, "text/event-stream")
    assert (unstreamed.status_code, unstreamed.json()["code"]) == (406, "not_acceptable")
    assert "stream=true" not in unstreamed.json()["detail"], "it takes no such field"
    headers = {"Content-Type": "application/json", "Content-Encoding": "gzip"}
    body = gzip.compress(json.dumps({"report": REPORT_EXAMPLE}).encode())
    assert client.post("/export", content=body, headers=headers).json()["code"] == "unsupported_encoding"
