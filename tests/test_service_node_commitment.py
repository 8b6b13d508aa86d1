"""Storage commitment: a report counts as sent once the archive has answered that it keeps it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from pydicom import Dataset
from pydicom.uid import UID

pytest.importorskip("pynetdicom", reason="needs pip install '.[pacs]' in the source tree")
from pynetdicom import AE, build_role

from service.pacs.commitment import PUSH_MODEL
from service.pacs.node import Node
from service.pacs.node_settings import NodeSettings
from service.pacs.queue import read_worklist
from tests.support.pacs import (
    ARCHIVE,
    MODALITY,
    TITLE,
    Inbox,
    image,
    inbox,
    new_study,
    node_settings,
    running_node,
    send,
)
from tests.support.service import Live, until

AWAITED, REFUSED = ("drafted", "commitment"), ("drafted", "archive_does_not_commit")


@pytest.fixture
def archive() -> Iterator[Inbox]:
    with inbox(commits=True) as box:
        yield box


def settings(tmp_path: Path, page_server: Live, archive: Inbox, timeout_s: float = 300) -> NodeSettings:
    peers = f"{MODALITY},{ARCHIVE}"
    return node_settings(
        tmp_path, page_server.url, archive.port, peers=peers, commitment=True, commitment_timeout_s=timeout_s
    )


@pytest.fixture
def node(tmp_path: Path, page_server: Live, archive: Inbox) -> Iterator[Node]:
    with running_node(settings(tmp_path, page_server, archive)) as node:
        yield node


def state(node: Node) -> tuple[str, str | None]:
    (row,), _ = read_worklist(node.settings.queue_file, 9)
    return row["state"], row["code"]


def answer(node: Node, action: Dataset, *, reason: int | None = None, calling: str = ARCHIVE) -> int:
    """Send the N-EVENT-REPORT for a request; returns the status of its response, -1 without one."""
    (item,) = action.ReferencedSOPSequence
    event = Dataset()
    event.TransactionUID = action.TransactionUID
    if reason is None:
        event.ReferencedSOPSequence = [item]
    else:
        item.FailureReason = reason
        event.FailedSOPSequence = [item]
    ae = AE(calling)
    ae.add_requested_context(PUSH_MODEL)
    roles = [build_role(PUSH_MODEL, scp_role=True)]
    association = ae.associate("127.0.0.1", node.server.port, ae_title=TITLE, ext_neg=roles)
    assert association.is_established
    kind = 1 if reason is None else 2
    status, _ = association.send_n_event_report(event, kind, PUSH_MODEL, UID("1.2.840.10008.1.20.1.1"))
    association.release()
    return int(status.get("Status", -1))


def test_images_and_report_are_kept_until_the_archive_commits(node: Node, archive: Inbox) -> None:
    send(node.server.port, image(new_study()), image(new_study(), PatientID=""))
    until(lambda: len(archive.actions) == 2)
    assert {row["code"] for row in read_worklist(node.settings.queue_file, 9)[0]} == {"commitment"}
    assert len(node.store.sizes()) == 4
    asked = {action.ReferencedSOPSequence[0].ReferencedSOPInstanceUID for action in archive.actions}
    assert asked == {report.SOPInstanceUID for report in archive.reports}
    assert answer(node, archive.actions[0], calling=MODALITY) == 0x0110, "only the archive commits"
    other = Dataset()
    other.TransactionUID, other.ReferencedSOPSequence = "2.25.1", archive.actions[0].ReferencedSOPSequence
    assert answer(node, other) == 0
    assert node.queue.counts()["sent"] == 0
    for action in archive.actions:
        assert answer(node, action) == 0
    assert node.queue.counts()["sent"] == 2
    assert node.store.sizes() == {}


def test_report_that_the_archive_does_not_commit_to_is_sent_again(node: Node, archive: Inbox) -> None:
    send(node.server.port, image(new_study()))
    until(lambda: archive.actions)
    assert state(node) == AWAITED
    assert answer(node, archive.actions[0], reason=0x0112) == 0
    until(lambda: len(archive.actions) == 2)
    assert len({report.SOPInstanceUID for report in archive.reports}) == 1
    assert answer(node, archive.actions[1]) == 0
    assert state(node) == ("sent", None)


def test_restarted_node_requests_commitment_again(tmp_path: Path, page_server: Live, archive: Inbox) -> None:
    made = settings(tmp_path, page_server, archive, timeout_s=1)
    with running_node(made) as node:
        send(node.server.port, image(new_study()))
        until(lambda: archive.actions)
    with running_node(made) as node:
        until(lambda: len(archive.actions) > 1)
        assert answer(node, archive.actions[-1]) == 0
        assert state(node) == ("sent", None)


def test_answer_to_an_earlier_request_counts(tmp_path: Path, page_server: Live, archive: Inbox) -> None:
    """Otherwise an archive that takes longer than the timeout would never commit."""
    with running_node(settings(tmp_path, page_server, archive, timeout_s=1)) as node:
        send(node.server.port, image(new_study()))
        until(lambda: len(archive.actions) > 1)
        assert answer(node, archive.actions[0]) == 0
        assert state(node) == ("sent", None)


def test_archive_without_storage_commitment_is_named(tmp_path: Path, page_server: Live) -> None:
    with inbox() as archive, running_node(settings(tmp_path, page_server, archive)) as node:
        send(node.server.port, image(new_study()))
        until(lambda: state(node) == REFUSED)


def test_image_that_no_draft_has_read_is_known_after_the_archive_did_not_commit(
    tmp_path: Path, page_server: Live, archive: Inbox
) -> None:
    study, unread = new_study(), new_study()
    made = settings(tmp_path, page_server, archive, timeout_s=1).model_copy(update={"give_up_s": 2})
    with running_node(made) as node:
        send(node.server.port, image(study))
        until(lambda: archive.actions)
        send(node.server.port, image(study, "LATERAL", uid=unread))
        until(lambda: state(node) == ("failed", "archive_does_not_commit"))
        assert unread in [each.uid for each in node.queue.instances(study)], "else the next draft would lack its view"
