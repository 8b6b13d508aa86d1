"""Send a running service thousands of wrong requests, and check every answer by the same rules.

    python -m benchmarks.fuzz --inputs 10000 [--seed N] [--bundle DIR | --url URL] [--out runs/fuzz]
    python -m benchmarks.fuzz --replay runs/fuzz/violations/0001.http [--url URL]

Four kinds of input in turn: requests from the served OpenAPI description (schemathesis), multipart
bodies (hypothesis), mutated image files (hypothesis, on files of Pillow and pydicom), and requests
for studies of a PACS and for the worklist. Each answer must be 2xx, 3xx or 4xx, or a 503 with the
code ``busy`` and a Retry-After, after which the request is sent again; errors must be problem
documents that match their schema; drafts must match their schema and contain no ``xxxx``. At the end
the service must be healthy, its queue empty, its memory flat, its log free of errors, and a
reference study must get the same findings as before. A request that breaks a rule is stored as the
bytes sent, and the command exits 1.
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
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from itertools import chain, islice
from pathlib import Path
from typing import Any

import httpx
import psutil
from tqdm import tqdm

from benchmarks import plots
from benchmarks.fuzzing.files import PATIENT
from benchmarks.fuzzing.inputs import Input, inputs
from benchmarks.fuzzing.rules import is_busy, rules_of
from benchmarks.fuzzing.studies import pacs_and_queue
from benchmarks.load import Study, drawn_studies, faults_afterwards, with_answers
from benchmarks.measure import markdown
from benchmarks.memory import Sample, resident_bytes, rise, slope
from benchmarks.raw_http import Answer, NoAnswerError, RawRequest, send
from benchmarks.server import Server, command_parser, run_command, server_of, write_json
from model.files import write_atomic
from training.cli import positive

log = logging.getLogger("benchmarks.fuzz")
KINDS = ("schema", "bodies", "files", "studies")
CLIENTS, BATCH = 4, 60  # threads that send; inputs that are drawn together
# Small limits, so that bodies beyond them are cheap to send; fewer slots than clients, so that `busy` occurs as well.
SETTINGS = {
    "max_upload_bytes": 2**20, "max_pixels": 4_000_000, "max_concurrent_requests": CLIENTS - 1, "upload_timeout_s": 20,
}  # fmt: skip
PATIENCE_S = 120.0  # with one request while the service is busy
MEMORY_EVERY = 25  # inputs
FLAT = 2 * 1024 * 1024  # bytes that 1,000 inputs of the second half may add: less than any image
STEPS = 64 * 1024 * 1024  # bytes that the second half may add in all: a few decoded images kept by an allocator
JUDGED_FROM = 5000  # inputs; the slope of fewer says little
KEPT = 50  # files of violations


@dataclass
class Outcome:
    """The result of a run."""

    inputs: int = 0
    seed: int = 0
    seconds: float = 0.0
    statuses: dict[str, dict[str, int]] = field(default_factory=dict)  # kind -> "200", "422 truncated", … -> count
    busy: int = 0
    violations: list[dict[str, Any]] = field(default_factory=list)  # with ``file``, which holds the bytes sent
    in_the_end: list[str] = field(default_factory=list)  # what was wrong after all inputs
    memory: list[Sample] = field(default_factory=list)  # (inputs sent, bytes)
    growth: float | None = None  # bytes per 1,000 inputs, second half

    @property
    def passed(self) -> bool:
        """Whether no rule was broken."""
        return not self.violations and not self.in_the_end


class Fuzz:
    """One run against one server."""

    def __init__(self, server: Server, *, seed: int, out: Path | None) -> None:
        """``out`` is the folder for violations; None stores none."""
        self.outcome = Outcome(seed=seed)
        self._server, self._out, self._lock = server, out, threading.Lock()
        self._document: dict[str, Any] = httpx.get(server.url + "/openapi.json", timeout=60).json()
        self._rules = rules_of(self._document)

    def run(self, count: int, *, kinds: Sequence[str] = KINDS, quiet: bool = False) -> Outcome:
        """Send ``count`` inputs, the ``kinds`` in turn, and check the service afterwards."""
        began = time.monotonic()
        known = with_answers(self._server.url, drawn_studies(2, sizes=(96,)))
        streams = [inputs(kind, self._document, self.outcome.seed) for kind in kinds]
        drawn = islice(chain.from_iterable(zip(*streams, strict=True)), count)
        try:
            self._send_all(drawn, tqdm(total=count, unit=" inputs", disable=quiet, mininterval=1, smoothing=0.05))
        except KeyboardInterrupt:
            self.outcome.in_the_end.append("interrupted")
        self._check_afterwards(known)
        self.outcome.seconds = time.monotonic() - began
        return self.outcome

    def _send_all(self, drawn: Iterator[Input], progress: tqdm[Any]) -> None:
        def check(item: Input) -> None:
            status, faults = self.judge(item)
            with self._lock:
                progress.update()
                self._count(item, status, faults)

        with progress, ThreadPoolExecutor(CLIENTS) as pool:
            while batch := list(islice(drawn, BATCH)):
                list(pool.map(check, batch))

    def _count(self, item: Input, status: str, faults: list[str]) -> None:
        outcome = self.outcome
        outcome.inputs += 1
        counts = outcome.statuses.setdefault(item.kind, {})
        counts[status] = counts.get(status, 0) + 1
        if faults:
            self._store(item, faults)
        if self._server.pid is not None and outcome.inputs % MEMORY_EVERY == 0:
            with contextlib.suppress(psutil.NoSuchProcess):
                outcome.memory.append((outcome.inputs, resident_bytes(self._server.pid)))

    def judge(self, item: Input) -> tuple[str, list[str]]:
        """Send one request, again while the service is busy; returns a short form of the answer, and its faults."""
        until = time.monotonic() + PATIENCE_S
        while time.monotonic() < until:
            try:
                answer = send(self._server.url, item.request)
            except NoAnswerError as error:
                client_left = not item.request.whole and str(error).startswith("closed")
                return f"none: {error}", [] if client_left else [f"no answer: {error}"]
            faults = self._rules(item.request, answer) + (item.check(answer) if item.check else [])
            if not is_busy(answer) or faults:
                return _short(answer), faults
            with self._lock:
                self.outcome.busy += 1
            time.sleep(0.01)
        return "busy", [f"busy for {PATIENCE_S:g} s"]

    def _store(self, item: Input, faults: list[str]) -> None:
        number = len(self.outcome.violations) + 1
        log.error("violation %d: %s: %s", number, item.origin, "; ".join(faults)[:500])
        violation = {"kind": item.kind, "origin": item.origin, "faults": faults, "file": None,
                     "framed": item.request.framed, "whole": item.request.whole}  # fmt: skip
        self.outcome.violations.append(violation)
        if self._out is not None and number <= KEPT:
            path = self._out / "violations" / f"{number:04d}.http"
            violation["file"] = path.name
            write_atomic(path, item.request.data)
            write_atomic(path.with_suffix(".json"), json.dumps(violation, indent=1).encode())

    def _check_afterwards(self, known: Sequence[Study]) -> None:
        outcome, wrong = self.outcome, self.outcome.in_the_end
        wrong += faults_afterwards(self._server.url, known)
        if self._server.log is not None:
            logged = self._server.log.read_text(errors="replace")
            logged = logged.replace(" ERROR pydicom", "")  # pydicom logs each frame that it cannot decode
            wrong += [f"the log of the service holds {word!r}" for word in (PATIENT, " ERROR ") if word in logged]
        each = slope(outcome.memory)
        outcome.growth = None if each is None else each * 1000
        if outcome.growth is not None and outcome.inputs >= JUDGED_FROM and outcome.growth > FLAT:
            wrong.append(f"memory grows by {_mib(outcome.growth)} in 1,000 inputs; {_mib(FLAT)} are allowed")
        if (risen := rise(outcome.memory)) > STEPS:
            wrong.append(f"memory rose by {_mib(risen)} in the second half; {_mib(STEPS)} are allowed")


def _mib(value: float) -> str:
    return f"{value / 2**20:+.2f} MiB"


def _short(answer: Answer) -> str:
    """Status, and the code of a problem."""
    with contextlib.suppress(ValueError, AttributeError):
        if answer.status >= 400:
            return f"{answer.status} {json.loads(answer.body).get('code')}"
    return str(answer.status)


def as_markdown(outcome: Outcome) -> str:
    """One line per kind of input, and the checks at the end."""
    broken = collections.Counter(violation["kind"] for violation in outcome.violations)
    rows = []
    for kind, counts in sorted(outcome.statuses.items()):
        refused = sorted(((n, name) for name, n in counts.items() if name != "200"), reverse=True)
        shown = ", ".join(f"{name} {n:,}" for n, name in refused)
        rows.append([kind, f"{sum(counts.values()):,}", f"{counts.get('200', 0):,}", shown, str(broken[kind])])
    growth = "not measured" if outcome.growth is None else f"{_mib(outcome.growth)} in 1,000 inputs"
    return (
        markdown(("inputs", "sent", "drafts", "refused, by code", "violations"), rows)
        + f"\n\n{outcome.inputs:,} inputs, seed {outcome.seed}, {outcome.seconds:.0f} s; {outcome.busy:,} times busy, "
        f"sent again; memory in the second half {growth} ({_mib(FLAT)} are allowed from {JUDGED_FROM:,} inputs on); "
        f"in the end: {'; '.join(outcome.in_the_end) or 'healthy, queue empty, same findings, clean log'}."
    )


def fuzz(arguments: argparse.Namespace) -> int:
    """Run the command; returns 1 if a rule was broken."""
    with pacs_and_queue() as pacs, server_of(arguments, **SETTINGS, **pacs) as server:
        if arguments.replay:
            return _replay(server, arguments.replay)
        outcome = Fuzz(server, seed=arguments.seed, out=arguments.out).run(arguments.inputs)
    write_json(arguments.out / "fuzz.json", {"passed": outcome.passed, **asdict(outcome)})
    if outcome.memory:
        plots.memory(outcome.memory, arguments.out / "fuzz-memory.png", across="inputs sent", per=1000)
    print(as_markdown(outcome))
    return int(not outcome.passed)


def _replay(server: Server, path: Path) -> int:
    """Send a stored request again."""
    description = path.with_suffix(".json")
    stored = json.loads(description.read_text()) if description.is_file() else {}
    request = RawRequest(path.read_bytes(), stored.get("framed", True), stored.get("whole", True))
    status, faults = Fuzz(server, seed=0, out=None).judge(Input("replay", "", request))
    print(f"{path}: {status}", *(f"  {fault}" for fault in faults or ["no rule is broken"]), sep="\n")
    return int(bool(faults))


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point; returns 0 if no rule was broken, 1 if one was, 2 if nothing could be measured."""
    parser = command_parser("fuzz", __doc__, bundle=None, device="cpu")
    parser.add_argument("--inputs", type=positive, default=10_000)
    parser.add_argument("--seed", type=int, default=0, help="same seed, same inputs (0)")
    parser.add_argument("--replay", type=Path, metavar="FILE", help="send one stored request again")
    return run_command(fuzz, parser.parse_args(argv))


if __name__ == "__main__":
    sys.exit(main())
