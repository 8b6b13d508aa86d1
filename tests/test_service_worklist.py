"""``GET /worklist``: the states of the node's studies, as JSON and as a page."""

from __future__ import annotations

import io
import sqlite3
import time
import zipfile
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from service.pacs.queue import Study, StudyQueue
from service.schemas.worklist import WorklistResponse
from tests.support.dicomweb_server import dicomweb_server
from tests.support.pacs import image, new_study
from tests.support.service import AUTHORIZED, KEY, PROBLEM, ready_client

HTML = {"Accept": "text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8"}


@pytest.fixture(scope="module")
def queue(tmp_path_factory: pytest.TempPathFactory) -> Iterator[StudyQueue]:
    """A queue with a study in each state, and one that waits."""
    queue = StudyQueue(tmp_path_factory.mktemp("node") / "queue.sqlite")
    for number in range(1, 6):
        queue.received(f"1.{number}", f"1.{number}.1", f"1.{number}.1.1", f"t{number}", quiet_s=0)
    for number, study in enumerate([study_of(queue, f"1.{number}") for number in range(2, 6)]):
        if number == 0:
            queue.failed(study, "two_patients", "Two patients.")
        else:
            assert queue.drafted(study, f"r{number}", "2.1", "2.1.1", ["1"])
    queue.sent(study_of(queue, "1.4"))
    queue.postpone(study_of(queue, "1.5"), "archive_down", "The archive does not answer", 60)
    yield queue
    queue.close()


def study_of(queue: StudyQueue, uid: str) -> Study:
    study = queue._first("uid = ?", uid)  # type: ignore[arg-type]
    assert study is not None
    return study


@pytest.fixture(scope="module")
def client(bundle: Path, queue: StudyQueue) -> Iterator[httpx.Client]:
    path = queue._connection.execute("PRAGMA database_list").fetchone()["file"]
    with ready_client(bundle, warm_up=False, worklist=path, api_key=KEY) as client:
        yield client


def test_studies_are_listed_with_state_and_reason(client: httpx.Client) -> None:
    answer = client.get("/worklist", headers=AUTHORIZED)
    assert (answer.status_code, answer.headers["vary"]) == (200, "Accept")
    listed = WorklistResponse.model_validate_json(answer.text)
    states = {each.study_instance_uid: (each.state, each.code, each.next_try is not None) for each in listed.studies}
    assert states == {
        "1.1": ("received", None, False), "1.2": ("failed", "two_patients", False), "1.3": ("drafted", None, False),
        "1.4": ("sent", None, False), "1.5": ("drafted", "archive_down", True),
    }  # fmt: skip
    assert listed.counts == {"received": 1, "drafted": 2, "sent": 1, "failed": 1}
    assert all(each.changed.endswith("Z") and each.patient is None for each in listed.studies)
    assert len(client.get("/worklist?limit=2", headers=AUTHORIZED).json()["studies"]) == 2


def test_data_needs_the_key_and_the_page_does_not(client: httpx.Client) -> None:
    assert client.get("/worklist").status_code == 401
    page = client.get("/worklist", headers=HTML)
    assert (page.status_code, page.headers["content-type"]) == (200, "text/html; charset=utf-8")
    assert "1.2" not in page.text
    assert "unsafe" not in page.headers["content-security-policy"]


def test_limit_is_checked(client: httpx.Client) -> None:
    answer = client.get("/worklist?limit=0", headers=AUTHORIZED)
    assert (answer.status_code, answer.json()["code"]) == (422, "invalid_request")


def test_worklist_without_a_node_is_a_problem(bundle: Path, tmp_path: Path) -> None:
    for path, code in (
        (None, "no_worklist"),
        (tmp_path / "none", "worklist_unreadable"),
        (bundle / "config.json", "worklist_unreadable"),
    ):
        with ready_client(bundle, warm_up=False, worklist=path) as client:
            answer = client.get("/worklist")
            assert (answer.headers["content-type"], answer.json()["code"]) == (PROBLEM, code)


def test_worklist_of_a_stopped_node_is_read_without_writing(bundle: Path, tmp_path: Path) -> None:
    queue = StudyQueue(tmp_path / "queue.sqlite")
    queue.received("1.1", "1.1.1", "1.1.1.1", "t", quiet_s=0)
    queue.close()
    before = sorted(path.name for path in tmp_path.iterdir())
    assert before == ["queue.sqlite"]
    tmp_path.chmod(0o500)
    try:
        with ready_client(bundle, warm_up=False, worklist=tmp_path / "queue.sqlite") as client:
            assert client.get("/worklist").json()["counts"]["received"] == 1
    finally:
        tmp_path.chmod(0o700)
    assert sorted(path.name for path in tmp_path.iterdir()) == before


