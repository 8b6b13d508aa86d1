"""A warning that goes with a draft."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class DraftWarning:
    """Something the reader should know. ``code`` is stable for programs, ``message`` a sentence for people.

    Codes: those of ``model.drafter`` (no_retrieval, missing_view, empty_draft, texts_not_available,
    unsupported_sentence), of the checks of images, ``model.image_checks.WARNINGS``, and of a DICOM header,
    ``model.dicom_facts.WARNINGS``.
    """

    code: str
    message: str
