"""The answer of ``GET /worklist``."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import ConfigDict, Field

from service.schemas.models import ResponseModel

MAX_STUDIES = 500
WORKLIST_EXAMPLE: dict[str, Any] = {
    "studies": [
        {
            "study_instance_uid": "1.2.826.0.1.3680043.8.498.1", "state": "failed", "code": "two_patients",
            "reason": "The images of the study have 2 different values of PatientID. Correct the study in the PACS.",
            "received": "2026-03-01T09:29:12Z", "changed": "2026-03-01T09:30:00Z", "next_try": None,
            "patient": None, "accession": None,
        }
    ],
    "counts": {"received": 0, "drafted": 0, "sent": 41, "failed": 1},
}  # fmt: skip


class WorklistStudy(ResponseModel):
    """A study that the DICOM node received."""

    study_instance_uid: str
    state: Literal["received", "drafted", "sent", "failed"]
    code: Annotated[str | None, Field(description="Why it waits or has failed.")] = None
    reason: Annotated[str | None, Field(description="The same in a sentence.")] = None
    received: Annotated[str, Field(description="Time of the first image, UTC.")]
    changed: Annotated[str, Field(description="Time of the state, UTC.")]
    next_try: Annotated[str | None, Field(description="Time of the next attempt, UTC; null: none is planned.")] = None
    patient: Annotated[str | None, Field(description="Patient name; null unless REPORT_PACS_NAMES=true.")] = None
    accession: Annotated[str | None, Field(description="Accession number; null unless REPORT_PACS_NAMES=true.")] = None


class WorklistResponse(ResponseModel):
    """The last studies of the DICOM node, the latest change first."""

    model_config = ConfigDict(json_schema_extra={"examples": [WORKLIST_EXAMPLE]})

    studies: Annotated[list[WorklistStudy], Field(max_length=MAX_STUDIES)]
    counts: Annotated[dict[str, int], Field(max_length=4, description="State -> number of all studies.")]
