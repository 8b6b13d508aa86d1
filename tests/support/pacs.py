"""The DICOM node in tests: drawn studies, an archive, associations, the node itself."""

from __future__ import annotations

import io
import threading
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pydicom
from pydicom import Dataset
from pydicom.uid import UID, ExplicitVRLittleEndian
from pynetdicom import AE, evt
from pynetdicom.presentation import build_context

from service.pacs.commitment import PUSH_MODEL
from service.pacs.dicomweb import Pacs
from service.pacs.node import Node
from service.pacs.node_settings import NodeSettings
from service.pacs.storage_scp import VERIFICATION
from service.pacs.structured_report import ENHANCED_SR
from tests.support.dicom import CR, DX, dataset, encode, film

TITLE, MODALITY, ARCHIVE = "CXRREPORT", "MODALITY", "ARCHIVE"


def image(
    study: str, view: str = "PA", *, sop_class: str = DX, patient: str = "P1", uid: str = "", **tags: Any
) -> bytes:
    """A drawn radiograph of a study, as a DICOM file; `tags` by keyword."""
    given = {
        "StudyInstanceUID": study, "SeriesInstanceUID": f"{study}.{1 if view == 'PA' else 2}", "Modality": "DX",
        "PatientID": patient, "PatientName": f"Drawn^{patient}", "BodyPartExamined": "CHEST", "ViewPosition": view,
        "PatientBirthDate": "19700101", "PatientSex": "O", "StudyDate": "20260101", "StudyTime": "101500",
        "AccessionNumber": "A1", "StudyID": "1", "ReferringPhysicianName": "", "InstanceNumber": "1", **tags,
    }  # fmt: skip
    if sop_class == DX:
        given.setdefault("PresentationIntentType", "FOR PRESENTATION")
    made = dataset(film(bits=12), sop_class=sop_class, stored=12, **given)
    made.SOPInstanceUID = made.file_meta.MediaStorageSOPInstanceUID = UID(uid or new_study())
    return encode(made)


def new_study() -> str:
    """A new UID."""
    return f"2.25.{uuid.uuid4().int}"


def parsed(data: bytes) -> Dataset:
    """The data set of a file."""
    return pydicom.dcmread(io.BytesIO(data))


@contextmanager
def association(
    port: int, *, calling: str = MODALITY, called: str = TITLE, classes: tuple[str, ...] = (DX, CR)
) -> Iterator[Any]:
    """An association with the node, established or not."""
    ae = AE(calling)
    ae.acse_timeout = ae.dimse_timeout = ae.network_timeout = ae.connection_timeout = 20
    contexts = [build_context(VERIFICATION), *(build_context(uid, ExplicitVRLittleEndian) for uid in classes)]
    made = ae.associate("127.0.0.1", port, contexts, ae_title=called)
    try:
        yield made
    finally:
        if made.is_established:
            made.release()


def send(port: int, *files: bytes, **options: Any) -> list[int]:
    """Statuses of C-STORE requests on one association; -1 where none came."""
    data = [parsed(file) for file in files]
    classes = tuple({str(each.SOPClassUID) for each in data})
    with association(port, classes=classes, **options) as made:
        assert made.is_established
        return [int(made.send_c_store(each).get("Status", -1)) for each in data]


def echo(port: int, **options: Any) -> bool:
    """Whether the node answers C-ECHO."""
    with association(port, **options) as made:
        return bool(made.is_established) and made.send_c_echo().get("Status") == 0


@dataclass
class Inbox:
    """A Storage SCP that keeps what it receives; ``status`` is its answer. ``actions``: requests of commitment."""

    port: int = 0
    reports: list[Dataset] = field(default_factory=list)
    actions: list[Dataset] = field(default_factory=list)
    status: int = 0
    arrived: threading.Event = field(default_factory=threading.Event)

    def studies(self) -> dict[str, list[str]]:
        """StudyInstanceUID -> SOP instance UIDs, in the order of their arrival."""
        found: dict[str, list[str]] = {}
        for report in self.reports:
            found.setdefault(str(report.StudyInstanceUID), []).append(str(report.SOPInstanceUID))
        return found


@contextmanager
def inbox(port: int = 0, *, commits: bool = False) -> Iterator[Inbox]:
    """An archive on 127.0.0.1; one that `commits` accepts requests of storage commitment, and answers none."""
    box = Inbox()

    def store(event: Any) -> int:
        if box.status == 0:
            box.reports.append(event.dataset)
        box.arrived.set()
        return box.status

    ae = AE(ARCHIVE)
    ae.add_supported_context(ENHANCED_SR)
    if commits:
        ae.add_supported_context(PUSH_MODEL)

    def act(event: Any) -> tuple[int, None]:
        box.actions.append(event.action_information)
        return 0, None

    handlers: list[Any] = [(evt.EVT_C_STORE, store), (evt.EVT_N_ACTION, act)]
    server = ae.start_server(("127.0.0.1", port), block=False, evt_handlers=handlers)
    assert server is not None
    box.port = server.server_address[1]
    try:
        yield box
    finally:
        server.shutdown()


def node_settings(directory: Path, report_url: str, archive_port: int, **changes: Any) -> NodeSettings:
    """Settings of a node on free ports that drafts after half a second, with a spool."""
    values: dict[str, Any] = {
        "ae_title": TITLE, "port": 0, "status_port": 0, "peers": MODALITY, "dir": directory, "spool": True,
        "destination": f"{ARCHIVE}@127.0.0.1:{archive_port}", "report_url": report_url, "quiet_s": 0.5,
        "retry_max_s": 1, **changes,
    }  # fmt: skip
    return NodeSettings(**values)


@contextmanager
def running_node(settings: NodeSettings, pacs: Pacs | None = None) -> Iterator[Node]:
    """A node in this process."""
    node = Node(settings, pacs)
    try:
        yield node
    finally:
        node.stop(20)
