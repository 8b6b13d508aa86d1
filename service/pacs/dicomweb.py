"""Reads studies from a PACS and stores reports in it by DICOMweb: each operation is one ``Connection`` in a thread."""

from __future__ import annotations

import asyncio
import base64
import importlib
import importlib.util
import logging
from collections.abc import Callable, Mapping
from typing import TypeVar
from weakref import WeakValueDictionary

from model.types import View
from service.formats.dicom_source import SourceImage, StoredReport
from service.inference.threads import run_in_temporary_thread
from service.pacs.connection import Connection, FetchedStudy
from service.pacs.prior import PriorSearch, find_prior
from service.pacs.structured_report import identity
from service.pacs.transport import Transport
from service.schemas.models import ReportResponse
from service.settings import Settings
from service.web.problems import Problem

T = TypeVar("T")
log = logging.getLogger(__name__)


class Pacs:
    """The configured DICOMweb server."""

    def __init__(self, settings: Settings) -> None:
        """Store the settings; no connection is opened.

        Raises:
            ValueError: the file of the credentials has become invalid.
        """
        self.url = (settings.dicomweb_url or "").rstrip("/")
        self.max_file_bytes, self.timeout_s = settings.max_upload_bytes, settings.dicomweb_timeout_s
        self.authorization = _authorization(settings.dicomweb_credentials())
        self._locks: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()
        if self.url and _missing():
            log.warning("REPORT_DICOMWEB_URL is set, but %s", _missing())

    def check_configured(self) -> None:
        """Check that there is a PACS, and the packages for it.

        Raises:
            Problem: ``no_pacs``, 404.
        """
        if not self.url:
            raise Problem("no_pacs", "Set REPORT_DICOMWEB_URL to the DICOMweb address of the PACS and restart.")
        if reason := _missing():
            raise Problem("no_pacs", f"{reason[0].upper()}{reason[1:]}. Install it and restart.")

    async def fetch(self, study_uid: str, named: Mapping[View, str]) -> FetchedStudy:
        """Choose and read the images of a study.

        Args:
            study_uid: a valid UID.
            named: as of ``select_images``.

        Raises:
            Problem: no PACS is configured; it fails; the study is not usable.
        """
        return await self._run(lambda connection: connection.fetch(study_uid, named))

    async def find_prior(self, study_uid: str) -> PriorSearch:
        """The newest earlier chest study of the patient of a study.

        Raises:
            Problem: as of ``fetch``.
        """
        return await self._run(lambda connection: find_prior(connection, study_uid))

    async def store(self, report: ReportResponse, sources: tuple[SourceImage, ...]) -> tuple[StoredReport, bool]:
        """Store the structured report, unless the PACS has it.

        Returns:
            The identity of the report, and whether it was stored now.

        Raises:
            Problem: the PACS fails or refuses the report; no report can be written.
        """
        await run_in_temporary_thread(lambda: importlib.import_module("service.formats.sr"))  # seconds, once
        lock = self._locks.setdefault(identity(report, sources).sop_instance_uid, asyncio.Lock())
        async with lock:  # a report that is requested twice at a time is stored once
            return await self._run(lambda connection: connection.store(report, sources))

    async def store_file(self, report: bytes) -> None:
        """Store a structured report, a DICOM file; one that the PACS has is stored again, or not.

        Raises:
            Problem: the PACS fails or refuses the report.
        """
        await self._run(lambda connection: connection.put(report))

    async def read_file(self, study_uid: str, series_uid: str, sop_uid: str) -> bytes:
        """An instance of a study; the UIDs are valid.

        Raises:
            Problem: as of ``fetch``.
        """
        return await self._run(lambda connection: connection.file(study_uid, series_uid, sop_uid))

    async def _run(self, work: Callable[[Connection], T]) -> T:
        """Run an operation in a thread; cancellation ends its exchange."""
        self.check_configured()
        transport = Transport(self.url, self.authorization, self.timeout_s)
        try:
            return await run_in_temporary_thread(lambda: work(Connection(self.url, self.max_file_bytes, transport)))
        except Problem as problem:
            if problem.status > 500:
                log.warning("the PACS failed: %s", problem.detail)
            raise
        finally:
            transport.close()


def _authorization(credentials: str | None) -> str | None:
    if credentials is None:
        return None
    is_basic = ":" in credentials
    return f"Basic {base64.b64encode(credentials.encode()).decode()}" if is_basic else f"Bearer {credentials}"


def _missing() -> str | None:
    """Why studies of a PACS cannot be read; None if they can."""
    lacks = [name for name in ("dicomweb_client", "highdicom") if importlib.util.find_spec(name) is None]
    return f"the service lacks {' and '.join(lacks)} (pip install '.[pacs]' in the source tree)" if lacks else None
