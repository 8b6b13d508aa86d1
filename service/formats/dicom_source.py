"""The study of a report: its views, and the identity of the images that were sent as DICOM.

A ``SourceImage`` identifies a patient. For an upload it is read only when a DICOM structured report
needs it, from the header alone and within the limits of the image reader. It is never logged, shown
by ``repr`` or written in another format; FHIR has it only for studies of a PACS
(``ExportContext.from_pacs``).
"""

from __future__ import annotations

import importlib.util
import re
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Self

from pydicom.multival import MultiValue
from starlette.concurrency import run_in_threadpool

from model.images import ImageError, is_dicom
from model.images.dicom.header import is_uid
from model.images.dicom.parse import read_elements
from service.formats.dicom_text import decode_name
from service.schemas.models import StoredReportOut
from service.web.problems import Problem

if TYPE_CHECKING:
    from pydicom import Dataset

_DATE = re.compile(r"[0-9]{8}")
_TIME = re.compile(r"[0-9]{2}([0-9]{2}([0-9]{2}(\.[0-9]{1,6})?)?)?")
_UNDECODED = "\ufffd"  # pydicom's character for bytes outside of the character set
_NAME_LENGTH = 64  # characters of each of the up to three forms of a person name
_LENGTHS = {"patient_id": 64, "issuer_of_patient_id": 64, "accession_number": 16, "study_id": 16}
_LONG_ACCESSION = 64  # characters; some systems write more than the 16 that DICOM allows


