"""Error responses as RFC 9457 ``application/problem+json``: a stable code and a detail.

``CODES`` lists all codes. A ``Problem`` raised anywhere below the app becomes its response. An
unexpected exception becomes ``internal``; the log gets its type and code locations, never its
message, which might quote a report.
"""

from __future__ import annotations

import asyncio
import logging
import traceback
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from http import HTTPStatus

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse, Response

from service.schemas.examples import INTERNAL_DETAIL
from service.schemas.models import ProblemDetails

MEDIA_TYPE = "application/problem+json"
TYPE_PREFIX = "urn:problem-type:cxr-report:"
PROBLEM_CODE_SCOPE_KEY = "cxr_report.problem_code"  # of the ASGI scope: code of the problem that was sent
CLIENT_DISCONNECTED = "client_disconnected"
STOPPING = "The service is stopping; send the request again in a moment."
log = logging.getLogger(__name__)

# code -> (status, title)
CODES: dict[str, tuple[int, str]] = {
    "malformed_multipart": (400, "The multipart body is malformed"),
    "cross_origin": (400, "This origin is not allowed"),
    "unauthorized": (401, "An API key is required"),
    "no_api_key": (403, "The service has no API key, which this endpoint requires"),
    "cases_off": (403, "Access to the reference cases is disabled"),
    "not_found": (404, "There is no such endpoint"),
    "no_such_case": (404, "There is no such reference case"),
    "no_pacs": (404, "No PACS is configured"),
    "no_worklist": (404, "No worklist is configured"),
    "no_such_study": (404, "The PACS has no such study"),
    "method_not_allowed": (405, "This endpoint does not support the method"),
    "not_acceptable": (406, "No supported media type is accepted"),
    "upload_timeout": (408, "The request took too long to arrive"),
    "upload_too_large": (413, "The upload is too large"),
    "not_json": (415, "The body is not JSON"),
    "not_multipart": (415, "The body is not multipart/form-data"),
    "unsupported_encoding": (415, "The body is compressed"),
    "unsupported_format": (415, "This image format is not supported"),
    "unsupported_transfer_syntax": (415, "This DICOM compression is not supported"),
    "unknown_field": (422, "Unknown field"),
    "duplicate_field": (422, "A field was sent twice"),
    "missing_image": (422, "No radiograph was sent"),
    "missing_field": (422, "A field is missing"),
    "empty": (422, "A field is empty"),
    "not_a_file": (422, "A field holds text instead of a file"),
    "not_a_number": (422, "A field is not a whole number"),
    "unknown_value": (422, "The value of a field is not allowed"),
    "out_of_range": (422, "A field is out of range"),
    "malformed_value": (422, "The value of a field is malformed"),
    "no_known_word": (422, "No word of the findings is in the vocabulary"),
    "not_an_image": (422, "The file is not an image"),
    "truncated": (422, "The image file is damaged or cut short"),
    "animated": (422, "The image has more than one frame"),
    "not_a_radiograph": (422, "The DICOM object is not a radiograph"),
    "for_processing": (422, "The DICOM image is not for presentation"),
    "no_pixels": (422, "The DICOM object has no pixels"),
    "unsupported_pixels": (422, "The pixels of this DICOM image are not supported"),
    "too_small": (422, "The image is too small"),
    "too_large": (422, "The image has too many pixels"),
    "too_complex": (422, "The image takes too much work to decode"),
    "reload_refused": (409, "The bundle was not swapped"),
    "no_retrieval": (409, "The bundle has no reference cases"),
    "case_exists": (409, "A reference case with this id exists already"),
    "case_of_bundle": (409, "This reference case belongs to the bundle"),
    "study_empty": (422, "The study has no frontal or lateral chest radiograph"),
    "study_ambiguous": (422, "The views of the study are not known"),
    "study_too_large": (422, "The study or one of its images is too large"),
    "two_patients": (422, "The images of the study are of different patients or studies"),
    "invalid_request": (422, "The request is not valid"),
    "internal": (500, "The service failed"),
    "pacs_forbidden": (502, "The PACS refuses the service"),
    "pacs_unreachable": (502, "The PACS cannot be reached"),
    "pacs_broken": (502, "The answer of the PACS is not valid"),
    "pacs_not_stored": (502, "The report was not stored in the PACS"),
    "loading": (503, "The model is still being loaded"),
    "failed": (503, "The model cannot be served"),
    "busy": (503, "The service is busy"),
    "deadline": (503, "The response took too long"),
    "memory": (503, "The device has too little memory"),
    "replica_lost": (503, "The model's process was lost"),
    "worklist_unreadable": (503, "The worklist cannot be read"),
    "stopping": (503, "The service is stopping"),
    "pacs_timeout": (504, "The PACS took too long"),
    "cases_disk": (507, "The added cases cannot be written to disk"),
}


