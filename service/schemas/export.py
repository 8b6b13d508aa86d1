"""The body of ``POST /export``: a report, and its findings if a reader edited them."""

from __future__ import annotations

import re
from collections import Counter
from typing import Annotated, Literal, LiteralString
from uuid import UUID

from pydantic import BaseModel, ConfigDict, Field, field_validator
from pydantic_core import PydanticCustomError

from model.calibration.sentence_confidence import unsupported
from model.text.labeler import FINDINGS, label_report
from service.schemas.annotations import read_annotations
from service.schemas.models import EDITED, ReportResponse, WarningOut

MAX_FINDINGS = 20_000  # characters
_WARNINGS_OF_DRAFT = {
    *("unsupported_sentence", "empty_draft"),
    *("refine_off", "refine_failed", "refine_added", "refine_dropped", "refine_moved"),
}
_SENTENCE_BREAK = re.compile(r"(?<=[.!?])\s+")


class ExportRequest(BaseModel):
    """A response of ``POST /report``, and the findings if a reader edited them."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    report: Annotated[ReportResponse, Field(description="The response of POST /report.")]
    findings: Annotated[
        str | None,
        Field(max_length=MAX_FINDINGS, description="The edited findings; left out without an edit."),
    ] = None
    views: Annotated[
        tuple[Literal["frontal", "lateral"], ...],
        Field(min_length=1, max_length=2, description="Views of the study, each once."),
    ] = ("frontal", "lateral")

    @field_validator("report", mode="before")
    @classmethod
    def _without_study(cls, report: object) -> object:
        """Accept a response of ``POST /studies/UID/report`` too; its study is not exported."""
        return {name: part for name, part in report.items() if name != "study"} if isinstance(report, dict) else report

    @field_validator("report")
    @classmethod
    def _can_be_written(cls, report: ReportResponse) -> ReportResponse:
        """Reject values that the other formats cannot represent."""
        if (fault := _fault(report)) is not None:
            raise PydanticCustomError(fault, "not a response of the service")
        return report

    @field_validator("views")
    @classmethod
    def _each_once(cls, views: tuple[str, ...]) -> tuple[str, ...]:
        if len(set(views)) < len(views):
            raise PydanticCustomError("a_view_came_twice", "twice")
        return views

    def edited_report(self) -> ReportResponse:
        """The report with the reader's findings instead of the draft.

        ``sentences`` keeps only sentences of the model, because their confidences are the model's.
        Labels are read from the new text, and a warning quotes the draft. A finding that the model
        does not assess stays so if a sentence of the model still denies it. The rewritten draft and
        warnings about the draft are removed.
        """
        report = self.report
        edited = (self.findings if self.findings is not None else report.findings).strip()
        if edited == report.findings.strip():
            return report
        written = Counter(_SENTENCE_BREAK.split(edited))
        kept = []
        for sentence in report.sentences:
            if written[sentence.text] > 0:
                written[sentence.text] -= 1
                kept.append(sentence)
        labels = label_report(edited, use_cache=False)
        still_denied = {name for sentence in kept for name in sentence.labels if labels[name] == "absent"}
        warnings = [warning for warning in report.warnings if warning.code not in _WARNINGS_OF_DRAFT]
        if count := sum(sentence.supported is False for sentence in kept):
            warning = unsupported(count)
            warnings.append(WarningOut(code=warning.code, message=warning.message))
        message = f"The reader edited the findings. The model's draft was: {report.findings or 'empty'}"
        return report.model_copy(
            update={
                "findings": edited,
                "sentences": kept,
                "labels": dict(labels),
                "annotations": read_annotations(edited, use_cache=False),
                "not_assessed": [name for name in report.not_assessed if name in still_denied],
                "warnings": [*warnings, WarningOut(code=EDITED, message=message)],
                "refined": None,
            }
        )


def _fault(report: ReportResponse) -> LiteralString | None:
    """The first value that the service never writes; None if there is none."""
    if not _is_uuid(report.report_id):
        return "report_id_is_no_uuid"
    named = set(report.labels).union(
        report.not_assessed,
        report.finding_probabilities or (),
        report.model.findings or (),
        *(sentence.labels for sentence in report.sentences),
        *(case.labels for case in report.reference_cases),
    )
    if not named <= set(FINDINGS):
        return "unknown_finding_in_labels"
    words = [warning.code for warning in report.warnings]
    words += [case.source_url for case in report.reference_cases if case.source_url is not None]
    return "blank_in_a_code_or_address" if any(re.search(r"\s", word) for word in words) else None


def _is_uuid(text: str) -> bool:
    try:
        return str(UUID(text)) == text.lower()
    except ValueError:
        return False
