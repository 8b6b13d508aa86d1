"""``GET /worklist``: the studies of the DICOM node, as JSON and as a page."""

from __future__ import annotations

import sqlite3
from datetime import UTC, datetime
from typing import Annotated, Any

from fastapi import APIRouter, Query, Request
from starlette.concurrency import run_in_threadpool
from starlette.responses import FileResponse, Response

from service.formats.negotiation import JSON, VARY, Offer, rank
from service.pacs.queue import read_worklist
from service.routes.openapi import problem_responses
from service.routes.system import REVALIDATE, STATIC
from service.schemas.worklist import MAX_STUDIES, WorklistResponse, WorklistStudy
from service.settings import Settings
from service.web.auth import Bearer, Header, require_api_key_if_configured
from service.web.problems import Problem

HTML = Offer("text/html")
router = APIRouter()


@router.get(
    "/worklist",
    response_model=WorklistResponse,
    summary="The last studies of the DICOM node",
    responses={
        200: {"description": "The studies; the page where Accept prefers text/html.", "content": {"text/html": {}}},
        **problem_responses(404, "No worklist is configured.", "no_worklist"),
        **problem_responses(422, "limit is no number of the range.", "invalid_request"),
        **problem_responses(503, "The queue of the node cannot be read.", "worklist_unreadable"),
    },
)
async def worklist(
    request: Request, response: Response, bearer: Bearer, header: Header,
    limit: Annotated[int, Query(ge=1, le=MAX_STUDIES, description="Number of studies.")] = 100,
) -> WorklistResponse | Response:  # fmt: skip
    """States of the last studies, from the queue of ``python -m service.dicom_node``.

    The page holds no data and needs no key.
    """
    offers = rank(request.headers.getlist("accept"), (JSON, HTML))
    if offers and offers[0] is HTML:
        headers = {**REVALIDATE, **VARY}
        return FileResponse(STATIC / "worklist.html", media_type="text/html; charset=utf-8", headers=headers)
    await require_api_key_if_configured(request, bearer, header)
    settings: Settings = request.app.state.runtime.settings
    if settings.worklist is None:
        raise Problem("no_worklist", "Set REPORT_WORKLIST to the file queue.sqlite of the DICOM node and restart.")
    try:
        rows, counts = await run_in_threadpool(read_worklist, settings.worklist, limit)
    except (OSError, sqlite3.Error) as error:
        detail = f"The file of REPORT_WORKLIST cannot be read: {type(error).__name__}. Check that the node has started."
        raise Problem("worklist_unreadable", detail) from None
    response.headers.update(VARY)
    return WorklistResponse(studies=[_study(row) for row in rows], counts=counts)


def _study(row: dict[str, Any]) -> WorklistStudy:
    waits = row["state"] in ("received", "drafted") and row["attempts"] > 0
    return WorklistStudy(
        study_instance_uid=row["uid"], state=row["state"], code=row["code"], reason=row["reason"],
        received=_time(row["received"]), changed=_time(row["changed"]),
        next_try=_time(row["next_try"]) if waits else None, patient=row["patient"], accession=row["accession"],
    )  # fmt: skip


def _time(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="seconds").replace("+00:00", "Z")
