"""``POST /preview``: a radiograph as a JPEG that every browser displays."""

from __future__ import annotations

from fastapi import APIRouter, Depends, Request, Response

from model.images import ImageError
from service.inference.runtime import Runtime
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
from service.web.problems import Problem, deadline
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
    runtime.check_accepting()
    with runtime.admission.acquire_slot():
        form = await read_form(
            request, PreviewForm, max_file_bytes=settings.max_upload_bytes, timeout_s=settings.upload_timeout_s
        )
        try:
            async with deadline(runtime.request_timeout_s, "The picture"):
                picture = await cancel_on_disconnect(request, runtime.decoder.thumbnail(form.image, PREVIEW_SIDE))
        except ImageError as error:
            raise Problem(error.code, str(error), field="image") from error
    return Response(picture, media_type="image/jpeg", headers={"Cache-Control": "private, no-store"})