class Problem(Exception):  # noqa: N818 - the term of RFC 9457
    """An error response.

    Args:
        code: one of ``CODES``.
        detail: the cause, with the value, and the remedy; never a file name.
        field: the form field at fault.
        headers: more response headers.
    """

    def __init__(
        self, code: str, detail: str, *, field: str | None = None, headers: Mapping[str, str] | None = None
    ) -> None:
        super().__init__(f"{code}: {detail}")
        self.code, self.detail, self.field = code, detail, field
        self.status, self.title = CODES[code]
        self.headers = dict(headers or {})

    def details(self) -> ProblemDetails:
        """The body of the response."""
        return _details(self.status, self.code, self.title, self.detail, self.field)

    def response(self) -> Response:
        """The problem as a response."""
        return _response(self.details(), self.headers)


def _details(status: int, code: str, title: str, detail: str, field: str | None = None) -> ProblemDetails:
    return ProblemDetails(type=TYPE_PREFIX + code, title=title, status=status, detail=detail, code=code, field=field)


def _response(body: ProblemDetails, headers: Mapping[str, str]) -> Response:
    return JSONResponse(
        body.model_dump(),
        status_code=body.status,
        media_type=MEDIA_TYPE,
        headers={"Cache-Control": "no-store", **headers},
    )


def stopping() -> Problem:
    """The problem of a request that the shutdown cancels, or that arrives after it."""
    return Problem("stopping", STOPPING, headers={"Retry-After": "5", "Connection": "close"})


@asynccontextmanager
async def deadline(limit_s: Callable[[], float], what: str) -> AsyncIterator[None]:
    """Cancel the work of the context after ``limit_s`` seconds.

    The limit is read at the start and again when it ends; a larger one extends it, never a smaller one.

    Raises:
        Problem: ``deadline``, 503; the detail begins with ``what``, which was not ready.
    """
    loop = asyncio.get_running_loop()
    started, allowed_s = loop.time(), limit_s()
    timeout = asyncio.timeout(None)
    timer: asyncio.TimerHandle

    def expire() -> None:
        nonlocal allowed_s, timer
        allowed_s = max(allowed_s, limit_s())
        if loop.time() < started + allowed_s:
            timer = loop.call_at(started + allowed_s, expire)
        else:
            timeout.reschedule(loop.time())

    timer = loop.call_at(started + allowed_s, expire)
    try:
        async with timeout:
            yield
    except TimeoutError as error:
        detail = f"{what} was not ready within {allowed_s:.3g} s (REPORT_REQUEST_TIMEOUT_S). Try again in a moment."
        raise Problem("deadline", detail, headers={"Retry-After": "5"}) from error
    finally:
        timer.cancel()


def internal_error(error: BaseException) -> Problem:
    """The problem of an unexpected exception; logs its type and code locations."""
    log.error("unhandled %s\n%s", type(error).__name__, format_traceback_locations(error))
    return Problem("internal", INTERNAL_DETAIL)


def install(app: FastAPI) -> None:
    """Register the handlers that answer every error with a problem."""

    async def on_problem(request: Request, error: Exception) -> Response:
        assert isinstance(error, Problem)
        request.scope[PROBLEM_CODE_SCOPE_KEY] = error.code
        return error.response()

    async def on_http_exception(request: Request, error: Exception) -> Response:
        assert isinstance(error, HTTPException)
        request.scope[PROBLEM_CODE_SCOPE_KEY] = f"http_{error.status_code}"
        headers = error.headers or {}
        if error.status_code == HTTPStatus.NOT_FOUND:
            return Problem(
                "not_found",
                "The service answers at /, /report, /studies, /preview, /export, /cases, /worklist, /examples, "
                "/health, /livez, /metrics, /reload and /openapi.json.",
                headers=headers,
            ).response()
        if error.status_code == HTTPStatus.METHOD_NOT_ALLOWED:
            allowed = headers.get("Allow", "")
            detail = f"This endpoint supports {allowed} only." if allowed else "Use another method."
            return Problem("method_not_allowed", detail, headers=headers).response()
        title = HTTPStatus(error.status_code).phrase
        return _response(_details(error.status_code, f"http_{error.status_code}", title, str(error.detail)), headers)

    async def on_invalid(request: Request, error: Exception) -> Response:
        assert isinstance(error, RequestValidationError)
        request.scope[PROBLEM_CODE_SCOPE_KEY] = "invalid_request"
        first = error.errors()[0]
        return Problem("invalid_request", str(first["msg"]), field=str(first["loc"][-1])).response()

    app.add_exception_handler(Problem, on_problem)
    app.add_exception_handler(HTTPException, on_http_exception)
    app.add_exception_handler(RequestValidationError, on_invalid)


def format_traceback_locations(error: BaseException) -> str:
    """File, line and function of each frame of the traceback, without messages or values."""
    return "\n".join(
        f"  {frame.filename}:{frame.lineno} in {frame.name}" for frame in traceback.extract_tb(error.__traceback__)
    )
