"""The DICOM structured report: in the study of its images, preliminary; no other output identifies the patient."""

from __future__ import annotations

import asyncio
import io
import logging
import sys
import time
import tracemalloc
import warnings
from datetime import datetime
from typing import Any

import httpx
import pytest

pytest.importorskip("highdicom", reason="needs pip install highdicom")

import pydicom
from highdicom.sr import EnhancedSR, srread
from pydicom.dataset import Dataset
from pydicom.uid import (
    UID,
    DeflatedExplicitVRLittleEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    generate_uid,
)

from model.images import ImageError, read_image
from service.formats import sr
from service.formats.dicom_source import ExportContext, SourceImage, export_context, source_image, unsupported_reason
from service.formats.negotiation import parse_accept
from service.web.logging import JsonLines, TextLines
from service.web.problems import Problem
from tests.support.dicom import tiny_elements
from tests.support.formats import dicom, example, header
from tests.support.service import png

NOW = datetime(2026, 3, 1, 9, 30)
PATIENT = ("PatientName", "PatientID", "PatientBirthDate", "PatientSex", "AccessionNumber", "StudyInstanceUID",
           "StudyID", "StudyDate", "StudyTime", "ReferringPhysicianName")  # fmt: skip


def source(**tags: Any) -> SourceImage:
    return SourceImage.from_dataset(header(dicom(**tags)))


def written(*sources: SourceImage, views: int = 1) -> Dataset:
    data = sr.structured_report(example(), views, sources or (source(),), NOW)
    return pydicom.dcmread(io.BytesIO(data))


def items(node: Dataset) -> list[Dataset]:
    return [each for item in node.get("ContentSequence", []) for each in (item, *items(item))]


def test_highdicom_parses_the_report() -> None:
    data = sr.structured_report(example(), 1, (source(),), NOW)
    read = srread(io.BytesIO(data))
    assert isinstance(read, EnhancedSR)
    assert read.content.is_root
    assert (read.ValueType, read.ContentTemplateSequence[0].TemplateIdentifier) == ("CONTAINER", "2000")
    assert data[128:132] == b"DICM"


def test_report_is_a_preliminary_new_series_in_the_study_of_the_image() -> None:
    image, report = header(dicom()), written()
    for keyword in PATIENT:
        assert report[keyword].value == image[keyword].value, keyword
    assert report.PatientName == "Müller^Jürgen"  # ISO_IR 100 in the image, UTF-8 here
    assert report.SpecificCharacterSet == "ISO_IR 192"
    assert report.Modality == "SR"
    assert report.SeriesInstanceUID not in ("", image.SeriesInstanceUID)
    assert report.SOPInstanceUID == f"2.25.{int(example().report_id.replace('-', ''), 16)}"
    assert (report.ContentDate, report.ContentTime) == ("20260301", "093000")
    assert "TimezoneOffsetFromUTC" not in report  # it would apply to the times of the study as well
    flags = (report.PreliminaryFlag, report.CompletionFlag, report.VerificationFlag)
    assert flags == ("PRELIMINARY", "PARTIAL", "UNVERIFIED")
    assert "VerifyingObserverSequence" not in report


def test_report_references_its_images() -> None:
    frontal = source()
    lateral = source(SOPInstanceUID=generate_uid(), ViewPosition="LL")
    report = written(frontal, lateral, views=2)
    series = report.CurrentRequestedProcedureEvidenceSequence[0].ReferencedSeriesSequence
    referred = {item.ReferencedSOPInstanceUID for each in series for item in each.ReferencedSOPSequence}
    assert referred == {frontal.sop_instance_uid, lateral.sop_instance_uid}
    images = [item for item in items(report) if item.ValueType == "IMAGE"]
    assert len(images) == 2 * len(example().sentences)
    assert {item.RelationshipType for item in images} == {"INFERRED FROM"}


@pytest.mark.parametrize(("views", "code"), [(1, "36554-4"), (2, "36643-5")])
def test_procedure_code_counts_png_views_too(views: int, code: str) -> None:
    (procedure,) = (i for i in items(written(views=views)) if i.ConceptNameCodeSequence[0].CodeValue == "121058")
    assert procedure.ConceptCodeSequence[0].CodeValue == code


