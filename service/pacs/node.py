"""The DICOM node: receives studies, has them drafted by the report service, sends structured reports.

::

    C-STORE ─► store, queue ─► quiet for N s ─► POST /report ─► store, queue ─► C-STORE or STOW-RS ─► emptied

Each arrow is committed to the queue before the next one begins, so that a killed node continues where it was. A report
that is sent again after a kill is the same instance: its UIDs are derived from study, bundle and images.
"""

from __future__ import annotations

import dataclasses
import fcntl
import logging
import sqlite3
import threading
import time
from collections.abc import Callable
from typing import Any

from pydicom import Dataset

from model.types import View
from service.formats.dicom_source import SourceImage
from service.pacs.commitment import Commitments
from service.pacs.dicomweb import Pacs
from service.pacs.node_settings import NodeSettings
from service.pacs.node_status import PEERS, NodeMetrics, StatusServer
from service.pacs.peers import (
    Backoff,
    Destination,
    DicomwebArchive,
    RefusedError,
    ReportService,
    StorageScu,
    TryLaterError,
)
from service.pacs.queue import GONE, LOST, Instance, Study, StudyQueue
from service.pacs.selection import read_header, select_images
from service.pacs.spool import MemoryStore, Spool, Store, make_private
from service.pacs.storage_scp import MISMATCH, NOT_UNDERSTOOD, OUT_OF_RESOURCES, SUCCESS, Received, StorageServer
from service.pacs.structured_report import ENHANCED_SR, identity, write_report
from service.web.problems import Problem, format_traceback_locations

_POLL_S = 0.2
_DAY_S = 86_400.0
_UNCOMMITTED = "archive_does_not_commit"
# failures that say nothing of the images: some were not read, or the archive is at fault
_NOT_JUDGED = {LOST, GONE, "no_such_study", "study_too_large", _UNCOMMITTED}
_MOST_INSTANCES = 500  # of a study
_UNUSABLE_S = 5.0  # a worker that has not finished a step for so much longer than its limits counts as stuck
log = logging.getLogger(__name__)


