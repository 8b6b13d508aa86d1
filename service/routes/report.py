"""``POST /report``: read the images, draft the findings, respond in the accepted format."""

from __future__ import annotations

import time
from contextlib import ExitStack

from fastapi import APIRouter, Depends, Request
from starlette.responses import Response

from service.formats.dicom_source import export_context
from service.formats.negotiation import parse_accept
from service.inference.runtime import Runtime
from service.routes.drafting import Drafting
from service.routes.openapi import (
    FORM_PROBLEMS,
    INTERNAL,
    NOT_ACCEPTABLE,
    form_body,
    formats_response,
    problem_responses,
)
from service.schemas.examples import REPORT_FORM_EXAMPLES
from service.schemas.forms import ReportForm
from service.schemas.models import ReportResponse
from service.web.auth import require_api_key_if_configured
from service.web.request_body import read_form

router = APIRouter()


@router.post(
    "/report",
    response_model=ReportResponse,
    summary="Draft the findings of a study",
    dependencies=[Depends(require_api_key_if_configured)],
    openapi_extra=form_body(
        ReportForm,
        REPORT_FORM_EXAMPLES,
        "At least one of frontal and lateral. Each field at most once; other fields are refused.",
    ),
    responses={
        **formats_response(drafts=True),
        **FORM_PROBLEMS,
        **NOT_ACCEPTABLE,
        **problem_responses(
            422,
            "A field is wrong; field names it.",
            *(
                "unknown_field",
                "missing_image",
                "too_small",
                "too_complex",
                "not_a_radiograph",
                "out_of_range",
                "unknown_value",
            ),
        ),
        **INTERNAL,
        **problem_responses(
            503,
            "Not ready, busy, too slow, or lost (with Retry-After).",
            *("loading", "busy", "deadline", "replica_lost"),
        ),
    },
)
async def report(request: Request, response: Response) -> ReportResponse | Response:
    """Draft the findings of one or two radiographs, with the reference cases that the draft used.

    `Accept` selects the format: JSON by default, a FHIR DiagnosticReport, plain text, or a DICOM
    structured report. With `stream=true` the response is server-sent events: `cases` after
    retrieval, a `sentence` event for each sentence, and `report`, the response without streaming;
    or `problem`, if the draft fails after the first event.
    """
    started = time.perf_counter()
    runtime: Runtime = request.app.state.runtime
    settings = runtime.settings
    formats = parse_accept(request.headers.getlist("accept"))
    runtime.check_accepting()
    with ExitStack() as stack:
        slot = stack.enter_context(ExitStack())
        slot.enter_context(runtime.admission.acquire_slot())
        form = await read_form(
            request, ReportForm, max_file_bytes=settings.max_upload_bytes, timeout_s=settings.upload_timeout_s
        )
        drafting = Drafting(request, form, form.take_images(), slot, started)
        if form.stream == "true":
            return drafting.stream(formats, stack)
        context = await export_context(drafting.images, identified=formats.prefer_sr)
        return await drafting.respond(formats, context, response)
