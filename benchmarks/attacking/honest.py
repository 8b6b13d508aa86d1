"""What must go on during an attack: honest clients that get known answers, and probes of liveness and readiness."""

from __future__ import annotations

import hashlib
import http.client
import itertools
import json
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial

from benchmarks.attacking.attacks import Target
from benchmarks.fuzzing.files import png
from benchmarks.fuzzing.rules import is_busy
from benchmarks.load import answer_key, drawn_studies
from benchmarks.raw_http import Answer, connect, form, receive, request

PROBES = ("/health", "/livez")
PROBE_EVERY_S = 0.1
ANSWER_WITHIN_S = 60.0
RETRY_WITHIN_S = 120.0  # after the attacks, while the service ends what it has begun
NOTES = 20  # failed requests that are described


def exchange(url: str, data: bytes) -> Answer:
    """Send one request on a new connection and read its answer; raises as ``receive``."""
    with connect(url, ANSWER_WITHIN_S) as connection:
        connection.sendall(data)
        return receive(connection)


@dataclass(frozen=True)
class Known:
    """A request, and the part of its answer that must not change."""

    data: bytes = field(repr=False)
    expected: str


@dataclass
class Honest:
    """Counts of the honest clients: ``right``, ``refused``, ``wrong`` and ``lost``; ``notes`` describe the last two."""

    outcomes: Counter[str] = field(default_factory=Counter)
    notes: list[str] = field(default_factory=list)

    def add(self, outcome: str, note: str = "") -> str:
        """Count one request."""
        self.outcomes[outcome] += 1
        if note and len(self.notes) < NOTES:
            self.notes.append(f"an honest answer is {outcome}: {note}")
        return outcome


def known_answers(url: str, target: Target, studies: int = 4) -> list[Known]:
    """Drafts of drawn studies and one preview, with the answers that they get while nothing else is sent."""
    drawn = drawn_studies(studies, sizes=(96, 160, 256))
    requests = [target.post("/report", study.body) for study in drawn]
    requests.append(target.post("/preview", form([("image", png(0))])))
    known = []
    for data in requests:
        answer = exchange(url, data)
        if answer.status != 200:
            raise RuntimeError(
                f"an honest request is answered {answer.status} before the attacks: {answer.body[:200]!r}"
            )
        known.append(Known(data, _key(answer)))
    return known


def _key(answer: Answer) -> str:
    is_draft = answer.headers.get("content-type") == "application/json"
    return answer_key(json.loads(answer.body)) if is_draft else hashlib.sha256(answer.body).hexdigest()


def _ask(url: str, known: Known, honest: Honest) -> str:
    try:
        answer = exchange(url, known.data)
    except (OSError, http.client.HTTPException) as error:
        return honest.add("lost", f"{type(error).__name__}: {error}")
    if answer.status == 200:
        found = _key(answer)
        return honest.add("right") if found == known.expected else honest.add("wrong", f"{found} not {known.expected}")
    return honest.add("refused") if is_busy(answer) else honest.add("lost", f"{answer.status} {answer.body[:200]!r}")


@contextmanager
def honest_clients(url: str, known: Sequence[Known], clients: int = 4) -> Iterator[Honest]:
    """Clients that send their requests in turn, each again while the service is busy, until the context ends."""
    honest, stop = Honest(), threading.Event()

    def work(number: int) -> None:
        for one in itertools.islice(itertools.cycle(known), number, None):
            while _ask(url, one, honest) == "refused" and not stop.wait(0.5):
                pass
            if stop.is_set():
                return

    with _threads([partial(work, number) for number in range(clients)], stop):
        yield honest


def faults_afterwards(url: str, known: Sequence[Known]) -> list[str]:
    """What is wrong once the attacks have ended: every honest request must get its answer."""
    honest, deadline = Honest(), time.monotonic() + RETRY_WITHIN_S
    for one in known:
        while (outcome := _ask(url, one, honest)) == "refused" and time.monotonic() < deadline:
            time.sleep(0.5)
        if outcome == "refused":
            honest.notes.append(f"the service is busy for {RETRY_WITHIN_S:g} s")
    return [f"afterwards {note}" for note in honest.notes]


@dataclass
class Probes:
    """Seconds of each probe by its path, counted from when it was due, and what was wrong."""

    seconds: dict[str, list[float]] = field(default_factory=lambda: {path: [] for path in PROBES})
    faults: list[str] = field(default_factory=list)


@contextmanager
def probes(url: str) -> Iterator[Probes]:
    """Ask for liveness and readiness ten times a second, each time on a new connection, until the context ends."""
    found, stop = Probes(), threading.Event()

    def work(path: str) -> None:
        due = time.monotonic()
        while not stop.wait(max(0.0, due - time.monotonic())):
            try:
                status = exchange(url, request("GET", path)).status
            except (OSError, http.client.HTTPException) as error:
                status = 0
                found.faults.append(f"{path}: {type(error).__name__}: {error}")
            if status not in (0, 200):
                found.faults.append(f"{path} answers {status}")
            found.seconds[path].append(time.monotonic() - due)
            due += PROBE_EVERY_S

    with _threads([partial(work, path) for path in PROBES], stop):
        yield found


@contextmanager
def _threads(calls: Sequence[Callable[[], None]], stop: threading.Event) -> Iterator[None]:
    threads = [threading.Thread(target=call, daemon=True) for call in calls]
    for thread in threads:
        thread.start()
    try:
        yield
    finally:
        stop.set()
        for thread in threads:
            thread.join(2 * ANSWER_WITHIN_S)
