"""``POST /export``: an answer of ``POST /report``, perhaps edited by its reader, in another format. Keeps nothing."""

from __future__ import annotations

import re
from collections import Counter
from typing import Annotated, Literal, LiteralString
from uuid import UUID

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator
from pydantic_core import PydanticCustomError
from starlette.requests import Request

from model.calibration.sentence_confidence import unsupported
from model.text.labeler import FINDINGS, label_report
from service.schemas.models import EDITED, ReportResponse, WarningOut
from service.web.multipart import receive, refuse_compressed
from service.web.problems import Problem

MAX_BODY_BYTES = 1024 * 1024
MAX_FINDINGS = 20_000  # characters
NO_SR = "it refers to the DICOM images, so only POST /report, which is sent them, writes one"
_OF_THE_DRAFT = {"unsupported_sentence", "empty_draft", "refine_off", "refine_failed", "refine_added", "refine_dropped"}
_BETWEEN_SENTENCES = re.compile(r"(?<=[.!?])\s+")


class ExportRequest(BaseModel):
    """What to write: the answer as it came, and the findings where a reader edited them."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    report: Annotated[ReportResponse, Field(description="The answer of POST /report.")]
    findings: Annotated[
        str | None,
        Field(
            max_length=MAX_FINDINGS, description="The findings as the reader edited them; left out where nobody did."
        ),
    ] = None
    views: Annotated[
        tuple[Literal["frontal", "lateral"], ...],
        Field(min_length=1, max_length=2, description="Views that the answer was made from, each once."),
    ] = ("frontal", "lateral")

    @field_validator("report")
    @classmethod
    def _can_be_written(cls, report: ReportResponse) -> ReportResponse:
        """Hold what formats have narrower types for than JSON."""
        if (fault := _fault(report)) is not None:
            raise PydanticCustomError(fault, "not of an answer")
        return report

    @field_validator("views")
    @classmethod
    def _each_once(cls, views: tuple[str, ...]) -> tuple[str, ...]:
        if len(set(views)) < len(views):
            raise PydanticCustomError("a_view_came_twice", "twice")
        return views

    def answer(self) -> ReportResponse:
        """The answer to write.

        Edited findings take the place of the draft. Sentences that the model did not write are not in ``sentences``,
        whose confidences are the model's; labels are read anew, and a warning holds the model's draft. What was said of
        the draft alone goes: the rewritten one, and warnings of sentences that are no longer there.
        """
        report = self.report
        edited = (self.findings if self.findings is not None else report.findings).strip()
        if edited == report.findings.strip():
            return report
        written = Counter(_BETWEEN_SENTENCES.split(edited))
        kept = []
        for sentence in report.sentences:
            if written[sentence.text] > 0:
                written[sentence.text] -= 1
                kept.append(sentence)
        warnings = [warning for warning in report.warnings if warning.code not in _OF_THE_DRAFT]
        if doubtful := sum(sentence.supported is False for sentence in kept):
            doubt = unsupported(doubtful)
            warnings.append(WarningOut(code=doubt.code, message=doubt.message))
        message = f"The findings were edited by their reader. The model's draft was: {report.findings or 'empty'}"
        return report.model_copy(
            update={
                "findings": edited,
                "sentences": kept,
                "labels": dict(label_report(edited, use_cache=False)),
                "warnings": [*warnings, WarningOut(code=EDITED, message=message)],
                "refined": None,
            }
        )


async def read_export(request: Request, *, timeout_s: float) -> ExportRequest:
    """Read and check the body.

    Args:
        request: its body must not have been read.
        timeout_s: seconds within which the whole body must arrive.

    Raises:
        Problem: 4xx; what is wrong with it, without its values.
        ClientDisconnect: the client went away.
    """
    refuse_compressed(request)
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != "application/json":
        raise Problem("not_json", "The Content-Type is not application/json. Send the answer of POST /report as JSON.")
    body = bytearray()
    remedy = "Leave out the attention of the sentences."
    await receive(request, body.extend, most=MAX_BODY_BYTES, timeout_s=timeout_s, remedy=remedy)
    try:
        return ExportRequest.model_validate_json(bytes(body), strict=True)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False, include_context=False)[0]
        where = _known(first["loc"])
        what = "is not the JSON of an export" if not where else f"is not as described: {_plain(first['type'])}"
        raise Problem(
            "invalid_request", f"{where or 'The body'} {what}. See ExportRequest in /openapi.json.", field=where or None
        ) from None


def _fault(report: ReportResponse) -> LiteralString | None:
    """What no answer of ours holds and this one does; None where there is nothing."""
    if not _is_uuid(report.report_id):
        return "report_id_is_no_uuid"
    named = set(report.labels).union(
        *(sentence.labels for sentence in report.sentences), *(case.labels for case in report.reference_cases)
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


def _known(location: tuple[int | str, ...]) -> str:
    """The place of an error as far as its names are ours: the last one may be the client's own."""
    return ".".join(str(part) for part in location[:1] if part in ExportRequest.model_fields)


def _plain(kind: str) -> str:
    return kind.replace("_", " ")
