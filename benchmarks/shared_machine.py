"""A draft alone and beside busy processes: the default threads against settings chosen by hand.

Each setting of OpenMP needs a process of its own (`python -m benchmarks.shared_machine`), which drafts
once for each line that it reads.
"""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress

import torch

from benchmarks.measure import Row, at_least, in_turn
from benchmarks.naive_server import load_drafter
from benchmarks.server import BUNDLE
from benchmarks.serving import IMAGES
from model.images import load_pixels
from model.processors import SPINS, THREADS, usable_processors
from model.types import StudyView, View

BY_HAND: Mapping[str, Mapping[str, str]] = {
    f"{SPINS}=300000 (libgomp's default)": {SPINS: "300000"},
    f"{SPINS}=10000": {SPINS: "10000"},
    "OMP_WAIT_POLICY=PASSIVE": {"OMP_WAIT_POLICY": "PASSIVE"},
    f"{THREADS}=1": {THREADS: "1"},
}
ROUNDS_ALONE, ROUNDS_LOADED = 12, 2
TOO_SLOW = 3.0  # times the default: such a setting is not measured beside busy processes again
WITHIN = 1 / 1.05  # of the best setting by hand, on an idle machine
SHARES = 2.0  # times the fair share that a draft may take on a loaded one


def rows(device: torch.device) -> list[Row]:
    """The rows of the table; the goals hold for the CPU."""
    processors = usable_processors()
    busy = 2 * processors
    with ExitStack() as stack:
        calls = [stack.enter_context(drafting(device, settings)) for settings in ({}, *BY_HAND.values())]
        alone = [min(times) for times in in_turn(calls, rounds=ROUNDS_ALONE, rest_s=0.05)]
        stack.enter_context(busy_processes(busy))
        first = [times[0] for times in in_turn(calls, rounds=1, warm_up=0)]
        quick = [index for index, seconds in enumerate(first) if seconds <= TOO_SLOW * first[0]]
        measured = in_turn([calls[index] for index in quick], rounds=ROUNDS_LOADED, warm_up=0)
        loaded = {index: statistics.median(times) for index, times in zip(quick, measured, strict=True)}
    names = ["default", *BY_HAND]
    best = min(range(1, len(names)), key=alone.__getitem__)
    best_loaded = min((index for index in loaded if index), key=loaded.__getitem__, default=0)
    share = alone[0] * (busy + processors) / processors
    note = f"fair share {share:.2f} s; {names[best_loaded]}: {loaded[best_loaded]:.2f} s"
    return [
        at_least(WITHIN, Row("a draft alone, default threads", alone[0], peer=names[best], peer_value=alone[best])),
        at_least(
            1.0,
            Row(
                f"a draft beside {busy} busy processes, default threads", loaded[0],
                peer=f"{SHARES:g} × the fair share", peer_value=SHARES * share, note=note,
            ),
        ),
    ]  # fmt: skip


@contextmanager
def drafting(device: torch.device, settings: Mapping[str, str]) -> Iterator[Callable[[], None]]:
    """A call that drafts once in a new process with these settings of OpenMP."""
    inherited = {name: value for name, value in os.environ.items() if not name.startswith(("OMP_", "GOMP_"))}
    with subprocess.Popen(
        [sys.executable, "-m", "benchmarks.shared_machine", str(device)], env={**inherited, **settings},
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    ) as process:  # fmt: skip
        assert process.stdin is not None
        assert process.stdout is not None
        requests, answers = process.stdin, process.stdout

        def draft() -> None:
            print("draft", file=requests, flush=True)
            if answers.readline().strip() != "done":
                raise RuntimeError(f"a process that drafts with {dict(settings)} ended; run it by hand to see why")

        try:
            draft()  # loads
            yield draft
        finally:
            process.kill()


@contextmanager
def busy_processes(count: int) -> Iterator[None]:
    """Processes that compute without a pause, each in one thread."""
    with ExitStack() as stack:
        for _ in range(count):
            process = stack.enter_context(subprocess.Popen([sys.executable, "-c", "while True: pass"]))
            stack.callback(process.kill)
        time.sleep(0.5)
        yield


def main() -> None:
    """Draft the drawn study once for each line of standard input."""
    drafter = load_drafter(BUNDLE, sys.argv[1])
    study = [StudyView(load_pixels(IMAGES[v.value].read_bytes(), drafter.image_size), v) for v in View]
    for _ in sys.stdin:
        drafter.draft([study])
        print("done", flush=True)


if __name__ == "__main__":
    with suppress(KeyboardInterrupt):
        main()
