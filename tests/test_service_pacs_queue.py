"""The queue of the node: what a restart finds and removes, and a commit that fails."""

from __future__ import annotations

import sqlite3
from pathlib import Path

import pytest

from service.pacs.queue import StudyQueue
from service.pacs.spool import Spool


def received(queue: StudyQueue, instance: str, token: str) -> None:
    queue.received("1.2", "1.2.1", instance, token, quiet_s=0)


def test_study_whose_draft_was_lost_is_drafted_when_it_comes_again(tmp_path: Path) -> None:
    queue = StudyQueue(tmp_path / "queue.sqlite")
    received(queue, "1.2.3", "image")
    study = queue.due()
    assert study is not None
    queue.drafted(study, "report", "2.25.1", "2.25.2", ["1.2.3"])
    assert queue.reconcile(["image"]) == ["image"], "a failed study keeps nothing"
    received(queue, "1.2.3", "again")
    study = queue.due()
    assert study is not None
    assert not study.is_sent
    queue.drafted(study, "report", "2.25.1", "2.25.2", ["1.2.3"])
    queue.sent(study)
    received(queue, "1.2.3", "third")
    study = queue.due()
    assert study is not None
    assert study.is_sent


def test_report_that_the_archive_committed_to_meanwhile_has_not_failed(tmp_path: Path) -> None:
    queue = StudyQueue(tmp_path / "queue.sqlite")
    received(queue, "1.2.3", "image")
    study = queue.due()
    assert study is not None
    queue.drafted(study, "report", "2.25.1", "2.25.2", ["1.2.3"])
    sending = queue.to_send()
    assert sending is not None
    queue.sent(sending)
    assert queue.failed(sending, "archive_down", "The archive ended the association.") == []
    assert queue.counts() == {"received": 0, "drafted": 0, "sent": 1, "failed": 0}


def insert_without_study(queue: StudyQueue) -> None:
    """A transaction whose COMMIT fails."""
    with queue._transaction() as db:
        db.execute("PRAGMA defer_foreign_keys = ON")
        db.execute("INSERT INTO instances (study, uid, series) VALUES ('unknown', '1', '2')")


def test_queue_works_after_a_commit_that_failed(tmp_path: Path) -> None:
    queue = StudyQueue(tmp_path / "queue.sqlite")
    with pytest.raises(sqlite3.Error):
        insert_without_study(queue)
    received(queue, "1.2.3", "token")
    assert queue.due() is not None


def test_count_of_other_instances_leaves_out_one_that_comes_again(tmp_path: Path) -> None:
    queue = StudyQueue(tmp_path / "queue.sqlite")
    received(queue, "1.2.3", "one")
    received(queue, "1.2.4", "two")
    assert queue.count_other_instances("1.2", "1.2.3") == 1
    assert queue.count_other_instances("1.2", "1.2.5") == 2


def test_file_that_cannot_be_removed_stops_nothing(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    spool = Spool(tmp_path / "spool")
    token = spool.put(b"image")
    (tmp_path / "spool" / token).unlink()
    (tmp_path / "spool" / token).mkdir()
    spool.remove([token])
    assert spool.sizes() == {}
    assert "could not be removed" in caplog.text
