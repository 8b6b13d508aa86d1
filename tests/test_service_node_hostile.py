"""Hostile peers of the DICOM node: real associations and raw sockets that must not harm the node or other peers."""

from __future__ import annotations

import contextlib
import logging
import socket
import socketserver
import struct
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

pytest.importorskip("pynetdicom", reason="needs pip install '.[pacs]' in the source tree")
from pydicom import Dataset

from service.pacs.node import Node
from tests.support.dicom import encode, tiny_elements
from tests.support.hostile_peers import data_pdu, request, store_command
from tests.support.pacs import (
    ARCHIVE,
    MODALITY,
    TITLE,
    association,
    echo,
    image,
    new_study,
    node_settings,
    parsed,
    running_node,
    send,
)
from tests.support.service import until

MIB = 2**20
LIMIT = 2 * MIB


@pytest.fixture
def node(tmp_path: Path) -> Iterator[Node]:
    """A node with small limits, whose peers are down."""
    settings = node_settings(
        tmp_path, "http://127.0.0.1:9", 9, max_object_bytes=LIMIT, network_timeout_s=1, transfer_timeout_s=2,
        max_associations=6,
    )  # fmt: skip
    with running_node(settings) as node:
        yield node
        assert node.health()[0]


def refused(node: Node, cause: str) -> int:
    return int(node.metrics.refused.labels(cause)._value.get())


def connect(node: Node) -> socket.socket:
    return socket.create_connection(("127.0.0.1", node.server.port), timeout=30)


def ended(connection: socket.socket) -> bool:
    """Whether the node has closed the connection; waits for it."""
    with contextlib.suppress(ConnectionError):
        while connection.recv(4096):
            pass
    return True


@contextlib.contextmanager
def associated(node: Node) -> Iterator[socket.socket]:
    with connect(node) as connection:
        connection.sendall(request())
        assert connection.recv(4096)[:1] == b"\x02"  # A-ASSOCIATE-AC
        yield connection


def test_other_titles_are_rejected(node: Node) -> None:
    for titles in ({"called": "OTHER"}, {"calling": "OTHER"}, {"calling": ARCHIVE}):
        with association(node.server.port, **titles) as made:
            assert made.is_rejected, titles
    assert echo(node.server.port)
    assert refused(node, "association") == 3


def test_title_of_one_address_is_rejected_from_another(tmp_path: Path) -> None:
    settings = node_settings(tmp_path, "http://127.0.0.1:9", 9, peers=f"{MODALITY}@127.0.0.2,OPEN")
    with running_node(settings) as node:
        assert not echo(node.server.port)
        assert echo(node.server.port, calling="OPEN")


def test_connections_of_unknown_addresses_are_closed_at_once(tmp_path: Path) -> None:
    with running_node(node_settings(tmp_path, "http://127.0.0.1:9", 9, peers=f"{MODALITY}@127.0.0.2")) as node:
        with connect(node) as connection:
            assert connection.recv(1) == b""
        assert refused(node, "address") == 1


def test_many_connections_cost_few_threads_and_leave_room_for_other_addresses(node: Node) -> None:
    before, process = threading.active_count(), psutil.Process()
    files = process.num_fds()
    with contextlib.ExitStack() as stack:
        mine = [stack.enter_context(connect(node)) for _ in range(200)]
        until(lambda: refused(node, "connections") >= 150)
        assert threading.active_count() - before < 30
        other = socket.create_connection(("127.0.0.1", node.server.port), 30, ("127.0.0.3", 0))
        with stack.enter_context(other):
            other.sendall(request())
            assert other.recv(4096)[:1] == b"\x02"
        assert all(ended(each) for each in mine)  # after the timeout of the negotiation
    until(lambda: node.server.associations == 0)
    until(lambda: process.num_fds() <= files + 2)
    assert echo(node.server.port)


def test_thousands_of_associations_with_a_wrong_title_change_nothing(node: Node) -> None:
    wrong = request().replace(TITLE.encode(), b"X" * len(TITLE))
    rss = psutil.Process().memory_info().rss
    answers = []
    for _ in range(300):
        with connect(node) as connection, contextlib.suppress(ConnectionError):
            connection.sendall(wrong)
            answers.append(connection.recv(4096)[:1])
    assert set(answers) <= {b"\x03", b""}  # A-ASSOCIATE-RJ, or closed
    until(lambda: node.server.associations == 0)
    assert psutil.Process().memory_info().rss - rss < 40 * MIB
    assert echo(node.server.port)


def test_one_more_association_of_an_address_is_rejected_as_transient(node: Node) -> None:
    with contextlib.ExitStack() as stack:
        made = [stack.enter_context(association(node.server.port)) for _ in range(4)]
        assert [each.is_established for each in made] == [True, True, True, False]
        answer = made[3].acceptor.primitive
        assert (answer.result, answer.result_source, answer.diagnostic) == (2, 3, 2)


def test_declared_length_of_a_pdu_is_bounded(node: Node) -> None:
    rss = psutil.Process().memory_info().rss
    with connect(node) as connection:
        connection.sendall(struct.pack(">BBL", 1, 0, 2**32 - 1) + bytes(1000))
        assert ended(connection)
    with associated(node) as connection:
        connection.sendall(struct.pack(">BBL", 4, 0, 2**31))
        assert ended(connection)
    assert psutil.Process().memory_info().rss - rss < 40 * MIB


@pytest.mark.parametrize("sent", [b"", b"\x01", request()[:100]], ids=["nothing", "a byte", "half a request"])
def test_half_an_association_ends_after_its_timeout(node: Node, sent: bytes) -> None:
    with connect(node) as connection:
        connection.sendall(sent)
        assert ended(connection)
    until(lambda: node.server.associations == 0)


