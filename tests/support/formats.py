"""Reports to export in every format, DICOM sources, and readers that turn a format back into JSON."""

from __future__ import annotations

import copy
import io
import json
import re
from collections.abc import Callable
from typing import Any

import pydicom
import pytest
from pydicom.dataset import Dataset
from pydicom.uid import UID, ExplicitVRLittleEndian, generate_uid

from model.text.annotation_codes import CODES
from model.text.labeler import FINDINGS, label_report
from service.formats.codes import FINDING_CODES
from service.formats.text import NOT_ASSESSED, located
from service.schemas.annotations import read_annotations
from service.schemas.examples import REPORT_EXAMPLE
from service.schemas.models import ReportResponse
from tests.support import dicom as drawn
from tests.support.service import scene

JSON_ONLY = {
    "timings_ms",  # durations
    "finding_probabilities",
    "annotations",  # the formats have places instead
}
SENTENCE_FIELDS = ("text", "confidence", "supported")  # the labels follow from the text; the attention is in JSON only
MODEL_SHOWN = {"name", "digest", "licence"}  # the digest names the rest of the model's configuration


def example(**changes: Any) -> ReportResponse:
    """The example of the OpenAPI document with changes."""
    return ReportResponse.model_validate({**REPORT_EXAMPLE, **changes})


def _sentence(text: str) -> dict[str, Any]:
    return {"text": text, "confidence": 1.0, "labels": {}, "supported": None, "attention": None}


def written_as(findings: str) -> ReportResponse:
    """The example with other findings, and what the labeler and the reader of annotations find in them."""
    labels, annotations = label_report(findings), read_annotations(findings)
    return example(findings=findings, sentences=[_sentence(findings)], labels=labels, annotations=annotations)


def answers() -> dict[str, ReportResponse]:
    """Answers of every kind."""
    cases = REPORT_EXAMPLE["reference_cases"]
    other = {**cases[0], "rank": 2, "case_id": "CXR0000_IM-0001", "similarity": -0.0312, "findings": None}
    every = {name: ("present", "absent", "uncertain")[number % 3] for number, name in enumerate(FINDINGS)}
    nothing = dict.fromkeys(FINDINGS)
    awkward = 'Heart < 50 % & "lungs" clear;\nno <b>effusion</b>. Größe 心'
    return {
        "the example": example(),
        "two cases, one without text or source": example(reference_cases=[*cases, {**other, "source_url": None}]),
        "every label": example(labels=every),
        "two images, a sentence without support": example(
            sentences=[{**REPORT_EXAMPLE["sentences"][1], "supported": False}],
            findings=REPORT_EXAMPLE["sentences"][1]["text"],
            image_checks=[
                {"view": "lateral", "frontal": 0.0012, "unusual": 0.125},
                {"view": "frontal", "frontal": 1.0, "unusual": 0.0},
            ],
        ),
        "an empty draft": example(findings="", sentences=[], labels=nothing, reference_cases=[], warnings=[]),
        "a rewritten draft": example(refined={"text": "A small left effusion.", "model": "qwen3:8b"}),
        "a denied finding that is not assessed": example(
            sentences=[
                {**REPORT_EXAMPLE["sentences"][0], "show_confidence": False},
                {**REPORT_EXAMPLE["sentences"][1], "supported": None, "show_confidence": False},
            ],
            labels={**nothing, "Cardiomegaly": "absent", "Edema": "absent", "Pneumothorax": "absent"},
            not_assessed=["Cardiomegaly", "Pneumothorax"],
        ),
        "sides, regions and degrees": written_as(
            "Small left pleural effusion. Moderate right effusion. Scarring at the right base and apex. "
            "Mild cardiomegaly. Possible nodule behind the heart. Left chest tube. Left pacemaker. "
            "No large pneumothorax."
        ),
        "nothing assessed": example(labels={**nothing, "Pneumothorax": "absent"}, not_assessed=["Pneumothorax"]),
        "awkward characters": example(findings=awkward, sentences=[_sentence(awkward)]),
    }


