"""DICOM headers: object kind, view, body part, orientation; messages never quote free text."""

from __future__ import annotations

import numpy as np
import pytest
from pydicom.dataset import Dataset
from pydicom.uid import UID

from model.images import ImageError, read_image
from model.images.dicom.header import WARNINGS
from model.types import View
from tests.support.dicom import CR, DX, SC, dataset, dicom, encode, film, png, refused
from tests.support.paths import REPOSITORY

S = 64
STORAGE = "1.2.840.10008.5.1.4.1.1."
CANARY = "DOE^JANE"


def warnings(data: bytes, sent_as: View = View.FRONTAL) -> dict[str, str]:
    return {warning.code: warning.message for warning in read_image(data, S).warnings(sent_as)}


def code(value: str, scheme: str = "SCT") -> Dataset:
    item = Dataset()
    item.CodeValue, item.CodingSchemeDesignator, item.CodeMeaning = value, scheme, CANARY
    return item


# --- kind -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "tail", ["2", "4", "6.1", "1.2", "1.3", "88.11", "104.1", "11.1", "128", "30", "77.1.1", "13.1.1"]
)
def test_rejects_other_objects_by_name(tail: str) -> None:
    error = refused(dicom(film(), sop_class=STORAGE + tail))
    assert error.code == "not_a_radiograph"
    assert UID(STORAGE + tail).name in str(error)


def test_rejects_other_objects_before_missing_pixels() -> None:
    made = dataset(film(), sop_class=f"{STORAGE}88.11")
    del made.PixelData
    assert refused(encode(made)).code == "not_a_radiograph"


def test_does_not_quote_a_private_sop_class() -> None:
    error = refused(dicom(film(), sop_class="1.2.3.4"))
    assert (error.code, "1.2.3" in str(error)) == ("not_a_radiograph", False)


@pytest.mark.parametrize("sop_class", [CR, DX, SC, f"{STORAGE}7.2", f"{STORAGE}7.3"])
@pytest.mark.parametrize("modality", ["CR", "DX", "OT", "RG", ""])
def test_reads_radiographs(sop_class: str, modality: str) -> None:
    assert warnings(dicom(film(), sop_class=sop_class, Modality=modality)) == {}


@pytest.mark.parametrize("modality", ["CT", "MR", "US", "MG", "NM"])
def test_rejects_captures_of_other_modalities(modality: str) -> None:
    error = refused(dicom(film(), sop_class=SC, Modality=modality))
    assert (error.code, f"modality {modality}" in str(error)) == ("not_a_radiograph", True)


@pytest.mark.parametrize("tags", [{"sop_class": f"{DX}.1"}, {"PresentationIntentType": "FOR PROCESSING"}])
def test_rejects_images_for_processing(tags: dict[str, str]) -> None:
    assert refused(dicom(film(), **tags)).code == "for_processing"


@pytest.mark.parametrize("tags", [{"sop_class": f"{STORAGE}12.1"}, {"sop_class": f"{STORAGE}12.2"}, {"Modality": "RF"}])
def test_warns_about_fluoroscopy(tags: dict[str, str]) -> None:
    assert list(warnings(dicom(film(), **tags))) == ["fluoroscopy"]


# --- view -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("position", "view"),
    [("PA", View.FRONTAL), ("AP", View.FRONTAL), ("pa ", View.FRONTAL), ("LL", View.LATERAL), ("RL", View.LATERAL),
     ("LATERAL", View.LATERAL), ("LAT", View.LATERAL), ("", None), ("RLD", None), (CANARY, None)],
)  # fmt: skip
def test_reads_view_from_view_position(position: str, view: View | None) -> None:
    assert read_image(dicom(film(), ViewPosition=position), S).view is view


def test_png_has_no_view() -> None:
    image = read_image(png(film(bits=8)), S)
    assert (image.view, image.warnings(View.LATERAL)) == (None, ())


@pytest.mark.parametrize(
    ("value", "scheme", "view"),
    [("272479007", "SCT", View.FRONTAL), ("R-10206", "SRT", View.FRONTAL), ("399173006", "SCT", View.LATERAL),
     ("R-10232", "SNM3", View.LATERAL), ("399182000", "SCT", None), ("272479007", "99LOCAL", None)],
)  # fmt: skip
def test_reads_view_from_its_code_unless_view_position_is_set(value: str, scheme: str, view: View | None) -> None:
    made = dicom(film(), ViewCodeSequence=[code(value, scheme)])
    assert read_image(made, S).view is view
    assert CANARY not in str(warnings(made))
    if view:
        made = dicom(film(), ViewPosition="RL", ViewCodeSequence=[code(value, scheme)])
        assert read_image(made, S).view is View.LATERAL