# --- the images of a study --------------------------------------------------------------------------------------------


def test_images_of_a_study_are_sent_as_the_pacs_has_them(bundle: Path) -> None:
    study = new_study()
    frontal, lateral, hand = image(study), image(study, "LL"), image(study, BodyPartExamined="HAND")
    with dicomweb_server() as pacs, ready_client(bundle, warm_up=False, dicomweb_url=pacs.url, api_key=KEY) as client:
        pacs.reset(lateral, hand, frontal)
        assert client.get(f"/studies/{study}/images").status_code == 401
        answer = client.get(f"/studies/{study}/images", headers=AUTHORIZED)
        assert (answer.headers["content-type"], answer.headers["cache-control"]) == ("application/zip", "no-store")
        with zipfile.ZipFile(io.BytesIO(answer.content)) as archive:
            assert {name: archive.read(name) for name in archive.namelist()} == {
                "frontal.dcm": frontal, "lateral.dcm": lateral,
            }  # fmt: skip
        foreign = client.get(f"/studies/{study}/images", headers=AUTHORIZED | {"Sec-Fetch-Site": "cross-site"})
        assert foreign.json()["code"] == "cross_origin"
        pacs.reset(hand)
        assert client.get(f"/studies/{study}/images", headers=AUTHORIZED).json()["code"] == "study_empty"
        assert client.get("/studies/1.x/images", headers=AUTHORIZED).json()["code"] == "malformed_value"
    with ready_client(bundle, warm_up=False) as client:
        assert client.get(f"/studies/{study}/images").json()["code"] == "no_pacs"


# --- the queue --------------------------------------------------------------------------------------------------------


def test_queue_survives_a_kill_at_every_step(tmp_path: Path) -> None:
    """Copies of the file and its log, as a kill would leave them, show each committed step."""
    queue, path = StudyQueue(tmp_path / "queue.sqlite"), tmp_path / "copy" / "queue.sqlite"

    def seen() -> tuple[str, int]:
        path.parent.mkdir(exist_ok=True)
        for file in path.parent.iterdir():
            file.unlink()
        for end in ("", "-wal"):
            path.with_name(f"queue.sqlite{end}").write_bytes((tmp_path / f"queue.sqlite{end}").read_bytes())
        copy = StudyQueue(path)
        study = study_of(copy, "1.1")
        tokens = sum(each.token is not None for each in copy.instances("1.1"))
        copy.close()
        return study.state, tokens

    queue.received("1.1", "1.1.1", "1.1.1.1", "a", quiet_s=0)
    assert seen() == ("received", 1)
    assert queue.drafted(study_of(queue, "1.1"), "r", "2.1", "2.1.1", ["1.1.1.1"])
    assert seen() == ("drafted", 1)
    assert sorted(queue.sent(study_of(queue, "1.1"))) == ["a", "r"]
    assert seen() == ("sent", 0)


def test_draft_is_dropped_if_an_image_came_while_it_was_made(tmp_path: Path) -> None:
    queue = StudyQueue(tmp_path / "queue.sqlite")
    queue.received("1.1", "1.1.1", "1.1.1.1", "a", quiet_s=0)
    study = queue.due(time.time() + 1)
    assert study is not None
    assert queue.received("1.1", "1.1.1", "1.1.1.2", "b", quiet_s=60) == []
    assert not queue.drafted(study, "r", "2.1", "2.1.1", ["1.1.1.1"])
    assert queue.failed(study, "code", "reason") == []
    assert (study_of(queue, "1.1").state, queue.due(time.time() + 1)) == ("received", None)
    assert queue.received("1.1", "1.1.1", "1.1.1.2", "c", quiet_s=0) == ["b"]


def test_image_that_comes_before_sending_is_drafted_after_it(tmp_path: Path) -> None:
    queue = StudyQueue(tmp_path / "queue.sqlite")
    queue.received("1.1", "1.1.1", "1.1.1.1", "a", quiet_s=0)
    assert queue.drafted(study_of(queue, "1.1"), "r", "2.1", "2.1.1", ["1.1.1.1"])
    queue.received("1.1", "1.1.1", "1.1.1.2", "b", quiet_s=0)
    assert (study_of(queue, "1.1").state, queue.due(time.time() + 1)) == ("drafted", None)
    assert queue.sent(study_of(queue, "1.1")) == ["r"]  # the images are kept for the next draft
    study = queue.due(time.time() + 1)
    assert study is not None
    assert (study.state, study.sent) == ("received", ("2.1", "2.1.1"))


def test_queue_of_another_version_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "queue.sqlite"
    with sqlite3.connect(path) as connection:
        connection.execute("PRAGMA user_version = 99")
    with pytest.raises(ValueError, match="schema 99"):
        StudyQueue(path)