def facts(report: ReportResponse) -> dict[str, Any]:
    """The facts that every format must contain: the JSON without parts that only JSON has.

    A confidence that readers may not see, and the label of a finding that is not assessed, count as None.
    """
    expected = {name: value for name, value in report.model_dump().items() if name not in JSON_ONLY}
    expected["sentences"] = [
        {name: part[name] for name in SENTENCE_FIELDS} | ({} if part["show_confidence"] else {"confidence": None})
        for part in expected["sentences"]
    ]
    expected["labels"] |= dict.fromkeys(expected["not_assessed"])
    expected["places"] = {
        name: [
            {"concept": each.narrower, "side": each.side, "regions": each.regions, "degree": each.degree_words}
            for each in found
        ]
        for name, found in located(report).items()
    }
    for case in expected["reference_cases"]:
        del case["images"], case["annotations"]  # addresses of this service; what is read from the text
    expected["model"] = {name: value for name, value in expected["model"].items() if name in MODEL_SHOWN}
    return expected


def facts_of_fhir(resource: dict[str, Any]) -> dict[str, Any]:
    """The facts of a DiagnosticReport."""
    by_id = {contained["id"]: contained for contained in resource["contained"]}
    results = [by_id[reference["reference"].removeprefix("#")] for reference in resource.get("result", [])]
    extensions: dict[str, list[dict[str, Any]]] = {}
    for extension in resource["extension"]:
        extensions.setdefault(extension["url"].removeprefix("urn:cxr-report:fhir:"), []).append(extension)
    (disclaimer,) = (extension["valueString"] for extension in extensions["disclaimer"])
    device = by_id["model"]
    coded = [result for result in results if "valueCodeableConcept" in result]
    labels = {result["code"]["text"]: result["valueCodeableConcept"]["text"] for result in coded}
    members = {
        result["code"]["text"]: [by_id[part["reference"].removeprefix("#")] for part in result.get("hasMember", [])]
        or [result]
        for result in coded
        if {"hasMember", "bodySite", "component"} & set(result)
    }
    return {
        "report_id": resource["identifier"][0]["value"].removeprefix("urn:uuid:"),
        "findings": resource["conclusion"].removesuffix(disclaimer).removesuffix("\n\n"),
        "sentences": [_fhir_sentence(result) for result in results if "valueString" in result],
        "labels": dict.fromkeys(FINDINGS) | labels,
        "places": {name: [_fhir_place(part) for part in parts] for name, parts in members.items()},
        "not_assessed": [extension["valueString"] for extension in extensions.get("not-assessed", [])],
        "reference_cases": [_fhir_case(extension) for extension in extensions.get("reference-case", [])],
        "image_checks": [
            {part["url"]: part.get("valueCode", part.get("valueDecimal")) for part in extension["extension"]}
            for extension in extensions.get("image-check", [])
        ],
        "warnings": [
            {part["url"]: part.get("valueCode", part.get("valueString")) for part in extension["extension"]}
            for extension in extensions.get("warning", [])
        ],
        "model": {
            "name": device["deviceName"][0]["name"],
            "digest": device["version"][0]["value"],
            "licence": device["note"][0]["text"],
        },
        "refined": _fhir_refined(extensions.get("refined", [])),
        "disclaimer": disclaimer,
    }


def fhir_validators() -> list[Callable[[dict[str, Any]], None]]:
    """Checks of a DiagnosticReport by libraries for R4 and R4B; skips the test where one is not installed.

    fhir.resources has no R4; the elements in use did not change from R4 to R4B.
    """
    r4 = pytest.importorskip("fhirclient.models.diagnosticreport", reason="needs pip install fhirclient")
    r4b = pytest.importorskip("fhir.resources.R4B.diagnosticreport", reason="needs pip install fhir.resources")

    def valid_r4(resource: dict[str, Any]) -> None:
        assert r4.DiagnosticReport(copy.deepcopy(resource)).as_json() == resource

    def valid_r4b(resource: dict[str, Any]) -> None:
        read = json.loads(r4b.DiagnosticReport.model_validate(resource).model_dump_json())
        assert read["status"] == "preliminary"
        assert len(read["contained"]) == len(resource["contained"])

    return [valid_r4, valid_r4b]


