"""Reference cases: ``POST /cases``, and ``GET`` and ``DELETE`` of one case."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated

from fastapi import APIRouter, Depends, Path, Request, Response
from starlette.concurrency import run_in_threadpool

from model.images import ImageError
from service.cases.store import NewCase
from service.inference.decode_pool import DecodePool
from service.inference.runtime import Runtime
from service.inference.threads import run_in_temporary_thread
from service.routes.openapi import (
    FORM_PROBLEMS,
    NOT_READY,
    NOT_READY_OR_BUSY,
    PICTURE,
    form_body,
    problem_responses,
)
from service.routes.responses import case_response
from service.schemas.examples import CASE_FORM_EXAMPLES
from service.schemas.forms import CaseForm
from service.schemas.models import CaseResponse
from service.web.auth import require_api_key, require_api_key_if_configured
from service.web.disconnect import cancel_on_disconnect
from service.web.problems import Problem, deadline
from service.web.request_body import read_form

PICTURE_SIDE = 320  # pixels, longer side of a stored picture
CaseId = Annotated[str, Path(description="An id from reference_cases.")]
View = Annotated[
    str,
    Path(
        description="A view with a picture, see images of the case.", json_schema_extra={"enum": ["frontal", "lateral"]}
    ),
]
_OFF = problem_responses(403, "Adding cases is disabled, or the service has no key.", "cases_off", "no_api_key")
_ELSEWHERE = problem_responses(403, "Replicas in other processes hold the cases.", "cases_off")
_NO_SUCH_CASE = problem_responses(404, "There is no such case or picture.", "no_such_case")
_DISK = problem_responses(507, "The disk is full or fails.", "cases_disk")
router = APIRouter()


@router.post(
    "/cases",
    status_code=201,
    response_model=CaseResponse,
    summary="Add a reference case",
    dependencies=[Depends(require_api_key)],
    openapi_extra=form_body(CaseForm, CASE_FORM_EXAMPLES, "Each field at most once; other fields are refused."),
    responses={
        201: {
            "description": "The stored case.",
            "headers": {"Location": {"description": "Of the case.", "schema": {"type": "string"}}},
        },
        **FORM_PROBLEMS,
        **_OFF,
        **problem_responses(409, "The case exists already, or there is no index.", "case_exists", "no_retrieval"),
        **problem_responses(
            422,
            "A field is wrong; field names it.",
            *("unknown_field", "missing_field", "malformed_value", "no_known_word"),
            *("too_small", "too_complex", "not_a_radiograph"),
        ),
        **NOT_READY_OR_BUSY,
        **_DISK,
    },
)
async def add_case(request: Request, response: Response) -> CaseResponse:
    """Store a case with findings and optional images, for retrieval by later studies.

    Nothing is trained. The case is kept until it is deleted, across restarts and bundle swaps.
    """
    runtime: Runtime = request.app.state.runtime
    settings, store = runtime.settings, runtime.case_store
    runtime.check_accepting()
    store.check_writable()
    with runtime.admission.acquire_slot():
        form = await read_form(
            request, CaseForm, max_file_bytes=settings.max_upload_bytes, timeout_s=settings.upload_timeout_s
        )
        async with deadline(runtime.request_timeout_s, "The case"):
            pictures = await cancel_on_disconnect(request, _shrink(runtime.decoder, form.take_images()))
        new = NewCase(form.case_id, form.findings, form.source_url, pictures)
        found = await run_in_temporary_thread(lambda: store.add(new))
    response.headers["Location"] = f"cases/{found.case.case_id}"
    return case_response(found)


async def _shrink(decoder: DecodePool, images: Mapping[str, bytes]) -> dict[str, bytes]:
    """The small picture of each view."""
    pictures = {}
    for view, data in images.items():
        try:
            pictures[view] = await decoder.thumbnail(data, PICTURE_SIDE)
        except ImageError as error:
            raise Problem(error.code, str(error), field=view) from error
    return pictures


@router.get(
    "/cases/{case_id}",
    response_model=CaseResponse,
    summary="A reference case",
    dependencies=[Depends(require_api_key_if_configured)],
    responses={**_ELSEWHERE, **_NO_SUCH_CASE, **NOT_READY},
)
async def get_case(request: Request, case_id: CaseId) -> CaseResponse:
    """A case of the bundle or one that was added."""
    runtime: Runtime = request.app.state.runtime
    runtime.serving()
    return case_response(runtime.case_store.find(case_id))


@router.get(
    "/cases/{case_id}/{view}",
    response_class=Response,
    summary="A small picture of a reference case",
    dependencies=[Depends(require_api_key_if_configured)],
    responses={**PICTURE, **_ELSEWHERE, **_NO_SUCH_CASE, **NOT_READY},
)
async def get_picture(request: Request, case_id: CaseId, view: View) -> Response:
    """The radiograph of a case, reduced to 320 pixels, or 256 in a hydrated bundle; ``images`` of a case lists them."""
    runtime: Runtime = request.app.state.runtime
    runtime.serving()
    picture = await run_in_threadpool(runtime.case_store.picture, case_id, view)
    return Response(picture, media_type="image/jpeg", headers={"Cache-Control": "private, no-store"})


@router.delete(
    "/cases/{case_id}",
    status_code=204,
    response_class=Response,
    summary="Remove an added case",
    dependencies=[Depends(require_api_key)],
    responses={
        204: {"description": "Removed."},
        **_OFF,
        **_NO_SUCH_CASE,
        **problem_responses(409, "The case belongs to the bundle.", "case_of_bundle"),
        **NOT_READY,
        **_DISK,
    },
)
async def remove_case(request: Request, case_id: CaseId) -> None:
    """Delete an added case and its pictures from the index and the disk."""
    runtime: Runtime = request.app.state.runtime
    runtime.serving()
    await run_in_threadpool(runtime.case_store.remove, case_id)
