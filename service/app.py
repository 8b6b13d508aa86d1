"""The HTTP interface: reports and what belongs to them, reference cases, health, the page; all described in OpenAPI."""

from __future__ import annotations

import asyncio
import logging
import os
import time
from collections.abc import AsyncIterator, Callable
from contextlib import ExitStack, asynccontextmanager
from functools import partial
from importlib import metadata
from pathlib import Path

from fastapi import APIRouter, Depends, FastAPI, Request
from starlette.concurrency import run_in_threadpool
from starlette.responses import FileResponse, Response
from starlette.staticfiles import StaticFiles

from model.types import Draft, DraftOptions, EventCallback
from service.formats.dicom_source import ExportContext, export_context
from service.formats.negotiation import VARY, parse_accept, respond
from service.inference.admission import AdmissionLimiter
from service.inference.backend import (
    Backend,
    ClosedError,
    DeviceLostError,
    FieldError,
    OutOfMemoryError,
    RemoteDraft,
)
from service.inference.runtime import Runtime, ServingState
from service.llm.refine import Refiner
from service.openapi import EXPORT, HEALTH, RELOAD, REPORT, describe
from service.routes import cases as case_routes
from service.routes import preview
from service.routes.export import NO_SR, read_export
from service.routes.responses import to_response
from service.routes.streaming import EventStream
from service.schemas.forms import Upload, read_upload
from service.schemas.models import AliveResponse, BundleInfo, HealthResponse, QueueInfo, ReportResponse
from service.settings import Settings, settings_or_exit, unknown_variables
from service.web import logging as logs
from service.web import problems
from service.web.auth import require_api_key, require_api_key_if_configured
from service.web.disconnect import cancel_on_disconnect
from service.web.middleware import (
    AccessLogMiddleware,
    DrainRequestBodyMiddleware,
    MetricsMiddleware,
    PathScopedCORSMiddleware,
    RequestIdMiddleware,
    SecurityHeadersMiddleware,
    ShutdownMiddleware,
    UnhandledExceptionMiddleware,
)
from service.web.problems import Problem

STATIC = Path(__file__).parent / "static"
_REVALIDATE = {"Cache-Control": "no-cache"}
log = logging.getLogger(__name__)
router = APIRouter()


def create_app(settings: Settings | None = None, make_runtime: Callable[[Settings], Runtime] = Runtime) -> FastAPI:
    """Make the app; ``uvicorn service.app:create_app --factory`` calls it without arguments.

    The model is loaded in the background once the app starts; until then ``/health`` says 503 and why.

    Raises:
        SystemExit: no `settings` were given and one in the environment is wrong; standard error says which.
    """
    settings = settings or settings_or_exit()
    logs.configure(settings.log_level, settings.log_format)
    for words in unknown_variables(os.environ):
        log.warning("%s", words)
    runtime = make_runtime(settings)

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        runtime.start()
        yield
        await runtime.stop()

    app = FastAPI(
        title="Chest X-ray report drafting",
        version=_version(),
        lifespan=lifespan,
        docs_url=None,
        redoc_url=None,
    )  # no docs pages: FastAPI's fetch their scripts from a CDN
    app.state.runtime = runtime
    app.state.refiner = Refiner(settings, runtime.metrics)
    app.state.auxiliary_limiter = AdmissionLimiter(settings.max_concurrent_requests)  # previews and exports
    app.state.preview_lock = asyncio.Lock()
    app.state.keys = settings.keys()
    app.include_router(router)
    app.include_router(case_routes.router)
    app.include_router(preview.router)
    app.mount("/static", _Static(directory=STATIC), name="static")
    problems.install(app)
    describe(app)
    app.add_middleware(UnhandledExceptionMiddleware)  # the last one added is outermost
    app.add_middleware(ShutdownMiddleware, deadline=runtime.shutdown_deadline)
    app.add_middleware(MetricsMiddleware, metrics=runtime.metrics)
    if settings.cors_origins:
        app.add_middleware(PathScopedCORSMiddleware, origins=settings.cors_origins)
    for middleware in (
        SecurityHeadersMiddleware,
        AccessLogMiddleware,
        RequestIdMiddleware,
        DrainRequestBodyMiddleware,
    ):
        app.add_middleware(middleware)
    return app


@router.post(
    "/report",
    response_model=ReportResponse,
    summary="Draft the findings of a study",
    dependencies=[Depends(require_api_key_if_configured)],
    **REPORT,
)
async def report(request: Request, response: Response) -> ReportResponse | Response:
    """Two radiographs in (one may be missing), a findings draft and the reference cases it leaned on out.

    `Accept` chooses the format: JSON by default, a FHIR DiagnosticReport, plain text, or a DICOM structured report.
    With `stream=true` the answer is server-sent events: `cases` once retrieval is done, a `sentence` each as soon as it
    is final, and `report`, which holds what the unstreamed call answers; or `problem`, where the draft fails after the
    first event.
    """
    began = time.perf_counter()
    runtime: Runtime = request.app.state.runtime
    formats = parse_accept(request.headers.getlist("accept"))
    serving = runtime.serving()
    settings = runtime.settings
    with ExitStack() as held:
        slot = held.enter_context(ExitStack())
        slot.enter_context(serving.backend.admission.acquire_slot())
        upload = await read_upload(
            request, max_file_bytes=settings.max_upload_bytes, timeout_s=settings.upload_timeout_s
        )
        uploaded = time.perf_counter()
        work = partial(_report, request.app, serving, upload, began, uploaded, slot.close)
        if upload.stream:
            formats.check_stream()
            return EventStream(request, work, held.pop_all())
        study = await export_context(upload.images, identified=formats.prefer_sr)
        form = formats.choose(study)
        result = await cancel_on_disconnect(request, work())
    response.headers.update(VARY)
    return await run_in_threadpool(respond, result, study, form) or result


