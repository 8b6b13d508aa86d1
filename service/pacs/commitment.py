"""Storage commitment (PS3.4, annex J): the archive confirms that it keeps a structured report.

The node requests it by N-ACTION after C-STORE. The archive answers by N-EVENT-REPORT, on the same
association or on a new one. A request that has no answer is repeated with the report; a late answer to an earlier
request counts.
"""

from __future__ import annotations

import threading
import uuid
from collections.abc import Callable, Iterator
from typing import Any

from pydicom import Dataset
from pydicom.uid import UID

from service.formats.dicom_source import uid_of
from service.pacs.selection import text
from service.pacs.structured_report import ENHANCED_SR

PUSH_MODEL, _INSTANCE = UID("1.2.840.10008.1.20.1"), UID("1.2.840.10008.1.20.1.1")
_REQUEST = 1  # action type
_MOST_EVENT = 1024 * 1024  # bytes
_SUCCESS, _PROCESSING_FAILURE = 0x0000, 0x0110
Answered = Callable[[str, str | None], None]  # receives a SOP instance UID, and why it is not committed; None: it is


class Commitments:
    """The requests that wait for an answer. Thread-safe."""

    def __init__(self, archive: str, answered: Answered) -> None:
        """``archive`` is the AE title that may answer."""
        self._archive, self._answered = archive, answered
        self._transactions: dict[str, set[str]] = {}  # SOP instance UID -> transaction UIDs of unanswered requests
        self._lock = threading.Lock()

    def request(self, association: Any, sop_uid: str) -> int | None:
        """Send N-ACTION for a report; returns the status of the response, None without one."""
        item, action = Dataset(), Dataset()
        item.ReferencedSOPClassUID, item.ReferencedSOPInstanceUID = ENHANCED_SR, sop_uid
        action.ReferencedSOPSequence, action.TransactionUID = [item], uid_of(uuid.uuid4())
        with self._lock:
            self._transactions.setdefault(sop_uid, set()).add(action.TransactionUID)
        status, _ = association.send_n_action(action, _REQUEST, PUSH_MODEL, _INSTANCE)
        return int(status.Status) if "Status" in status else None

    def handle(self, event: Any) -> tuple[int, None]:
        """Take an N-EVENT-REPORT; returns the status of its response."""
        information = event.request.EventInformation
        peer = event.assoc.acceptor if event.assoc.is_requestor else event.assoc.requestor
        if str(peer.ae_title).strip() != self._archive or information is None:
            return _PROCESSING_FAILURE, None
        if information.getbuffer().nbytes > _MOST_EVENT:
            return _PROCESSING_FAILURE, None
        transaction = text(event.event_information, "TransactionUID")
        for uid, reason in list(_results(event.event_information)):
            with self._lock:
                known = transaction in self._transactions.get(uid, ())
                if known and reason is None:
                    del self._transactions[uid]
                elif known:
                    self._transactions[uid].remove(transaction)
            if known:
                self._answered(uid, reason)
        return _SUCCESS, None


def _results(information: Dataset) -> Iterator[tuple[str, str | None]]:
    for item in information.get("ReferencedSOPSequence") or ():
        yield text(item, "ReferencedSOPInstanceUID"), None
    for item in information.get("FailedSOPSequence") or ():
        yield text(item, "ReferencedSOPInstanceUID"), f"failure reason 0x{int(item.get('FailureReason') or 0):04X}"