@pytest.mark.parametrize(
    ("position", "sent_as", "header"),
    [("PA", View.FRONTAL, None), ("LL", View.LATERAL, None), ("", View.FRONTAL, None), (CANARY, View.FRONTAL, None),
     ("PA", View.LATERAL, "frontal"), ("LL", View.FRONTAL, "lateral"), ("RLD", View.FRONTAL, "RLD"),
     ("LLO", View.LATERAL, "LLO")],
)  # fmt: skip
def test_warns_about_a_wrong_view(position: str, sent_as: View, header: str | None) -> None:
    found = warnings(dicom(film(), ViewPosition=position), sent_as)
    assert list(found) == ([] if header is None else ["view_mismatch"])
    for message in found.values():
        assert message.startswith(f"The {sent_as} image: its DICOM header says {header}.")


def test_warns_about_code_of_another_projection() -> None:
    found = warnings(dicom(film(), ViewCodeSequence=[code("399182000")]))
    assert "another projection" in found["view_mismatch"]


# --- part and orientation -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("part", ["CHEST", "chest", "THORAX", "", "PORT CHEST 2", CANARY])
def test_does_not_warn_about_a_chest_or_an_unknown_body_part(part: str) -> None:
    assert warnings(dicom(film(), BodyPartExamined=part)) == {}


@pytest.mark.parametrize(("part", "named"), [("HAND", "HAND"), ("ABDOMEN", "ABDOMEN"), ("C SPINE", "CSPINE")])
def test_warns_about_another_body_part_by_name(part: str, named: str) -> None:
    assert f"says {named};" in warnings(dicom(film(), BodyPartExamined=part))["not_a_chest"]


def test_reads_code_of_the_region_before_the_body_part() -> None:
    assert warnings(dicom(film(), AnatomicRegionSequence=[code("51185008")])) == {}
    assert warnings(dicom(film(), AnatomicRegionSequence=[code("T-D3000", "SRT")], BodyPartExamined="RIBS")) == {}
    found = warnings(dicom(film(), AnatomicRegionSequence=[code("69536005")]))
    assert "a region other than the chest" in found["not_a_chest"]
    assert CANARY not in found["not_a_chest"]


@pytest.mark.parametrize(
    ("orientation", "sent_as", "words"),
    [(["L", "F"], View.FRONTAL, None), (["R", "F"], View.FRONTAL, "is mirrored"), (["L", "H"], View.FRONTAL, "upright"),
     (["F", "L"], View.FRONTAL, "upright"), (["A", "F"], View.LATERAL, None), (["P", "F"], View.LATERAL, None),
     (["R", "F"], View.LATERAL, None), (["A", "H"], View.LATERAL, "upright"), (["LF", "FR"], View.FRONTAL, None),
     (["L"], View.FRONTAL, None), ("", View.FRONTAL, None), (["DOE", "JANE"], View.FRONTAL, None)],
)  # fmt: skip
def test_warns_about_orientation_without_turning(
    orientation: list[str] | str, sent_as: View, words: str | None
) -> None:
    data = dicom(film(), PatientOrientation=orientation)
    found = warnings(data, sent_as)
    assert words is None or words in found["unusual_orientation"]
    assert (words is None) == (found == {})
    np.testing.assert_array_equal(read_image(data, S).pixels, read_image(dicom(film()), S).pixels)


# --- messages -------------------------------------------------------------------------------------------------------


def test_api_guide_lists_every_warning() -> None:
    guide = (REPOSITORY / "docs" / "api.md").read_text(encoding="utf-8")
    for name, when in WARNINGS.items():
        assert f"|`{name}`|{when}|" in guide, name


KEYWORDS = (
    *("PatientName", "PatientID", "AccessionNumber", "Modality", "BodyPartExamined", "ViewPosition", "VOILUTFunction"),
    *("PresentationLUTShape", "PresentationIntentType", "PhotometricInterpretation", "StudyDescription"),
)


@pytest.mark.filterwarnings("ignore:.*Invalid value")
@pytest.mark.parametrize("keyword", KEYWORDS)
def test_no_message_quotes_free_text(keyword: str) -> None:
    data = dicom(film(), stored=12, **{keyword: CANARY})
    try:
        messages = str(warnings(data))
    except ImageError as error:
        messages = str(error)
    assert CANARY not in messages


def test_no_message_quotes_numbers_that_are_text() -> None:
    for number in (b"1700", b"3200"):
        data = dicom(film(), stored=12, WindowCenter=1700, WindowWidth=3200).replace(number, b"Jane", 1)
        assert refused(data).code == "truncated"
        assert "Jane" not in str(refused(data))
