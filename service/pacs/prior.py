"""Finds the newest earlier chest study of a patient in the PACS, for the reader's eyes; no draft uses it.

The PACS is searched by PatientID and date. Whether a study is the same patient's, is earlier and
shows a chest is decided by the headers of its images, because a list of a PACS may be incomplete.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from model.types import View
from service.formats.dicom_source import SourceImage
from service.pacs.connection import Connection
from service.pacs.selection import Selection
from service.web.problems import Problem

_KINDS = {"CR", "DX"}
MOST_TRIED = 5  # studies whose headers are read, the newest first
_WILDCARDS = set("*?,")  # of QIDO-RS: such a PatientID would match other patients


@dataclass(frozen=True)
class PriorStudy:
    """An earlier study of the patient."""

    study_instance_uid: str
    study_date: str
    views: tuple[View, ...]


@dataclass(frozen=True)
class PriorSearch:
    """The answer to a search; ``study_date`` is of the current study, empty if unknown.

    ``none``: none of the newest earlier studies, at most ``MOST_TRIED``, is one of the chest.
    """

    status: Literal["found", "none", "not_identified"]
    study_date: str = ""
    prior: PriorStudy | None = None


def find_prior(connection: Connection, study_uid: str) -> PriorSearch:
    """Search for the study before this one.

    Raises:
        Problem: the PACS fails; the current study cannot be drafted.
    """
    current = _source(connection.choose(study_uid, {}))
    date = current.study_date
    if not date or not current.patient_id or _WILDCARDS & set(current.patient_id):
        return PriorSearch("not_identified", date)
    listed = connection.studies_until(date, current.patient_id)
    if study_uid not in (each.uid for each in listed):
        return PriorSearch("not_identified", date)  # some servers find no PatientID with a blank or a slash
    others = [
        each
        for each in listed
        if each.uid != study_uid and each.date <= date and (not each.modalities or each.modalities & _KINDS)
    ]
    for study in sorted(others, key=lambda each: (each.date, each.uid), reverse=True)[:MOST_TRIED]:
        try:
            selection = connection.choose(study.uid, {})
        except Problem as problem:
            if problem.status >= 500:
                raise
            continue  # it has no chest radiograph, or was deleted
        source = _source(selection)
        if _is_same_patient(source, current) and _is_earlier(source, current):
            return PriorSearch("found", date, PriorStudy(study.uid, source.study_date, tuple(selection.images)))
    return PriorSearch("none", date)


def _source(selection: Selection) -> SourceImage:
    return next(iter(selection.images.values()))


def _is_same_patient(one: SourceImage, other: SourceImage) -> bool:
    """PatientID, and its issuer, or the birth date where an image lacks the issuer; neither may differ."""
    issuers, births = (
        [getattr(each, name) for each in (one, other)] for name in ("issuer_of_patient_id", "patient_birth_date")
    )
    differ = any(all(pair) and len(set(pair)) == 2 for pair in (issuers, births))
    return one.patient_id == other.patient_id and not differ and (issuers[0] == issuers[1] or all(births))


def _is_earlier(one: SourceImage, other: SourceImage) -> bool:
    if one.study_date != other.study_date:
        return "" < one.study_date < other.study_date
    return "" < one.study_time < other.study_time
