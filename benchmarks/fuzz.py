"""Send a running service thousands of wrong and half-right requests, and hold every answer to the same rules.

    python -m benchmarks.fuzz --inputs 10000 [--seed N] [--bundle DIR | --url URL] [--out runs/fuzz]
    python -m benchmarks.fuzz --replay runs/fuzz/violations/0001.http [--url URL]

Three kinds in turn: requests after the served OpenAPI description (schemathesis), multipart bodies made by hand
(hypothesis), and mutated image files. Each answer is 2xx or 4xx, or a 503 with the code ``busy`` and a Retry-After,
after which the request is sent again; errors are problems after their schema; drafts fit theirs and hold no ``xxxx``.
In the end the service is healthy, its queue empty, its memory flat, and a reference study gets the findings it got
before. What breaks a rule is kept as a file of the bytes sent, and the command exits 1.
"""

from __future__ import annotations

import argparse
import collections
import contextlib
import json
import logging
import sys
import threading
import time
from collections.abc import Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from itertools import chain, islice
from pathlib import Path
from typing import Any

import httpx
import psutil
from tqdm import tqdm

from benchmarks import plots
from benchmarks.fuzzing import bodies, files, schema
from benchmarks.fuzzing.inputs import Input
from benchmarks.fuzzing.invariants import Judge, is_busy
from benchmarks.logging import configure_logging
from benchmarks.memory import Sample, resident_bytes, rise, slope
from benchmarks.raw_http import Answer, NoAnswerError, RawRequest, send, study_request
from benchmarks.server import Server, idle, server_of
from model.files import write_atomic
from training.cli import positive

log = logging.getLogger("benchmarks.fuzz")
CLIENTS = 4
# Small caps, so that bodies beyond them are cheap to send; fewer places than clients, so that `busy` is met as well.
SETTINGS = {"max_upload_bytes": 2**20, "max_pixels": 4_000_000, "queue_size": CLIENTS - 1, "upload_timeout_s": 20}
PATIENCE_S = 120.0  # with one request, while the service is busy: others may hold their places for a while
MEMORY_EVERY = 25  # inputs
FLAT = 2 * 1024 * 1024  # bytes by which 1,000 inputs of the second half may add: less than any image
STEPS = 64 * 1024 * 1024  # bytes that the second half may add in all: a few decoded images kept by an allocator
JUDGED_FROM = 5000  # inputs; the slope of fewer says little
KEPT = 50  # files of violations


@dataclass
class Violation:
    """A rule that an answer broke. ``file`` is kept beside this description."""

    kind: str
    origin: str
    faults: list[str]
    framed: bool
    whole: bool
    file: str | None = None


@dataclass
class Outcome:
    """All that a run found."""

    inputs: int = 0
    seed: int = 0
    seconds: float = 0.0
    statuses: dict[str, dict[str, int]] = field(default_factory=dict)  # kind -> "200", "422 truncated", … -> count
    busy: int = 0
    violations: list[Violation] = field(default_factory=list)
    in_the_end: list[str] = field(default_factory=list)  # what was wrong after all inputs
    memory: list[Sample] = field(default_factory=list)  # (inputs sent, bytes)
    growth: float | None = None  # bytes per 1,000 inputs, second half

    @property
    def passed(self) -> bool:
        """Whether no rule was broken."""
        return not self.violations and not self.in_the_end


