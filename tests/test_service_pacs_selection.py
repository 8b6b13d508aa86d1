"""The choice of a study's images: one for each view, and a reason for every other instance."""

from __future__ import annotations

from typing import Any

import pytest
from pydicom import Dataset

from model.types import View
from service.pacs.selection import HEADER, REASONS, Selection, read_header, select_images
from service.web.problems import Problem
from tests.support.dicom import CR, DX, SC
from tests.support.formats import dicom

CT, PROCESSING, SR = (f"1.2.840.10008.5.1.4.1.1.{tail}" for tail in ("2", "1.1.1", "88.22"))
CAPTURE = {"SOPClassUID": SC, "Modality": "OT"}


def image(uid: str, view: str | None = None, **tags: Any) -> Dataset:
    made = Dataset()
    values = {"SOPClassUID": DX, "Modality": "DX", "PatientID": "P1", "StudyInstanceUID": "1.2.3", **tags}
    for name, value in values.items():
        setattr(made, name, value)
    made.SOPInstanceUID, made.SeriesInstanceUID = uid, f"{uid}.1"
    if view is not None:
        made.ViewPosition = view
    return made


def chosen(selection: Selection) -> dict[str, str]:
    return {view.value: source.sop_instance_uid for view, source in selection.images.items()}


def reasons(selection: Selection) -> dict[str, str]:
    return {each.sop_instance_uid: each.code for each in selection.left_out}


def refused(*headers: Dataset, **named: str) -> Problem:
    with pytest.raises(Problem) as caught:
        select_images(headers, {View(view): uid for view, uid in named.items()})
    assert caught.value.status == 422
    return caught.value


def test_chooses_frontal_and_lateral_and_gives_a_reason_for_every_other_instance() -> None:
    headers = [
        image("1.2.2", "LL"),
        image("1.2.1", "PA", SOPClassUID=CR, Modality="CR"),
        image("1.2.10", "PA", SOPClassUID=PROCESSING),
        image("1.2.11", "PA", PresentationIntentType="FOR PROCESSING"),
        image("1.2.12", "PA", BodyPartExamined="ABDOMEN"),
        image("1.2.13", "LLD"),
        image("1.2.14"),
        image("1.2.15", SOPClassUID=CT, Modality="CT"),
        image("1.2.16", SOPClassUID=SR, Modality="SR"),
        image("1.2.17", "PA", **CAPTURE),
        image("1.2.18", "PA", **CAPTURE, NumberOfFrames=2),
        image("1.2.19", "PA", SOPClassUID=SC, Modality="CT"),
        image("1.2.20", "PA", SOPClassUID="1.2.840.10008.5.1.4.1.1.12.1", Modality="XA"),
    ]
    selection = select_images(headers)
    assert list(chosen(selection).items()) == [("frontal", "1.2.1"), ("lateral", "1.2.2")]
    assert reasons(selection) == {
        **dict.fromkeys(("1.2.10", "1.2.11"), "for_processing"), "1.2.12": "not_a_chest", "1.2.13": "other_view",
        "1.2.14": "unknown_view", **dict.fromkeys(("1.2.15", "1.2.16", "1.2.19", "1.2.20"), "not_a_radiograph"),
        "1.2.17": "secondary_capture", "1.2.18": "multi_frame",
    }  # fmt: skip
    assert all(each.reason == REASONS[each.code] for each in selection.left_out)
    assert chosen(select_images(headers[::-1])) == chosen(selection)


@pytest.mark.parametrize(
    ("older", "newer"),
    [
        ({"AcquisitionDate": "20260301", "AcquisitionTime": "0930"}, {"AcquisitionDateTime": "20260301093000.5+0100"}),
        ({"AcquisitionDate": "20260301", "AcquisitionTime": "235959"}, {"AcquisitionDate": "20260302"}),
        (
            {"ContentDate": "20260301", "ContentTime": "093000.1"},
            {"ContentDate": "20260301", "ContentTime": "093000.2"},
        ),
        ({"SeriesDate": "20260301"}, {"AcquisitionDate": "20260302"}),
        ({}, {"SeriesDate": "20260301"}),
        ({"AcquisitionDate": "unknown"}, {"ContentDate": "20260301"}),
        ({"InstanceNumber": "9"}, {"InstanceNumber": "10"}),
    ],
)
@pytest.mark.filterwarnings("ignore:Invalid value:UserWarning")
def test_newest_of_repeated_views_is_read(older: dict[str, str], newer: dict[str, str]) -> None:
    headers = [image("1.2.9", "PA", **older), image("1.2.1", "AP", **newer)]
    for order in (headers, headers[::-1]):
        selection = select_images(order)
        assert chosen(selection) == {"frontal": "1.2.1"}
        assert reasons(selection) == {"1.2.9": "repeated_view"}


