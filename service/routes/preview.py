"""``POST /preview``: a radiograph as a JPEG that every browser displays."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from functools import partial

from fastapi import APIRouter, Depends, Request, Response

from model.images import ImageError, ImageLimits, thumbnail
from service.inference.runtime import Runtime
from service.inference.threads import run_in_temporary_thread
from service.routes.openapi import (
    FORM_PROBLEMS,
    INTERNAL,
    NOT_READY_OR_BUSY,
    PICTURE,
    form_body,
    problem_responses,
)
from service.schemas.examples import PREVIEW_FORM_EXAMPLES
from service.schemas.forms import PreviewForm
from service.web.auth import require_api_key_if_configured
from service.web.disconnect import cancel_on_disconnect
from service.web.problems import Problem
from service.web.request_body import read_form

PREVIEW_SIDE = 1536  # pixels of the longer side
router = APIRouter()


@router.post(
    "/preview",
    response_class=Response,
    summary="A radiograph as a picture for browsers",
    dependencies=[Depends(require_api_key_if_configured)],
    openapi_extra=form_body(PreviewForm, PREVIEW_FORM_EXAMPLES),
    responses={
        **PICTURE,
        **FORM_PROBLEMS,
        **problem_responses(
            422,
            "The image is missing or wrong.",
            *("unknown_field", "missing_image", "too_small", "too_complex", "not_a_radiograph"),
        ),
        **INTERNAL,
        **NOT_READY_OR_BUSY,
    },
)
async def preview(request: Request) -> Response:
    """The grey values for the model, in the image's aspect ratio, reduced to 1,536 pixels.

    Mainly for DICOM, which browsers cannot display. The picture has no data of the header and is
    not stored.
    """
    runtime: Runtime = request.app.state.runtime
    settings = runtime.settings
    runtime.serving()
    with request.app.state.auxiliary_limiter.acquire_slot():
        form = await read_form(
            request, PreviewForm, max_file_bytes=settings.max_upload_bytes, timeout_s=settings.upload_timeout_s
        )
        render = partial(_render, form.image, ImageLimits(max_pixels=settings.max_pixels))
        try:
            async with asyncio.timeout(settings.request_timeout_s):
                picture = await cancel_on_disconnect(request, _one_at_a_time(request.app.state.preview_lock, render))
        except TimeoutError as error:
            detail = f"The picture was not ready within {settings.request_timeout_s:g} s. Try again in a moment."
            raise Problem("deadline", detail, headers={"Retry-After": "5"}) from error
    return Response(picture, media_type="image/jpeg", headers={"Cache-Control": "private, no-store"})


async def _one_at_a_time(lock: asyncio.Lock, render: Callable[[], bytes]) -> bytes:
    """Render under the lock, because a large image needs a gigabyte.

    The lock is held until the thread ends, even if the client disconnects before.
    """
    await lock.acquire()
    rendering = asyncio.ensure_future(run_in_temporary_thread(render))

    def finished(_: object) -> None:
        lock.release()
        if not rendering.cancelled():
            rendering.exception()  # mark it as retrieved: after a disconnect no caller awaits it

    rendering.add_done_callback(finished)
    return await asyncio.shield(rendering)


def _render(data: bytes, limits: ImageLimits) -> bytes:
    try:
        return thumbnail(data, PREVIEW_SIDE, limits=limits)
    except ImageError as error:
        raise Problem(error.code, str(error), field="image") from error
