"""``POST /export``: a report, perhaps edited by its reader, in another format. Stores nothing."""

from __future__ import annotations

from fastapi import APIRouter, Depends, Request
from pydantic import BaseModel, ValidationError
from starlette.concurrency import run_in_threadpool
from starlette.responses import Response

from service.formats.dicom_source import ExportContext
from service.formats.negotiation import VARY, parse_accept, respond
from service.inference.runtime import Runtime
from service.routes.openapi import (
    BODY_PROBLEMS,
    INTERNAL,
    NOT_ACCEPTABLE,
    formats_response,
    json_body,
    problem_responses,
)
from service.schemas.examples import EXPORT_EXAMPLES
from service.schemas.export import ExportRequest
from service.schemas.models import ReportResponse
from service.web.auth import require_api_key_if_configured
from service.web.problems import Problem
from service.web.request_body import receive, refuse_compressed

MAX_BODY_BYTES = 1024 * 1024
MAX_CONTAINERS = 10_000  # lists and objects; pydantic needs seconds for a body of brackets
MAX_NAMES = 12_000  # colons; a body of 80,000 unknown names would block the event loop for half a second
_NO_SR = "it refers to the DICOM images, which only POST /report receives"
router = APIRouter()


@router.post(
    "/export",
    response_model=ReportResponse,
    summary="Write an answer in another format",
    dependencies=[Depends(require_api_key_if_configured)],
    openapi_extra=json_body(ExportRequest, EXPORT_EXAMPLES, f"At most {MAX_BODY_BYTES:,} bytes."),
    responses={
        **formats_response(drafts=False),
        **NOT_ACCEPTABLE,
        **BODY_PROBLEMS,
        **problem_responses(415, "The body is not JSON.", "not_json"),
        **problem_responses(422, "The body is not as described.", "invalid_request"),
        **problem_responses(503, "Busy (with Retry-After).", "busy"),
        **INTERNAL,
    },
)
async def export(request: Request, response: Response) -> ReportResponse | Response:
    """Write a response of `POST /report`, edited or not, in the format that `Accept` selects.

    Nothing is stored.

    For a DICOM structured report, which needs the images, use `POST /report`.
    """
    formats = parse_accept(request.headers.getlist("accept"), streams=False)
    runtime: Runtime = request.app.state.runtime
    with runtime.admission.acquire_slot():
        body = await _read_body(request, timeout_s=runtime.settings.upload_timeout_s)
        context = ExportContext(body.views)
        offer = formats.choose(context, no_sr=_NO_SR)
        result = await run_in_threadpool(body.edited_report)
        response.headers.update(VARY)
        return await run_in_threadpool(respond, result, context, offer)


async def _read_body(request: Request, *, timeout_s: float) -> ExportRequest:
    """Read and check the body; errors quote no value."""
    refuse_compressed(request)
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != "application/json":
        raise Problem(
            "not_json", "The Content-Type is not application/json. Send the response of POST /report as JSON."
        )
    body = bytearray()
    remedy = "Leave out the attention and the evidence of the sentences."
    async for chunk in receive(request, max_bytes=MAX_BODY_BYTES, timeout_s=timeout_s, remedy=remedy):
        body += chunk
    if body.count(b"[") + body.count(b"{") > MAX_CONTAINERS:
        raise Problem("invalid_request", f"The body has more than {MAX_CONTAINERS:,} lists and objects. {remedy}")
    if body.count(b":") > MAX_NAMES:
        raise Problem("invalid_request", f"The body has more than {MAX_NAMES:,} names of values. {remedy}")
    try:
        return ExportRequest.model_validate_json(bytes(body), strict=True)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False, include_context=False)[0]
        # Only these parts of the location are names of this API; others may be the client's.
        schemas: tuple[type[BaseModel], ...] = (ExportRequest, ReportResponse)
        named = zip(first["loc"], schemas, strict=False)
        names = [str(part) for part, schema in named if part in schema.model_fields]
        what = f"{'.'.join(names)} does not match the schema: {first['type'].replace('_', ' ')}"
        detail = f"{what if names else 'The body is not a valid export request'}. See ExportRequest in /openapi.json."
        raise Problem("invalid_request", detail, field=names[0] if names else None) from None
