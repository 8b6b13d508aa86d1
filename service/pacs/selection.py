"""Chooses the frontal and the lateral radiograph of a study by the headers of its instances.

Of each view the model reads one image: CR and DX before secondary capture, then the newest. Every
other instance is left out with a reason. An image of unknown view is read only if it is the only
candidate, or if the caller names it.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from pydicom import Dataset

from model.images import ImageError
from model.images.dicom.header import CAPTURES, RADIOGRAPHS, check_kind, read_metadata
from model.images.dicom.parse import read_elements
from model.types import View
from service.formats.dicom_source import KEYWORDS, SourceImage
from service.web.problems import Problem

_TIMES = (("AcquisitionDate", "AcquisitionTime"), ("ContentDate", "ContentTime"), ("SeriesDate", "SeriesTime"))
HEADER = tuple(
    dict.fromkeys(
        (
            *("SpecificCharacterSet", *KEYWORDS.values(), "Modality", "PresentationIntentType", "NumberOfFrames"),
            *("BodyPartExamined", "AnatomicRegionSequence", "ViewPosition", "ViewCodeSequence", "InstanceNumber"),
            *("AcquisitionDateTime", *(keyword for pair in _TIMES for keyword in pair)),
        )
    )
)
"""Keywords of the elements that the choice and the structured report need."""

REASONS = {  # code -> why an instance was left out
    "not_a_radiograph": "It is not a CR, DX or secondary capture image.",
    "for_processing": "It holds raw detector values; the image for presentation is read instead.",
    "multi_frame": "It has more than one frame.",
    "not_a_chest": "Its header names another body part.",
    "other_view": "It is neither a frontal nor a lateral view.",
    "unknown_view": "Its header does not name the view.",
    "secondary_capture": "A CR or DX image of the same view is read instead.",
    "repeated_view": "A newer image of the same view is read instead.",
    "invalid_uid": "The PACS lists it without a valid SOPInstanceUID or SeriesInstanceUID.",
    "not_named": "The request names another instance.",
}


@dataclass(frozen=True)
class LeftOut:
    """An instance that is not read, with a code of ``REASONS``; an invalid UID is empty."""

    sop_instance_uid: str
    series_instance_uid: str
    code: str

    @property
    def reason(self) -> str:
        """One sentence."""
        return REASONS[self.code]


@dataclass(frozen=True)
class Selection:
    """The images to read, frontal first, and the other instances of the study."""

    images: Mapping[View, SourceImage]
    left_out: tuple[LeftOut, ...]


def read_header(data: bytes) -> Dataset:
    """The elements of ``HEADER`` of a DICOM file, within the limits of the image reader.

    Raises:
        ImageError: ``truncated``; exceptions of pydicom mean the same.
    """
    return read_elements(data, HEADER)


def select_images(headers: Iterable[Dataset], named: Mapping[View, str] | None = None) -> Selection:
    """Choose the images of one study.

    Args:
        headers: of all instances, in any order, with the elements of ``HEADER``. Repeated instances
            count once.
        named: view -> SOP instance UID that the caller chose, whatever its header says of the view.

    Raises:
        Problem: 422: ``two_patients``, ``study_ambiguous``, ``study_empty``, or ``unknown_value`` if
            a named instance is no radiograph of the study.
    """
    instances = {text(header, "SOPInstanceUID"): header for header in headers}
    left_out = {uid: code for uid, header in instances.items() if (code := _unreadable(header))}
    candidates = {uid: header for uid, header in instances.items() if uid not in left_out}
    _check_one_patient(candidates.values())
    if named:
        chosen = _take_named(named, candidates)
        left_out |= {uid: "not_named" for uid in candidates if uid not in chosen.values()}
    else:
        chosen = _take_best(candidates, left_out)
    return Selection(
        {view: SourceImage.from_dataset(instances[uid]) for view, uid in chosen.items()},
        tuple(LeftOut(uid, text(instances[uid], "SeriesInstanceUID"), code) for uid, code in left_out.items()),
    )


def _unreadable(header: Dataset) -> str | None:
    """The code of an instance that the model cannot read, whatever its view is."""
    try:
        check_kind(header)
    except ImageError as error:
        return error.code
    if text(header, "SOPClassUID") not in RADIOGRAPHS | CAPTURES:
        return "not_a_radiograph"
    return "multi_frame" if text(header, "NumberOfFrames") not in ("", "0", "1") else None


def _check_one_patient(headers: Iterable[Dataset]) -> None:
    headers = list(headers)
    for keyword in ("StudyInstanceUID", "PatientID", "IssuerOfPatientID", "PatientBirthDate"):
        values = {text(header, keyword) for header in headers}
        if keyword in ("IssuerOfPatientID", "PatientBirthDate"):
            values.discard("")  # a device without the worklist lacks it
        if len(values) > 1:
            raise Problem(
                "two_patients",
                f"The images of the study have {len(values)} different values of {keyword}. "
                "Correct the study in the PACS.",
            )


def _take_named(named: Mapping[View, str], candidates: Mapping[str, Dataset]) -> dict[View, str]:
    for view, uid in named.items():
        if uid not in candidates:
            detail = f"The study has no readable radiograph with this {view.value} SOPInstanceUID. Send another."
            raise Problem("unknown_value", detail, field=view.value)
    if len(set(named.values())) < len(named):
        raise Problem("unknown_value", "frontal and lateral name one instance. Send two.", field=View.LATERAL.value)
    return {view: named[view] for view in View if view in named}


def _take_best(candidates: Mapping[str, Dataset], left_out: dict[str, str]) -> dict[View, str]:
    """The best candidate of each view; adds the others to ``left_out``."""
    views: dict[View | None, list[str]] = {}
    for uid, header in candidates.items():
        metadata = read_metadata(header)
        if metadata.body_part:
            left_out[uid] = "not_a_chest"
        elif metadata.view is None and metadata.position:
            left_out[uid] = "other_view"
        else:
            views.setdefault(metadata.view, []).append(uid)
    unknown = views.pop(None, [])
    if not views and len(unknown) == 1:
        return {View.FRONTAL: unknown[0]}  # the check of the views corrects it
    if not views and unknown:
        raise Problem(
            "study_ambiguous",
            f"{len(unknown)} radiographs of the study have no ViewPosition or ViewCodeSequence. "
            "Name the instances: send frontal or lateral, or both, with a SOPInstanceUID.",
        )
    if not views:
        raise Problem("study_empty", _empty(left_out.values()))
    left_out |= dict.fromkeys(unknown, "unknown_view")
    chosen = {}
    for view in (each for each in View if each in views):
        best, *others = sorted(views[view], key=lambda uid: _rank(candidates[uid]), reverse=True)
        chosen[view] = best
        for uid in others:
            captured = _is_radiograph(candidates[best]) and not _is_radiograph(candidates[uid])
            left_out[uid] = "secondary_capture" if captured else "repeated_view"
    return chosen


def _empty(codes: Iterable[str]) -> str:
    counted = Counter(codes)
    if not counted:
        return "The study has no instance."
    listed = "; ".join(f"{code} ({number})" for code, number in sorted(counted.items()))
    return (
        f"None of the {counted.total()} instances of the study is a frontal or lateral chest radiograph: {listed}. "
        "Send the radiographs to the PACS."
    )


def _rank(header: Dataset) -> tuple[bool, str, int, str]:
    """Sorts better images later, whatever the order of the headers is."""
    number = text(header, "InstanceNumber")
    return (
        _is_radiograph(header),
        _time(header),
        int(number) if re.fullmatch(r"[0-9]{1,12}", number) else 0,
        text(header, "SOPInstanceUID"),
    )


def _is_radiograph(header: Dataset) -> bool:
    return text(header, "SOPClassUID") in RADIOGRAPHS


def _time(header: Dataset) -> str:
    """The digits of date and time, the more exact elements first; empty if unknown."""
    values = [text(header, "AcquisitionDateTime")]
    values += [text(header, date) + text(header, time) for date, time in _TIMES if text(header, date)]
    digits = (re.match(r"[0-9]{8,14}(\.[0-9]+)?", value) for value in values)
    return next((found[0] for found in digits if found), "")


def text(header: Dataset, keyword: str) -> str:
    """The value as text; empty if it is missing."""
    value = header.get(keyword)
    return "" if value is None else str(value).strip()
