"""OpenAPI: a valid document whose examples fit its schemas and whose schemas fit the service."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import jsonschema
import pytest

from benchmarks.raw_http import events
from model.text.labeler import FINDINGS, label_report
from model.types import MAX_BEAM_SIZE, MAX_TOP_K
from service.app import create_app
from service.formats.negotiation import EVENTS, OFFERS
from service.schemas.annotations import read_annotations
from service.schemas.examples import CASE_EXAMPLE, HEALTH_EXAMPLE, REPORT_EXAMPLE
from service.schemas.forms import CaseForm, ReportForm
from service.schemas.models import CaseResponse, HealthResponse, ReportResponse
from service.settings import Settings
from service.web.problems import CODES
from tests.support.paths import REPOSITORY
from tests.support.service import png, settings_for


@pytest.fixture(scope="module")
def document() -> dict[str, Any]:
    return create_app(settings_for(Path("bundles/none"))).openapi()


def walk(node: Any) -> Iterator[dict[str, Any]]:
    if isinstance(node, dict):
        yield node
        for value in node.values():
            yield from walk(value)
    elif isinstance(node, list):
        for value in node:
            yield from walk(value)


def validator(document: dict[str, Any], schema: dict[str, Any]) -> jsonschema.Draft202012Validator:
    whole = {**schema, "components": document["components"]}
    jsonschema.Draft202012Validator.check_schema(whole)
    return jsonschema.Draft202012Validator(whole)


def test_document_is_valid_openapi(document: dict[str, Any]) -> None:
    checker = pytest.importorskip("openapi_spec_validator", reason="needs pip install openapi-spec-validator")
    checker.validate(document)
    json.dumps(document)


def test_every_reference_resolves(document: dict[str, Any]) -> None:
    references = {node["$ref"] for node in walk(document) if isinstance(node.get("$ref"), str)}
    assert "#/components/schemas/ProblemDetails" in references
    for reference in references:
        node = document
        for part in reference.removeprefix("#/").split("/"):
            node = node[part]


def test_every_example_fits_its_schema(document: dict[str, Any]) -> None:
    checked = 0
    for node in walk(document["paths"]):
        if "schema" in node and "examples" in node:
            for example in node["examples"].values():
                validator(document, node["schema"]).validate(example["value"])
                checked += 1
    for schema in document["components"]["schemas"].values():
        for example in schema.get("examples", []):
            validator(document, schema).validate(example)
            checked += 1
    assert checked > 12


def test_report_form_schema_lists_every_field(document: dict[str, Any]) -> None:
    operation = document["paths"]["/report"]["post"]
    content = operation["requestBody"]["content"]
    assert list(content) == ["multipart/form-data"]
    properties = content["multipart/form-data"]["schema"]["properties"]
    assert list(properties) == list(ReportForm.model_fields)
    assert properties["frontal"]["format"] == properties["lateral"]["format"] == "binary"
    assert (properties["top_k"]["maximum"], properties["beam_size"]["maximum"]) == (MAX_TOP_K, MAX_BEAM_SIZE)
    check = validator(document, content["multipart/form-data"]["schema"])
    for wrong in ({}, {"top_k": 3}, {"frontal": "x", "side": "y"}, {"frontal": "x", "top_k": 51}):
        assert not check.is_valid(wrong), wrong


def test_case_form_schema_lists_every_field(document: dict[str, Any]) -> None:
    content = document["paths"]["/cases"]["post"]["requestBody"]["content"]
    schema = content["multipart/form-data"]["schema"]
    assert list(schema["properties"]) == list(CaseForm.model_fields)
    check = validator(document, schema)
    assert check.is_valid({"case_id": "a-1", "findings": "Clear."})
    for wrong in (
        {"case_id": "a"},
        {"case_id": "../a", "findings": "x"},
        {"case_id": "a", "findings": "x", "side": "y"},
    ):
        assert not check.is_valid(wrong), wrong


def test_problems_are_described_as_problems(document: dict[str, Any]) -> None:
    responses = document["paths"]["/report"]["post"]["responses"]
    assert set(responses) == {"200", "400", "406", "408", "413", "415", "422", "500", "503"}
    for status, response in responses.items():
        if status != "200":
            assert list(response["content"]) == ["application/problem+json"]
    described = {
        (example["value"]["code"], example["value"]["status"])
        for response in responses.values()
        for content in response.get("content", {}).values()
        for example in content.get("examples", {}).values()
    }
    assert described
    assert all(CODES[code][0] == status for code, status in described)


def test_every_format_is_described_with_an_example(document: dict[str, Any]) -> None:
    content = document["paths"]["/report"]["post"]["responses"]["200"]["content"]
    assert set(content) == {offer.media_type for offer in (*OFFERS, EVENTS)}
    for media_type in ("application/fhir+json", "text/plain"):
        validator(document, content[media_type]["schema"]).validate(content[media_type]["example"])


def test_stream_events_are_described_with_an_example(document: dict[str, Any]) -> None:
    content = document["paths"]["/report"]["post"]["responses"]["200"]["content"]["text/event-stream"]
    schemas = {
        event["properties"]["event"]["const"]: event["properties"]["data"]["contentSchema"]
        for event in content["schema"]["oneOf"]
    }
    assert list(schemas) == ["cases", "sentence", "report", "problem"]
    sent = list(events(content["example"].split("\n")))
    assert [name for name, _ in sent] == ["cases", "sentence", "sentence", "report"]
    for name, data in sent:
        validator(document, schemas[name]).validate(data)


def test_examples_validate_against_the_models() -> None:
    ReportResponse.model_validate(REPORT_EXAMPLE)
    HealthResponse.model_validate(HEALTH_EXAMPLE)
    CaseResponse.model_validate(CASE_EXAMPLE)
    assert REPORT_EXAMPLE["findings"] == " ".join(sentence["text"] for sentence in REPORT_EXAMPLE["sentences"])


def test_labels_and_annotations_of_examples_are_read_from_their_text() -> None:
    assert tuple(REPORT_EXAMPLE["labels"]) == FINDINGS
    assert REPORT_EXAMPLE["labels"] == label_report(REPORT_EXAMPLE["findings"])
    for text in (REPORT_EXAMPLE, *REPORT_EXAMPLE["reference_cases"]):
        assert text["annotations"] == [each.model_dump() for each in read_annotations(text["findings"])]
    for case in (*REPORT_EXAMPLE["reference_cases"], CASE_EXAMPLE):
        assert case["labels"] == label_report(case["findings"])


def test_real_responses_validate_against_the_document(document: dict[str, Any], client: httpx.Client) -> None:
    schemas = document["components"]["schemas"]
    served = client.get("/openapi.json").json()
    report = client.post("/report", files={"frontal": ("f", png())}).json()
    health = client.get("/health").json()
    problem = client.post("/report", files={"wrong": ("f", png())}).json()
    assert served == document
    validator(document, schemas["ReportResponse"]).validate(report)
    validator(document, schemas["HealthResponse"]).validate(health)
    validator(document, schemas["ProblemDetails"]).validate(problem)


def test_api_guide_lists_every_code_and_setting() -> None:
    guide = (REPOSITORY / "docs" / "api.md").read_text(encoding="utf-8")
    rows = {line.split("|")[1]: line for line in guide.splitlines() if line.startswith("|")}
    for code, (status, _) in CODES.items():
        assert f"`{code}`" in rows[str(status)], code
    for name in Settings.model_fields:
        assert f"`REPORT_{name.upper()}`" in guide, name
