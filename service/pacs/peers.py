"""What the node talks to: the report service, and the archive that receives structured reports."""

from __future__ import annotations

import asyncio
import io
import random
import time
from collections.abc import Collection, Mapping
from typing import Any, Protocol

import httpx
from pydantic import ValidationError
from pydicom import dcmread
from pydicom.uid import ExplicitVRLittleEndian, ImplicitVRLittleEndian
from pynetdicom import AE, evt

from model.types import View
from service.pacs.commitment import PUSH_MODEL, Commitments
from service.pacs.dicomweb import Pacs
from service.pacs.node_settings import Archive, NodeSettings
from service.pacs.structured_report import ENHANCED_SR
from service.schemas.models import ReportResponse
from service.web.problems import Problem

_TIMEOUT_S = 180.0  # of a draft; the service answers within its own limit
_MOST_ANSWER = 8 * 2**20  # bytes
_REFUSALS = {413, 415, 422}  # the images are at fault; another status may change with the configuration
_SUCCESS = (0x0000, 0xB000, 0xB006, 0xB007, 0x0111)  # 0x0111: the archive has this instance already


class PeerError(RuntimeError):
    """A peer gave no usable answer; ``code`` is short and fixed, the message quotes no patient data."""

    def __init__(self, code: str, reason: str) -> None:
        super().__init__(reason)
        self.code = code


class TryLaterError(PeerError):
    """The peer is down, busy, or wrongly configured; with ``study_only`` it only fails on this study."""

    def __init__(self, code: str, reason: str, *, study_only: bool = False) -> None:
        super().__init__(code, reason)
        self.study_only = study_only


class RefusedError(PeerError):
    """The peer refuses this study for good."""


class Backoff:
    """Growing pauses between attempts at one peer, with jitter."""

    def __init__(self, longest_s: float) -> None:
        self._longest_s = longest_s
        self._failures = 0
        self._until = 0.0
        self.reason: str | None = None

    @property
    def waits(self) -> bool:
        """Whether a pause is running."""
        return time.monotonic() < self._until

    def failed(self, reason: str) -> float:
        """Begin a pause and return its length in seconds."""
        pause_s = min(2.0 ** min(self._failures, 30), self._longest_s) * random.uniform(0.75, 1.0)
        self._failures += 1
        self._until, self.reason = time.monotonic() + pause_s, reason
        return pause_s

    def succeeded(self) -> None:
        """The peer answers."""
        self._failures, self._until, self.reason = 0, 0.0, None


class ReportService:
    """A client of ``POST /report``; like that of the language model, it uses no proxy and follows no redirect."""

    def __init__(self, settings: NodeSettings) -> None:
        self._url = f"{settings.report_url}/report"
        key = settings.report_key()
        headers = {"Accept": "application/json", "Accept-Encoding": "identity"}
        self._headers = headers | ({"Authorization": f"Bearer {key}"} if key else {})

    def draft(self, images: Mapping[View, bytes]) -> ReportResponse:
        """The draft of DICOM files.

        Raises:
            TryLaterError: the service does not answer, is not ready, or refuses the key.
            RefusedError: it refuses the images.
        """
        files = {view.value: ("image", data, "application/dicom") for view, data in images.items()}
        try:
            with (
                httpx.Client(timeout=_TIMEOUT_S, trust_env=False) as client,
                client.stream("POST", self._url, files=files, headers=self._headers) as response,
            ):
                body = _limited(response)
        except httpx.HTTPError as error:
            raise TryLaterError(
                "service_down", f"The report service does not answer: {type(error).__name__}."
            ) from None
        if response.status_code == httpx.codes.OK:
            try:
                return ReportResponse.model_validate_json(body)
            except ValidationError:
                raise TryLaterError(
                    "service_broken", "The answer of the report service is not a report. Update both."
                ) from None
        code, detail = _problem(response, body)
        if response.status_code in _REFUSALS:
            raise RefusedError(code, detail)
        study_only = response.status_code == httpx.codes.INTERNAL_SERVER_ERROR
        raise TryLaterError(code, f"The report service answers {response.status_code}: {detail}", study_only=study_only)


