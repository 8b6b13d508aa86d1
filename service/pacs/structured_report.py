"""The structured report that a PACS keeps: one for each study, bundle and set of images.

Its UIDs are derived from these three, so that a report that is stored twice is one instance. A
draft of other images, or of another bundle, is a new instance that names the newest draft before it.
"""

from __future__ import annotations

import uuid
from collections.abc import Iterable, Sequence
from dataclasses import replace
from datetime import datetime

from pydicom import Dataset

from service.formats.dicom_source import KEYWORDS, SourceImage, StoredReport, uid_of, unsupported_reason
from service.pacs.selection import text
from service.schemas.models import ReportResponse
from service.web.problems import Problem

ENHANCED_SR = "1.2.840.10008.5.1.4.1.1.88.22"
DRAFT_HEADER = ("SpecificCharacterSet", *KEYWORDS.values(), "Manufacturer", "ContentDate", "ContentTime")
"""Keywords of the elements that ``newest_draft`` needs."""
_REPORTS = uuid.UUID("6d6a1f0e-0a52-4b6f-8f6e-3f0c6d6a9b57")  # namespace of the UIDs, generated once


def stored_report(study_uid: str, digest: str, image_uids: Iterable[str]) -> StoredReport:
    """The identity of the draft of these images by the bundle with this digest."""
    identifier = uuid.uuid5(_REPORTS, "\n".join((study_uid, digest, *sorted(set(image_uids)))))
    return StoredReport(uid_of(identifier), uid_of(uuid.uuid5(identifier, "series")))


def identity(report: ReportResponse, sources: Sequence[SourceImage]) -> StoredReport:
    """The identity of a draft of ``sources``, at least one."""
    images = (source.sop_instance_uid for source in sources)
    return stored_report(sources[0].study_instance_uid, report.model.digest, images)


def newest_draft(headers: Iterable[Dataset], other_than: StoredReport) -> SourceImage | None:
    """The newest draft of this service among structured reports of a study.

    Args:
        headers: of the structured reports, with the elements of ``DRAFT_HEADER``.
        other_than: the draft to be stored, which is not its own predecessor.
    """
    from service.formats.sr import MANUFACTURER  # highdicom is an extra and slow to import

    drafts = [
        header
        for header in headers
        if text(header, "Manufacturer") == MANUFACTURER
        and text(header, "SOPClassUID") == ENHANCED_SR
        and text(header, "SOPInstanceUID") != other_than.sop_instance_uid
    ]
    newest = max(drafts, key=lambda header: text(header, "ContentDate") + text(header, "ContentTime"), default=None)
    found = None if newest is None else SourceImage.from_dataset(newest)
    return None if found is None or found.missing else found


def write_report(
    report: ReportResponse,
    sources: Sequence[SourceImage],
    replaces: SourceImage | None = None,
    now: datetime | None = None,
) -> bytes:
    """The structured report as a DICOM file, with the UIDs of ``identity``.

    Args:
        report: the draft.
        sources: the images that were read.
        replaces: the draft before it, of the same study.
        now: local time of the content; the current time by default.

    Raises:
        Problem: ``pacs_not_stored``, 502; no structured report can be written for these images.
    """
    if reason := unsupported_reason(sources):
        raise Problem("pacs_not_stored", f"No structured report can be written: {reason}.")
    if any(source.has_unusable_patient_id for source in sources):  # a report without it would be another patient's
        detail = "No structured report can be written: DICOM does not allow the PatientID of an image. Correct it."
        raise Problem("pacs_not_stored", detail)
    from service.formats.sr import structured_report

    stored = replace(identity(report, sources), replaces=replaces)
    return structured_report(report, len(sources), sources, now, stored)
