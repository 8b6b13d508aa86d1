"""The FastAPI application: routes, shared state and middleware."""

from __future__ import annotations

import logging
import os
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from importlib import metadata

from fastapi import FastAPI

from service.inference.runtime import Runtime
from service.llm.refine import Refiner
from service.pacs.dicomweb import Pacs
from service.routes import cases, examples, export, preview, report, studies, system, worklist
from service.routes.openapi import complete_openapi
from service.settings import Settings, settings_or_exit, unknown_variables
from service.web import logging as web_logging
from service.web import problems
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

log = logging.getLogger(__name__)


def create_app(settings: Settings | None = None, make_runtime: Callable[[Settings], Runtime] = Runtime) -> FastAPI:
    """Create the app; ``uvicorn service.app:create_app --factory`` calls this without arguments.

    The model is loaded in the background once the app starts. Until then ``/health`` returns 503
    and the reason.

    Raises:
        SystemExit: no `settings` were given and one in the environment is wrong; standard error
            names it.
    """
    settings = settings or settings_or_exit()
    web_logging.configure(settings.log_level, settings.log_format)
    for warning in unknown_variables(os.environ):
        log.warning("%s", warning)
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
        docs_url=None,  # FastAPI's pages fetch their scripts from a CDN
        redoc_url=None,
        openapi_url=None,  # complete_openapi has the route
        redirect_slashes=False,  # such a redirect would repeat the Host header that the client sent
    )
    app.state.runtime = runtime
    app.state.refiner = Refiner(settings, runtime.metrics)
    app.state.pacs = Pacs(settings)
    app.state.keys = settings.keys()
    if settings.dicomweb_url and not app.state.keys:
        log.warning("no API key is set: everyone who reaches this service can read drafts of every study of the PACS")
    for module in (report, studies, export, system, cases, preview, worklist, examples):
        app.include_router(module.router)
    app.mount("/static", system.RevalidatedStaticFiles(directory=system.STATIC), name="static")
    problems.install(app)
    complete_openapi(app)
    _add_middleware(app, settings, runtime)
    return app


def _add_middleware(app: FastAPI, settings: Settings, runtime: Runtime) -> None:
    """Stack the middleware, innermost first."""
    app.add_middleware(UnhandledExceptionMiddleware)
    app.add_middleware(ShutdownMiddleware, deadline=runtime.shutdown_deadline)
    app.add_middleware(MetricsMiddleware, metrics=runtime.metrics)
    if settings.cors_origins:
        app.add_middleware(PathScopedCORSMiddleware, origins=settings.cors_origins, studies=bool(app.state.keys))
    app.add_middleware(SecurityHeadersMiddleware)
    app.add_middleware(AccessLogMiddleware)
    app.add_middleware(RequestIdMiddleware)
    app.add_middleware(DrainRequestBodyMiddleware)


def _version() -> str:
    try:
        return metadata.version("cxr-report")
    except metadata.PackageNotFoundError:  # a source tree that is not installed
        return "0.0.0"