class Node:
    """Runs from its construction until ``stop``.

    Raises:
        OSError: an address or the directory cannot be used.
        BlockingIOError: another node uses the directory.
        ValueError: the queue file has another schema.
        sqlite3.Error: it is no queue.
    """

    def __init__(self, settings: NodeSettings, pacs: Pacs | None = None) -> None:
        """Start.

        Args:
            settings: of the node.
            pacs: the DICOMweb server, which ``dicomweb`` as destination needs.
        """
        self.settings, self.metrics = settings, NodeMetrics()
        self._dicomweb = DicomwebArchive(pacs) if pacs else None
        archive = settings.archive()
        commitments = Commitments(archive.title, self._committed) if archive and settings.commitment else None
        destination: Destination | None = StorageScu(settings, archive, commitments) if archive else self._dicomweb
        if destination is None:
            raise ValueError("REPORT_PACS_DESTINATION=dicomweb needs REPORT_DICOMWEB_URL")
        self._destination = destination
        self._lock_file = (make_private(settings.dir) / "lock").open("w")
        fcntl.flock(self._lock_file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        self.queue = StudyQueue(settings.queue_file)
        self.store: Store = Spool(settings.dir / "spool") if settings.spool else MemoryStore()
        if not settings.spool and (left := len(list(settings.dir.glob("spool/*")))):
            raise ValueError(
                f"{settings.dir / 'spool'} holds {left} files of a node with REPORT_PACS_SPOOL=true. "
                "Start it so until they are sent, or remove them."
            )
        self.store.remove(self.queue.reconcile(self.store.sizes()))
        self._service = ReportService(settings)
        self._backoffs = {peer: Backoff(settings.retry_max_s) for peer in PEERS}
        self._stopping = threading.Event()
        self.server = StorageServer(
            settings, self.accept, self.metrics.refuse, None if commitments is None else commitments.handle
        )
        self.status = StatusServer(settings.status_host, settings.status_port, self.health, self.metrics, self._refresh)
        steps = {"scp": lambda: self.server.serve_forever(0.1), "drafts": self._draft_all, "sends": self._send_all}
        self._threads = {
            name: threading.Thread(target=run, name=f"node-{name}", daemon=True) for name, run in steps.items()
        }
        for thread in self._threads.values():
            thread.start()

    def stop(self, within_s: float) -> None:
        """Accept nothing more, and let the running steps end."""
        deadline = time.monotonic() + within_s
        self._stopping.set()
        self.server.shutdown()
        for thread in self._threads.values():
            thread.join(max(0.0, deadline - time.monotonic()))
        self.status.shutdown()
        self.status.server_close()
        if not any(thread.is_alive() for thread in self._threads.values()):
            self.queue.close()
            self._lock_file.close()

    # --- receiving ----------------------------------------------------------------------------------------------------

    def accept(self, received: Received) -> int:
        """Store one object; the status of its C-STORE response."""
        try:
            source = SourceImage.from_dataset(read_header(received.data))
        except Exception:  # pydicom raises many types for damaged headers
            return self._refuse("header", NOT_UNDERSTOOD)
        named = (received.sop_class_uid, received.sop_instance_uid)
        if source.missing or (source.sop_class_uid, source.sop_instance_uid) != named:
            return self._refuse("mismatch", MISMATCH)
        held = sum(self.store.sizes().values()) + len(received.data)
        full = held > self.settings.max_held_bytes
        others = self.queue.count_other_instances(source.study_instance_uid, source.sop_instance_uid)
        if full or others >= _MOST_INSTANCES:
            return self._refuse("full", OUT_OF_RESOURCES)
        names, tokens = self.settings.names, list[str]()
        try:
            tokens.append(self.store.put(received.data))
            replaced = self.queue.received(
                source.study_instance_uid, source.series_instance_uid, source.sop_instance_uid, tokens[0],
                quiet_s=self.settings.quiet_s, patient=source.patient_name if names else None,
                accession=source.accession_number if names else None,
            )  # fmt: skip
        except (OSError, sqlite3.Error) as error:
            log.error("an object could not be stored: %s", type(error).__name__)
            self.store.remove(tokens)
            return self._refuse("full", OUT_OF_RESOURCES)
        self.store.remove(replaced)
        self.metrics.received.inc()
        return SUCCESS

    def _refuse(self, cause: str, status: int) -> int:
        self.metrics.refuse(cause)
        return status

    # --- drafting -----------------------------------------------------------------------------------------------------

    def _draft_all(self) -> None:
        self._run("report_service", self.queue.due, self._draft)

    def _draft(self, study: Study) -> None:
        instances = self.queue.instances(study.uid)
        if study.is_sent and all(each.drafted for each in instances):  # it came again
            return self.store.remove(self.queue.settle(study))
        tokens = {each.uid: each.token for each in instances if each.token}
        earlier = self._earlier_images(study, instances)
        headers: list[Dataset] = [read_header(self._bytes(token)) for token in tokens.values()]
        headers += [read_header(data) for data in earlier.values()]
        images = select_images(headers).images
        uids = tuple(source.sop_instance_uid for source in images.values())
        if study.is_sent and set(uids) == set(study.images):
            return self.store.remove(self.queue.settle(study))
        files: dict[View, bytes] = {
            view: earlier.get(uid) or self._bytes(tokens[uid]) for view, uid in zip(images, uids, strict=True)
        }
        began = time.monotonic()
        report = self._service.draft(files)
        sources = list(images.values())
        stored = identity(report, sources)
        token = self.store.put(write_report(report, sources, _predecessor(study, sources[0], stored.sop_instance_uid)))
        if not self.queue.drafted(study, token, stored.sop_instance_uid, stored.series_instance_uid, uids):
            return self.store.remove([token])
        self.metrics.drafted.inc()
        self.metrics.draft_seconds.observe(time.monotonic() - began)
        log.info("drafted a study: %d of %d instances read", len(uids), len(instances))

    def _earlier_images(self, study: Study, instances: list[Instance]) -> dict[str, bytes]:
        """The images of the last draft, and those that no draft has seen, whose bytes are gone; read by DICOMweb."""
        gone = [each for each in instances if each.token is None and (each.uid in study.images or not each.drafted)]
        lost = sum(not each.drafted for each in gone)
        if lost and self._dicomweb is None:
            raise RefusedError(
                LOST,
                f"{lost} of {len(instances)} images were lost when the node ended, or removed when the study failed. "
                "Send the whole study again, or set REPORT_DICOMWEB_URL.",
            )
        if gone and self._dicomweb is None:
            raise RefusedError(
                GONE,
                f"The study grew after its draft, whose {len(gone)} images were removed. "
                "Send the whole study again, or set REPORT_DICOMWEB_URL.",
            )
        return {each.uid: self._dicomweb.read(study.uid, each.series, each.uid) for each in gone if self._dicomweb}

    def _bytes(self, token: str) -> bytes:
        try:
            return self.store.get(token)
        except KeyError:
            raise RefusedError(LOST, "The spool lacks an image of the study. Send the study again.") from None

    # --- sending ------------------------------------------------------------------------------------------------------

    def _send_all(self) -> None:
        self._run("archive", self.queue.to_send, self._send)

    def _send(self, study: Study) -> None:
        report = self._bytes(study.report or "")
        if not self.settings.commitment:
            self._destination.store(report)
            return self._sent(study)
        if time.time() - study.changed > self.settings.give_up_s:
            raise RefusedError(_UNCOMMITTED, "The archive has not committed to the report in time.")
        reason = "The archive has not yet committed to keep the report."
        self.queue.postpone(study, "commitment", reason, self.settings.commitment_timeout_s)  # before it can answer
        self._destination.store(report)

    def _committed(self, sop_uid: str, failure: str | None) -> None:
        """Take the answer to a request of storage commitment."""
        if (study := self.queue.drafted_as(sop_uid)) is None:
            return
        if failure is None:
            self._sent(study)
        else:
            reason = f"The archive does not commit to the report: {failure}."
            self._later(study, _UNCOMMITTED, reason, self._pause_of(study))

    def _sent(self, study: Study) -> None:
        self.store.remove(self.queue.sent(study, self.settings.keep_s))
        self.metrics.sent.inc()
        log.info("sent a structured report")

    # --- both ---------------------------------------------------------------------------------------------------------

    def _run(self, peer: str, find: Callable[[], Study | None], step: Callable[[Study], None]) -> None:
        """Take the steps of one worker until the node stops; an error concerns one study, a pause one peer."""
        backoff, swept = self._backoffs[peer], 0.0
        while not self._stopping.is_set():
            try:
                study = None if backoff.waits else find()
                if study is None:
                    if time.monotonic() > swept + 3600:
                        swept = time.monotonic()
                        self.queue.forget(time.time() - self.settings.keep_days * _DAY_S)
                    self._stopping.wait(_POLL_S)
                else:
                    self._step(study, peer, backoff, step)
            except sqlite3.Error as error:
                log.error("the queue cannot be used: %s", type(error).__name__)
                self._stopping.wait(_UNUSABLE_S)

    def _step(self, study: Study, peer: str, backoff: Backoff, step: Callable[[Study], None]) -> None:
        try:
            step(study)
        except TryLaterError as error:
            self.metrics.retries.labels(peer).inc()
            if backoff.reason is None:
                log.warning("%s: %s", peer, error)
            pause_s = self._pause_of(study) if error.study_only else backoff.failed(str(error))
            self._later(study, error.code, str(error), pause_s)
        except RefusedError as error:
            self._fail(study, error.code, str(error), judged=error.code not in _NOT_JUDGED)
        except Problem as problem:
            self._fail(study, problem.code, problem.detail, judged=True)
        except sqlite3.Error:
            raise
        except Exception as error:  # a fault of the node; the message might quote a report
            log.error("unhandled %s\n%s", type(error).__name__, format_traceback_locations(error))
            self._later(study, "internal", f"The node failed: {type(error).__name__}.", self._pause_of(study))
        else:
            backoff.succeeded()

    def _pause_of(self, study: Study) -> float:
        return min(2.0 ** min(study.attempts, 30), self.settings.retry_max_s)

    def _later(self, study: Study, code: str, reason: str, pause_s: float) -> None:
        if time.time() - study.changed > self.settings.give_up_s:
            return self._fail(study, code, reason)
        self.queue.postpone(study, code, reason, pause_s)

    def _fail(self, study: Study, code: str, reason: str, *, judged: bool = False) -> None:
        self.store.remove(self.queue.failed(study, code, reason, judged=judged))
        self.metrics.failed.inc()
        log.warning("a study failed: %s", code)

    # --- status -------------------------------------------------------------------------------------------------------

    def health(self) -> tuple[bool, dict[str, Any]]:
        """Whether all threads run, and the body of ``/health``."""
        stopped = [name for name, thread in self._threads.items() if not thread.is_alive()]
        peers = {peer: "up" if each.reason is None else each.reason for peer, each in self._backoffs.items()}
        up = all(each.reason is None for each in self._backoffs.values())
        status = "failed" if stopped else "ready" if up else "waiting"
        return not stopped, {"status": status, "peers": peers, "studies": self.queue.counts(), "stopped": stopped}

    def _refresh(self) -> None:
        for state, count in self.queue.counts().items():
            self.metrics.studies.labels(state).set(count)
        for peer, backoff in self._backoffs.items():
            self.metrics.peer_up.labels(peer).set(backoff.reason is None)
        self.metrics.associations.set(self.server.associations)
        self.metrics.held_bytes.set(sum(self.store.sizes().values()))


def _predecessor(study: Study, source: SourceImage, report_uid: str) -> SourceImage | None:
    """The report that was sent before, in the same study of the same patient."""
    if study.sent is None or study.sent[0] == report_uid:
        return None
    return dataclasses.replace(
        source, sop_class_uid=ENHANCED_SR, sop_instance_uid=study.sent[0], series_instance_uid=study.sent[1]
    )