@dataclass(frozen=True, repr=False)
class SourceImage:
    """Identity of a DICOM image of the study; a string is empty where the file has no valid value.

    Attributes:
        sop_class_uid, sop_instance_uid, series_instance_uid, study_instance_uid: where the image
            belongs.
        patient_name: DICOM's form, ``Family^Given^…``, decoded.
        patient_birth_date, study_date: YYYYMMDD.
        patient_sex: M, F or O.
        study_time: HHMMSS, with a fraction or shorter.
        unreadable: keywords of names whose character set cannot be found.
        long_accession_number: one of more than 16 characters, which DICOM cannot hold.
        has_unusable_patient_id: whether the file has a PatientID that DICOM does not allow.
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
    unreadable: tuple[str, ...] = ()
    issuer_of_patient_id: str = ""
    long_accession_number: str = ""
    has_unusable_patient_id: bool = False

    @classmethod
    def from_dataset(cls, dataset: Dataset) -> Self:
        """Read the identity from a DICOM header; invalid values are left out."""
        found = {name: _text(dataset, keyword) for name, keyword in KEYWORDS.items()}
        unreadable = tuple(KEYWORDS[name] for name, value in found.items() if value is None)
        usable = {name: value for name, value in found.items() if value is not None and _usable(name, value)}
        accession = found["accession_number"] or ""
        is_long = _LENGTHS["accession_number"] < len(accession) <= _LONG_ACCESSION and accession.isprintable()
        return cls(
            **usable,
            unreadable=unreadable,
            long_accession_number=accession if is_long else "",
            has_unusable_patient_id=bool(found["patient_id"]) and "patient_id" not in usable,
        )

    @property
    def missing(self) -> list[str]:
        """Keywords of the UIDs that a structured report needs and this image lacks."""
        return [KEYWORDS[name] for name in KEYWORDS if name.endswith("_uid") and not getattr(self, name)]


KEYWORDS = {
    "sop_class_uid": "SOPClassUID",
    "sop_instance_uid": "SOPInstanceUID",
    "series_instance_uid": "SeriesInstanceUID",
    "study_instance_uid": "StudyInstanceUID",
    "patient_id": "PatientID",
    "issuer_of_patient_id": "IssuerOfPatientID",
    "patient_name": "PatientName",
    "patient_birth_date": "PatientBirthDate",
    "patient_sex": "PatientSex",
    "accession_number": "AccessionNumber",
    "study_id": "StudyID",
    "study_date": "StudyDate",
    "study_time": "StudyTime",
    "referring_physician_name": "ReferringPhysicianName",
}


def _text(dataset: Dataset, keyword: str) -> str | None:
    """The text; None for a name that cannot be decoded."""
    try:
        raw: Any = getattr(dataset.get_item(keyword), "value", None)
        raw = getattr(raw, "original_string", raw)  # of a name that pydicom has already decoded
        if keyword.endswith("Name") and isinstance(raw, bytes):
            return decode_name(raw, dataset.get("SpecificCharacterSet"))
        value = dataset.get(keyword)
    except Exception:  # pydicom decodes here and raises many kinds of exceptions
        return ""
    if isinstance(value, MultiValue):  # of a text with backslashes
        return "\\".join(map(str, value))
    return "" if value is None else str(value).strip()


def uid_of(identifier: uuid.UUID) -> str:
    """The UID of a UUID (PS3.5 B.2)."""
    return f"2.25.{identifier.int}"


def _usable(name: str, value: str) -> bool:
    if name.endswith("_uid"):
        return is_uid(value)
    if name.endswith("_date"):
        return _DATE.fullmatch(value) is not None
    if name == "study_time":
        return _TIME.fullmatch(value) is not None
    if name == "patient_sex":
        return value in ("M", "F", "O")
    if not value.isprintable() or "\\" in value or _UNDECODED in value:
        return False
    if name.endswith("_name"):
        forms = value.split("=")
        return len(forms) <= 3 and all(len(form) <= _NAME_LENGTH and form.count("^") <= 4 for form in forms)
    return len(value) <= _LENGTHS[name]


@dataclass(frozen=True)
class ExportContext:
    """The study of a report.

    Attributes:
        views: fields with an image, ``frontal`` or ``lateral``; at least one.
        sources: identities of the images that are DICOM.
        from_pacs: whether FHIR may name the patient and the study of ``sources``.
        stored: the structured report in the PACS, if it was to be stored; FHIR names it.
    """

    views: tuple[str, ...]
    sources: tuple[SourceImage, ...] = field(default=(), repr=False)
    from_pacs: bool = False
    stored: StoredReportOut | None = None


@dataclass(frozen=True)
class StoredReport:
    """Identity of a structured report that a PACS keeps; ``replaces`` is the draft before it."""

    sop_instance_uid: str
    series_instance_uid: str
    replaces: SourceImage | None = field(default=None, repr=False)


async def export_context(images: Mapping[str, bytes], *, identified: bool) -> ExportContext:
    """The study of an upload.

    Args:
        images: field name -> file.
        identified: whether to read the identity of the DICOM files, which a structured report
            needs.

    Raises:
        Problem: ``truncated``, 422; a header exceeds the limits of the reader, as in drafting.
    """
    if not identified:
        return ExportContext(tuple(images))
    files = {field: data for field, data in images.items() if is_dicom(data)}
    return ExportContext(tuple(images), await run_in_threadpool(_sources, files))


def _sources(files: Mapping[str, bytes]) -> tuple[SourceImage, ...]:
    found = []
    for view, data in files.items():
        try:
            found.append(source_image(data))
        except ImageError as error:
            raise Problem(error.code, str(error), field=view) from error
    return tuple(found)


def source_image(data: bytes) -> SourceImage:
    """The identity of a DICOM file; empty if its header is damaged.

    Raises:
        ImageError: ``truncated``; the header exceeds the limits of the reader.
    """
    try:
        return SourceImage.from_dataset(read_elements(data, ("SpecificCharacterSet", *KEYWORDS.values())))
    except ImageError:
        raise
    except Exception:  # pydicom raises many types for damaged headers; drafting reports the error
        return SourceImage()


def unsupported_reason(sources: Sequence[SourceImage]) -> str | None:
    """Why a structured report cannot refer to these images, without values; None if it can."""
    if importlib.util.find_spec("highdicom") is None:
        return "the service lacks highdicom (pip install '.[sr]' in the source tree)"
    if not sources:
        return "no image was sent as a DICOM file, so that there is no study for it"
    for source in sources:
        if source.missing:
            return f"a DICOM file has no valid {', '.join(source.missing)}"
    if len({(source.patient_id, source.study_instance_uid) for source in sources}) > 1:
        return "the two DICOM files belong to different patients or studies"
    return None
