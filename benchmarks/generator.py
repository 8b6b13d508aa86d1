"""The load generator: Locust users that send studies in an open or a closed loop, some misbehaving.

``benchmarks.load.generate`` starts this as a process: a plan (JSON) on standard input, one record
(JSON) per line on standard output. In the open loop every arrival is a new Locust user on a
connection of its own.
"""

from __future__ import annotations

import locust  # first: it replaces the blocking calls of the standard library  # isort: skip

import base64
import contextlib
import http.client
import itertools
import json
import select
import socket
import struct
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict
from typing import Any, ClassVar

import gevent
import numpy as np
from locust.env import Environment
from tqdm import tqdm

from benchmarks.load import BAD_CLIENTS, Load, Record, Study, count_outcomes, judge
from benchmarks.raw_http import CONTENT_TYPE, connect, form, post_report, receive

SLOW_UPLOAD_S = (0.5, 4.0)
_RESET = struct.pack("ii", 1, 0)  # SO_LINGER: closing resets the connection


class DeadlineReached(BaseException):
    """Not an Exception, so that Locust's client does not take it for a failed connection."""


class Client(locust.FastHttpUser):
    """Sends its study; then stops, or in a closed loop goes on with ``following`` studies until ``until``."""

    load: ClassVar[Load]
    records: ClassVar[list[Record]] = []
    began: ClassVar[float]

    record: Record
    study: Study
    following: Iterator[Study]
    until = 0.0

    @locust.task
    def send(self) -> None:
        """Send one request and record its outcome."""
        record = self.record
        record.late = self.elapsed() - record.due
        try:
            with gevent.Timeout(self.load.deadline_s, DeadlineReached):
                if record.client == "normal":
                    self.request(record)
                else:
                    misbehave(
                        self.load.url, self.study, record, np.random.default_rng([self.load.seed, len(self.records)])
                    )
        except DeadlineReached:
            record.outcome, record.note = "hung", f"no answer within {self.load.deadline_s:g} s"
        except (OSError, http.client.HTTPException) as error:
            record.outcome, record.note = "lost", f"{type(error).__name__}: {error}"
        record.seconds = self.elapsed() - record.due
        self.records.append(record)
        if self.elapsed() >= self.until:
            raise locust.exception.StopUser
        self.record, self.study = Record(self.elapsed()), next(self.following)

    def request(self, record: Record) -> None:
        """Send the study and judge its answer."""
        headers = {"Content-Type": CONTENT_TYPE} | ({} if self.until else {"Connection": "close"})
        body: Any = self.study.body
        with self.client.post("/report", data=body, headers=headers, catch_response=True) as response:
            if response.status_code:
                retry_after = response.headers.get("Retry-After", "")
                judge(record, self.study, response.status_code, retry_after, response.content or b"")
            else:
                record.outcome, record.note = "lost", f"{type(response.error).__name__}: {response.error}"
            response.success()

    @classmethod
    def elapsed(cls) -> float:
        """Seconds since the start."""
        return time.perf_counter() - cls.began


def misbehave(url: str, study: Study, record: Record, rng: np.random.Generator) -> None:
    """Send the study in the way that ``record.client`` names, and set the outcome.

    A slow upload must be answered, and garbage with a 4xx problem or busy; a client that leaves may get no answer.
    """
    body = study.body
    if record.client == "sends garbage":
        from benchmarks.attacking.bodies import SMALL, jpeg_of_scans  # imports the encoders of the tests

        signatures = body.replace(b"PNG", b"GNP").replace(b"\xff\xd8\xff", b"\xff\x00\xff")
        bomb = form([("frontal", jpeg_of_scans(SMALL))])
        body = (rng.bytes(2000), body[: len(body) // 2], signatures, bomb)[int(rng.integers(4))]
    data = post_report(body)
    cuts = sorted(rng.integers(0, len(data), 20).tolist()) if record.client == "uploads slowly" else []
    with connect(url) as connection:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
        if record.client == "leaves while sending":
            record.outcome = "own fault"
            with contextlib.suppress(ConnectionError):
                connection.sendall(data[: int(rng.integers(100, len(data) - 10))])
            return
        for start, stop in itertools.pairwise([0, *cuts, len(data)]):
            connection.sendall(data[start:stop])
            if select.select([connection], [], [], 0)[0]:
                break  # refused before all was sent
            time.sleep(float(rng.uniform(*SLOW_UPLOAD_S)) / 21 if cuts else 0)
        leaves = record.client == "leaves while waiting"
        connection.settimeout(float(rng.uniform(0.01, 1.0)) if leaves else None)
        try:
            answer = receive(connection)
        except TimeoutError:
            record.outcome = "own fault"
            return
    judge(record, study, answer.status, answer.headers.get("retry-after", ""), answer.body)
    if record.client == "sends garbage":
        if record.outcome == "answered":
            record.outcome, record.note = "wrong", "garbage was answered with a draft"
        elif record.outcome == "unexpected" and 400 <= record.status < 500 and record.code:
            record.outcome, record.note = "own fault", ""


def closed_loop(spawn: Any, load: Load, studies: list[Study]) -> None:
    """Start all clients at once; each takes every n-th study."""
    for number in range(load.clients):
        following = itertools.islice(itertools.cycle(studies), number, None, load.clients)
        spawn(Record(0.0), next(following), following=following, until=load.seconds)


def open_loop(spawn: Any, load: Load, studies: list[Study]) -> None:
    """Start one client at each arrival of a Poisson process, however many still wait."""
    rng = np.random.default_rng([load.seed, 31])
    due = rng.exponential(1 / load.per_second, int(load.seconds * load.per_second * 1.5) + 50).cumsum()
    progress = tqdm(due[due < load.seconds].tolist(), unit=" requests", disable=load.quiet, mininterval=2)
    for number, at in enumerate(progress):
        gevent.sleep(max(0.0, at - Client.elapsed()))
        client = str(rng.choice(BAD_CLIENTS)) if rng.random() < load.misbehaving else "normal"
        spawn(Record(at, client), studies[int(rng.integers(len(studies)))])
        if number % 50 == 0:
            progress.set_postfix(count_outcomes(Client.records))


def main() -> None:
    """Run the plan of standard input."""
    plan = json.load(sys.stdin)
    load = Load(**plan["load"])
    studies = [Study(base64.b64decode(body), expected) for body, expected in plan["studies"]]
    Client.host, Client.load, Client.began = load.url, load, time.perf_counter()
    runner = Environment(user_classes=[Client]).create_local_runner()

    def spawn(record: Record, study: Study, **more: Any) -> None:
        (user,) = runner.spawn_users({Client.__name__: 1})  # it runs at the next switch between greenlets
        user.__dict__.update(record=record, study=study, **more)

    (closed_loop if load.clients else open_loop)(spawn, load, studies)
    runner.user_greenlets.join()
    for record in Client.records:
        print(json.dumps(asdict(record)))


if __name__ == "__main__":
    main()