async def _report(
    app: FastAPI,
    serving: ServingState,
    upload: Upload,
    began: float,
    uploaded: float,
    release_slot: Callable[[], None],
    listener: EventCallback | None = None,
) -> ReportResponse:
    """The answer to an upload.

    Args:
        app: whose runtime and language model serve it.
        serving: what drafts.
        upload: its images are let go once they are drafted.
        began, uploaded: times of ``time.perf_counter``.
        release_slot: frees the request's slot.
        listener: told early of what is final.
    """
    runtime: Runtime = app.state.runtime
    refiner: Refiner = app.state.refiner
    within_s = runtime.settings.request_timeout_s
    views = len(upload.images)
    options = DraftOptions(upload.top_k, upload.beam_size, upload.attention)
    draft = await _draft(serving.backend, upload.images, options, listener, within_s)
    timings = {"upload": (uploaded - began) * 1000, "total": (time.perf_counter() - began) * 1000}
    result = to_response(draft, draft.model if isinstance(draft, RemoteDraft) else serving.model, timings)
    if upload.refine:
        upload.images.clear()
        release_slot()  # a request that waits for the language model needs no slot
        result = await refiner.refine(result, within_s - (time.perf_counter() - uploaded))
    runtime.metrics.drafted(result.timings_ms)
    log.info("draft %s: %d views, %d cases", result.report_id, views, len(result.reference_cases))
    return result


async def _draft(
    backend: Backend, images: dict[str, bytes], options: DraftOptions, listener: EventCallback | None, within_s: float
) -> Draft:
    """The backend's draft, and its errors as problems."""
    try:
        async with asyncio.timeout(within_s):
            return await backend.draft(images, options, listener)
    except TimeoutError as error:
        detail = f"The draft was not ready within {within_s:g} s (REPORT_REQUEST_TIMEOUT_S). Try again in a moment."
        raise Problem("deadline", detail, headers={"Retry-After": "5"}) from error
    except FieldError as error:
        raise Problem(error.code, str(error), field=error.field) from error
    except OutOfMemoryError as error:
        detail = "The device has too little memory for this study just now. Try again in a moment."
        raise Problem("memory", detail, headers={"Retry-After": "5"}) from error
    except DeviceLostError as error:
        raise Problem("failed", f"{error}.") from error
    except ClosedError as error:
        raise problems.stopping() from error


@router.post(
    "/export",
    response_model=ReportResponse,
    summary="Write an answer in another format",
    dependencies=[Depends(require_api_key_if_configured)],
    **EXPORT,
)
async def export(request: Request, response: Response) -> ReportResponse | Response:
    """An answer of `POST /report`, perhaps edited by its reader, in the format that `Accept` chooses. Nothing is kept.

    A DICOM structured report needs the images: ask `POST /report` for it.
    """
    formats = parse_accept(request.headers.getlist("accept"), streams=False)
    settings: Settings = request.app.state.runtime.settings
    with request.app.state.auxiliary_limiter.acquire_slot():
        body = await read_export(request, timeout_s=settings.upload_timeout_s)
        study = ExportContext(body.views)
        form = formats.choose(study, no_sr=NO_SR)
        result = await run_in_threadpool(body.answer)
        response.headers.update(VARY)
        return await run_in_threadpool(respond, result, study, form) or result


@router.post(
    "/reload",
    response_model=HealthResponse,
    summary="Serve the bundle on disk anew",
    dependencies=[Depends(require_api_key)],
    **RELOAD,
)
async def reload(request: Request) -> HealthResponse:
    """Load the bundle again and swap it in; requests under way end with the one they began with."""
    runtime: Runtime = request.app.state.runtime
    return _state(await runtime.reload())


@router.get("/health", response_model=HealthResponse, summary="Whether the service is ready, and with what", **HEALTH)
async def health(request: Request) -> HealthResponse:
    """200 when ready; 503 with the reason while the model is loaded, or where it could not be."""
    runtime: Runtime = request.app.state.runtime
    return _state(runtime.serving())


def _state(serving: ServingState) -> HealthResponse:
    model, backend = serving.model, serving.backend
    return HealthResponse(
        status="ready",
        device=serving.device,
        bundle=BundleInfo(name=model.name, digest=model.digest, hydrated=model.hydrated),
        cases=serving.case_index.cases,
        texts=serving.case_index.texts,
        queue=QueueInfo(depth=backend.admission.in_use, waiting=backend.waiting, capacity=backend.admission.capacity),
        model=model,
    )


@router.get("/livez", response_model=AliveResponse, summary="Whether the process answers")
async def livez() -> AliveResponse:
    """200 as long as the process answers at all, whatever the model does."""
    return AliveResponse(status="alive")


@router.get("/metrics", include_in_schema=False)
async def metrics(request: Request) -> Response:
    """Prometheus' text format."""
    runtime: Runtime = request.app.state.runtime
    return runtime.metrics.response()


@router.get("/", include_in_schema=False)
async def page() -> Response:
    """The page."""
    return FileResponse(STATIC / "index.html", media_type="text/html; charset=utf-8", headers=_REVALIDATE)


class _Static(StaticFiles):
    """Files of the page; a browser asks each time whether they changed, so that an update is seen at once."""

    def file_response(self, *args: object, **kwargs: object) -> Response:
        response = super().file_response(*args, **kwargs)  # type: ignore[arg-type]
        response.headers.update(_REVALIDATE)
        return response


def _version() -> str:
    try:
        return metadata.version("cxr-report")
    except metadata.PackageNotFoundError:  # run from a source tree that was not installed
        return "0.0.0"
