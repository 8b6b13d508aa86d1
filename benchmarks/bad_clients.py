"""Clients that misbehave: they leave in the middle, upload slowly, or send what is not a request."""

from __future__ import annotations

import contextlib
import select
import socket
import struct
import time

import numpy as np

from benchmarks.load import Record, Study, judge
from benchmarks.raw_http import connect, post_report, receive

KINDS = ("leaves while sending", "leaves while waiting", "sends garbage", "uploads slowly")
SLOW_UPLOAD_S = (0.5, 4.0)
_RESET = struct.pack("ii", 1, 0)  # SO_LINGER: closing resets the connection


def send(url: str, study: Study, record: Record, rng: np.random.Generator) -> None:
    """Send the study in the way that ``record.client`` names, and set the outcome.

    A slow upload is to be answered, and garbage with a 4xx problem or busy; who leaves may get no answer.
    """
    body = _garbage(study.body, rng) if record.client == "sends garbage" else study.body
    data = post_report(body)
    with connect(url) as connection:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
        if record.client == "leaves while sending":
            record.outcome = "own fault"
            with contextlib.suppress(ConnectionError):
                connection.sendall(data[: int(rng.integers(100, len(data) - 10))])
            return
        if record.client == "uploads slowly":
            _send_slowly(connection, data, rng)
        else:
            connection.sendall(data)
        if record.client == "leaves while waiting":
            connection.settimeout(float(rng.uniform(0.01, 1.0)))
        try:
            answer = receive(connection)
        except TimeoutError:
            if record.client != "leaves while waiting":
                raise
            record.outcome = "own fault"
            return
    judge(record, study, answer.status, answer.headers.get("retry-after", ""), answer.body)
    if (
        record.client == "sends garbage"
        and record.outcome == "unexpected"
        and 400 <= record.status < 500
        and record.code
    ):
        record.outcome, record.note = "own fault", ""
    elif record.client == "sends garbage" and record.outcome == "answered":
        record.outcome, record.note = "wrong", "garbage was answered with a draft"


def _garbage(body: bytes, rng: np.random.Generator) -> bytes:
    signatures = body.replace(b"PNG", b"GNP").replace(b"\xff\xd8\xff", b"\xff\x00\xff")
    return (rng.bytes(2000), body[: len(body) // 2], signatures)[int(rng.integers(3))]


def _send_slowly(connection: socket.socket, data: bytes, rng: np.random.Generator) -> None:
    """In 21 pieces over ``SLOW_UPLOAD_S``, until all is sent or an answer arrives."""
    cuts = sorted(int(cut) for cut in rng.integers(0, len(data), 20))
    pause = float(rng.uniform(*SLOW_UPLOAD_S)) / (len(cuts) + 1)
    for start, stop in zip([0, *cuts], [*cuts, len(data)], strict=True):
        connection.sendall(data[start:stop])
        if select.select([connection], [], [], 0)[0]:
            return
        time.sleep(pause)
