"""The DICOM node: a study is received, drafted by the real service, and its structured report is sent."""

from __future__ import annotations

import os
import stat
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

pytest.importorskip("pynetdicom", reason="needs pip install '.[pacs]' in the source tree")
from service.pacs.node import Node
from service.pacs.queue import LOST, read_worklist
from service.pacs.structured_report import ENHANCED_SR
from tests.support.dicom import CR, SC
from tests.support.pacs import Inbox, echo, image, inbox, new_study, node_settings, running_node, send
from tests.support.service import KEY, Live, live_server, until


@pytest.fixture
def archive() -> Iterator[Inbox]:
    with inbox() as box:
        yield box


@pytest.fixture
def node(tmp_path: Path, page_server: Live, archive: Inbox) -> Iterator[Node]:
    with running_node(node_settings(tmp_path / "node", page_server.url, archive.port)) as node:
        yield node


def state(node: Node, study: str) -> tuple[str, str | None]:
    """State and code of a study in the worklist."""
    rows, _ = read_worklist(node.settings.queue_file, 99)
    return next((row["state"], row["code"]) for row in rows if row["uid"] == study)


def status(node: Node, path: str = "/health") -> httpx.Response:
    return httpx.get(f"http://127.0.0.1:{node.status.port}{path}", verify=False)


def metric(node: Node, name: str) -> float:
    lines = status(node, "/metrics").text.splitlines()
    return next(float(line.rpartition(" ")[2]) for line in lines if line.startswith(f"{name} "))


def test_report_of_a_quiet_study_is_sent_into_the_study(node: Node, archive: Inbox) -> None:
    study, frontal, lateral = new_study(), new_study(), new_study()
    files = [image(study, "PA", uid=frontal, PatientName="Äpfel^Jane", SpecificCharacterSet="ISO_IR 192")]
    assert send(node.server.port, *files, image(study, "LL", uid=lateral, sop_class=CR)) == [0, 0]
    until(lambda: state(node, study) == ("sent", None))
    (report,) = archive.reports
    assert (report.StudyInstanceUID, report.SOPClassUID, report.PatientID) == (study, ENHANCED_SR, "P1")
    assert str(report.PatientName) == "Äpfel^Jane"
    evidence = report.CurrentRequestedProcedureEvidenceSequence[0].ReferencedSeriesSequence
    assert {item.ReferencedSOPSequence[0].ReferencedSOPInstanceUID for item in evidence} == {frontal, lateral}
    assert (report.VerificationFlag, report.PreliminaryFlag) == ("UNVERIFIED", "PRELIMINARY")
    assert "PredecessorDocumentsSequence" not in report
    until(lambda: metric(node, "report_node_sent_total") == 1)
    assert status(node).json()["studies"] == {"received": 0, "drafted": 0, "sent": 1, "failed": 0}


def test_images_of_two_studies_may_come_interleaved(node: Node, archive: Inbox) -> None:
    one, other = new_study(), new_study()
    assert send(node.server.port, image(one), image(other), image(one, "LL"), image(other, "LL")) == [0] * 4
    until(lambda: len(archive.reports) == 2)
    assert {study: len(reports) for study, reports in archive.studies().items()} == {one: 1, other: 1}


def test_nothing_of_a_study_is_left_after_sending(node: Node, archive: Inbox) -> None:
    study = new_study()
    send(node.server.port, image(study, PatientName="Canary^Jane"))
    spool = node.settings.dir / "spool"
    held = [stat.S_IMODE(path.stat().st_mode) for path in spool.iterdir()]
    assert held in ([0o600], [])  # empty on a fast machine
    assert stat.S_IMODE(node.settings.dir.stat().st_mode) == stat.S_IMODE(spool.stat().st_mode) == 0o700
    until(lambda: state(node, study)[0] == "sent")
    until(lambda: not node.store.sizes())
    files = [path for path in node.settings.dir.rglob("*") if path.is_file()]
    assert list(spool.iterdir()) == []
    assert not [path.name for path in files if b"Canary" in path.read_bytes()]


def test_study_that_comes_again_is_not_drafted_again(node: Node, archive: Inbox) -> None:
    study = new_study()
    files = image(study), image(study, "LL")
    send(node.server.port, *files)
    until(lambda: state(node, study)[0] == "sent")
    assert send(node.server.port, *files) == [0, 0]
    until(lambda: not node.store.sizes())
    assert state(node, study) == ("sent", None)
    until(lambda: metric(node, "report_node_drafted_total") == len(archive.reports) == 1)


