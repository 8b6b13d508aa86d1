"""The HTTP interface: ``POST /report``, ``GET /health``, the page at ``/``, all described in OpenAPI."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from importlib import metadata
from pathlib import Path

from fastapi import APIRouter, FastAPI, Request
from starlette.responses import FileResponse, Response
from starlette.staticfiles import StaticFiles

from model.drafter import DraftOptions, StudyView
from model.images import ImageError
from model.views import View
from service import logs, problems
from service.answers import answer, image_problem
from service.engine import BusyError, Engine
from service.headers import SecurityHeaders
from service.lingering import LingeringClose
from service.openapi import HEALTH, REPORT, describe
from service.problems import Problem, UnforeseenErrors
from service.runtime import Runtime
from service.schemas import BundleInfo, HealthResponse, QueueInfo, ReportResponse
from service.settings import Settings
from service.uploads import read_upload

STATIC = Path(__file__).parent / "static"
_REVALIDATE = {"Cache-Control": "no-cache"}
log = logging.getLogger(__name__)
router = APIRouter()


def create_app(settings: Settings | None = None) -> FastAPI:
    """Make the app; ``uvicorn service.app:create_app --factory`` calls it without arguments.

    The model is loaded in the background once the app starts; until then ``/health`` says 503 and why.

    Raises:
        pydantic.ValidationError: a setting in the environment is wrong.
    """
    settings = settings or Settings()
    logs.configure(settings.log_level)
    runtime = Runtime(settings)

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
    app.include_router(router)
    app.mount("/static", _Static(directory=STATIC), name="static")
    problems.install(app)
    describe(app)
    for middleware in (UnforeseenErrors, SecurityHeaders, logs.AccessLog, LingeringClose):  # the last one is outermost
        app.add_middleware(middleware)
    return app


@router.post("/report", response_model=ReportResponse, summary="Draft the findings of a study", **REPORT)
async def report(request: Request) -> ReportResponse:
    """Two radiographs in (one may be missing), a findings draft and the reference cases it leaned on out."""
    began = time.perf_counter()
    runtime: Runtime = request.app.state.runtime
    ready = runtime.ready()
    settings = runtime.settings
    try:
        with ready.engine.place():
            upload = await read_upload(
                request, max_file_bytes=settings.max_upload_bytes, timeout_s=settings.upload_timeout_s
            )
            uploaded = time.perf_counter()
            study = await _decode(ready.engine, upload.images)
            decoded = time.perf_counter()
            draft = await ready.engine.submit(study, DraftOptions(upload.top_k, upload.beam_size))
    except BusyError as error:
        raise Problem("busy", f"Try again in a moment: {error}.", headers={"Retry-After": "2"}) from error
    timings = {
        "upload": (uploaded - began) * 1000,
        "images": (decoded - uploaded) * 1000,
        "total": (time.perf_counter() - began) * 1000,
    }
    result = answer(draft, ready.model, timings)
    log.info("draft %s: %d views, %d cases", result.report_id, len(study), len(result.reference_cases))
    return result


async def _decode(engine: Engine, images: dict[str, bytes]) -> list[StudyView]:
    """All views at the same time, frontal first, and let the files go; of several wrong ones the first is answered."""
    names = [view.value for view in View if view.value in images]
    reading = (engine.read_view(images[name], View(name)) for name in names)
    results = await asyncio.gather(*reading, return_exceptions=True)
    study = []
    for name, result in zip(names, results, strict=True):
        if isinstance(result, ImageError):
            raise image_problem(result, name) from result
        if isinstance(result, BaseException):
            raise result
        study.append(result)
    images.clear()
    return study


@router.get("/health", response_model=HealthResponse, summary="Whether the service is ready, and with what", **HEALTH)
async def health(request: Request) -> HealthResponse:
    """200 when ready; 503 with the reason while the model is loaded, or where it could not be."""
    runtime: Runtime = request.app.state.runtime
    ready = runtime.ready()
    model, loaded = ready.model, ready.loaded
    return HealthResponse(
        status="ready",
        device=loaded.device,
        bundle=BundleInfo(name=model.name, digest=model.digest, hydrated=model.hydrated),
        cases=loaded.cases,
        texts=loaded.texts,
        queue=QueueInfo(depth=ready.engine.depth, capacity=ready.engine.capacity),
        model=model,
    )


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
