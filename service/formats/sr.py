"""The report as a DICOM Structured Report: TID 2000 as an Enhanced SR, preliminary and unverified.

PACS viewers render it as text: each sentence with its confidence (NUM) and source images, then the
labels (CODE). Reference cases are text and plain numbers, never coded
findings, so that no system can assign another patient's findings to this one. Needs highdicom:
``pip install '.[sr]'`` in the source tree; import this module lazily.
"""

from __future__ import annotations

import io
import uuid
from collections.abc import Sequence
from datetime import datetime

from highdicom.coding_schemes import CodingSchemeIdentificationItem
from highdicom.sr import (
    CodeContentItem,
    CodedConcept,
    ContainerContentItem,
    ContentItem,
    ContentSequence,
    DeviceObserverIdentifyingAttributes,
    EnhancedSR,
    ImageContentItem,
    LanguageOfContentItemAndDescendants,
    NumContentItem,
    ObservationContext,
    ObserverContext,
    TextContentItem,
)
from pydicom import Dataset
from pydicom.sr.codedict import codes

from model.text.annotation_codes import DICOM, SNOMED, Code
from model.types import Label
from service.formats.codes import (
    FINDING,
    FINDING_CODES,
    FINDING_SITE,
    LABEL_CODES,
    LATERALITY,
    LOINC,
    SEVERITY,
    Value,
    concept_of,
    degree_of,
    regions_of,
    side_of,
    study_code,
)
from service.formats.dicom_source import SourceImage, StoredReport, uid_of, unsupported_reason
from service.formats.text import (
    NOTHING_WRITTEN,
    assessed_labels,
    located,
    named_labels,
    rewritten_by,
    unassessed_lines,
)
from service.schemas.annotations import AnnotationOut
from service.schemas.models import ImageCheckOut, ModelInfo, ReferenceCaseOut, RefinedOut, ReportResponse, SentenceOut

MANUFACTURER = "cxr-report"
SCHEMES = {DICOM: "DCM", LOINC: "LN", SNOMED: "SCT"}
SCHEME = "99CXRREPORT"  # of the private codes below; DICOM reserves 99… for such schemes
SERIES_DESCRIPTION = "AI draft findings, not verified"
SERIES_NUMBER = 9900
TEMPLATE = "2000"  # Basic Diagnostic Imaging Report
UTF_8 = "ISO_IR 192"
TITLE = CodedConcept("43468-8", "LN", "X-Ray Report")  # CID 7000
FINDINGS = CodedConcept("59776-5", "LN", "Findings")  # CID 7001
COMMENT = CodedConcept("121106", "DCM", "Comment")
ENGLISH = CodedConcept("en", "RFC5646", "English")
ABSENT = Code(SNOMED, "272519000", "Absent")  # of DICOM's CID 240; SNOMED CT has two concepts of this name
_UNREADABLE = "The {} of an image could not be read in the character set that the image declares; it is left out."
_LONG_ACCESSION = "The AccessionNumber of an image has more than 16 characters; it is left out."
_LO = 64  # maximum length of DICOM's VR LO
_SH = 16
_DEVICES = uuid.UUID("0c0b6d4e-5c3a-4d0e-9a55-2f6f0a1f7c11")  # namespace of the device UIDs, generated once


def structured_report(
    report: ReportResponse,
    views: int,
    sources: Sequence[SourceImage],
    now: datetime | None = None,
    stored: StoredReport | None = None,
) -> bytes:
    """The SR as a DICOM file (Part 10, Explicit VR Little Endian, UTF-8).

    Args:
        report: the response.
        views: number of images of the draft, DICOM or not.
        sources: the images that were sent as DICOM.
        now: local time of the content; the current time by default.
        stored: identity in a PACS; by default the UIDs are derived from the report's id.

    Raises:
        ValueError: ``unsupported_reason`` of the sources.
    """
    if reason := unsupported_reason(sources):
        raise ValueError(f"no structured report can be written: {reason}")
    file = io.BytesIO()
    _document(report, views, sources, now or datetime.now(), stored).save_as(file, enforce_file_format=True)
    return file.getvalue()


