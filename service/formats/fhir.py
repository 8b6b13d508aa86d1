"""The report as a FHIR R4 ``DiagnosticReport``: preliminary, AI asserted.

The report of an upload has no subject: the service receives no patient identity, and the system
that stores the report adds ``subject`` to it and to its observations. The report of a study of a
PACS refers to patient, order and study by their identifiers. The reference cases, which belong to
other patients, are extensions and text, never Observations, so that no system can assign them to
this patient. docs/api.md, "Formats", describes every element.
"""

from __future__ import annotations

import base64
import re
from collections.abc import Iterator
from datetime import UTC, datetime
from html import escape
from typing import Any

from model.types import Label
from service.formats.codes import (
    FINDING,
    FINDING_CODES,
    FINDING_SITE,
    LABEL_CODES,
    LATERALITY,
    SEVERITY,
    Value,
    concept_of,
    degree_of,
    regions_of,
    side_of,
    study_code,
)
from service.formats.dicom_source import ExportContext, SourceImage
from service.formats.text import assessed_labels, located, plain_text, unassessed_findings
from service.schemas.annotations import AnnotationOut
from service.schemas.models import EDITED, ImageCheckOut, ModelInfo, ReferenceCaseOut, ReportResponse, SentenceOut

NAMESPACE = "urn:cxr-report:fhir:"  # of private extensions and codes
TERMINOLOGY = "http://terminology.hl7.org/CodeSystem/"
CONFIDENCE = "Confidence in the sentence, 0 to 1; not the chance of a finding"
SUPPORTED = "Whether a reference case or the images bear out what the sentence calls present or possible"
_ASSERTED_BY_AI = ("AIAST", "Artificial Intelligence asserted")  # HL7's "AI Transparency on FHIR" guide
_MODEL_ID = "model"
_PROVENANCE_ID = "provenance"
READ_FROM_DRAFT, READ_FROM_EDIT = "Read from the draft's text by rules", "Read from the reader's text by rules"
READER = "The reader who edited the draft; the service does not know the name"
_NO_XML = re.compile(r"[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")

Resource = dict[str, Any]


def diagnostic_report(report: ReportResponse, context: ExportContext, now: datetime | None = None) -> Resource:
    """The resource, ready for ``json.dumps``.

    Args:
        report: the response.
        context: its views; patient and study only if it comes from a PACS.
        now: time of issue, with a time zone; the current time by default.
    """
    issued = (now or datetime.now(UTC)).isoformat(timespec="milliseconds")
    text = plain_text(report)
    sentences = [_sentence(number, sentence) for number, sentence in enumerate(report.sentences, 1)]
    edited = any(warning.code == EDITED for warning in report.warnings)
    labels, members = _labels(report, edited)
    source = context.sources[0] if context.from_pacs else SourceImage()
    subject = _subject(source)
    results, parts = ([{**each, **subject} for each in found] for found in ((*sentences, *labels), members))
    code = study_code(len(context.views))
    identifier = {"system": "urn:ietf:rfc:3986", "value": f"urn:uuid:{report.report_id}"}
    resource: Resource = _cleaned(
        {
            "resourceType": "DiagnosticReport",
            "meta": {"security": [_coding(TERMINOLOGY + "v3-ObservationValue", *_ASSERTED_BY_AI)]},
            "language": "en",
            "text": {"status": "generated", "div": _narrative(text)},
            "contained": [_device(report.model), _provenance(identifier, issued, edited), *results, *parts],
            "extension": [*_extensions(report), *_stored(context)],
            "identifier": [identifier],
            "status": "preliminary",
            "category": [{"coding": [_coding(TERMINOLOGY + "v2-0074", "RAD", "Radiology")]}],
            "code": {"coding": [_coding(*code)], "text": code.display},
            **subject,
            **_study(source),
            "issued": issued,
            "result": [_reference(result) for result in results],
            "conclusion": f"{report.findings}\n\n{report.disclaimer}" if report.findings else report.disclaimer,
            "presentedForm": [
                {
                    "contentType": "text/plain; charset=utf-8",
                    "language": "en",
                    "data": base64.b64encode(text.encode()).decode("ascii"),
                    "title": "Draft for review by a radiologist",
                    "creation": issued,
                }
            ],
        }
    )
    return resource


def _subject(source: SourceImage) -> Resource:
    if not source.patient_id:
        return {}
    identifier: Resource = {"type": _identifier_type("MR", "Medical record number"), "value": source.patient_id}
    if source.issuer_of_patient_id:
        identifier["assigner"] = {"display": source.issuer_of_patient_id}
    return {"subject": {"type": "Patient", "identifier": identifier}}