def test_report_of_a_grown_study_names_its_predecessor(tmp_path: Path, page_server: Live, archive: Inbox) -> None:
    study = new_study()
    settings = node_settings(tmp_path, page_server.url, archive.port, keep_s=2)
    with running_node(settings) as node:
        send(node.server.port, image(study))
        until(lambda: archive.reports)
        send(node.server.port, image(study, "LL"))
        until(lambda: len(archive.reports) == 2)
        first, second = archive.reports
        (item,) = second.PredecessorDocumentsSequence
        named = item.ReferencedSeriesSequence[0].ReferencedSOPSequence[0]
        assert named.ReferencedSOPInstanceUID == first.SOPInstanceUID
        assert second.SOPInstanceUID != first.SOPInstanceUID
        until(lambda: not node.store.sizes())
        assert state(node, study) == ("sent", None)


def test_grown_study_without_its_earlier_images_fails_by_name_until_it_is_sent_whole(
    node: Node, archive: Inbox
) -> None:
    study = new_study()
    frontal, lateral = image(study), image(study, "LL")
    send(node.server.port, frontal)
    until(lambda: state(node, study)[0] == "sent")
    send(node.server.port, lateral)
    until(lambda: state(node, study) == ("failed", "earlier_images_gone"))
    send(node.server.port, frontal, lateral)
    until(lambda: len(archive.reports) == 2)
    assert "PredecessorDocumentsSequence" in archive.reports[1]


def test_two_patients_in_one_study_are_refused_by_name(node: Node, archive: Inbox) -> None:
    study = new_study()
    send(node.server.port, image(study), image(study, "LL", patient="P2"))
    until(lambda: state(node, study) == ("failed", "two_patients"))
    assert not archive.reports
    until(lambda: not node.store.sizes())
    assert send(node.server.port, image(study), image(study, "LL")) == [0, 0], "corrected, with new UIDs"
    until(lambda: state(node, study) == ("sent", None))


def test_study_without_a_chest_radiograph_fails_by_name(node: Node) -> None:
    study = new_study()
    send(node.server.port, image(study, BodyPartExamined="HAND"))
    until(lambda: state(node, study) == ("failed", "study_empty"))
    send(node.server.port, image(study))
    until(lambda: state(node, study) == ("sent", None))


def test_secondary_captures_are_read(node: Node, archive: Inbox) -> None:
    send(node.server.port, image(new_study(), sop_class=SC, Modality="OT", ConversionType="WSD"))
    until(lambda: archive.reports)


def test_archive_that_is_down_is_tried_again(tmp_path: Path, page_server: Live) -> None:
    with inbox() as gone:
        port = gone.port
    study = new_study()
    with running_node(node_settings(tmp_path, page_server.url, port)) as node:
        send(node.server.port, image(study))
        until(lambda: state(node, study) == ("drafted", "archive_down"))
        body = status(node).json()
        assert (body["status"], body["peers"]["report_service"]) == ("waiting", "up")
        assert metric(node, 'report_node_peer_up{peer="archive"}') == 0
        with inbox(port) as box:
            until(lambda: state(node, study) == ("sent", None))
            assert list(box.studies()) == [study]
        assert status(node).json()["status"] == "ready"


def test_report_that_the_archive_has_already_counts_as_sent(node: Node, archive: Inbox) -> None:
    archive.status, study = 0x0111, new_study()
    send(node.server.port, image(study))
    until(lambda: state(node, study) == ("sent", None))


def test_status_of_an_archive_that_refuses_is_named(node: Node, archive: Inbox) -> None:
    archive.status, study = 0xA700, new_study()
    send(node.server.port, image(study))
    until(lambda: state(node, study) == ("drafted", "archive_refuses"))
    assert status(node).json()["peers"]["archive"] == "up"  # only this study waits
    archive.status = 0
    until(lambda: state(node, study) == ("sent", None))


def test_full_disk_is_answered_as_out_of_resources(tmp_path: Path) -> None:
    settings = node_settings(tmp_path, "http://127.0.0.1:9", 9, quiet_s=60)
    with running_node(settings) as node:
        node.queue._connection.execute("PRAGMA max_page_count = 1")  # SQLite allows no more pages than there are
        study = new_study()
        statuses = send(node.server.port, *(image(study) for _ in range(60)))
        assert set(statuses) == {0, 0xA700}
        assert len(node.store.sizes()) == statuses.count(0)
        node.queue._connection.execute("PRAGMA max_page_count = 1000000")
        assert send(node.server.port, image(study)) == [0]


def test_study_fails_when_the_peer_stays_down(tmp_path: Path, archive: Inbox) -> None:
    study = new_study()
    with running_node(node_settings(tmp_path, "http://127.0.0.1:9", archive.port, give_up_s=1)) as node:
        send(node.server.port, image(study))
        until(lambda: state(node, study) == ("failed", "service_down"))
        until(lambda: not node.store.sizes())


