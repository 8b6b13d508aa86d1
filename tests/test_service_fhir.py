"""The FHIR DiagnosticReport: valid R4 and R4B, AI asserted, no other patient in its results."""

from __future__ import annotations

import json
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any
from xml.etree import ElementTree

import pytest
from fhirclient.models.fhirabstractbase import FHIRValidationError
from pydantic import ValidationError

from service.formats.dicom_source import ExportContext, SourceImage
from service.formats.fhir import NAMESPACE, diagnostic_report
from tests.support.formats import answers, example, fhir_validators

ANSWERS = answers()
NOW = datetime(2026, 3, 1, 9, 30, 0, 125_000, tzinfo=UTC)
XHTML = "{http://www.w3.org/1999/xhtml}"


def written(name: str = "the example", *views: str) -> dict[str, Any]:
    resource = diagnostic_report(ANSWERS[name], ExportContext(views or ("frontal",)), NOW)
    return json.loads(json.dumps(resource))  # type: ignore[no-any-return]


def walk(node: Any) -> Iterator[tuple[str, Any]]:
    for name, value in node.items() if isinstance(node, dict) else ():
        yield name, value
        for part in value if isinstance(value, list) else [value]:
            yield from walk(part)


@pytest.mark.parametrize("name", ANSWERS)
def test_resource_is_valid_r4_and_r4b(name: str) -> None:
    resource = written(name)
    without_code = {name: value for name, value in resource.items() if name != "code"}
    for validate in fhir_validators():
        validate(resource)
        for wrong in (without_code, {**resource, "patient": "x"}, {**resource, "result": [{"reference": 3}]}):
            with pytest.raises((FHIRValidationError, ValidationError)):
                validate(wrong)


def test_required_value_sets_hold_every_code() -> None:
    """Neither library checks the value sets, which fhir.resources contains."""
    pytest.importorskip("fhir.resources", reason="needs pip install fhir.resources")
    from fhir.resources.R4B.diagnosticreport import DiagnosticReport

    checked = []

    def check(model: Any) -> None:
        for name, field in type(model).model_fields.items():
            value = getattr(model, name)
            allowed = (field.json_schema_extra or {}).get("enum_values")
            if allowed and value is not None:
                assert value in allowed, (type(model).__name__, name)
                checked.append((type(model).__name__, name))
            for part in value if isinstance(value, list) else [value]:
                if hasattr(type(part), "model_fields"):
                    check(part)

    check(DiagnosticReport.model_validate(written("every label")))
    assert {("DiagnosticReport", "status"), ("Observation", "status"), ("DeviceDeviceName", "type")} <= set(checked)


@pytest.mark.parametrize("name", ANSWERS)
def test_has_no_empty_values_and_references_every_contained_resource(name: str) -> None:
    resource = written(name)
    assert not [element for element, value in walk(resource) if value in (None, "", [], {})]
    known = {f"#{contained['id']}" for contained in resource["contained"]}
    references = {value for element, value in walk(resource) if element == "reference"}
    assert len(known) == len(resource["contained"])
    assert references == known  # ref-1 of 4.0.1, which "#" breaks, and dom-3
    assert not any("contained" in contained or "meta" in contained for contained in resource["contained"])  # dom-2, -4


@pytest.mark.parametrize(("views", "code", "display"), [
    (("frontal", "lateral"), "36643-5", "XR Chest 2 Views"),
    (("frontal",), "36554-4", "XR Chest Single view"),
    (("lateral",), "36554-4", "XR Chest Single view"),
])  # fmt: skip
def test_study_code_follows_the_views(views: tuple[str, ...], code: str, display: str) -> None:
    coding = {"system": "http://loinc.org", "code": code, "display": display}
    assert written("the example", *views)["code"] == {"coding": [coding], "text": display}


