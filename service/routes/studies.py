"""Studies of the PACS: ``POST /studies/{StudyInstanceUID}/report``, ``GET …/images`` and ``GET …/prior``."""

from __future__ import annotations

import io
import time
import zipfile
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import replace

from fastapi import APIRouter, Depends, Request
from starlette.concurrency import run_in_threadpool
from starlette.responses import Response

from model.images.dicom.header import is_uid
from service.formats.dicom_source import ExportContext
from service.formats.negotiation import SR, Offer, parse_accept, sr_response
from service.inference.runtime import Runtime
from service.llm.refine import with_timing
from service.pacs.connection import FetchedStudy
from service.pacs.dicomweb import Pacs
from service.pacs.prior import PriorStudy
from service.routes.drafting import Drafting
from service.routes.openapi import (
    BODY_PROBLEMS,
    INTERNAL,
    NOT_ACCEPTABLE,
    Responses,
    form_body,
    formats_response,
    problem_responses,
)
from service.routes.streaming import EarlyCallback
from service.schemas.examples import STUDY_FORM_EXAMPLES
from service.schemas.forms import StudyForm
from service.schemas.models import (
    LeftOutOut,
    PriorResponse,
    PriorStudyOut,
    ReportResponse,
    StoredReportOut,
    StudyImageOut,
    StudyOut,
    StudyReportResponse,
)
from service.settings import Settings
from service.web.auth import require_api_key_if_configured
from service.web.disconnect import cancel_on_disconnect
from service.web.middleware import STORED_HEADER
from service.web.problems import Problem
from service.web.request_body import read_form

_PROBLEMS: Responses = {
    **problem_responses(404, "No PACS is configured, or it has no such study.", "no_pacs", "no_such_study"),
    **problem_responses(
        502, "The PACS fails.", *("pacs_forbidden", "pacs_unreachable", "pacs_broken", "pacs_not_stored")
    ),
    **problem_responses(504, "The PACS took too long.", "pacs_timeout"),
}
_READING: Responses = {
    **_PROBLEMS,
    **problem_responses(
        422,
        "The study cannot be drafted.",
        *("malformed_value", "study_empty", "study_ambiguous", "study_too_large", "two_patients"),
    ),
    **problem_responses(503, "Not ready, or busy (with Retry-After).", "loading", "busy"),
}
router = APIRouter()


@router.post(
    "/studies/{StudyInstanceUID}/report",
    response_model=StudyReportResponse,
    summary="Draft the findings of a study of the PACS",
    dependencies=[Depends(require_api_key_if_configured)],
    openapi_extra=form_body(StudyForm, STUDY_FORM_EXAMPLES, "May be missing. Each field at most once."),
    responses={
        **formats_response(drafts=True, schema=StudyReportResponse),
        **_PROBLEMS,
        **BODY_PROBLEMS,
        **NOT_ACCEPTABLE,
        **problem_responses(
            400, "The body cannot be parsed, or the request comes from a foreign page.", "malformed_multipart",
            "cross_origin",
        ),
        **problem_responses(
            415, "The body is not a form, or an image is not supported.", "not_multipart", "unsupported_transfer_syntax"
        ),
        **problem_responses(
            422,
            "A field is wrong, or the study cannot be drafted.",
            *("malformed_value", "unknown_field", "unknown_value", "out_of_range", "too_small", "too_complex"),
            *("study_empty", "study_ambiguous", "study_too_large", "two_patients"),
        ),
        **INTERNAL,
        **problem_responses(
            503,
            "Not ready, busy, too slow, or lost (with Retry-After).",
            *("loading", "busy", "deadline", "replica_lost"),
        ),
    },
)  # fmt: skip
async def study_report(
    request: Request, response: Response, StudyInstanceUID: str
) -> StudyReportResponse | ReportResponse | Response:
    """Draft the frontal and the lateral radiograph of a study, which the service reads from its PACS.

    `study` of the response says which instances were read, and why the others were not. FHIR and
    the structured report name the patient. Formats and events are those of `POST /report`.

    `store=true` stores the structured report in the study, as a new series, preliminary and
    unverified. A study, bundle and set of images has one such report: a second request does not
    store it again. The structured report of the response is then the stored one. Other formats
    than JSON name it in the header `X-Stored-Report`, FHIR also in an extension.
    """
    started = time.perf_counter()
    runtime: Runtime = request.app.state.runtime
    settings = runtime.settings
    formats = parse_accept(request.headers.getlist("accept"))
    pacs = _pacs_of(request, StudyInstanceUID)
    runtime.check_accepting()
    with ExitStack() as stack:
        slot = stack.enter_context(ExitStack())
        slot.enter_context(runtime.admission.acquire_slot())
        form = await read_form(
            request,
            StudyForm,
            max_file_bytes=settings.max_upload_bytes,
            timeout_s=settings.upload_timeout_s,
            optional=True,
        )
        study = await cancel_on_disconnect(request, pacs.fetch(StudyInstanceUID, form.named()))
        drafting = _StudyDrafting(request, form, study, slot, started)
        if form.stream == "true":
            return drafting.stream(formats, stack)
        context = ExportContext(tuple(drafting.images), study.sources, from_pacs=True)
        return await drafting.respond(formats, context, response)


@router.get(
    "/studies/{StudyInstanceUID}/images",
    response_class=Response,
    summary="The images of a study of the PACS that are read",
    dependencies=[Depends(require_api_key_if_configured)],
    responses={
        200: {
            "description": "A zip archive of frontal.dcm and lateral.dcm, or of one of them.",
            "content": {"application/zip": {"schema": {"type": "string", "format": "binary"}}},
        },
        **_READING,
    },
)
async def study_images(request: Request, StudyInstanceUID: str) -> Response:
    """The files as the PACS has them, for the page; `POST /studies/{StudyInstanceUID}/report` reads the same ones."""
    runtime: Runtime = request.app.state.runtime
    pacs = _pacs_of(request, StudyInstanceUID)
    runtime.check_accepting()
    with runtime.admission.acquire_slot():
        study = await cancel_on_disconnect(request, pacs.fetch(StudyInstanceUID, {}))
        return Response(await run_in_threadpool(_archive, study.images), media_type="application/zip")