def _limited(response: httpx.Response) -> bytes:
    body = bytearray()
    for part in response.iter_raw():
        body += part
        if len(body) > _MOST_ANSWER:
            raise TryLaterError("service_broken", f"The answer of the report service is over {_MOST_ANSWER:,} bytes.")
    return bytes(body)


def _problem(response: httpx.Response, body: bytes) -> tuple[str, str]:
    try:
        problem = httpx.Response(response.status_code, content=body).json()
        return str(problem["code"])[:64], str(problem["detail"])[:1000]
    except (ValueError, KeyError, TypeError):
        return f"http_{response.status_code}", "it is no problem document. Check REPORT_PACS_REPORT_URL."


class Destination(Protocol):
    """Stores structured reports."""

    def store(self, report: bytes) -> None:
        """Store a DICOM file.

        Raises:
            TryLaterError: it was not stored.
        """


class DicomwebArchive:
    """Stores by STOW-RS, and reads by WADO-RS."""

    def __init__(self, pacs: Pacs) -> None:
        self._pacs = pacs

    def store(self, report: bytes) -> None:
        try:
            asyncio.run(self._pacs.store_file(report))
        except Problem as problem:
            raise TryLaterError(problem.code, problem.detail) from None

    def read(self, study: str, series: str, instance: str) -> bytes:
        """An image.

        Raises:
            TryLaterError: the server fails.
            RefusedError: it has no such image.
        """
        try:
            return asyncio.run(self._pacs.read_file(study, series, instance))
        except Problem as problem:
            kind = RefusedError if problem.code in ("no_such_study", "study_too_large") else TryLaterError
            raise kind(problem.code, problem.detail) from None


class StorageScu:
    """Sends by C-STORE, one association for each report; ``commitments`` requests storage commitment."""

    def __init__(self, settings: NodeSettings, archive: Archive, commitments: Commitments | None = None) -> None:
        self._archive, self._commitments = archive, commitments
        self._ae = AE(settings.ae_title)
        self._ae.acse_timeout = self._ae.dimse_timeout = self._ae.network_timeout = settings.network_timeout_s
        self._ae.connection_timeout = settings.network_timeout_s
        self._ae.add_requested_context(ENHANCED_SR, [ExplicitVRLittleEndian, ImplicitVRLittleEndian])
        self._handlers: list[Any] = []
        if commitments is not None:
            self._ae.add_requested_context(PUSH_MODEL)
            self._handlers.append((evt.EVT_N_EVENT_REPORT, commitments.handle))

    def store(self, report: bytes) -> None:
        dataset = dcmread(io.BytesIO(report))
        association = self._ae.associate(
            self._archive.host, self._archive.port, ae_title=self._archive.title, evt_handlers=self._handlers
        )
        if not association.is_established:
            if association.is_rejected:
                reason = "The archive rejects the association. Check the AE titles in both configurations."
                raise TryLaterError("archive_rejects", reason)
            reason = "The archive does not answer, or does not accept Enhanced SR."
            raise TryLaterError("archive_down", reason)
        try:
            answer = association.send_c_store(dataset)
            _check("C-STORE", answer.get("Status"), _SUCCESS)
            if self._commitments is not None:
                if PUSH_MODEL not in (each.abstract_syntax for each in association.accepted_contexts):
                    reason = "The archive refuses storage commitment. Allow it, or set REPORT_PACS_COMMITMENT=false."
                    raise TryLaterError("archive_does_not_commit", reason)
                status = self._commitments.request(association, str(dataset.SOPInstanceUID))
                _check("the request of storage commitment", status, (0x0000,))
        finally:
            association.release()


def _check(request: str, status: int | None, good: Collection[int]) -> None:
    """Raise TryLaterError unless the archive answers a request well."""
    if status is None:
        raise TryLaterError("archive_down", "The archive ended the association before it answered.")
    if status not in good:
        reason = f"The archive answers {request} with status 0x{status:04X}."
        raise TryLaterError("archive_refuses", reason, study_only=True)