def test_radiograph_is_read_before_a_newer_capture_and_a_lone_capture_is_read() -> None:
    capture = image("1.2.2", "PA", **CAPTURE, AcquisitionDate="20260302")
    both = select_images([image("1.2.1", "PA", AcquisitionDate="20260301"), capture])
    assert chosen(both) == {"frontal": "1.2.1"}
    assert reasons(both) == {"1.2.2": "secondary_capture"}
    assert chosen(select_images([capture])) == {"frontal": "1.2.2"}


def test_view_code_counts_where_the_view_position_is_empty() -> None:
    header = image("1.2.1", "")
    code = Dataset()
    code.CodeValue, code.CodingSchemeDesignator, code.CodeMeaning = "399067008", "SCT", "lateral projection"
    header.ViewCodeSequence = [code]
    assert chosen(select_images([header])) == {"lateral": "1.2.1"}


def test_single_candidate_without_a_view_is_read_as_frontal() -> None:
    assert chosen(select_images([image("1.2.1"), image("1.2.2", "LL", BodyPartExamined="KNEE")])) == {
        "frontal": "1.2.1"
    }


def test_several_candidates_without_any_view_are_ambiguous() -> None:
    problem = refused(image("1.2.1"), image("1.2.2"))
    assert problem.code == "study_ambiguous"
    assert "2 radiographs" in problem.detail
    assert "SOPInstanceUID" in problem.detail


def test_study_without_chest_radiograph_is_refused_with_the_counts() -> None:
    problem = refused(image("1.2.1", "PA", BodyPartExamined="HAND"), image("1.2.2", SOPClassUID=CT))
    assert problem.code == "study_empty"
    assert "not_a_chest (1); not_a_radiograph (1)" in problem.detail
    assert refused().code == "study_empty"


@pytest.mark.parametrize(
    ("tags", "keyword"),
    [
        ({"PatientID": "P2"}, "PatientID"),
        ({"PatientID": ""}, "PatientID"),
        ({"PatientBirthDate": "19500103"}, "PatientBirthDate"),
        ({"StudyInstanceUID": "1.2.4"}, "StudyInstanceUID"),
    ],
)
def test_two_patients_or_studies_are_refused_without_their_values(tags: dict[str, str], keyword: str) -> None:
    problem = refused(image("1.2.1", "PA", PatientBirthDate="19500102"), image("1.2.2", "LL", **tags))
    assert problem.code == "two_patients"
    assert keyword in problem.detail
    assert not [value for value in ("P1", "P2", "19500102", "1.2.4") if value in problem.detail]


def test_patient_ids_of_two_issuers_are_two_patients() -> None:
    headers = [image("1.2.1", "PA", IssuerOfPatientID="A"), image("1.2.2", "LL", IssuerOfPatientID="B")]
    assert "IssuerOfPatientID" in refused(*headers).detail
    headers[1].IssuerOfPatientID = ""
    assert len(chosen(select_images(headers))) == 2


def test_birth_date_may_be_missing_in_some_images() -> None:
    headers = [image("1.2.1", "PA", PatientBirthDate="19500102"), image("1.2.2", "LL", PatientBirthDate="")]
    assert set(chosen(select_images(headers))) == {"frontal", "lateral"}
    other = image("1.2.9", SOPClassUID=CT, PatientID="P2")
    assert chosen(select_images([*headers, other])), "the patient of an object that is not read does not matter"


def test_named_instances_are_read_whatever_their_view() -> None:
    headers = [image("1.2.1"), image("1.2.2"), image("1.2.3", "PA")]
    selection = select_images(headers, {View.LATERAL: "1.2.1", View.FRONTAL: "1.2.2"})
    assert list(chosen(selection).items()) == [("frontal", "1.2.2"), ("lateral", "1.2.1")]
    assert reasons(selection) == {"1.2.3": "not_named"}


@pytest.mark.parametrize("named", [{"lateral": "1.9"}, {"lateral": "1.2.2"}, {"frontal": "1.2.1", "lateral": "1.2.1"}])
def test_named_instance_must_be_a_radiograph_of_the_study(named: dict[str, str]) -> None:
    problem = refused(image("1.2.1"), image("1.2.2", SOPClassUID=CT), **named)
    assert (problem.code, problem.field) == ("unknown_value", "lateral")


def test_repeated_headers_count_once() -> None:
    selection = select_images([image("1.2.1", "PA"), image("1.2.1", "PA")])
    assert (chosen(selection), selection.left_out) == ({"frontal": "1.2.1"}, ())


def test_header_of_a_file_has_what_the_choice_and_the_report_need() -> None:
    header = read_header(dicom(NumberOfFrames=1, AcquisitionDateTime="20260301093000"))
    selection = select_images([header])
    (source,) = selection.images.values()
    assert source.missing == []
    assert (source.patient_name, source.accession_number) == ("Müller^Jürgen", "ACC-815")
    assert "PixelData" not in header
    assert len(set(HEADER)) == len(HEADER)