class Fuzz:
    """One run against one server."""

    def __init__(self, server: Server, *, seed: int, out: Path | None, clients: int = CLIENTS) -> None:
        """``out`` is where violations are kept; None keeps none."""
        self.outcome = Outcome(seed=seed)
        self._server, self._seed, self._out, self._clients = server, seed, out, clients
        self._document: dict[str, Any] = httpx.get(server.url + "/openapi.json", timeout=60).json()
        self._judge = Judge(self._document)
        self._lock = threading.Lock()

    def run(self, count: int, *, kinds: Sequence[str] = ("schema", "bodies", "files"), quiet: bool = False) -> Outcome:
        """Send ``count`` inputs, the ``kinds`` in turn, and look at the service afterwards."""
        began = time.monotonic()
        before = self._reference()
        streams = {
            "schema": lambda: schema.inputs(self._document, self._seed),
            "bodies": lambda: bodies.inputs(self._seed),
            "files": lambda: files.inputs(self._seed),
        }
        inputs = islice(chain.from_iterable(zip(*(streams[kind]() for kind in kinds), strict=True)), count)
        try:
            self._send_all(tqdm(inputs, total=count, unit=" inputs", disable=quiet, mininterval=1, smoothing=0.05))
        except KeyboardInterrupt:
            self.outcome.in_the_end.append("interrupted")
        self._look_after(before)
        self.outcome.seconds = time.monotonic() - began
        return self.outcome

    def judge(self, request: RawRequest) -> tuple[str, list[str]]:
        """Send one request, again while the service is busy; what it was answered, and what is wrong with that."""
        return self._judged(Input("replay", "", request))

    def _send_all(self, inputs: Iterable[Input]) -> None:
        room = threading.Semaphore(2 * self._clients)
        with ThreadPoolExecutor(self._clients) as pool:

            def done(finished: Future[None]) -> None:
                room.release()
                finished.result()

            for one in inputs:
                room.acquire()
                pool.submit(self._one, one).add_done_callback(done)

    def _one(self, one: Input) -> None:
        try:
            status, faults = self._judged(one)
        except Exception as error:  # a harness that fails must not pass for a service that holds
            status, faults = "harness", [f"the harness failed: {type(error).__name__}: {error}"]
            log.exception("the harness failed on %s", one.origin)
        with self._lock:
            self.outcome.inputs += 1
            counts = self.outcome.statuses.setdefault(one.kind, {})
            counts[status] = counts.get(status, 0) + 1
            if faults:
                self._keep(one, faults)
            if self._server.pid is not None and self.outcome.inputs % MEMORY_EVERY == 0:
                with contextlib.suppress(psutil.NoSuchProcess):
                    self.outcome.memory.append((self.outcome.inputs, resident_bytes(self._server.pid)))

    def _judged(self, one: Input) -> tuple[str, list[str]]:
        faults: list[str] = []
        until = time.monotonic() + PATIENCE_S
        while time.monotonic() < until:
            try:
                answer = send(self._server.url, one.request)
            except NoAnswerError as error:
                left = not one.request.whole and str(error).startswith("closed")
                return f"none: {error}", [*faults, *([] if left else [f"no answer: {error}"])]
            faults += self._judge.faults(one.request, answer) + (one.check(answer) if one.check else [])
            if not is_busy(answer) or faults:
                return _named(answer), faults
            with self._lock:
                self.outcome.busy += 1
            time.sleep(0.01)
        return "busy", [*faults, f"busy for {PATIENCE_S:g} s"]

    def _keep(self, one: Input, faults: list[str]) -> None:
        number = len(self.outcome.violations) + 1
        violation = Violation(one.kind, one.origin, faults, one.request.framed, one.request.whole)
        self.outcome.violations.append(violation)
        log.error("violation %d: %s: %s", number, one.origin, "; ".join(faults)[:500])
        if self._out is not None and number <= KEPT:
            path = self._out / "violations" / f"{number:04d}.http"
            violation.file = path.name
            write_atomic(path, one.request.data)
            write_atomic(path.with_suffix(".json"), json.dumps(asdict(violation), indent=1).encode())

    def _reference(self) -> list[str]:
        """Findings of two unharmed studies."""
        found = []
        for number in range(2):
            study = {
                view: files.original("png 8-bit", 7 * number + place)
                for place, view in enumerate(("frontal", "lateral"))
            }
            until = time.monotonic() + PATIENCE_S
            while is_busy(answer := send(self._server.url, study_request(study))) and time.monotonic() < until:
                time.sleep(0.05)
            if answer.status != 200:
                raise RuntimeError(
                    f"the reference study is answered {_named(answer)}; is {self._server.url} the service?"
                )
            found.append(str(json.loads(answer.body)["findings"]))
        return found

    def _look_after(self, before: list[str]) -> None:
        wrong, outcome = self.outcome.in_the_end, self.outcome
        try:
            health = idle(self._server.url)
            if health["status_code"] != 200:
                wrong.append(f"/health answers {health}")
            elif health["queue"]["depth"] != 0:
                wrong.append(f"the queue holds {health['queue']['depth']} of nobody's requests")
            if self._reference() != before:
                wrong.append("the reference study gets other findings than before")
        except (httpx.HTTPError, NoAnswerError, RuntimeError) as error:
            wrong.append(f"the service does not answer any more: {error}")
        each = slope(outcome.memory)
        outcome.growth = None if each is None else each * 1000
        if outcome.growth is not None and outcome.inputs >= JUDGED_FROM and outcome.growth > FLAT:
            wrong.append(
                f"memory grows by {outcome.growth / 2**20:.2f} MiB in 1,000 inputs; {FLAT / 2**20:g} are allowed"
            )
        if (risen := rise(outcome.memory)) > STEPS:
            wrong.append(f"memory rose by {risen / 2**20:.0f} MiB in the second half; {STEPS / 2**20:g} are allowed")