def _fhir_sentence(observation: dict[str, Any]) -> dict[str, Any]:
    parts = {part["code"]["coding"][0]["code"]: part for part in observation.get("component", [])}
    return {
        "text": observation["valueString"],
        "confidence": parts["confidence"]["valueQuantity"]["value"] if "confidence" in parts else None,
        "supported": parts["supported"]["valueBoolean"] if "supported" in parts else None,
    }


def _fhir_place(observation: dict[str, Any]) -> dict[str, Any]:
    parts: dict[str, list[str]] = {}
    for part in observation.get("component", []):
        parts.setdefault(part["code"]["coding"][0]["code"], []).append(part["valueCodeableConcept"]["text"])
    region = [observation["bodySite"]["text"]] if "bodySite" in observation else []
    concept, side, degree = (next(iter(parts.get(code, [])), None) for code in ("121071", "272741003", "246112005"))
    return {"concept": concept, "side": side, "regions": parts.get("363698007", region), "degree": degree}


def _fhir_refined(extensions: list[dict[str, Any]]) -> dict[str, str] | None:
    return {part["url"]: part["valueString"] for part in extensions[0]["extension"]} if extensions else None


def _fhir_case(extension: dict[str, Any]) -> dict[str, Any]:
    case: dict[str, Any] = {"findings": None, "source_url": None, "labels": dict.fromkeys(FINDINGS)}
    names = {"caseId": "case_id", "source": "source_url"}
    for part in extension["extension"]:
        if part["url"] == "label":
            finding, label = part["extension"]
            case["labels"][finding["valueString"]] = label["valueCode"]
        else:
            (value,) = (value for name, value in part.items() if name.startswith("value"))
            case[names.get(part["url"], part["url"])] = value
    return case


def facts_of_sr(dataset: Dataset) -> dict[str, Any]:
    """The facts of a structured report."""
    root = {_code(item): item for item in dataset.ContentSequence}
    shown = {_code(item): item for item in dataset.ContentSequence if item.RelationshipType == "HAS OBS CONTEXT"}
    names = {code.code: name for name, code in FINDING_CODES.items()}
    findings = [item for item in root["59776-5"].ContentSequence if "ContentSequence" in item]
    labels = dict.fromkeys(FINDINGS)
    unassessed: list[str] = []
    places: dict[str, list[dict[str, Any]]] = {}
    for item in root["labels"].ContentSequence:
        if item.ValueType == "TEXT" and item.TextValue.startswith(f"{NOT_ASSESSED}: "):
            unassessed = item.TextValue.removeprefix(f"{NOT_ASSESSED}: ").split(", ")
        if item.ValueType == "CODE":
            name = names.get(_code(item), item.ConceptNameCodeSequence[0].CodeMeaning)
            labels[name] = item.ConceptCodeSequence[0].CodeMeaning.lower()
            if "ContentSequence" in item:
                places.setdefault(name, []).append(_sr_place(item))
    texts = [item.TextValue for item in findings]
    return {
        "report_id": _uuid(dataset.SOPInstanceUID),
        "findings": " ".join(texts),
        "sentences": [_sr_sentence(item) for item in findings],
        "labels": labels,
        "places": places,
        "not_assessed": unassessed,
        "reference_cases": [_sr_case(item) for item in dataset.ContentSequence if _code(item) == "reference_case"],
        "image_checks": [_sr_check(item) for item in dataset.ContentSequence if _code(item) == "image_check"],
        "warnings": [
            dict(zip(("code", "message"), item.TextValue.split(": ", 1), strict=True))
            for item in dataset.ContentSequence
            if _code(item) == "warning"
        ],
        "model": {
            "name": shown["121013"].TextValue,
            "digest": shown["121016"].TextValue,
            "licence": root["licence"].TextValue,
        },
        "refined": _sr_refined(root.get("refined")),
        "disclaimer": root["disclaimer"].TextValue,
    }


