"""One draft from its images to the response, for ``POST /report`` and ``POST /studies/UID/report``."""

from __future__ import annotations

import logging
import time
from contextlib import ExitStack

from fastapi import Request
from starlette.concurrency import run_in_threadpool
from starlette.responses import Response

from model.types import Draft, DraftOptions, EventCallback
from service.formats.dicom_source import ExportContext
from service.formats.negotiation import VARY, AcceptedFormats, Offer, respond
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
from service.routes.responses import to_response
from service.routes.streaming import EarlyCallback, EventStream
from service.schemas.forms import DraftForm
from service.schemas.models import ReportResponse
from service.web.disconnect import cancel_on_disconnect
from service.web.problems import Problem, deadline, stopping

log = logging.getLogger(__name__)


class Drafting:
    """One request from its images to the response."""

    arrival = "upload"  # the stage in which the images came, in timings_ms

    def __init__(
        self, request: Request, form: DraftForm, images: dict[str, bytes], slot: ExitStack, started: float
    ) -> None:
        """Take the images.

        Args:
            request: its body was read.
            form: the options.
            images: view -> file; cleared once they are decoded.
            slot: closed when the request needs its slot no longer.
            started: ``time.perf_counter`` when the request came.
        """
        self.images = images
        self._request, self._form, self._slot = request, form, slot
        self._runtime: Runtime = request.app.state.runtime
        self._refiner: Refiner = request.app.state.refiner
        included = (form.include or "").split(",")
        self._options = DraftOptions(
            form.top_k, form.beam_size, attention="attention" in included, evidence="evidence" in included
        )
        self._started, self._uploaded = started, time.perf_counter()

    def stream(self, formats: AcceptedFormats, held: ExitStack) -> Response:
        """The response to ``stream=true``, which closes ``held`` at its end.

        Raises:
            Problem: ``not_acceptable``, 406.
        """
        formats.check_stream()
        return EventStream(self._request, self.run, held.pop_all())

    async def respond(
        self, formats: AcceptedFormats, context: ExportContext, response: Response
    ) -> ReportResponse | Response:
        """Draft, and write the preferred format; ``response`` gets the headers of JSON.

        Raises:
            Problem: no accepted format can be written; the draft failed.
        """
        offer = formats.choose(context)
        result = await cancel_on_disconnect(self._request, self.run())
        response.headers.update(VARY)
        return await self.write(result, context, offer)

    async def write(self, result: ReportResponse, context: ExportContext, offer: Offer) -> ReportResponse | Response:
        """The response in one format."""
        return await run_in_threadpool(respond, result, context, offer)

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
        timings = {self.arrival: (self._uploaded - self._started) * 1000, "total": (now - self._started) * 1000}
        model = draft.model if isinstance(draft, RemoteDraft) else serving.model
        result = to_response(draft, model, timings)
        if self._form.refine == "true":
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
