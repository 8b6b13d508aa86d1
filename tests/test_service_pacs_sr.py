"""The structured report that a PACS keeps: derived UIDs, its predecessor, and validators of others."""

from __future__ import annotations

import io
import shutil
import subprocess
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("highdicom", reason="needs pip install '.[pacs]' in the source tree")

import pydicom
from pydicom import Dataset

from service.formats.dicom_source import ExportContext, SourceImage, source_image
from service.formats.fhir import diagnostic_report
from service.pacs.structured_report import ENHANCED_SR, identity, newest_draft, stored_report, write_report
from service.web.problems import Problem
from tests.support.formats import answers, dicom, example, fhir_validators

NOW = datetime(2026, 3, 1, 9, 30)
LONG = "ACC-2026-03-01-000815"


def source(uid: str = "1.2.840.1", **tags: Any) -> SourceImage:
    return source_image(dicom(SOPInstanceUID=uid, **tags))


def written(*sources: SourceImage, **options: Any) -> Dataset:
    return pydicom.dcmread(io.BytesIO(write_report(example(), sources or (source(),), now=NOW, **options)))


def test_uids_depend_on_study_bundle_and_set_of_images_only() -> None:
    one = stored_report("1.2", "digest", ["1.2.1", "1.2.2"])
    assert one == stored_report("1.2", "digest", ["1.2.2", "1.2.1", "1.2.1"])
    others = [("1.3", "digest", ["1.2.1", "1.2.2"]), ("1.2", "other", ["1.2.1", "1.2.2"]), ("1.2", "digest", ["1.2.1"])]
    uids = {stored_report(*each).sop_instance_uid for each in others} | {one.sop_instance_uid, one.series_instance_uid}
    assert len(uids) == 5
    assert all(uid.startswith("2.25.") and len(uid) <= 64 for uid in uids)


def test_report_is_a_preliminary_draft_in_the_study_under_its_derived_uids() -> None:
    frontal, lateral = source(), source("1.2.840.2", ViewPosition="LL")
    report = written(frontal, lateral)
    expected = identity(example(), [lateral, frontal])
    assert (report.SOPInstanceUID, report.SeriesInstanceUID) == (
        expected.sop_instance_uid, expected.series_instance_uid
    )  # fmt: skip
    assert report.StudyInstanceUID == frontal.study_instance_uid
    assert (report.PreliminaryFlag, report.VerificationFlag) == ("PRELIMINARY", "UNVERIFIED")
    assert (report.PatientName, report.PatientID, report.AccessionNumber) == ("Müller^Jürgen", "PID-471", "ACC-815")
    assert "PredecessorDocumentsSequence" not in report
    series = report.CurrentRequestedProcedureEvidenceSequence[0].ReferencedSeriesSequence
    referred = {item.ReferencedSOPInstanceUID for each in series for item in each.ReferencedSOPSequence}
    assert referred == {"1.2.840.1", "1.2.840.2"}


def test_new_draft_names_the_newest_draft_before_it() -> None:
    first = written()
    frontal, lateral = source(), source("1.2.840.2")
    second = written(frontal, lateral)
    second.ContentTime = "100000"
    human = written(source("1.2.840.9"))
    human.Manufacturer, human.ContentDate = "A Reading Room", "20270101"
    third = identity(example(), [source("1.2.840.3")])
    predecessor = newest_draft([second, human, first], third)
    assert predecessor is not None
    assert newest_draft([second], identity(example(), [frontal, lateral])) is None
    report = written(source("1.2.840.3"), replaces=predecessor)
    (study,) = report.PredecessorDocumentsSequence
    (series,) = study.ReferencedSeriesSequence
    (instance,) = series.ReferencedSOPSequence
    assert study.StudyInstanceUID == report.StudyInstanceUID
    assert series.SeriesInstanceUID == second.SeriesInstanceUID
    assert (instance.ReferencedSOPClassUID, instance.ReferencedSOPInstanceUID) == (ENHANCED_SR, second.SOPInstanceUID)