@router.get(
    "/studies/{StudyInstanceUID}/prior",
    response_model=PriorResponse,
    summary="The earlier chest study of the patient, for the reader",
    dependencies=[Depends(require_api_key_if_configured)],
    responses=_READING,
)
async def prior_study(request: Request, StudyInstanceUID: str) -> PriorResponse:
    """The newest CR or DX study of the chest before this one, whose images `GET /studies/…/images` returns.

    The PACS is searched by PatientID; issuer and birth date must not contradict. No draft uses it.
    """
    runtime: Runtime = request.app.state.runtime
    pacs = _pacs_of(request, StudyInstanceUID)
    if not runtime.settings.dicomweb_prior:
        return PriorResponse(status="off")
    runtime.check_accepting()
    with runtime.admission.acquire_slot():
        found = await cancel_on_disconnect(request, pacs.find_prior(StudyInstanceUID))
    return PriorResponse(
        status=found.status,
        study_date=_iso_date(found.study_date) if found.study_date else None,
        prior=None if found.prior is None else _prior_out(found.prior),
    )


def _prior_out(prior: PriorStudy) -> PriorStudyOut:
    return PriorStudyOut(
        study_instance_uid=prior.study_instance_uid,
        study_date=_iso_date(prior.study_date),
        views=[view.value for view in prior.views],
    )


def _iso_date(date: str) -> str:
    return f"{date[:4]}-{date[4:6]}-{date[6:]}"


def _archive(images: Mapping[str, bytes]) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:  # the images are not compressed again
        for view, data in images.items():
            archive.writestr(f"{view}.dcm", data)
    return file.getvalue()


def _pacs_of(request: Request, study_uid: str) -> Pacs:
    """The configured PACS.

    Raises:
        Problem: there is none, the UID is not valid, or a page of another origin sends the request.
    """
    pacs: Pacs = request.app.state.pacs
    if _is_of_another_origin(request) and not _is_shared_with(request):
        detail = (
            "Pages of other origins may not read studies of the PACS. Call from the service's own page, or from an "
            "origin of REPORT_CORS_ORIGINS if the service has an API key."
        )
        raise Problem("cross_origin", detail)
    pacs.check_configured()
    if not is_uid(study_uid):
        detail = "The address has no valid StudyInstanceUID. Send POST /studies/1.2.840.…/report."
        raise Problem("malformed_value", detail, field="StudyInstanceUID")
    return pacs


def _is_of_another_origin(request: Request) -> bool:
    """Whether a page of another origin sends the request; over plain HTTP, browsers send no Sec-Fetch-Site."""
    headers = request.headers
    if site := headers.get("sec-fetch-site"):
        return site not in ("none", "same-origin")
    origin = headers.get("origin")
    return origin is not None and origin.partition("://")[2] != headers.get("host")


def _is_shared_with(request: Request) -> bool:
    """Whether the origin is configured, and a key protects the studies; a page of that origin has to send it."""
    settings: Settings = request.app.state.runtime.settings
    return bool(request.app.state.keys) and request.headers.get("origin") in settings.cors_origins


class _StudyDrafting(Drafting):
    """Adds what was read to the draft, and stores the report."""

    arrival = "fetch"

    def __init__(self, request: Request, form: StudyForm, study: FetchedStudy, slot: ExitStack, started: float) -> None:
        super().__init__(request, form, study.images, slot, started)
        self._pacs: Pacs = request.app.state.pacs
        self._study, self._store = study, form.store == "true"
        self._stored: StoredReportOut | None = None

    async def run(self, on_event: EarlyCallback | None = None) -> StudyReportResponse:
        result = await super().run(on_event)
        if self._store:
            started = time.monotonic()
            report, is_new = await self._pacs.store(result, self._study.sources)
            result = with_timing(result, started, "store")
            self._stored = StoredReportOut(
                sop_instance_uid=report.sop_instance_uid,
                series_instance_uid=report.series_instance_uid,
                status="stored" if is_new else "already_stored",
            )
        return StudyReportResponse(**dict(result), study=_study_out(self._study, self._stored))

    async def write(self, result: ReportResponse, context: ExportContext, offer: Offer) -> ReportResponse | Response:
        stored = self._stored
        if stored is None:
            return await super().write(result, context, offer)
        response: ReportResponse | Response
        if offer is SR:
            study_uid = self._study.sources[0].study_instance_uid
            uids = stored.series_instance_uid, stored.sop_instance_uid
            response = sr_response(await self._pacs.read_file(study_uid, *uids))
        else:
            response = await super().write(result, replace(context, stored=stored), offer)
        if isinstance(response, Response):
            response.headers[STORED_HEADER] = f"{stored.status}; sop-instance-uid={stored.sop_instance_uid}"
        return response


def _study_out(study: FetchedStudy, stored: StoredReportOut | None) -> StudyOut:
    images = [
        StudyImageOut(
            view=view.value, sop_instance_uid=image.sop_instance_uid, series_instance_uid=image.series_instance_uid
        )
        for view, image in study.selection.images.items()
    ]
    left_out = [LeftOutOut.model_validate(each, from_attributes=True) for each in study.selection.left_out]
    study_uid = study.sources[0].study_instance_uid
    return StudyOut(study_instance_uid=study_uid, images=images, left_out=left_out, stored=stored)