def test_is_a_preliminary_ai_asserted_radiology_report() -> None:
    resource = written()
    assert resource["status"] == "preliminary"
    assert resource["category"][0]["coding"][0]["code"] == "RAD"
    assert [security["code"] for security in resource["meta"]["security"]] == ["AIAST"]
    assert resource["issued"] == "2026-03-01T09:30:00.125+00:00"
    observations = [part for part in resource["contained"] if part["resourceType"] == "Observation"]
    assert {part["status"] for part in observations} == {"preliminary"}
    assert {part["device"]["reference"] for part in observations} == {"#model"}
    (author,) = (part["agent"][0] for part in resource["contained"] if part["resourceType"] == "Provenance")
    assert author["who"] == {"reference": "#model"}
    (target,) = (part["target"] for part in resource["contained"] if part["resourceType"] == "Provenance")
    assert target == [{"type": "DiagnosticReport", "identifier": resource["identifier"][0]}]


def test_labels_with_a_known_code_are_coded() -> None:
    labels = {
        part["code"]["text"]: part for part in written("every label")["contained"] if part["id"].startswith("label-")
    }
    assert len(labels) == 14
    assert labels["Pleural Effusion"]["code"]["coding"][0]["code"] == "60046008"
    assert "coding" not in labels["Support Devices"]["code"]
    values = {part["valueCodeableConcept"]["text"]: part["valueCodeableConcept"]["coding"] for part in labels.values()}
    assert {text: coding[0]["code"] for text, coding in values.items()} == {
        "present": "52101004",
        "absent": "2667000",
        "uncertain": "64957009",
    }


def test_denied_finding_that_is_not_assessed_is_in_no_observation() -> None:
    resource = written("a denied finding that is not assessed")
    labels = {part["id"]: part["valueCodeableConcept"]["text"] for part in resource["contained"]
              if part["id"].startswith("label-")}  # fmt: skip
    assert labels == {"label-edema": "absent"}
    narrative = "".join(ElementTree.fromstring(resource["text"]["div"]).itertext())
    assert "Not assessed by this model: Cardiomegaly, Pneumothorax" in narrative
    assert "Pneumothorax: absent" not in narrative


def test_confidence_that_readers_may_not_see_is_left_out() -> None:
    resource = written("a denied finding that is not assessed")
    sentences = [part for part in resource["contained"] if part["id"].startswith("sentence-")]
    assert len(sentences) == 2
    assert not any("component" in part for part in sentences)
    assert not [value for _, value in walk(resource) if value in (0.83, 0.41)]


def test_reference_cases_are_in_no_observation() -> None:
    resource = written()
    observations = json.dumps([part for part in resource["contained"] if part["resourceType"] == "Observation"])
    (case,) = example().reference_cases
    assert case.findings
    assert case.case_id not in observations
    assert case.findings not in observations
    assert sum(extension["url"] == f"{NAMESPACE}reference-case" for extension in resource["extension"]) == 1


def test_resource_identifies_no_patient() -> None:
    source = SourceImage("1.2", "1.2.3", "1.2.4", "1.2.5", "PID-471", "Doe^Jane", "19500102", "F", "ACC-815", "S7")
    text = json.dumps(diagnostic_report(example(), ExportContext(("frontal",), (source,)), NOW))
    assert "subject" not in text
    assert not [value for value in ("Doe", "PID-471", "19500102", "ACC-815", "1.2.5") if value in text]


@pytest.mark.parametrize("name", ANSWERS)
def test_the_narrative_is_xhtml_with_the_disclaimer(name: str) -> None:
    root = ElementTree.fromstring(written(name)["text"]["div"])
    assert root.tag == f"{XHTML}div"
    assert {element.tag for element in root.iter()} <= {f"{XHTML}{tag}" for tag in ("div", "p", "br")}
    assert ANSWERS[name].disclaimer in "".join(root.itertext())
    assert written(name)["conclusion"].endswith(ANSWERS[name].disclaimer)


def test_removes_control_characters() -> None:
    resource = diagnostic_report(example(findings="Clear\x00 lungs\x0b."), ExportContext(("frontal",)), NOW)
    assert resource["conclusion"].startswith("Clear lungs.")
    ElementTree.fromstring(resource["text"]["div"])
