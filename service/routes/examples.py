"""``GET /examples``: studies to try the page with, and their images.

They need no key, as the files of the page: the page offers them before it asks for a key, they are
published under licences that allow copies, and no request computes anything.
"""

from __future__ import annotations

import logging
from typing import Annotated

from fastapi import APIRouter, Path, Request
from starlette.concurrency import run_in_threadpool
from starlette.responses import FileResponse, Response

from retrieval_index.examples import Example, ExamplesError, read_examples
from service.routes.openapi import problem_responses
from service.schemas.example_studies import ExampleOut, ExamplesResponse
from service.settings import Settings
from service.web.problems import Problem

CACHE = {"Cache-Control": "public, max-age=3600"}
log = logging.getLogger(__name__)
router = APIRouter()


@router.get("/examples", response_model=ExamplesResponse, summary="Example studies for the page")
async def list_examples(request: Request) -> ExamplesResponse:
    """Radiographs that ``make serve`` fetched, and drawings; empty without ``REPORT_EXAMPLES_DIR``."""
    found = await run_in_threadpool(_examples, _settings(request))
    return ExamplesResponse(examples=[_answer(example) for example in found])


@router.get(
    "/examples/{file}",
    response_class=Response,
    summary="An image of an example study",
    responses={
        200: {
            "description": "The image.",
            "content": {"image/png": {"schema": {"type": "string", "format": "binary"}}},
        },
        **problem_responses(404, "No example has this file.", "not_found"),
    },
)
async def get_example(
    request: Request, file: Annotated[str, Path(description="A file from images of GET /examples.")]
) -> Response:
    """The file as its source publishes it."""
    settings = _settings(request)
    found = await run_in_threadpool(_examples, settings)
    if settings.examples_dir is None or file not in {name for example in found for name in example.files.values()}:
        raise Problem("not_found", "No example has this file. GET /examples lists them.")
    return FileResponse(settings.examples_dir / file, media_type="image/png", headers=CACHE)


def _settings(request: Request) -> Settings:
    settings: Settings = request.app.state.runtime.settings
    return settings


def _examples(settings: Settings) -> tuple[Example, ...]:
    """The examples now: a fetch may add some while the service runs."""
    if settings.examples_dir is None:
        return ()
    try:
        return read_examples(settings.examples_dir)
    except ExamplesError as error:
        log.warning("no examples are offered: %s", error)
        return ()


def _answer(example: Example) -> ExampleOut:
    values = {name: value for name, value in vars(example).items() if name != "files"}
    return ExampleOut(**values, images={view: f"examples/{file}" for view, file in example.files.items()})
