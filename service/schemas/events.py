"""Data of the server-sent events of ``stream=true``."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from service.schemas.models import ProblemDetails, ReferenceCaseOut, ReportResponse, ResponseModel, SentenceOut


class CasesEvent(ResponseModel):
    """Retrieval is done."""

    reference_cases: list[ReferenceCaseOut]


class SentenceEvent(ResponseModel):
    """A sentence is final. Only the report has its attention and evidence."""

    index: Annotated[int, Field(ge=0)]
    sentence: SentenceOut


EVENT_DATA: dict[str, type[ResponseModel]] = {
    "cases": CasesEvent,
    "sentence": SentenceEvent,
    "report": ReportResponse,
    "problem": ProblemDetails,
}
