"""``POST /preview``: a radiograph as a picture that every browser draws, by the reader that drafting uses."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from functools import partial

from fastapi import APIRouter, Depends, Request, Response

from model.images import ImageError, ImageLimits, thumbnail
from service.inference.runtime import Runtime
from service.inference.threads import run_in_temporary_thread
from service.openapi import PREVIEW
from service.web.auth import require_api_key_if_configured
from service.web.disconnect import cancel_on_disconnect
from service.web.multipart import FormField, read_form
from service.web.problems import Problem

FIELD = "image"
PREVIEW_SIDE = 1536  # pixels of the longer side
router = APIRouter()


@router.post(
    "/preview",
    response_class=Response,
    summary="A radiograph as a picture that browsers draw",
    dependencies=[Depends(require_api_key_if_configured)],
    **PREVIEW,
)
async def preview(request: Request) -> Response:
    """The grey values that a draft would be made of, in the image's own proportions, reduced to 1,536 pixels.

    For DICOM above all, which no browser draws. The picture holds nothing of the header, and nothing is kept.
    """
    runtime: Runtime = request.app.state.runtime
    one_at_a_time: asyncio.Lock = request.app.state.preview_lock
    settings = runtime.settings
    runtime.serving()
    with request.app.state.auxiliary_limiter.acquire_slot():
        form = await read_form(
            request, {FIELD: FormField.file(settings.max_upload_bytes)}, timeout_s=settings.upload_timeout_s
        )
        data = form.file(FIELD)
        if data is None:
            raise Problem("missing_image", f"No {FIELD} was sent. Send one as a file.")
        draw = partial(_picture, data, ImageLimits(max_pixels=settings.max_pixels))
        try:
            async with asyncio.timeout(settings.request_timeout_s):
                picture = await cancel_on_disconnect(request, _in_turn(one_at_a_time, draw))
        except TimeoutError as error:
            detail = f"The picture was not ready within {settings.request_timeout_s:g} s. Try again in a moment."
            raise Problem("deadline", detail, headers={"Retry-After": "5"}) from error
    return Response(picture, media_type="image/jpeg", headers={"Cache-Control": "private, no-store"})


async def _in_turn(one_at_a_time: asyncio.Lock, draw: Callable[[], bytes]) -> bytes:
    """Draw when nobody else does: a large image takes a gigabyte meanwhile, also where its client has left."""
    await one_at_a_time.acquire()
    drawing = asyncio.ensure_future(run_in_temporary_thread(draw))

    def finished(_: object) -> None:
        one_at_a_time.release()
        if not drawing.cancelled():
            drawing.exception()  # of one that nobody awaits any more

    drawing.add_done_callback(finished)
    return await asyncio.shield(drawing)


def _picture(data: bytes, limits: ImageLimits) -> bytes:
    try:
        return thumbnail(data, PREVIEW_SIDE, limits=limits)
    except ImageError as error:
        raise Problem(error.code, str(error), field=FIELD) from error