def test_key_of_the_report_service_is_sent(tmp_path: Path, bundle: Path, archive: Inbox) -> None:
    (tmp_path / "key").write_text(KEY)
    with live_server(bundle, warm_up=False, api_key=KEY) as live:
        with running_node(node_settings(tmp_path / "a", live.url, archive.port)) as node:
            study = new_study()
            send(node.server.port, image(study))
            until(lambda: state(node, study) == ("received", "unauthorized"))
        settings = node_settings(tmp_path / "a", live.url, archive.port, report_key_file=tmp_path / "key")
        with running_node(settings) as node:
            until(lambda: state(node, study) == ("sent", None))


def test_memory_mode_writes_no_image_and_names_what_a_stop_loses(
    tmp_path: Path, page_server: Live, archive: Inbox
) -> None:
    study = new_study()
    frontal, lateral = image(study, PatientName="Canary^Jane"), image(study, "LL", PatientName="Canary^Jane")
    settings = node_settings(tmp_path, page_server.url, archive.port, spool=False, quiet_s=60)
    with running_node(settings) as node:
        send(node.server.port, frontal)
        assert {path.name for path in tmp_path.iterdir()} <= {
            "lock",
            *(f"queue.sqlite{end}" for end in ("", "-wal", "-shm")),
        }
    with running_node(settings.model_copy(update={"quiet_s": 0.3})) as node:
        assert state(node, study) == ("failed", LOST)
        send(node.server.port, lateral)
        assert state(node, study)[0] == "received"
        until(lambda: state(node, study) == ("failed", LOST))
        assert not archive.reports, "no draft of a part of the study"
        send(node.server.port, lateral, frontal)
        until(lambda: state(node, study) == ("sent", None))
        assert len(archive.reports[0].CurrentRequestedProcedureEvidenceSequence[0].ReferencedSeriesSequence) == 2
    assert not [path for path in tmp_path.iterdir() if b"Canary" in path.read_bytes()]


@pytest.mark.parametrize("grown", [False, True])
def test_study_that_failed_after_its_draft_is_sent_when_it_comes_again(
    tmp_path: Path, page_server: Live, archive: Inbox, grown: bool
) -> None:
    study = new_study()
    frontal, lateral = image(study), image(study, "LL")
    settings = node_settings(tmp_path, page_server.url, archive.port, give_up_s=1, keep_s=9)
    with running_node(settings) as node:
        if grown:
            send(node.server.port, frontal)
            until(lambda: state(node, study)[0] == "sent")
        archive.status = 0xA700
        send(node.server.port, frontal, lateral)
        until(lambda: state(node, study) == ("failed", "archive_refuses"))
        archive.status = 0
        send(node.server.port, frontal, lateral)
        until(lambda: len(archive.reports) == 1 + grown)
        until(lambda: state(node, study) == ("sent", None))


def test_spool_of_an_earlier_start_is_not_left_on_disk(tmp_path: Path) -> None:
    with running_node(node_settings(tmp_path, "http://127.0.0.1:9", 9)) as node:
        send(node.server.port, image(new_study()))
    with (
        pytest.raises(ValueError, match="spool holds 1 files"),
        running_node(node_settings(tmp_path, "http://127.0.0.1:9", 9, spool=False)),
    ):
        pass


def test_names_are_in_the_worklist_only_if_configured(tmp_path: Path, page_server: Live, archive: Inbox) -> None:
    for names in (False, True):
        with running_node(node_settings(tmp_path, page_server.url, archive.port, names=names)) as node:
            send(node.server.port, image(study := new_study()))
        rows, _ = read_worklist(tmp_path / "queue.sqlite", 9)
        (row,) = [row for row in rows if row["uid"] == study]
        assert (row["patient"], row["accession"]) == (("Drawn^P1", "A1") if names else (None, None))


def test_two_nodes_cannot_share_a_directory(node: Node) -> None:
    with pytest.raises(BlockingIOError):
        Node(node.settings)
    assert echo(node.server.port)


def test_finished_studies_are_forgotten(node: Node) -> None:
    study = new_study()
    send(node.server.port, image(study))
    until(lambda: state(node, study)[0] == "sent")
    node.queue.forget(time.time() + 1)
    assert not any(node.queue.counts().values())


def test_lock_of_a_node_ends_with_it(tmp_path: Path) -> None:
    for _ in range(2):
        with running_node(node_settings(tmp_path, "http://127.0.0.1:9", 9)) as node:
            assert os.path.exists(node.settings.queue_file)