@pytest.mark.filterwarnings("ignore:The value length:UserWarning")
def test_long_accession_number_is_left_out_by_name_and_a_missing_birth_date_is_empty() -> None:
    report = written(source(AccessionNumber=LONG, PatientBirthDate=None))
    assert (report.AccessionNumber, report.PatientBirthDate) == ("", "")
    comments = [item.TextValue for item in report.ContentSequence if item.ValueType == "TEXT"]
    assert any("AccessionNumber of an image has more than 16 characters" in comment for comment in comments)
    assert LONG not in str(report)


def test_report_of_two_patients_is_refused() -> None:
    with pytest.raises(Problem, match=r"pacs_not_stored: .*different patients"):
        write_report(example(), [source(), source("1.2.840.2", PatientID="PID-2")])


def test_report_names_the_issuer_of_the_patient_id() -> None:
    assert written(source(IssuerOfPatientID="Hospital A")).IssuerOfPatientID == "Hospital A"
    assert "IssuerOfPatientID" not in written()


@pytest.mark.parametrize("tags", [{"PatientID": "A\\B"}, {"PatientID": "1" * 65}, {"PatientID": "A\x07"}])
@pytest.mark.filterwarnings("ignore:The value length:UserWarning")
def test_report_of_a_patient_id_that_dicom_does_not_allow_is_refused_without_it(tags: dict[str, str]) -> None:
    with pytest.raises(Problem, match=r"pacs_not_stored: .*PatientID") as refused:
        write_report(example(), [source(**tags)])
    assert tags["PatientID"] not in refused.value.detail
    assert written(source(PatientID="")).PatientID == ""


def test_identifiers_with_backslashes_or_undecoded_bytes_are_left_out() -> None:
    assert source(AccessionNumber="A\\B", StudyID="1\\2").accession_number == ""
    undecoded = dicom(SpecificCharacterSet="ISO_IR 100", PatientID="Ä").replace(b"ISO_IR 100", b"ISO_IR 192")
    found = source_image(undecoded)
    assert (found.patient_id, found.has_unusable_patient_id) == ("", True)


@pytest.mark.filterwarnings("ignore:The value length:UserWarning")
def test_fhir_of_a_pacs_refers_to_patient_order_and_study() -> None:
    found = source(AccessionNumber=LONG, IssuerOfPatientID="Hospital A")
    resource = diagnostic_report(example(), ExportContext(("frontal",), (found,), from_pacs=True))
    subject = resource["subject"]["identifier"]
    assert (subject["value"], subject["assigner"]) == ("PID-471", {"display": "Hospital A"})
    observations = [each for each in resource["contained"] if each["resourceType"] == "Observation"]
    assert all(each["subject"] == resource["subject"] for each in observations)
    assert resource["basedOn"][0]["identifier"]["value"] == LONG
    assert resource["imagingStudy"][0]["identifier"]["value"] == f"urn:oid:{found.study_instance_uid}"
    assert "Müller" not in str(resource)
    for valid in fhir_validators():
        valid(resource)
    upload = diagnostic_report(example(), ExportContext(("frontal",), (found,)))
    assert not {"subject", "basedOn", "imagingStudy"} & set(upload)
    assert "PID-471" not in str(upload)


@pytest.mark.parametrize("command", ["dsrdump", "dciodvfy"])
@pytest.mark.filterwarnings("ignore:The value length:UserWarning")
def test_validators_accept_every_report(command: str, tmp_path: Path) -> None:
    if shutil.which(command) is None:
        pytest.skip(f"needs {command}: apt install dcmtk dicom3tools")
    bare = source(AccessionNumber=LONG, PatientBirthDate=None, PatientName=None, StudyTime=None)
    replaces = SourceImage.from_dataset(written(source("1.2.840.9")))
    for name, report in answers().items():
        file = tmp_path / "report.dcm"
        for sources in ([source(PatientName="Wáng^XiǎoDōng=王^小東", SpecificCharacterSet="ISO_IR 192")], [bare]):
            file.write_bytes(write_report(report, sources, replaces, NOW))
            done = subprocess.run([command, str(file)], capture_output=True, timeout=60)
            output = (done.stdout + done.stderr).decode("utf-8", "replace")
            assert done.returncode == 0, (name, output)
            errors = [line for line in output.splitlines() if line.startswith(("E:", "Error"))]
            assert not errors, (name, errors)
            if command == "dsrdump":
                assert "Findings" in output
