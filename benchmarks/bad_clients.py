"""Clients that misbehave: they leave in the middle, upload slowly, or send what is not a request."""

from __future__ import annotations

import contextlib
import select
import socket
import struct
import time
from collections.abc import Callable, Iterator

import numpy as np

from benchmarks.load import Record, Study, judge
from benchmarks.raw_http import connect, post_report, receive

SLOW_UPLOAD_S = (0.5, 4.0)
_RESET = struct.pack("ii", 1, 0)  # SO_LINGER: closing resets the connection


def leaves_while_sending(url: str, study: Study, record: Record, rng: np.random.Generator) -> None:
    """Sends a part of the body and resets the connection."""
    data = post_report(study.body)
    with _connection(url) as connection, contextlib.suppress(ConnectionError):
        connection.sendall(data[: int(rng.integers(100, len(data) - 10))])
    record.outcome = "own fault"


def leaves_while_waiting(url: str, study: Study, record: Record, rng: np.random.Generator) -> None:
    """Sends all and resets the connection at any moment of the next second, unless the answer comes first."""
    with _connection(url) as connection:
        connection.sendall(post_report(study.body))
        connection.settimeout(float(rng.uniform(0.01, 1.0)))
        try:
            _judged(connection, study, record)
        except TimeoutError:
            record.outcome = "own fault"


def uploads_slowly(url: str, study: Study, record: Record, rng: np.random.Generator) -> None:
    """Sends the whole request in pieces over seconds: slow, but right, and to be answered."""
    data = post_report(study.body)
    cuts = sorted(int(cut) for cut in rng.integers(0, len(data), 20))
    pause = float(rng.uniform(*SLOW_UPLOAD_S)) / (len(cuts) + 1)
    with _connection(url) as connection:
        for start, stop in zip([0, *cuts], [*cuts, len(data)], strict=True):
            connection.sendall(data[start:stop])
            if select.select([connection], [], [], 0)[0]:
                break  # refused before all was sent
            time.sleep(pause)
        _judged(connection, study, record)


def sends_garbage(url: str, study: Study, record: Record, rng: np.random.Generator) -> None:
    """Sends bytes that are no form, or no image; the answer must be a 4xx problem, or busy."""
    bodies = (
        rng.bytes(2000),
        study.body[: len(study.body) // 2],
        study.body.replace(b"PNG", b"GNP").replace(b"\xff\xd8\xff", b"\xff\x00\xff"),  # the signatures of both formats
    )
    with _connection(url) as connection:
        connection.sendall(post_report(bodies[int(rng.integers(len(bodies)))]))
        _judged(connection, study, record)
    if record.outcome == "unexpected" and 400 <= record.status < 500 and record.code:
        record.outcome, record.note = "own fault", ""
    elif record.outcome == "answered":
        record.outcome, record.note = "wrong", "garbage was answered with a draft"


ALL: dict[str, Callable[[str, Study, Record, np.random.Generator], None]] = {
    "leaves while sending": leaves_while_sending, "leaves while waiting": leaves_while_waiting,
    "sends garbage": sends_garbage, "uploads slowly": uploads_slowly,
}  # fmt: skip


@contextlib.contextmanager
def _connection(url: str) -> Iterator[socket.socket]:
    with connect(url) as connection:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
        yield connection


def _judged(connection: socket.socket, study: Study, record: Record) -> None:
    answer = receive(connection)
    judge(record, study, answer.status, answer.headers.get("retry-after", ""), answer.body)
