"""The requests of one DICOMweb operation (PS3.18): QIDO-RS, WADO-RS, STOW-RS, in a thread.

dicomweb-client writes and reads the messages, ``transport`` carries them. Answers are untrusted:
every failure is a problem with its code, and no part of an answer is logged or quoted.
"""

from __future__ import annotations

import io
import json
import re
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any, ParamSpec, TypeVar

import pydicom
from pydicom import Dataset
from pydicom.tag import Tag

from model.images import ImageError
from model.images.dicom.header import CAPTURES, FOR_PROCESSING, RADIOGRAPHS, is_uid
from model.types import View
from service.formats.dicom_source import SourceImage, StoredReport, source_image
from service.pacs.selection import HEADER, LeftOut, Selection, select_images, text
from service.pacs.structured_report import DRAFT_HEADER, ENHANCED_SR, identity, newest_draft, write_report
from service.pacs.transport import CHECK, Transport, broken
from service.schemas.models import MAX_INSTANCES, ReportResponse
from service.web.problems import Problem

MAX_HEADERS = 64  # radiographs, and structured reports, of a study whose whole headers are read
MAX_JSON_BYTES = 4 * 1024 * 1024
_MOST_CHARACTERS = 32 * 1024  # of the elements that are read of one header; parsing millions would take minutes
_OVERHEAD = 64 * 1024  # bytes of a multipart answer in addition to its file
_LISTED = {"SOPClassUID": "00080016", "SOPInstanceUID": "00080018", "SeriesInstanceUID": "0020000E"}
_IMAGES = RADIOGRAPHS | CAPTURES | {FOR_PROCESSING, ""}
_MULTIPART = re.compile(r'multipart/related\s*;(?:.*;)?\s*boundary="?([^";]{0,199}[^";\s])"?', re.IGNORECASE)
P = ParamSpec("P")
T = TypeVar("T")


@dataclass(frozen=True)
class FetchedStudy:
    """The images of a study that are read (view -> file), their identities, and the choice."""

    images: dict[str, bytes]
    sources: tuple[SourceImage, ...]
    selection: Selection


@dataclass(frozen=True)
class ListedStudy:
    """A study in a list of the PACS; ``date`` and ``modalities`` may be empty."""

    uid: str
    date: str
    modalities: frozenset[str]