def test_observer_device_is_identified_by_the_bundle_digest() -> None:
    one, two = written(), written(source(PatientID="PID-2"))
    observers = [
        {i.ConceptNameCodeSequence[0].CodeValue: i for i in items(each) if i.RelationshipType == "HAS OBS CONTEXT"}
        for each in (one, two)
    ]
    assert observers[0]["121005"].ConceptCodeSequence[0].CodeMeaning == "Device"
    assert observers[0]["121016"].TextValue == example().model.digest
    assert observers[0]["121012"].UID == observers[1]["121012"].UID
    assert one.DeviceSerialNumber == example().model.digest


def test_codes_fit_their_field_and_private_codes_use_the_private_scheme() -> None:
    for item in items(written()):
        for sequence in ("ConceptNameCodeSequence", "ConceptCodeSequence"):
            for code in item.get(sequence, []):
                assert 0 < len(code.CodeValue) <= 16
                assert 0 < len(code.CodeMeaning) <= 64
                assert code.CodingSchemeDesignator in {"DCM", "LN", "SCT", "RFC5646", "99CXRREPORT"}
    (scheme,) = written().CodingSchemeIdentificationSequence
    assert scheme.CodingSchemeDesignator == "99CXRREPORT"


def test_no_finding_of_a_reference_case_is_coded() -> None:
    cases = [i for i in items(written()) if i.ConceptNameCodeSequence[0].CodeValue == "reference_case"]
    assert len(cases) == len(example().reference_cases) == 1
    assert {item.ValueType for item in items(cases[0])} == {"TEXT", "NUM"}
    assert cases[0].ConceptNameCodeSequence[0].CodeMeaning == "Reference case: another patient", "of training, or added"


# --- sources --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("tags", "name"),
    [
        ({"PatientBirthDate": "unknown"}, "patient_birth_date"),
        ({"PatientSex": "MALE"}, "patient_sex"),
        ({"StudyTime": "morning"}, "study_time"),
        ({"PatientName": "A" * 65}, "patient_name"),
        ({"PatientName": "A^B^C^D^E^F"}, "patient_name"),
        ({"AccessionNumber": "A" * 17}, "accession_number"),
        ({"PatientID": "A\x07B"}, "patient_id"),
        ({"PatientID": None}, "patient_id"),
        ({"PatientName": None}, "patient_name"),
    ],
)
@pytest.mark.filterwarnings("ignore:Invalid value:UserWarning", "ignore:The .* length:UserWarning")
def test_invalid_identity_values_are_left_out(tags: dict[str, Any], name: str) -> None:
    found = source(**tags)
    assert getattr(found, name) == ""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        report = written(found)
    assert report.StudyInstanceUID == found.study_instance_uid


@pytest.mark.parametrize("keyword", ["StudyInstanceUID", "SeriesInstanceUID", "SOPInstanceUID"])
@pytest.mark.parametrize("value", [None, "", "1.2.x", "1.02"])
@pytest.mark.filterwarnings("ignore:Invalid value:UserWarning")
def test_missing_uid_is_reported_by_its_keyword_only(keyword: str, value: str | None) -> None:
    dataset = header(dicom())
    del dataset[keyword]
    if value is not None:
        setattr(dataset, keyword, value)
    found = SourceImage.from_dataset(dataset)
    assert found.missing == [keyword]
    assert unsupported_reason([found]) == f"a DICOM file has no valid {keyword}"
    with pytest.raises(Problem, match=f"not_acceptable.*no valid {keyword}"):
        parse_accept(["application/dicom"]).choose(ExportContext(("frontal",), (found,)))


@pytest.mark.parametrize("tags", [{"PatientID": "PID-2"}, {"StudyInstanceUID": "1.2.3"}])
def test_rejects_images_of_two_studies(tags: dict[str, str]) -> None:
    reason = unsupported_reason([source(), source(**tags)])
    assert reason == "the two DICOM files belong to different patients or studies"
    with pytest.raises(ValueError, match="different patients or studies"):
        sr.structured_report(example(), 2, [source(), source(**tags)])


@pytest.mark.parametrize("syntax", [ExplicitVRLittleEndian, ImplicitVRLittleEndian, DeflatedExplicitVRLittleEndian])
def test_reads_identity_from_every_transfer_syntax(syntax: UID) -> None:
    assert vars(source_image(dicom(syntax=syntax))) == vars(source())