def _study(source: SourceImage) -> Resource:
    """References to the order and to the study, by identifiers."""
    found: Resource = {}
    if accession := source.accession_number or source.long_accession_number:
        identifier = {"type": _identifier_type("ACSN", "Accession ID"), "value": accession}
        found["basedOn"] = [{"type": "ServiceRequest", "identifier": identifier}]
    if source.study_instance_uid:
        uid = {"system": "urn:dicom:uid", "value": f"urn:oid:{source.study_instance_uid}"}
        found["imagingStudy"] = [{"type": "ImagingStudy", "identifier": uid}]
    return found


def _identifier_type(code: str, display: str) -> Resource:
    return {"coding": [_coding(TERMINOLOGY + "v2-0203", code, display)]}


def _sentence(number: int, sentence: SentenceOut) -> Resource:
    confidence = {
        "code": {
            "coding": [_coding(NAMESPACE + "codes", "confidence", "Confidence")],
            "text": CONFIDENCE,
        },
        "valueQuantity": {"value": sentence.confidence, "system": "http://unitsofmeasure.org", "code": "1"},
    }
    supported = {
        "code": {"coding": [_coding(NAMESPACE + "codes", "supported", "Supported")], "text": SUPPORTED},
        "valueBoolean": sentence.supported,
    }
    components = ((confidence, sentence.show_confidence), (supported, sentence.supported is not None))
    return {
        **_observation(f"sentence-{number}"),
        "code": {"coding": [_coding(*FINDING)], "text": "Sentence of the drafted findings"},
        "valueString": sentence.text,
        "component": [part for part, known in components if known],
    }


def _labels(report: ReportResponse, edited: bool) -> tuple[list[Resource], list[Resource]]:
    """One Observation for each label, and the members of those that a draft places in several ways."""
    labels: list[Resource] = []
    members: list[Resource] = []
    places = {name: [_place(each) for each in found] for name, found in located(report).items()}
    for name, label in assessed_labels(report).items():
        if label is None:
            continue
        observation = _label(name, label, edited)
        of_label = places.get(name, [])
        if len(of_label) == 1:
            observation |= of_label[0]
        elif of_label:
            numbered = enumerate(of_label, 1)
            parts = [{**observation, "id": f"{observation['id']}-{number}", **place} for number, place in numbered]
            observation["hasMember"] = [_reference(part) for part in parts]
            members += parts
        labels.append(observation)
    return labels, members


def _place(annotation: AnnotationOut) -> Resource:
    """Body site and components; several regions are components too, as an Observation has one body site."""
    regions = regions_of(annotation)
    sites = [(FINDING_SITE, region) for region in regions if len(regions) > 1]
    parts = [
        (FINDING, concept_of(annotation)),
        *sites,
        (LATERALITY, side_of(annotation)),
        (SEVERITY, degree_of(annotation)),
    ]
    return {
        "bodySite": _concept(regions[0]) if len(regions) == 1 else {"text": ", ".join(annotation.regions)},
        "component": [
            {"code": {"coding": [_coding(*name)]}, "valueCodeableConcept": _concept(value)}
            for name, value in parts
            if value
        ],
    }


def _concept(value: Value) -> Resource:
    return {"coding": [_coding(*value.code)] if value.code else [], "text": value.words}


def _label(name: str, label: Label, edited: bool) -> Resource:
    coded = FINDING_CODES.get(name)
    resource = {
        **_observation("label-" + name.lower().replace(" ", "-")),
        "code": {"coding": [_coding(*coded)] if coded else [], "text": name},
        "valueCodeableConcept": {"coding": [_coding(*LABEL_CODES[label])], "text": label},
        "method": {"text": READ_FROM_EDIT if edited else READ_FROM_DRAFT},
    }
    if edited:
        del resource["device"]  # the reader wrote this text, not the model
    return resource


def _observation(identifier: str) -> Resource:
    return {
        "resourceType": "Observation",
        "id": identifier,
        "status": "preliminary",
        "category": [{"coding": [_coding(TERMINOLOGY + "observation-category", "imaging", "Imaging")]}],
        "device": {"reference": f"#{_MODEL_ID}"},
    }


