"""The load generator: Locust users that send studies in an open or a closed loop.

``benchmarks.load.generate`` starts this as a process: a plan (JSON) on standard input, one record
(JSON) per line on standard output. In the open loop every arrival is a new Locust user on a
connection of its own.
"""

from __future__ import annotations

import locust  # first: it replaces the blocking calls of the standard library  # isort: skip

import base64
import http.client
import itertools
import json
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict
from typing import Any, ClassVar

import gevent
import numpy as np
from locust.env import Environment
from tqdm import tqdm

from benchmarks import bad_clients
from benchmarks.load import Load, Record, Study, count_outcomes, judge
from benchmarks.raw_http import CONTENT_TYPE


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
                self.request(record)
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
        """Send the study and set the outcome from its answer."""
        if record.client != "normal":
            assert self.host is not None
            rng = np.random.default_rng([self.load.seed, len(self.records)])
            return bad_clients.send(self.host, self.study, record, rng)
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


def closed_loop(spawn: Any, load: Load, studies: list[Study]) -> None:
    """Start all clients at once; each takes every n-th study."""
    for number in range(load.clients):
        following = itertools.islice(itertools.cycle(studies), number, None, load.clients)
        spawn(Record(0.0), next(following), following=following, until=load.seconds)


def open_loop(spawn: Any, load: Load, studies: list[Study]) -> None:
    """Start one client at each arrival of a Poisson process, however many still wait."""
    rng = np.random.default_rng([load.seed, 31])
    due = rng.exponential(1 / load.per_second, int(load.seconds * load.per_second * 1.5) + 50).cumsum()
    due = due[due < load.seconds]
    progress = tqdm(due.tolist(), unit=" requests", disable=load.quiet, mininterval=2, smoothing=0.05)
    for number, at in enumerate(progress):
        gevent.sleep(max(0.0, at - Client.elapsed()))
        bad = rng.random() < load.misbehaving
        client = bad_clients.KINDS[int(rng.integers(len(bad_clients.KINDS)))] if bad else "normal"
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