def _sr_sentence(item: Dataset) -> dict[str, Any]:
    parts = {_code(part): part for part in item.ContentSequence}
    supported = parts["supported"].ConceptCodeSequence[0].CodeMeaning if "supported" in parts else None
    return {
        "text": item.TextValue,
        "confidence": _value(parts["confidence"]) if "confidence" in parts else None,
        "supported": None if supported is None else supported == "Yes",
    }


def _sr_place(item: Dataset) -> dict[str, Any]:
    """In the words of the annotations: a code stands for its name."""
    words = {code.code: name for terms in CODES.values() for name, code in terms.items()}
    found: dict[str, list[str]] = {}
    for part in (each for child in item.ContentSequence for each in (child, *child.get("ContentSequence", []))):
        value = words[part.ConceptCodeSequence[0].CodeValue] if part.ValueType == "CODE" else part.TextValue
        found.setdefault(_code(part), []).append(value)
    concept, side, degree = (next(iter(found.get(code, [])), None) for code in ("121071", "272741003", "246112005"))
    return {"concept": concept, "side": side, "regions": found.get("363698007", []), "degree": degree}


def _sr_check(container: Dataset) -> dict[str, Any]:
    view, frontal, unusual = container.ContentSequence
    return {"view": view.TextValue, "frontal": _value(frontal), "unusual": _value(unusual)}


def _sr_refined(item: Dataset | None) -> dict[str, str] | None:
    found = item and re.fullmatch(r"Rewritten by the language model (.+), not the draft: (.*)", item.TextValue)
    return {"model": found[1], "text": found[2]} if found else None


def _sr_case(container: Dataset) -> dict[str, Any]:
    items = {_code(item): item for item in container.ContentSequence}
    labels = dict.fromkeys(FINDINGS)
    if "case_labels" in items:
        labels |= dict(pair.split(": ") for pair in items["case_labels"].TextValue.split(", "))
    optional = {"findings": "case_findings", "source_url": "case_source"}
    return {
        "rank": _value(items["rank"]),
        "case_id": items["case_id"].TextValue,
        "similarity": _value(items["similarity"]),
        "labels": labels,
        **{name: items[code].TextValue if code in items else None for name, code in optional.items()},
    }


def _code(item: Dataset) -> str:
    return str(item.ConceptNameCodeSequence[0].CodeValue)


def _value(item: Dataset) -> float:
    return float(item.MeasuredValueSequence[0].NumericValue)


def _uuid(uid: str) -> str:
    digits = f"{int(uid.removeprefix('2.25.')):032x}"
    return "-".join((digits[:8], digits[8:12], digits[12:16], digits[16:20], digits[20:]))


def dicom(syntax: UID = ExplicitVRLittleEndian, **tags: Any) -> bytes:
    """A DX file of a patient with changed tags; None removes a tag."""
    values: dict[str, Any] = {
        "SpecificCharacterSet": "ISO_IR 100",
        "SOPInstanceUID": generate_uid(entropy_srcs=["instance"]),
        "SeriesInstanceUID": generate_uid(entropy_srcs=["series"]),
        "StudyInstanceUID": generate_uid(entropy_srcs=["study"]),
        "PatientName": "Müller^Jürgen",
        "PatientID": "PID-471",
        "PatientBirthDate": "19500102",
        "PatientSex": "M",
        "AccessionNumber": "ACC-815",
        "StudyID": "S7",
        "StudyDate": "20260301",
        "StudyTime": "093000.5",
        "ReferringPhysicianName": "Weiß^Ana",
        "Modality": "DX",
        "ViewPosition": "PA",
        **tags,
    }
    made = drawn.dataset(scene(), syntax=syntax, **{name: value for name, value in values.items() if value is not None})
    for keyword in (name for name, value in values.items() if value is None and name in made):
        del made[keyword]
    made.file_meta.MediaStorageSOPInstanceUID = values["SOPInstanceUID"] or generate_uid()
    return drawn.encode(made)


def header(data: bytes) -> Dataset:
    """The header of a DICOM file, without pixels."""
    return pydicom.dcmread(io.BytesIO(data), stop_before_pixels=True)