def test_half_an_object_ends_after_its_timeout_and_leaves_nothing(node: Node) -> None:
    with associated(node) as connection:
        connection.sendall(data_pdu(3, store_command(new_study())) + data_pdu(0, bytes(5000))[:-1000])
        assert ended(connection)
    with associated(node) as connection:  # a fragment at a time
        connection.sendall(data_pdu(3, store_command(new_study())))
        began = time.monotonic()
        with contextlib.suppress(ConnectionError):
            while time.monotonic() < began + 20:
                connection.sendall(data_pdu(0, bytes(10)))
                time.sleep(0.3)
        assert time.monotonic() - began < 15
    until(lambda: refused(node, "too_slow") == 1)
    until(lambda: node.server.associations == 0)
    assert node.store.sizes() == {}
    assert send(node.server.port, image(new_study())) == [0]


def test_object_over_the_limit_is_refused_and_the_association_goes_on(node: Node) -> None:
    large = parsed(image(new_study()))
    large.add_new(0x00091001, "OB", bytes(LIMIT))
    rss = psutil.Process().memory_info().rss
    assert send(node.server.port, encode(large), image(new_study())) == [0xA700, 0]
    assert refused(node, "too_large") == 1
    assert psutil.Process().memory_info().rss - rss < 40 * MIB


def test_endless_object_is_aborted(node: Node) -> None:
    with associated(node) as connection:
        connection.sendall(data_pdu(3, store_command(new_study())))
        fragment, count = data_pdu(0, bytes(200_000)), 0
        with contextlib.suppress(ConnectionError):
            while count < 2 * 2**30 / 200_000:  # 2 GiB
                connection.sendall(fragment)
                count += 1
    assert count * 200_000 < 40 * MIB
    assert echo(node.server.port)


def test_command_without_end_and_pipelined_requests_are_aborted(node: Node) -> None:
    with associated(node) as connection:
        with contextlib.suppress(ConnectionError):
            for _ in range(100):
                connection.sendall(data_pdu(1, bytes(10_000)))
        assert ended(connection)
    assert refused(node, "too_large") == 1
    with associated(node) as connection:
        with contextlib.suppress(ConnectionError):
            for _ in range(200):
                connection.sendall(data_pdu(3, store_command(new_study())) + data_pdu(2, bytes(100)))
        assert ended(connection)
    assert refused(node, "pipelined") >= 1


def test_bombs_in_a_header_are_refused_quickly(node: Node) -> None:
    began = time.monotonic()
    many = tiny_elements(image(new_study()))
    with associated(node) as connection:
        uid = new_study()
        body = many[many.index(b"DICM") :]
        connection.sendall(data_pdu(3, store_command(uid)))
        with contextlib.suppress(ConnectionError):
            for at in range(0, min(len(body), LIMIT - 1), 100_000):
                connection.sendall(data_pdu(0, body[at : at + 100_000]))
            connection.sendall(data_pdu(2, b""))
            connection.recv(4096)
    nested = parsed(image(new_study()))
    item: Dataset = nested
    for _ in range(200):
        inner = Dataset()
        item.add_new(0x00091010, "SQ", [inner])
        item = inner
    assert send(node.server.port, encode(nested)) in ([0], [0xC000])  # skipped or refused, never parsed for long
    assert time.monotonic() - began < 15
    assert echo(node.server.port)


def test_object_that_is_not_what_its_request_says_is_refused(node: Node) -> None:
    with associated(node) as connection:
        body = image(new_study(), uid=new_study())
        connection.sendall(data_pdu(3, store_command(new_study())) + data_pdu(2, body[body.index(b"DICM") + 4 :]))
        answer = connection.recv(4096)
        assert answer[:1] == b"\x04"
        assert struct.pack("<H", 0xA900) in answer
    assert node.store.sizes() == {}


def test_full_node_refuses_and_accepts_again(tmp_path: Path) -> None:
    with running_node(node_settings(tmp_path, "http://127.0.0.1:9", 9, max_held_bytes=MIB, give_up_s=1)) as node:
        large = parsed(image(new_study()))
        large.add_new(0x00091001, "OB", bytes(700_000))
        assert send(node.server.port, encode(large), encode(large)[:-2] + b"..") == [0, 0xA700]
        until(lambda: not node.store.sizes())
        assert send(node.server.port, image(new_study())) == [0]


def test_no_header_value_is_in_logs_and_metrics(node: Node, caplog: pytest.LogCaptureFixture) -> None:
    canary, study = "CANARY^JANE", new_study()
    with caplog.at_level(logging.DEBUG):
        texts = ("PatientName", "ReferringPhysicianName", "InstitutionName", "StudyDescription", "AccessionNumber")
        send(node.server.port, image(study, **dict.fromkeys(texts, canary[:16])), calling=MODALITY)
        damaged = parsed(image(new_study(), PatientName=canary))
        del damaged.StudyInstanceUID
        send(node.server.port, encode(damaged))
        echo(node.server.port, calling="CANARY")
        node.queue.counts()
    ours = [record.getMessage() for record in caplog.records if not record.name.startswith("pynetdicom")]
    assert not [line for line in ours if "CANARY" in line]
    from prometheus_client import generate_latest

    assert b"CANARY" not in generate_latest(node.metrics.registry)
    assert "CANARY" not in str(node.health())


def test_connection_without_a_thread_takes_no_slot(node: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_thread(*_: object) -> None:
        raise RuntimeError("can't start new thread")

    with monkeypatch.context() as patch:
        patch.setattr(socketserver.ThreadingMixIn, "process_request", no_thread)
        for _ in range(8):
            assert ended(connect(node))
    with associated(node):
        assert refused(node, "connections") == 0