def test_deflate_bomb_is_read_up_to_the_header_only() -> None:
    bomb = dicom(syntax=DeflatedExplicitVRLittleEndian, EncapsulatedDocument=bytes(30_000_000))
    assert len(bomb) < 100_000
    tracemalloc.start()
    try:
        found = source_image(bomb)
        most = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert found.patient_id == "PID-471"
    assert most < 8_000_000


@pytest.mark.parametrize("cut", [132, 140, 300, 700])
def test_damaged_header_gives_an_empty_identity(cut: int) -> None:
    assert source_image(dicom()[:cut]).missing
    assert source_image(dicom()[:132] + b"\xff" * cut).missing


def test_rejects_header_beyond_the_reader_limits() -> None:
    data = tiny_elements(dicom())
    with pytest.raises(ImageError) as drafting:
        read_image(data, 32)
    began = time.perf_counter()
    with pytest.raises(Problem) as refused:
        asyncio.run(export_context({"lateral": data}, identified=True))
    assert time.perf_counter() - began < 2, "half a million elements must not be read"
    assert (refused.value.code, refused.value.field) == (drafting.value.code, "lateral")
    assert refused.value.detail == str(drafting.value)


def test_identity_is_read_only_on_request() -> None:
    images = {"frontal": dicom(), "lateral": png()}
    anonymous = asyncio.run(export_context(images, identified=False))
    assert (anonymous.views, anonymous.sources) == (("frontal", "lateral"), ())
    identified = asyncio.run(export_context(images, identified=True))
    assert identified.views == ("frontal", "lateral")
    assert [vars(found) for found in identified.sources] == [vars(source())]


def test_dicom_upload_gets_a_report_in_its_study(client: httpx.Client) -> None:
    accept = {"Accept": "application/dicom"}
    files = {"frontal": ("f", dicom()), "lateral": ("f", png())}
    answer = client.post("/report", files=files, headers=accept)
    broken = client.post("/report", files={"frontal": ("f", dicom()[:-5000])}, headers=accept)
    text = client.post("/report", files=files, headers={"Accept": "text/plain"})
    assert answer.status_code == 200, answer.text
    assert answer.headers["content-type"] == "application/dicom"
    assert answer.headers["vary"] == "Accept"
    report = srread(io.BytesIO(answer.content))
    assert report.StudyInstanceUID == source().study_instance_uid
    assert report.PatientName == "Müller^Jürgen"
    (procedure,) = (i for i in items(report) if i.ConceptNameCodeSequence[0].CodeValue == "121058")
    assert procedure.ConceptCodeSequence[0].CodeValue == "36643-5"
    assert (broken.status_code, broken.json()["code"]) == (422, "truncated")
    assert "PID-471" not in text.text


@pytest.mark.parametrize(("accept", "needed"), [
    ("application/dicom", True), ("application/dicom, */*;q=0.5", True), ("*/*", False), ("application/*", False),
    ("application/dicom;q=0.5, text/plain", False), ("text/event-stream, application/dicom", True),
    ("text/event-stream", False),
])  # fmt: skip
def test_prefer_sr_follows_the_accept_header(accept: str, needed: bool) -> None:
    assert parse_accept([accept]).prefer_sr is needed


def test_missing_highdicom_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "highdicom", None)  # as if it were not installed
    study = ExportContext(("frontal",), (source(),))
    with pytest.raises(Problem, match=r"pip install '\.\[sr\]' in the source tree"):
        parse_accept(["application/dicom"]).choose(study)
    assert parse_accept(["application/dicom, text/plain;q=0.1"]).choose(study).media_type == "text/plain"


@pytest.mark.filterwarnings("always")
def test_no_identity_in_any_log_line_or_repr(
    caplog: pytest.LogCaptureFixture, recwarn: pytest.WarningsRecorder
) -> None:
    with caplog.at_level(logging.DEBUG):
        for name in ("highdicom", "pydicom"):
            caplog.set_level(logging.DEBUG, name)
        found = source()
        written(found)
    lines = [form.format(record) for record in caplog.records for form in (JsonLines(), TextLines())]
    assert any("highdicom" in line for line in lines)
    shown = [*lines, *(str(w.message) for w in recwarn), repr(found), repr(ExportContext(("frontal",), (found,)))]
    image = header(dicom())
    for keyword in (*PATIENT, "SOPInstanceUID", "SeriesInstanceUID"):
        value = str(image[keyword].value)
        if len(value) > 2:
            assert not [line for line in shown if value in line], keyword
