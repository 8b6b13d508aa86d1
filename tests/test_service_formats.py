"""Formats of POST /report: content negotiation, equal facts in each, refusals with the reason."""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from starlette.responses import Response

from service.formats.dicom_source import ExportContext
from service.formats.fhir import diagnostic_report
from service.formats.negotiation import FHIR, JSON, OFFERS, SR, TEXT, Offer, parse_accept, rank, respond
from service.formats.text import UNSUPPORTED, plain_text
from service.schemas.models import ReportResponse
from service.web.problems import Problem
from tests.support.formats import answers, example, facts, facts_of_fhir
from tests.support.service import PROBLEM, png

ANSWERS = answers()
FRONTAL = ExportContext(("frontal",))


def post(client: httpx.Client, accept: str | None, **views: bytes) -> httpx.Response:
    request = client.build_request("POST", "/report", files={name: ("f", data) for name, data in views.items()})
    del request.headers["Accept"]
    if accept is not None:
        request.headers["Accept"] = accept
    return client.send(request)


# --- Accept ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("accept", "expected"),
    [
        ([], [JSON, FHIR, TEXT, SR]),
        ([""], [JSON, FHIR, TEXT, SR]),
        (["*/*"], [JSON, FHIR, TEXT, SR]),
        (["*;q=.2"], [JSON, FHIR, TEXT, SR]),  # Java's URLConnection
        (["application/json"], [JSON]),
        (["APPLICATION/JSON"], [JSON]),
        (["application/json;odata=verbose"], [JSON]),
        (["application/fhir+json"], [FHIR]),
        (["application/fhir+json; fhirVersion=4.0"], [FHIR]),
        (["application/fhir+json; fhirVersion=3.0"], []),
        (["application/fhir+json; fhirVersion=5.0, application/json;q=0.1"], [JSON]),
        (['text/plain; charset="UTF-8"'], [TEXT]),
        (["text/plain; charset=latin-1"], []),
        (["text/*"], [TEXT]),
        (["application/*"], [JSON, FHIR, SR]),
        (["application/dicom; transfer-syntax=*"], [SR]),
        (["application/dicom; transfer-syntax=1.2.840.10008.1.2.4.50"], []),
        (["text/plain;q=0.5, application/fhir+json;q=0.9"], [FHIR, TEXT]),
        (["text/plain, application/json"], [TEXT, JSON]),  # equal: as named
        (["*/*, text/plain"], [TEXT, JSON, FHIR, SR]),  # equal: the more specific
        (["text/plain", "application/json;q=0.9"], [TEXT, JSON]),  # two headers
        (["*/*, application/json;q=0"], [FHIR, TEXT, SR]),
        (["application/*;q=0.8, application/json;q=0.1, */*;q=0.5"], [FHIR, SR, TEXT, JSON]),
        (["text/html, application/xhtml+xml, application/xml;q=0.9, */*;q=0.8"], [JSON, FHIR, TEXT, SR]),  # a browser
        (["application/json, text/plain, */*"], [JSON, TEXT, FHIR, SR]),  # axios
        (["application/fhir+json;q=1.0, application/json+fhir;q=0.9"], [FHIR]),  # HAPI
        (["text/html"], []),
        (["application/json;q=0"], []),
        (["application/json;q=2"], []),
        (["application/json;q=x, text/plain"], [TEXT]),
        (["json"], []),
        ([",;,"], []),
    ],
)
def test_ranks_offers_by_accept_header(accept: list[str], expected: list[Offer]) -> None:
    assert rank(accept, OFFERS) == expected


def test_range_with_parameter_is_more_specific() -> None:
    assert rank(["application/fhir+json;fhirVersion=4.0;q=0.1, application/fhir+json, text/plain;q=0.5"], OFFERS) == [
        TEXT,
        FHIR,
    ]


@pytest.mark.parametrize("accept", [None, "", "*/*", "application/json", "text/html, */*;q=0.1"])
def test_json_is_the_default(client: httpx.Client, accept: str | None) -> None:
    answer = post(client, accept, frontal=png())
    assert answer.status_code == 200
    assert answer.headers["content-type"] == "application/json"
    assert answer.headers["vary"] == "Accept"
    ReportResponse.model_validate(answer.json())


def test_every_format_over_http_holds_the_same_facts(client: httpx.Client) -> None:
    views = {"frontal": png(), "lateral": png(100, 80)}
    expected = facts(ReportResponse.model_validate(post(client, "application/json", **views).json()))
    resource = post(client, "application/fhir+json", **views)
    text = post(client, "text/plain", **views)
    assert resource.headers["content-type"] == "application/fhir+json; fhirVersion=4.0"
    assert text.headers["content-type"] == "text/plain; charset=utf-8"
    assert {answer.headers["vary"] for answer in (resource, text)} == {"Accept"}
    assert {answer.headers["cache-control"] for answer in (resource, text)} == {"no-store"}
    assert {**facts_of_fhir(resource.json()), "report_id": expected["report_id"]} == expected
    assert resource.json()["code"]["coding"][0]["code"] == "36643-5"
    for sentence in expected["sentences"]:
        assert f"{sentence['confidence']:4.0%}  {sentence['text']}\n" in text.text


