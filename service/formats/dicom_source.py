"""What a format needs to know of the study besides the answer: its views and, of DICOM files, where they belong.

A ``SourceImage`` names a patient. It exists for the DICOM SR of the same study alone: it is never logged, shown by
``repr`` or written in another format.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field, fields
from typing import TYPE_CHECKING, Self

if TYPE_CHECKING:
    from pydicom import Dataset

_UID = re.compile(r"(0|[1-9][0-9]*)(\.(0|[1-9][0-9]*))+")
_DATE = re.compile(r"[0-9]{8}")
_TIME = re.compile(r"[0-9]{2}([0-9]{2}([0-9]{2}(\.[0-9]{1,6})?)?)?")
_NAME_LENGTH = 64  # characters of each of a person name's up to three forms
_LENGTHS = {"patient_id": 64, "accession_number": 16, "study_id": 16}


@dataclass(frozen=True, repr=False)
class SourceImage:
    """Identity of a DICOM image that a draft was made from; a string is empty where the file says nothing usable.

    Attributes:
        sop_class_uid, sop_instance_uid, series_instance_uid, study_instance_uid: where the image belongs.
        patient_name: DICOM's form, ``Family^Given^…``, decoded.
        patient_birth_date, study_date: YYYYMMDD.
        patient_sex: M, F or O.
        study_time: HHMMSS, with a fraction or shorter.
    """

    sop_class_uid: str = ""
    sop_instance_uid: str = ""
    series_instance_uid: str = ""
    study_instance_uid: str = ""
    patient_id: str = ""
    patient_name: str = ""
    patient_birth_date: str = ""
    patient_sex: str = ""
    accession_number: str = ""
    study_id: str = ""
    study_date: str = ""
    study_time: str = ""
    referring_physician_name: str = ""

    @classmethod
    def from_dataset(cls, dataset: Dataset) -> Self:
        """Read the identity from a DICOM file's header; a value that breaks DICOM's rules is left out."""
        found = {entry.name: _text(dataset, KEYWORDS[entry.name]) for entry in fields(cls)}
        return cls(**{name: value if _usable(name, value) else "" for name, value in found.items()})

    @property
    def missing(self) -> list[str]:
        """Keywords of the UIDs without which nothing can be filed beside this image."""
        return [KEYWORDS[name] for name in KEYWORDS if name.endswith("_uid") and not getattr(self, name)]


KEYWORDS = {
    "sop_class_uid": "SOPClassUID",
    "sop_instance_uid": "SOPInstanceUID",
    "series_instance_uid": "SeriesInstanceUID",
    "study_instance_uid": "StudyInstanceUID",
    "patient_id": "PatientID",
    "patient_name": "PatientName",
    "patient_birth_date": "PatientBirthDate",
    "patient_sex": "PatientSex",
    "accession_number": "AccessionNumber",
    "study_id": "StudyID",
    "study_date": "StudyDate",
    "study_time": "StudyTime",
    "referring_physician_name": "ReferringPhysicianName",
}


def _text(dataset: Dataset, keyword: str) -> str:
    try:
        value = dataset.get(keyword)
    except Exception:  # pydicom decodes at this moment, and raises what the bytes provoke
        return ""
    return "" if value is None else str(value).strip()


def _usable(name: str, value: str) -> bool:
    if name.endswith("_uid"):
        return len(value) <= 64 and _UID.fullmatch(value) is not None
    if name.endswith("_date"):
        return _DATE.fullmatch(value) is not None
    if name == "study_time":
        return _TIME.fullmatch(value) is not None
    if name == "patient_sex":
        return value in ("M", "F", "O")
    if not value.isprintable() or "\\" in value:
        return False
    if name.endswith("_name"):
        forms = value.split("=")
        return len(forms) <= 3 and all(len(form) <= _NAME_LENGTH and form.count("^") <= 4 for form in forms)
    return len(value) <= _LENGTHS[name]


@dataclass(frozen=True)
class Study:
    """The study that an answer is about.

    Attributes:
        views: fields that held an image, ``frontal`` or ``lateral``; at least one.
        sources: identities of those images that came as DICOM; empty where none did.
    """

    views: tuple[str, ...]
    sources: tuple[SourceImage, ...] = field(default=(), repr=False)
