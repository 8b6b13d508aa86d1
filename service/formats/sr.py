"""The answer as a DICOM Structured Report: whether it can be written of a study, and the file.

Needs highdicom, which is imported with the first report: ``pip install 'cxr-report[sr]'``.
"""

from __future__ import annotations

import importlib.util
import io
from collections.abc import Sequence
from datetime import datetime

from service.formats.dicom_source import SourceImage
from service.schemas.models import ReportResponse

EXTRA = "sr"


def installed() -> bool:
    """Whether highdicom is there."""
    return importlib.util.find_spec("highdicom") is not None


def why_not(sources: Sequence[SourceImage]) -> str | None:
    """Why no SR can be written of these images, without a value of theirs; None where one can."""
    if not installed():
        return f"the service lacks highdicom (pip install 'cxr-report[{EXTRA}]')"
    if not sources:
        return "no image came as a DICOM file, so that there is no study to file it in"
    for source in sources:
        if source.missing:
            return f"a DICOM file holds no valid {', '.join(source.missing)}"
    if len({(source.patient_id, source.study_instance_uid) for source in sources}) > 1:
        return "the two DICOM files belong to different patients or studies"
    return None


def structured_report(
    report: ReportResponse, views: int, sources: Sequence[SourceImage], now: datetime | None = None
) -> bytes:
    """The SR as a DICOM file (Part 10, Explicit VR Little Endian, UTF-8).

    Args:
        report: the answer.
        views: images that the draft was made from, DICOM or not.
        sources: those that came as DICOM.
        now: time of the content, in the time zone of the hospital, as DICOM has it; the machine's by default.

    Raises:
        ValueError: there are no such sources, or they cannot be filed together; says why.
    """
    if reason := why_not(sources):
        raise ValueError(f"no structured report can be written: {reason}")
    from service.formats.sr_document import document

    file = io.BytesIO()
    document(report, views, sources, now or datetime.now()).save_as(file, enforce_file_format=True)
    return file.getvalue()