@pytest.mark.parametrize("accept", ["text/html", "image/png, application/fhir+xml", "Doe99Jane"])
def test_rejects_unknown_format_before_reading_the_body(client: httpx.Client, accept: str) -> None:
    answer = client.post("/report", content=b"no form", headers={"Accept": accept})
    assert answer.status_code == 406
    assert answer.headers["content-type"] == PROBLEM
    assert answer.headers["vary"] == "Accept"
    problem = answer.json()
    assert problem["code"] == "not_acceptable"
    assert all(offer.media_type in problem["detail"] for offer in OFFERS)
    assert accept not in problem["detail"]


def test_rejects_structured_report_without_dicom_images(client: httpx.Client) -> None:
    pytest.importorskip("highdicom")
    answer = post(client, "application/dicom", frontal=png())
    assert answer.status_code == 406
    assert "no image was sent as a DICOM file" in answer.json()["detail"]
    assert "application/json, application/fhir+json or text/plain" in answer.json()["detail"]
    fallback = post(client, "application/dicom, application/json;q=0.5", frontal=png())
    assert fallback.headers["content-type"] == "application/json"


def test_refusals_are_counted_in_metrics(client: httpx.Client) -> None:
    post(client, "text/html", frontal=png())
    assert 'report_refusals_total{cause="not_acceptable"}' in client.get("/metrics").text


def test_respond_returns_none_for_json() -> None:
    assert parse_accept(["application/json"]).choose(FRONTAL) is JSON
    assert respond(report := example(), FRONTAL, JSON) is report
    with pytest.raises(Problem, match="not_acceptable"):
        parse_accept(["audio/*"])


# --- the same content -----------------------------------------------------------------------------------------------


def leaves(node: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any]]:
    if isinstance(node, dict):
        for name, value in node.items():
            yield from leaves(value, (*path, name))
    elif isinstance(node, list):
        for value in node:
            yield from leaves(value, (*path, "[]"))
    else:
        yield path, node


def as_text(path: tuple[str, ...], value: Any) -> str:
    """How the text shows a fact of the JSON."""
    match path:
        case ("sentences", "[]", "confidence"):
            return f"{value:.0%}  "
        case ("reference_cases", "[]", "similarity"):
            return f"similarity {value:.2f}"
        case ("reference_cases", "[]", "rank"):
            return f"  {value}. "
        case (*_, "labels", name):
            return f"{name}: {value}"
        case ("sentences", "[]", "supported"):
            return "" if value else UNSUPPORTED
        case ("image_checks", "[]", "view"):
            return f": read as {value}; "
        case ("image_checks", "[]", "frontal"):
            return f"frontal with probability {value:.1%}; "
        case ("image_checks", "[]", "unusual"):
            return f"{value:.1%} of radiographs look less unusual"
        case ("places", _, "[]", "side"):
            return "both sides" if value == "both" else value
        case ("warnings", "[]", "code"):
            return f"Warning ({value}): "
        case _:
            return str(value)


@pytest.mark.parametrize("name", ANSWERS)
def test_plain_text_holds_every_fact(name: str) -> None:
    text = plain_text(ANSWERS[name])
    expected = list(leaves(facts(ANSWERS[name])))
    assert len(expected) > 15
    for path, value in expected:
        if value is not None:
            assert as_text(path, value) in text, path
        elif path[0] == "labels":
            assert f"{path[1]}: " not in text.split("Reference cases")[0], path


def test_plain_text_has_no_hidden_percentage_and_no_denial_that_is_not_assessed() -> None:
    lines = plain_text(ANSWERS["a denied finding that is not assessed"]).split("\n")
    sentences = example().sentences
    assert lines[2:4] == [f"        {sentence.text}" for sentence in sentences]
    assert lines[5:7] == ["Labels: Edema: absent", "Not assessed by this model: Cardiomegaly, Pneumothorax"]
    assert "Labels: none" in plain_text(ANSWERS["nothing assessed"])
    assert "Not assessed" not in plain_text(example())


@pytest.mark.parametrize("name", ANSWERS)
def test_diagnostic_report_holds_every_fact(name: str) -> None:
    report = ANSWERS[name]
    resource = diagnostic_report(report, FRONTAL)
    assert facts_of_fhir(json.loads(json.dumps(resource))) == facts(report)
    form = resource["presentedForm"][0]
    assert base64.b64decode(form["data"]).decode() == plain_text(report)


@pytest.mark.parametrize("name", ANSWERS)
def test_structured_report_holds_every_fact(name: str) -> None:
    pytest.importorskip("highdicom")
    pydicom = pytest.importorskip("pydicom")
    from service.formats.dicom_source import SourceImage
    from tests.support.formats import dicom, facts_of_sr, header

    study = ExportContext(("frontal",), (SourceImage.from_dataset(header(dicom())),))
    offer = parse_accept(["application/dicom"]).choose(study)
    answer = respond(ANSWERS[name], study, offer)
    assert isinstance(answer, Response)
    assert answer.headers["content-type"] == "application/dicom"
    expected = facts(ANSWERS[name])
    assert facts_of_sr(pydicom.dcmread(io.BytesIO(bytes(answer.body)))) == expected


def test_shell_command_prints_the_plain_text_format() -> None:
    answer = respond(example(), FRONTAL, TEXT)
    assert isinstance(answer, Response)
    assert bytes(answer.body).decode() == plain_text(example()) + "\n"  # print's


def test_api_guide_lists_every_format() -> None:
    guide = (Path(__file__).parent.parent / "docs" / "api.md").read_text(encoding="utf-8")
    for offer in OFFERS:
        assert f"|`{offer.media_type}`|" in guide