def _device(model: ModelInfo) -> Resource:
    return {
        "resourceType": "Device",
        "id": _MODEL_ID,
        "identifier": [{"system": NAMESPACE + "bundle-digest", "value": model.digest}],
        "status": "active",
        "deviceName": [{"name": model.name, "type": "model-name"}],
        "type": {"text": "Software"},
        "version": [{"type": {"text": "SHA-256 of the bundle's manifest"}, "value": model.digest}],
        "note": [{"text": model.licence}] if model.licence.strip() else [],
    }


def _provenance(report: Resource, recorded: str, edited: bool) -> Resource:
    """The authors of the report of this identifier; ``performer`` cannot refer to a device.

    R4's ref-1 allows no reference "#" to the report, and dom-3 then needs a reference from the report.
    """
    author = {"coding": [_coding(TERMINOLOGY + "provenance-participant-type", "author", "Author")]}
    authors = [{"reference": f"#{_MODEL_ID}"}, *([{"display": READER}] if edited else [])]
    return {
        "resourceType": "Provenance",
        "id": _PROVENANCE_ID,
        "target": [{"type": "DiagnosticReport", "identifier": report}],
        "recorded": recorded,
        "agent": [{"type": author, "who": who} for who in authors],
    }


def _extensions(report: ReportResponse) -> Iterator[Resource]:
    yield {"url": NAMESPACE + "disclaimer", "valueString": report.disclaimer}
    yield {"url": NAMESPACE + "provenance", "valueReference": {"reference": f"#{_PROVENANCE_ID}"}}
    for warning in report.warnings:
        parts = [
            {"url": "code", "valueCode": warning.code},
            {"url": "message", "valueString": warning.message},
        ]
        yield {"url": NAMESPACE + "warning", "extension": parts}
    for name in unassessed_findings(report):
        yield {"url": NAMESPACE + "not-assessed", "valueString": name}
    for check in report.image_checks:
        yield {"url": NAMESPACE + "image-check", "extension": _check(check)}
    if report.refined is not None:
        parts = [
            {"url": "model", "valueString": report.refined.model},
            {"url": "text", "valueString": report.refined.text},
        ]
        yield {"url": NAMESPACE + "refined", "extension": parts}
    for case in report.reference_cases:
        yield {"url": NAMESPACE + "reference-case", "extension": list(_case(case))}


def _stored(context: ExportContext) -> Iterator[Resource]:
    if stored := context.stored:
        parts = [
            {"url": "status", "valueCode": stored.status},
            {"url": "sopInstanceUid", "valueOid": f"urn:oid:{stored.sop_instance_uid}"},
            {"url": "seriesInstanceUid", "valueOid": f"urn:oid:{stored.series_instance_uid}"},
        ]
        yield {"url": NAMESPACE + "stored-report", "extension": parts}


def _check(check: ImageCheckOut) -> list[Resource]:
    return [
        {"url": "view", "valueCode": check.view},
        {"url": "frontal", "valueDecimal": check.frontal},
        {"url": "unusual", "valueDecimal": check.unusual},
    ]


def _case(case: ReferenceCaseOut) -> Iterator[Resource]:
    yield {"url": "rank", "valuePositiveInt": case.rank}
    yield {"url": "caseId", "valueString": case.case_id}
    yield {"url": "similarity", "valueDecimal": case.similarity}
    if case.findings and case.findings.strip():
        yield {"url": "findings", "valueString": case.findings}
    if case.source_url:
        yield {"url": "source", "valueUri": case.source_url}
    for name, label in case.labels.items():
        if label is not None:
            parts = [{"url": "finding", "valueString": name}, {"url": "label", "valueCode": label}]
            yield {"url": "label", "extension": parts}


def _reference(contained: Resource) -> Resource:
    return {"reference": f"#{contained['id']}"}


def _coding(system: str, code: str, display: str) -> Resource:
    return {"system": system, "code": code, "display": display}


def _narrative(text: str) -> str:
    """XHTML of the plain text."""
    lines = escape(text, quote=False).split("\n")
    return '<div xmlns="http://www.w3.org/1999/xhtml"><p>' + "<br/>".join(lines) + "</p></div>"


def _cleaned(value: Any) -> Any:
    """Remove what FHIR forbids: empty lists, objects and strings, and control characters."""
    if isinstance(value, dict):
        parts = {name: _cleaned(part) for name, part in value.items()}
        return {name: part for name, part in parts.items() if part not in ({}, [], "")}
    if isinstance(value, list):
        return [_cleaned(part) for part in value]
    return _NO_XML.sub("", value) if isinstance(value, str) else value
