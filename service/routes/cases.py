"""Reference cases over HTTP: ``POST /cases``, and ``GET`` and ``DELETE`` of one case."""

from __future__ import annotations

from fastapi import APIRouter, Depends, Request, Response
from starlette.concurrency import run_in_threadpool

from service.inference.runtime import Runtime
from service.inference.threads import run_in_temporary_thread
from service.openapi_cases import ADD_CASE, GET_CASE, GET_PICTURE, REMOVE_CASE
from service.routes.responses import case_answer
from service.schemas.case_forms import read_case
from service.schemas.models import CaseResponse
from service.web.auth import require_api_key, require_api_key_if_configured

router = APIRouter()


@router.post(
    "/cases",
    status_code=201,
    response_model=CaseResponse,
    summary="Add a reference case",
    dependencies=[Depends(require_api_key)],
    **ADD_CASE,
)
async def add_case(request: Request, response: Response) -> CaseResponse:
    """Keep a case of one's own, findings and perhaps images, and let studies retrieve it from now on.

    Nothing is trained. The case survives a restart and a swap of the bundle, until it is deleted.
    """
    runtime: Runtime = request.app.state.runtime
    settings, case_store = runtime.settings, runtime.case_store
    serving = runtime.serving()
    case_store.check_writable()
    with serving.backend.admission.acquire_slot():
        new = await read_case(request, max_file_bytes=settings.max_upload_bytes, timeout_s=settings.upload_timeout_s)
        found = await run_in_temporary_thread(lambda: case_store.add(new))
    response.headers["Location"] = f"cases/{found.case.case_id}"
    return case_answer(found)


@router.get(
    "/cases/{case_id}",
    response_model=CaseResponse,
    summary="A reference case",
    dependencies=[Depends(require_api_key_if_configured)],
    **GET_CASE,
)
async def get_case(request: Request) -> CaseResponse:
    """A case of the bundle or one that was added."""
    runtime: Runtime = request.app.state.runtime
    runtime.serving()
    return case_answer(runtime.case_store.find(request.path_params["case_id"]))


@router.get(
    "/cases/{case_id}/{view}",
    response_class=Response,
    summary="A small picture of a reference case",
    dependencies=[Depends(require_api_key_if_configured)],
    **GET_PICTURE,
)
async def get_picture(request: Request) -> Response:
    """The radiograph of an added case, reduced to 320 pixels; ``images`` of a case names those there are."""
    runtime: Runtime = request.app.state.runtime
    runtime.serving()
    wanted = request.path_params["case_id"], request.path_params["view"]
    picture = await run_in_threadpool(runtime.case_store.picture, *wanted)
    return Response(picture, media_type="image/jpeg", headers={"Cache-Control": "private, no-store"})


@router.delete(
    "/cases/{case_id}",
    status_code=204,
    response_class=Response,
    summary="Remove an added case",
    dependencies=[Depends(require_api_key)],
    **REMOVE_CASE,
)
async def remove_case(request: Request) -> None:
    """Take an added case out of the index and, with its pictures, off the disk."""
    runtime: Runtime = request.app.state.runtime
    runtime.serving()
    await run_in_threadpool(runtime.case_store.remove, request.path_params["case_id"])
