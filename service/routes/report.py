"""``POST /report``: read the images, draft the findings, respond in the accepted format."""

from __future__ import annotations

import logging
import time
from contextlib import ExitStack

from fastapi import APIRouter, Depends, Request
from starlette.concurrency import run_in_threadpool
from starlette.responses import Response

from model.types import Draft, DraftOptions, EventCallback
from service.formats.dicom_source import export_context
from service.formats.negotiation import VARY, parse_accept, respond
from service.inference.backend import (
    Backend,
    ClosedError,
    DeviceLostError,
    FieldError,
    OutOfMemoryError,
    RemoteDraft,
)
from service.inference.runtime import Runtime
from service.llm.refine import Refiner
from service.routes.openapi import (
    FORM_PROBLEMS,
    INTERNAL,
    NOT_ACCEPTABLE,
    form_body,
    formats_response,
    problem_responses,
)
from service.routes.responses import to_response
from service.routes.streaming import EarlyCallback, EventStream
from service.schemas.examples import REPORT_FORM_EXAMPLES
from service.schemas.forms import ReportForm
from service.schemas.models import ReportResponse
from service.web.auth import require_api_key_if_configured
from service.web.disconnect import cancel_on_disconnect
from service.web.problems import Problem, deadline, stopping
from service.web.request_body import read_form

log = logging.getLogger(__name__)
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
        drafting = _Drafting(runtime, request.app.state.refiner, form, slot, started)
        if form.stream == "true":
            formats.check_stream()
            return EventStream(request, drafting.run, stack.pop_all())
        context = await export_context(drafting.images, identified=formats.prefer_sr)
        offer = formats.choose(context)
        result = await cancel_on_disconnect(request, drafting.run())
    response.headers.update(VARY)
    return await run_in_threadpool(respond, result, context, offer)


class _Drafting:
    """One request from its form to the response."""

    def __init__(self, runtime: Runtime, refiner: Refiner, form: ReportForm, slot: ExitStack, started: float) -> None:
        """Take the images of the form; ``started``: ``time.perf_counter`` when the request came."""
        self.images = form.take_images()
        self._runtime, self._refiner = runtime, refiner
        included = (form.include or "").split(",")
        self._options = DraftOptions(
            form.top_k, form.beam_size, attention="attention" in included, evidence="evidence" in included
        )
        self._refine = form.refine == "true"
        self._slot = slot
        self._started, self._uploaded = started, time.perf_counter()

    async def run(self, on_event: EarlyCallback | None = None) -> ReportResponse:
        """Draft, and refine if requested.

        Args:
            on_event: receives the retrieved cases, and the draft before it is refined.

        Raises:
            Problem: the draft failed.
        """
        views = len(self.images)
        serving = self._runtime.serving()
        draft = await self._draft(serving.backend, on_event)
        now = time.perf_counter()
        timings = {"upload": (self._uploaded - self._started) * 1000, "total": (now - self._started) * 1000}
        model = draft.model if isinstance(draft, RemoteDraft) else serving.model
        result = to_response(draft, model, timings)
        if self._refine:
            if on_event is not None:
                on_event(result)
            self.images.clear()
            self._slot.close()  # waiting for the language model needs no slot
            left_s = self._runtime.request_timeout_s() - (time.perf_counter() - self._uploaded)
            result = await self._refiner.refine(result, left_s)
        self._runtime.metrics.drafted(result.timings_ms)
        log.info("draft %s: %d views, %d cases", result.report_id, views, len(result.reference_cases))
        return result

    async def _draft(self, backend: Backend, on_event: EventCallback | None) -> Draft:
        """The backend's draft, with its errors as problems."""
        try:
            async with deadline(self._runtime.request_timeout_s, "The draft"):
                return await backend.draft(self.images, self._options, on_event)
        except FieldError as error:
            raise Problem(error.code, str(error), field=error.field) from error
        except OutOfMemoryError as error:
            detail = "The device has too little memory for this study. Try again in a moment."
            raise Problem("memory", detail, headers={"Retry-After": "5"}) from error
        except DeviceLostError as error:
            raise Problem("failed", f"{error}.") from error
        except ClosedError as error:
            raise stopping() from error