class Connection:
    """The requests of one operation. Every UID is checked before it is requested."""

    def __init__(self, url: str, max_file_bytes: int, transport: Transport) -> None:
        from dicomweb_client import DICOMwebClient  # an extra

        self._url, self._max_file_bytes, self._transport = url, max_file_bytes, transport
        self._client = DICOMwebClient(url, session=transport.session, chunk_size=2**30)
        self._client.set_http_retry_params(retry=False)

    def choose(self, study_uid: str, named: Mapping[View, str]) -> Selection:
        """The images of a study to read, by their headers."""
        listed, invalid = self._list(study_uid)
        if not listed:
            raise Problem("no_such_study", "The PACS has no study with this StudyInstanceUID. Check it.")
        headers = {**listed, **self._headers(study_uid, listed, _IMAGES, HEADER)}
        selection = select_images(headers.values(), named)
        return replace(selection, left_out=selection.left_out + invalid)

    def fetch(self, study_uid: str, named: Mapping[View, str]) -> FetchedStudy:
        """The images of a study, each with the identity that its header in the PACS has."""
        selection = self.choose(study_uid, named)
        files, sources = {}, []
        for view, chosen in selection.images.items():
            data = self.file(study_uid, chosen.series_instance_uid, chosen.sop_instance_uid)
            source = _checked(source_image, data)
            if (source.sop_instance_uid, source.study_instance_uid) != (chosen.sop_instance_uid, study_uid):
                raise broken("an image is not the requested one")
            if source.patient_id != chosen.patient_id:
                raise broken("an image and its header name different patients")
            files[view.value] = data
            sources.append(source)
        return FetchedStudy(files, tuple(sources), selection)

    def store(self, report: ReportResponse, sources: tuple[SourceImage, ...]) -> tuple[StoredReport, bool]:
        """Store a structured report unless the PACS has it; returns its identity, and whether it was stored now."""
        study_uid, stored = sources[0].study_instance_uid, identity(report, sources)
        listed, _ = self._list(study_uid)
        if stored.sop_instance_uid in listed:
            return stored, False
        drafts = self._headers(study_uid, listed, {ENHANCED_SR}, DRAFT_HEADER)
        self.put(write_report(report, sources, newest_draft(drafts.values(), stored)))
        return stored, True

    def put(self, report: bytes) -> None:
        """Store a report of this project by STOW-RS, unless the PACS refuses it because it has it already."""
        dataset = pydicom.dcmread(io.BytesIO(report))
        study_uid, uid = text(dataset, "StudyInstanceUID"), text(dataset, "SOPInstanceUID")
        self._transport.expect(MAX_JSON_BYTES, "The answer to STOW-RS")
        try:
            result = _checked(self._client.store_instances, [dataset], study_uid)
        except Problem as problem:
            if problem.code == "pacs_not_stored" and uid in self._list(study_uid)[0]:  # 409: a repeated instance
                return
            raise
        done = {text(item, "ReferencedSOPInstanceUID") for item in result.get("ReferencedSOPSequence") or ()}
        if uid not in done and uid not in self._list(study_uid)[0]:
            raise Problem("pacs_not_stored", f"The PACS did not store the report. {CHECK}")

    def file(self, study_uid: str, series_uid: str, sop_uid: str) -> bytes:
        """An instance as the PACS has it, in any transfer syntax; its bytes are not parsed."""
        address = f"{self._url}/studies/{study_uid}/series/{series_uid}/instances/{sop_uid}"
        accept = {"Accept": 'multipart/related; type="application/dicom"; transfer-syntax=*'}
        self._transport.expect(self._max_file_bytes + _OVERHEAD, "An image (REPORT_MAX_UPLOAD_BYTES)")
        answer = _checked(self._transport.session.get, address, headers=accept)
        kind, body = str(answer.headers.get("Content-Type", "")), bytes(answer.content)
        return body if kind.lower().startswith("application/dicom") else _only_part(kind, body)

    def _list(self, study_uid: str) -> tuple[dict[str, Dataset], tuple[LeftOut, ...]]:
        """SOP instance UID -> the UIDs of ``_LISTED`` of each instance of the study, and entries without valid ones."""
        found: dict[str, Dataset] = {}
        invalid: list[LeftOut] = []
        page = _checked(self._search, study_uid, offset := 0)
        while page:
            for header in page:
                uid, series_uid = text(header, "SOPInstanceUID"), text(header, "SeriesInstanceUID")
                if uid and series_uid:
                    found.setdefault(uid, header)
                else:
                    invalid.append(LeftOut(uid, series_uid, "invalid_uid"))
            if not found:
                raise broken("no instance has valid UIDs")
            offset += len(page)
            if offset > MAX_INSTANCES:
                raise Problem("study_too_large", f"The study has more than {MAX_INSTANCES:,} instances.")
            following = _checked(self._search, study_uid, offset)
            page = [] if following == page else following  # some servers ignore the offset
        return found, tuple(invalid)

    def _search(self, study_uid: str, offset: int) -> list[Dataset]:
        self._transport.expect(MAX_JSON_BYTES, "The list of instances")
        page = self._client.search_for_instances(study_uid, limit=MAX_INSTANCES, offset=offset)
        return [_listed(each) for each in page[: MAX_INSTANCES + 1]]

    def studies_until(self, date: str, patient_id: str) -> list[ListedStudy]:
        """The studies of a PatientID until a date, at most ``MAX_INSTANCES``, without those of an invalid UID."""
        filters = {"PatientID": patient_id, "StudyDate": f"-{date}"}
        self._transport.expect(MAX_JSON_BYTES, "The list of studies")
        page = _checked(self._client.search_for_studies, limit=MAX_INSTANCES, search_filters=filters)
        found = [_checked(_listed_study, each) for each in page[:MAX_INSTANCES]]
        return [each for each in found if is_uid(each.uid)]

    def _headers(
        self, study_uid: str, listed: Mapping[str, Dataset], classes: Collection[str], keywords: Iterable[str]
    ) -> dict[str, Dataset]:
        """SOP instance UID -> the named elements of the instances of these SOP classes."""
        uids = [uid for uid, header in listed.items() if text(header, "SOPClassUID") in classes]
        if len(uids) > MAX_HEADERS:
            raise Problem("study_too_large", f"The study has more than {MAX_HEADERS} radiographs or reports.")
        found = {}
        for uid in uids:
            self._transport.expect(MAX_JSON_BYTES, "A header")
            series_uid = text(listed[uid], "SeriesInstanceUID")
            metadata = _checked(self._client.retrieve_instance_metadata, study_uid, series_uid, uid)
            found[uid] = _checked(_dataset, metadata, keywords)
            if text(found[uid], "SOPInstanceUID") != uid:
                raise broken("a header is not the requested one")
        return found


def _listed(item: Mapping[str, Any]) -> Dataset:
    """The valid UIDs of an instance in a list."""
    made = Dataset()
    for keyword, tag in _LISTED.items():
        uid = str(item.get(tag, {}).get("Value", [""])[0])
        if is_uid(uid):
            setattr(made, keyword, uid)
    return made


def _listed_study(item: Mapping[str, Any]) -> ListedStudy:
    uid, date, modalities = (item.get(tag, {}).get("Value", []) for tag in ("0020000D", "00080020", "00080061"))
    return ListedStudy("".join(map(str, uid)), "".join(map(str, date)), frozenset(map(str, modalities)))


def _dataset(metadata: Mapping[str, Any], keywords: Iterable[str]) -> Dataset:
    """The named elements of DICOM JSON."""
    tags = {f"{int(Tag(keyword)):08X}" for keyword in keywords}
    kept = {tag: element for tag, element in metadata.items() if tag in tags}
    if len(json.dumps(kept, ensure_ascii=False)) > _MOST_CHARACTERS:
        raise broken(f"the elements of a header have more than {_MOST_CHARACTERS:,} characters")
    return Dataset.from_json(kept)


def _checked(call: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """The result of a call that reads an answer; any failure of it is a problem."""
    try:
        return call(*args, **kwargs)
    except (Problem, MemoryError):
        raise
    except ImageError as error:
        raise broken(f"a file is {error.code}") from None
    except Exception as error:  # of the parsers; their messages may quote the answer
        raise broken(f"reading it failed with {type(error).__name__}") from None


def _only_part(kind: str, body: bytes) -> bytes:
    """The first part of a multipart answer, which has one."""
    found = _MULTIPART.match(kind)
    if found is None:
        raise broken("it is not multipart/related")
    delimiter = b"--" + found[1].encode()
    start = body.find(b"\r\n\r\n", body.find(delimiter))
    end = body.find(b"\r\n" + delimiter, start)
    if delimiter not in body[: start + 1] or start < 0 or end < 0:
        raise broken("its multipart message is cut short")
    return body[start + 4 : end]