def _named(answer: Answer) -> str:
    code = ""
    if answer.status >= 400 and answer.headers.get("content-type", "").endswith("json"):
        with contextlib.suppress(ValueError):
            code = f" {json.loads(answer.body).get('code')}"
    return f"{answer.status}{code}"


# --- the command --------------------------------------------------------------------------------------------------


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point; returns 0 where no rule was broken, 1 where one was, 2 where nothing could be measured."""
    arguments = _parser().parse_args(argv)
    arguments.tiny = arguments.bundle is None
    try:
        with server_of(arguments, **SETTINGS) as server:
            if arguments.replay:
                return _replay(server, arguments.replay)
            outcome = Fuzz(server, seed=arguments.seed, out=arguments.out).run(arguments.inputs)
    except (OSError, RuntimeError, ValueError, httpx.HTTPError) as error:
        log.error("%s", error)
        return 2
    write_atomic(
        arguments.out / "fuzz.json", json.dumps({"passed": outcome.passed, **asdict(outcome)}, indent=1).encode()
    )
    if outcome.memory:
        plots.memory(outcome.memory, arguments.out / "fuzz-memory.png", across="inputs sent", per=1000)
    print(as_markdown(outcome))
    log.info("written to %s", arguments.out)
    return int(not outcome.passed)


def _replay(server: Server, path: Path) -> int:
    beside = path.with_suffix(".json")
    kept = json.loads(beside.read_text()) if beside.is_file() else {}
    request = RawRequest(path.read_bytes(), kept.get("framed", True), kept.get("whole", True))
    status, faults = Fuzz(server, seed=0, out=None).judge(request)
    print(f"{path}: {status}", *(f"  {fault}" for fault in faults or ["no rule is broken"]), sep="\n")
    return int(bool(faults))


def as_markdown(outcome: Outcome) -> str:
    """The run as a table, one line a kind of input, and what held in the end."""
    lines = ["| inputs | sent | drafts | refused, by code | violations |", "|---|---|---|---|---|"]
    broken = collections.Counter(violation.kind for violation in outcome.violations)
    for kind, counts in sorted(outcome.statuses.items()):
        refused = sorted(((n, name) for name, n in counts.items() if name != "200"), reverse=True)
        shown = ", ".join(f"{name} {n:,}" for n, name in refused)
        lines.append(f"| {kind} | {sum(counts.values()):,} | {counts.get('200', 0):,} | {shown} | {broken[kind]} |")
    growth = "not measured" if outcome.growth is None else f"{outcome.growth / 2**20:+.2f} MiB in 1,000 inputs"
    lines += [
        "",
        f"{outcome.inputs:,} inputs, seed {outcome.seed}, {outcome.seconds:.0f} s; {outcome.busy:,} times busy, sent "
        f"again; memory in the second half {growth} ({FLAT / 2**20:+.2f} are allowed from {JUDGED_FROM:,} inputs on); "
        f"in the end: {'; '.join(outcome.in_the_end) or 'healthy, queue empty, same findings'}.",
    ]
    return "\n".join(lines)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.fuzz", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--inputs", type=positive, default=10_000)
    parser.add_argument("--seed", type=int, default=0, help="same seed, same inputs (0)")
    where = parser.add_mutually_exclusive_group()
    where.add_argument("--url", help="a service that runs already; its memory is not watched")
    where.add_argument("--bundle", type=Path, help="serve this one instead of the tiny untrained one")
    parser.add_argument("--device", default="cpu", help="of the service: auto, cpu, cuda")
    parser.add_argument("--out", type=Path, default=Path("runs/fuzz"))
    parser.add_argument("--replay", type=Path, metavar="FILE", help="send one kept request again")
    return parser


if __name__ == "__main__":
    configure_logging()
    sys.exit(main())
