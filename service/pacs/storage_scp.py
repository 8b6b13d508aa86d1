"""The Storage SCP of the node, by pynetdicom, with limits against hostile peers.

pynetdicom limits established associations and PDU sizes only on paper: it starts two threads for every connection,
reads a PDU of any declared length, without a deadline, and keeps every byte of an object. Here a connection has to
begin with an association, a PDU with its length and deadline, an object with its size and deadline.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from pynetdicom import AE, _config, evt
from pynetdicom.dimse import DIMSEServiceProvider
from pynetdicom.presentation import PresentationContext, build_context
from pynetdicom.transport import AssociationSocket, RequestHandler, ThreadedAssociationServer

from model.images.dicom.codecs import JPEG, JPEG_2000, JPEG_BASELINE, JPEG_LS, RLE
from service.pacs.commitment import PUSH_MODEL
from service.pacs.node_settings import NodeSettings

_config.LOG_HANDLER_LEVEL = "none"  # its log lines quote what peers send
logging.getLogger("pynetdicom").setLevel(logging.CRITICAL)
VERIFICATION = "1.2.840.10008.1.1"
IMAGES = "1.2.840.10008.5.1.4.1.1."
STORAGE = tuple(f"{IMAGES}{tail}" for tail in ("1", "1.1", "1.1.1", "7", "7.1", "7.2", "7.3", "7.4"))
SYNTAXES = (
    *("1.2.840.10008.1.2.1", "1.2.840.10008.1.2", "1.2.840.10008.1.2.2"),
    *(RLE, JPEG_BASELINE, *JPEG, *JPEG_LS, *JPEG_2000),
)
SUCCESS, OUT_OF_RESOURCES, MISMATCH, NOT_UNDERSTOOD = 0x0000, 0xA700, 0xA900, 0xC000
_MOST_COMMAND = 64 * 1024  # bytes of a command set
_MOST_NEGOTIATION = 128 * 1024  # bytes of an A-ASSOCIATE-RQ with 128 presentation contexts
_NEGOTIATION_S = 10.0  # from the connection to the A-ASSOCIATE-RQ
_MOST_SURPLUS = 4  # an object is read and dropped up to this multiple of its limit, then its association is aborted
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Received:
    """A received object, unchanged: a DICOM file, and the UIDs of its C-STORE request."""

    sop_class_uid: str
    sop_instance_uid: str
    data: bytes


Accept = Callable[[Received], int]  # returns the status of the C-STORE response
Refused = Callable[[str], None]  # counts a refusal by its cause
Commit = Callable[[Any], tuple[int, None]]  # returns the status of the N-EVENT-REPORT response


class StorageServer(ThreadedAssociationServer):
    """Listens until ``shutdown``.

    Args:
        settings: of the node.
        accept: stores an object; called by several threads.
        refused: receives the cause of each refusal.
        commit: takes N-EVENT-REPORTs of storage commitment; None if the node requests none.

    Raises:
        OSError: the address cannot be used.
    """

    daemon_threads = True
    block_on_close = False
    request_queue_size = 64

    def __init__(self, settings: NodeSettings, accept: Accept, refused: Refused, commit: Commit | None = None) -> None:
        self.settings, self.refused = settings, refused
        self._addresses: Counter[str] = Counter()
        self._counting = threading.Lock()
        allowed = settings.allowed()
        addresses = [peer.address for peer in allowed]
        self._only = None if None in addresses else set(addresses)
        self._bound = {peer.title: {each.address for each in allowed if each.title == peer.title} for peer in allowed}
        ae = AE(settings.ae_title)
        ae.maximum_associations = settings.max_associations
        ae.maximum_pdu_size = settings.max_pdu_bytes
        ae.require_called_aet = True
        ae.require_calling_aet = sorted(self._bound)
        ae.dimse_timeout = ae.network_timeout = settings.network_timeout_s
        ae.acse_timeout = min(_NEGOTIATION_S, settings.network_timeout_s)
        handlers: list[Any] = [
            (evt.EVT_C_ECHO, lambda _: SUCCESS),
            (evt.EVT_C_STORE, lambda event: self._store(event, accept)),
            (evt.EVT_REQUESTED, self._check_address),
            (evt.EVT_REJECTED, lambda _: refused("association")),
        ]
        accepted = contexts()
        if commit is not None:
            handlers.append((evt.EVT_N_EVENT_REPORT, commit))
            accepted.append(build_context(PUSH_MODEL))
            accepted[-1].scu_role, accepted[-1].scp_role = False, True  # the archive reports
        super().__init__(
            ae, (settings.host, settings.port), settings.ae_title, accepted, evt_handlers=handlers,
            request_handler=_LimitedHandler,
        )  # fmt: skip
        ae._servers.append(self)

    @property
    def port(self) -> int:
        """The TCP port."""
        return int(self.server_address[1])

    @property
    def associations(self) -> int:
        """Open connections."""
        return self._addresses.total()

    def verify_request(self, request: Any, client_address: Any) -> bool:
        """Close connections of other addresses, and those beyond the limits, before they cost a thread."""
        address, most = client_address[0], self.settings.max_associations
        with self._counting:
            unknown = self._only is not None and address not in self._only
            # one more than the limit, so that it is refused politely, by A-ASSOCIATE-RJ
            full = self._addresses.total() > most or self._addresses[address] >= max(1, most // 2) + 1
            if not unknown and not full:
                self._addresses[address] += 1
        if unknown or full:
            self.refused("address" if unknown else "connections")
        return not unknown and not full

    def process_request(self, request: Any, client_address: Any) -> None:
        """Start the thread of a connection; without one the connection is no longer counted."""
        try:
            super().process_request(request, client_address)
        except BaseException:
            self.closed(client_address[0])
            raise

    def closed(self, address: str) -> None:
        """Count a connection that has ended."""
        with self._counting:
            self._addresses[address] -= 1
            self._addresses += Counter()  # drops zeros

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Count a connection whose handling raised an error; print nothing."""
        self.refused("error")

    def _check_address(self, event: Any) -> None:
        """Refuse a title that another address uses, and the second half of the slots to one address."""
        requestor = event.assoc.requestor
        title, address = str(requestor.primitive.calling_ae_title).strip(), str(requestor.address)
        bound = self._bound.get(title)
        with self._counting:
            many = self._addresses[address] > max(1, self.settings.max_associations // 2)
        if many or (bound is not None and None not in bound and address not in bound):
            event.assoc.acse.send_reject(*((2, 3, 2) if many else (1, 1, 3)))
            event.assoc.is_rejected = True
            event.assoc.kill()  # waits until it was sent
            self.refused("association")

    def _store(self, event: Any, accept: Accept) -> int:
        """The status of one C-STORE request."""
        if event.assoc.dimse.too_large:
            event.assoc.dimse.too_large = False
            self.refused("too_large")
            return OUT_OF_RESOURCES
        request = event.request
        return accept(
            Received(str(request.AffectedSOPClassUID), str(request.AffectedSOPInstanceUID), event.encoded_dataset())
        )


def contexts() -> list[PresentationContext]:
    """What the node accepts as SCP."""
    return [build_context(VERIFICATION), *(build_context(uid, list(SYNTAXES)) for uid in STORAGE)]


class _LimitedHandler(RequestHandler):
    """Makes associations with the classes below."""

    def _create_association(self) -> Any:
        association = super()._create_association()
        settings: NodeSettings = self.server.settings  # type: ignore[attr-defined]
        association.dimse = _LimitedProvider(association, settings, self.server.refused)  # type: ignore[attr-defined]
        transport: Any = association.dul.socket
        transport.__class__ = _LimitedSocket
        transport.most_bytes = max(settings.max_pdu_bytes, _MOST_NEGOTIATION)
        transport.timeout_s = settings.network_timeout_s
        return association

    def handle(self) -> None:
        """Run the association in its threads, and count the connection until they have ended."""
        try:
            association = self._create_association()
            association.start()
            association.join()
            association.dul.join()
        finally:
            self.server.closed(self.client_address[0])  # type: ignore[attr-defined]


class _LimitedSocket(AssociationSocket):
    """Reads PDUs of a bounded length, each within a deadline."""

    most_bytes: int
    timeout_s: float

    def recv(self, nr_bytes: int) -> bytearray:
        connection = self.socket
        if nr_bytes > self.most_bytes or connection is None:
            raise OSError("the declared length of the PDU is over the limit")
        received, deadline = bytearray(), time.monotonic() + self.timeout_s
        while len(received) < nr_bytes:
            left = deadline - time.monotonic()
            if left <= 0:
                raise TimeoutError("the PDU is incomplete")
            connection.settimeout(left)
            part = connection.recv(min(nr_bytes - len(received), 65536))
            if not part:
                break
            received += part
        connection.settimeout(self.timeout_s)  # of sending
        return received


class _LimitedProvider(DIMSEServiceProvider):
    """Assembles objects up to a size and within a deadline.

    Attributes:
        too_large: the last object was larger; its bytes were dropped.
    """

    def __init__(self, association: Any, settings: NodeSettings, refused: Refused) -> None:
        super().__init__(association)
        self._settings, self._refused = settings, refused
        self._command = self._data = 0
        self._deadline = 0.0
        self.too_large = self._aborted = False

    def receive_primitive(self, primitive: Any) -> None:
        if self.message is None:
            self._command = self._data = 0
            self._deadline = time.monotonic() + self._settings.transfer_timeout_s
            if self.msg_queue.qsize() > 1:  # the peer does not wait for answers
                return self._abort("pipelined")
        values = primitive.presentation_data_value_list
        for number, (context, data) in enumerate(values):
            if not data or not isinstance(context, int):
                return self._abort("malformed")
            if data[0] & 1:
                self._command += len(data)
            else:
                self._data += len(data)
                if self._data > self._settings.max_object_bytes:
                    self.too_large = True
                    values[number] = [context, data[:1]]
        if self._command > _MOST_COMMAND or self._data > _MOST_SURPLUS * self._settings.max_object_bytes:
            return self._abort("too_large")
        if time.monotonic() > self._deadline:
            return self._abort("too_slow")
        super().receive_primitive(primitive)

    def send_msg(self, primitive: Any, context_id: int) -> None:
        if not self._aborted:
            super().send_msg(primitive, context_id)

    def _abort(self, cause: str) -> None:
        """Have the state machine send A-ABORT, and read no more."""
        self._refused(cause)
        self._aborted, self.message = True, None
        self.dul.event_queue.put("Evt19")  # an invalid PDU
        transport: Any = self.dul.socket
        transport.most_bytes = 0
