"""Health, metrics, the reload of the bundle, and the page."""

from __future__ import annotations

from pathlib import Path

from fastapi import APIRouter, Depends, Request
from starlette.responses import FileResponse, Response
from starlette.staticfiles import StaticFiles

from service.inference.runtime import Runtime, ServingState
from service.llm.refine import Refiner
from service.routes.openapi import NO_KEY, NOT_READY, problem_responses
from service.schemas.models import AliveResponse, BundleInfo, HealthResponse, QueueInfo
from service.web.auth import require_api_key

STATIC = Path(__file__).parent.parent / "static"
REVALIDATE = {"Cache-Control": "no-cache"}
router = APIRouter()


@router.post(
    "/reload",
    response_model=HealthResponse,
    summary="Reload the bundle from disk",
    dependencies=[Depends(require_api_key)],
    responses={
        **NO_KEY,
        **problem_responses(409, "Not swapped; the present bundle keeps serving.", "reload_refused"),
        **NOT_READY,
    },
)
async def reload(request: Request) -> HealthResponse:
    """Load the bundle again and serve it; requests in flight finish with the previous one."""
    runtime: Runtime = request.app.state.runtime
    return _health(request, await runtime.reload())


@router.get(
    "/health",
    response_model=HealthResponse,
    summary="Whether the service is ready, and its bundle",
    responses={**NOT_READY},
)
async def health(request: Request) -> HealthResponse:
    """200 when ready; 503 with the reason while the model is loaded or if that failed."""
    runtime: Runtime = request.app.state.runtime
    runtime.check_accepting()
    return _health(request, runtime.serving())


def _health(request: Request, serving: ServingState) -> HealthResponse:
    model = serving.model
    runtime: Runtime = request.app.state.runtime
    refiner: Refiner = request.app.state.refiner
    admission = runtime.admission
    return HealthResponse(
        status="ready",
        device=serving.device,
        bundle=BundleInfo(name=model.name, digest=model.digest, hydrated=model.hydrated),
        cases=serving.case_index.cases,
        texts=serving.case_index.texts,
        refine=refiner.configured,
        queue=QueueInfo(depth=admission.in_use, waiting=serving.backend.waiting, capacity=admission.capacity),
        model=model,
    )


@router.get("/livez", response_model=AliveResponse, summary="Whether the process responds")
async def livez() -> AliveResponse:
    """200 while the process responds, independently of the model."""
    return AliveResponse(status="alive")


@router.get("/metrics", include_in_schema=False)
async def metrics(request: Request) -> Response:
    """Metrics in the Prometheus text format."""
    runtime: Runtime = request.app.state.runtime
    return runtime.metrics.response()


@router.get("/", include_in_schema=False)
async def page() -> Response:
    """The page."""
    return FileResponse(STATIC / "index.html", media_type="text/html; charset=utf-8", headers=REVALIDATE)


class RevalidatedStaticFiles(StaticFiles):
    """Files of the page, which a browser revalidates on every use to see an update at once."""

    def file_response(self, *args: object, **kwargs: object) -> Response:
        response = super().file_response(*args, **kwargs)  # type: ignore[arg-type]
        response.headers.update(REVALIDATE)
        return response