def _document(
    report: ReportResponse, views: int, sources: Sequence[SourceImage], now: datetime, stored: StoredReport | None
) -> EnhancedSR:
    """The SR in the study of `sources`, at least one."""
    identifier = uuid.UUID(report.report_id)
    root = _root(report, views, sources)
    if stored is not None and any(source.long_accession_number for source in sources):
        root.ContentSequence.append(_text(COMMENT, _LONG_ACCESSION))
    return EnhancedSR(
        evidence=[_header(source, has_issuer=stored is not None) for source in sources],
        content=root,
        series_instance_uid=stored.series_instance_uid if stored else uid_of(uuid.uuid5(identifier, "series")),
        series_number=SERIES_NUMBER,
        sop_instance_uid=stored.sop_instance_uid if stored else uid_of(identifier),
        instance_number=1,
        manufacturer=MANUFACTURER,
        is_complete=False,
        is_final=False,
        is_verified=False,
        specific_character_set=UTF_8,
        series_description=SERIES_DESCRIPTION,
        manufacturer_model_name=report.model.name[:_LO],
        software_versions=report.model.digest[:_LO],
        device_serial_number=report.model.digest[:_LO],
        content_date=now.date(),
        content_time=now.time(),
        previous_versions=[_header(stored.replaces)] if stored and stored.replaces else None,
        coding_schemes=[CodingSchemeIdentificationItem(SCHEME, responsible_organization=MANUFACTURER)],
    )


def _header(source: SourceImage, *, has_issuer: bool = False) -> Dataset:
    """Patient and study of a source image, which highdicom copies into the SR."""
    header = Dataset()
    header.SpecificCharacterSet = UTF_8
    header.SOPClassUID = source.sop_class_uid
    header.SOPInstanceUID = source.sop_instance_uid
    header.SeriesInstanceUID = source.series_instance_uid
    header.StudyInstanceUID = source.study_instance_uid
    header.PatientID = source.patient_id
    if has_issuer and source.issuer_of_patient_id:
        header.IssuerOfPatientID = source.issuer_of_patient_id
    header.PatientName = source.patient_name
    header.PatientBirthDate = source.patient_birth_date
    header.PatientSex = source.patient_sex
    header.AccessionNumber = source.accession_number
    header.StudyID = source.study_id
    header.StudyDate = source.study_date
    header.StudyTime = source.study_time
    header.ReferringPhysicianName = source.referring_physician_name
    return header


def _root(report: ReportResponse, views: int, sources: Sequence[SourceImage]) -> ContainerContentItem:
    findings = [_sentence(sentence, sources) for sentence in report.sentences]
    items = ContentSequence()
    items.extend(LanguageOfContentItemAndDescendants(ENGLISH))
    procedure = _concept(study_code(views))
    items.append(CodeContentItem(codes.DCM.ProcedureReported, procedure, relationship_type="HAS CONCEPT MOD"))
    items.extend(ObservationContext(observer_device_context=_observer(report.model)))
    items.append(_text(_private_code("disclaimer", "Disclaimer"), report.disclaimer))
    items.append(_container(FINDINGS, findings or [_text(_concept(FINDING), NOTHING_WRITTEN)]))
    items.append(_labels(report))
    if report.refined is not None:
        items.append(_text(_private_code("refined", "Rewritten draft"), _refined(report.refined)))
    for warning in report.warnings:
        items.append(_text(_private_code("warning", "Warning"), f"{warning.code}: {warning.message}"))
    unreadable = dict.fromkeys(keyword for source in sources for keyword in source.unreadable)
    items.extend([_text(COMMENT, _UNREADABLE.format(keyword)) for keyword in unreadable])
    items.extend([_check(number, check) for number, check in enumerate(report.image_checks, 1)])
    items.extend([_case(case) for case in report.reference_cases])
    if report.model.licence.strip():
        items.append(_text(_private_code("licence", "Licence of the model"), report.model.licence))
    root = ContainerContentItem(TITLE, is_content_continuous=False, template_id=TEMPLATE)
    root.ContentSequence = items
    return root


def _observer(model: ModelInfo) -> ObserverContext:
    attributes = DeviceObserverIdentifyingAttributes(
        uid=uid_of(uuid.uuid5(_DEVICES, model.digest)),
        name=model.name,
        manufacturer_name=MANUFACTURER,
        model_name=model.name,
        serial_number=model.digest,
    )
    return ObserverContext(codes.DCM.Device, attributes)


def _sentence(sentence: SentenceOut, sources: Sequence[SourceImage]) -> ContentItem:
    item = _text(_concept(FINDING), sentence.text)
    confidence = _private_code("confidence", "Confidence in the sentence, not the chance of a finding")
    children: list[ContentItem] = []
    if sentence.show_confidence:
        children.append(_number(confidence, sentence.confidence, "HAS PROPERTIES"))
    if sentence.supported is not None:
        supported = _private_code("supported", "Borne out by a reference case or the images")
        answer = codes.SCT.Yes if sentence.supported else codes.SCT.No
        children.append(CodeContentItem(supported, answer, relationship_type="HAS PROPERTIES"))
    for source in sources:
        image = ImageContentItem(
            codes.DCM.SourceImage, source.sop_class_uid, source.sop_instance_uid, relationship_type="INFERRED FROM"
        )
        children.append(image)
    item.ContentSequence = ContentSequence(children)
    return item


def _refined(refined: RefinedOut) -> str:
    return f"{rewritten_by(refined.model)}: {refined.text}"


def _labels(report: ReportResponse) -> ContentItem:
    items: list[ContentItem] = []
    places = located(report)
    for name, label in assessed_labels(report).items():
        if label is not None:
            items += [_label(name, label, place) for place in places.get(name, [None])]
    items += [_text(COMMENT, line) for line in unassessed_lines(report)]
    heading = _private_code("labels", "Labels read from the draft's text by rules")
    return _container(heading, items or [_text(COMMENT, "The draft mentions none of the 14 findings.")])


def _label(name: str, label: Label, place: AnnotationOut | None) -> ContentItem:
    """A finding with its narrower name, its finding sites with their laterality (TID 300) and its severity."""
    coded = FINDING_CODES.get(name)
    concept = _concept(coded) if coded else _private_code(name.lower().replace(" ", "_")[:_SH], name)
    value = _concept(ABSENT if label == "absent" else LABEL_CODES[label])
    item = CodeContentItem(concept, value, relationship_type="CONTAINS")
    if place is not None:
        item.ContentSequence = ContentSequence(_place(place))
    return item


def _place(annotation: AnnotationOut) -> list[ContentItem]:
    """Left or right is a part of each site; both sides are not: "right upper and left lower lobes"."""
    sites = [_property(FINDING_SITE, region) for region in regions_of(annotation)]
    items = list(sites)
    if side := side_of(annotation):
        for site in sites if annotation.side != "both" else []:
            site.ContentSequence = ContentSequence([_property(LATERALITY, side)])
        if not sites or annotation.side == "both":
            items.append(_property(LATERALITY, side))
    properties = ((FINDING, concept_of(annotation)), (SEVERITY, degree_of(annotation)))
    return [*items, *(_property(name, value, "HAS PROPERTIES") for name, value in properties if value)]


def _property(name: Code, value: Value, relationship: str = "HAS CONCEPT MOD") -> ContentItem:
    if value.code is None:
        return TextContentItem(_concept(name), value.words, relationship_type=relationship)
    return CodeContentItem(_concept(name), _concept(value.code), relationship_type=relationship)


def _check(number: int, check: ImageCheckOut) -> ContentItem:
    items: list[ContentItem] = [
        _text(_private_code("read_as", "View as which it was read"), check.view),
        _number(_private_code("frontal", "Probability that it is a frontal view"), check.frontal),
        _number(_private_code("unusual", "Share of radiographs that look less unusual"), check.unusual),
    ]
    return _container(_private_code("image_check", f"Check of image {number}"), items)


def _case(case: ReferenceCaseOut) -> ContentItem:
    items: list[ContentItem] = [
        _number(_private_code("rank", "Rank"), case.rank),
        _text(_private_code("case_id", "Identifier of the case"), case.case_id),
        _number(_private_code("similarity", "Cosine of image and report embedding, -1 to 1"), case.similarity),
    ]
    optional = (
        (_private_code("case_findings", "Findings of the other patient"), case.findings),
        (_private_code("case_labels", "Labels of the other patient's findings"), named_labels(case.labels)),
        (_private_code("case_source", "Source of the case"), case.source_url),
    )
    items += [_text(name, value) for name, value in optional if value]
    return _container(_private_code("reference_case", "Reference case: another patient"), items)


def _text(name: CodedConcept, value: str) -> ContentItem:
    return TextContentItem(name, value, relationship_type="CONTAINS")


def _number(name: CodedConcept, value: float, relationship: str = "CONTAINS") -> ContentItem:
    return NumContentItem(name, value, codes.UCUM.NoUnits, relationship_type=relationship)


def _container(name: CodedConcept, items: Sequence[ContentItem]) -> ContentItem:
    container = ContainerContentItem(name, is_content_continuous=False, relationship_type="CONTAINS")
    container.ContentSequence = ContentSequence(items)
    return container


def _private_code(value: str, meaning: str) -> CodedConcept:
    return CodedConcept(value, SCHEME, meaning)


def _concept(code: Code) -> CodedConcept:
    return CodedConcept(code.code, SCHEMES[code.system], code.display)
