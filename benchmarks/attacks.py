"""Attack a running service in many ways while honest clients use it, and check what the service promises.

    python -m benchmarks.attacks [--minutes 10] [--only NAME …] [--bundle DIR | --tiny] [--out runs/attacks]
    python -m benchmarks.attacks --each [--seconds 10]      each attack alone, one row of the table for each
    python -m benchmarks.attacks --list

Four honest clients send studies whose answers are known, again where they are refused as busy; `/health`
and `/livez` are asked ten times a second on new connections. The command exits 1 if an honest answer is
wrong or lost, if a probe is not 200, or slower than 250 ms (p99) while one attack runs alone, if memory
exceeds the bound, if an attack gets an answer that is not allowed, if the log holds an error, or if the
service does not answer afterwards. Clients, attacks and service share the cores of this machine; the
attacks, which would come from others, have a low priority.
"""

from __future__ import annotations

import argparse
import contextlib
import logging
import multiprocessing
import os
import resource
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Executor, ProcessPoolExecutor
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from benchmarks import plots
from benchmarks.attacking.attacks import ATTACKS, Attack, Target, attack_by_name, prepare
from benchmarks.attacking.bodies import FULL, Scale
from benchmarks.attacking.honest import NOTES, faults_afterwards, honest_clients, known_answers, probes
from benchmarks.load import percentiles
from benchmarks.measure import markdown, show
from benchmarks.memory import Sample, memory_of, resident_bytes_of_children
from benchmarks.server import Server, bundle_of, command_parser, run_command, service, write_json
from service.settings import Settings

log = logging.getLogger("benchmarks.attacks")
KEY = "attacked-for-a-measurement"
PROBE_GOAL_S = 0.250  # p99
DESCRIPTORS = 512  # file descriptors of the service: a usual limit, which 700 idle connections exceed
HEADER = ("attack", "sent", "answers", "honest", "/health", "/livez", "service", "decoders")


@dataclass
class Outcome:
    """The result of attacks at the same time.

    Attributes:
        answers: attack -> answer -> count.
        honest: ``right``, ``refused``, ``wrong``, ``lost`` -> count.
        probes: path -> percentiles in seconds.
        memory: of the service process, (seconds, bytes).
        decoders: of its child processes together, likewise.
        faults: broken promises.
    """

    name: str
    answers: dict[str, dict[str, int]]
    honest: dict[str, int]
    probes: dict[str, dict[str, float] | None]
    memory: list[Sample]
    decoders: list[Sample]
    faults: list[str] = field(default_factory=list)

    def cells(self) -> tuple[str, ...]:
        """The row of the table, in the order of ``HEADER``."""
        honest = ", ".join(f"{name} {count:,}" for name, count in sorted(self.honest.items()))
        times = (
            "–" if each is None else " / ".join(f"{each[name] * 1e3:,.0f}" for name in ("p50", "p99", "max")) + " ms"
            for each in self.probes.values()
        )
        peaks = (show(max(size for _, size in samples), "bytes") for samples in (self.memory, self.decoders))
        return self.name, *_sent(sum(map(Counter, self.answers.values()), Counter())), honest, *times, *peaks


@contextlib.contextmanager
def attacked(bundle: Path, *, device: str = "cpu", log: Path | None = None, **settings: Any) -> Iterator[Server]:
    """A service with a key, a folder for cases and ``DESCRIPTORS`` file descriptors."""
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    with tempfile.TemporaryDirectory() as cases, contextlib.ExitStack() as stack:
        stack.callback(resource.setrlimit, resource.RLIMIT_NOFILE, before)
        resource.setrlimit(resource.RLIMIT_NOFILE, (DESCRIPTORS, before[1]))
        server = stack.enter_context(
            service(bundle, device=device, log=log, api_key=KEY, user_cases_dir=cases, **settings)
        )
        resource.setrlimit(resource.RLIMIT_NOFILE, (before[1], before[1]))  # clients open more
        yield server


def target_of(server: Server) -> Target:
    """Where the attacks and the honest clients send their requests."""
    address = urlsplit(server.url)
    return Target(address.hostname or "", address.port or 0, KEY)


def attack(
    server: Server, attacks: Sequence[Attack], seconds: float, *, generator: Executor, scale: Scale = FULL,
    name: str = "all at once",
) -> Outcome:  # fmt: skip
    """Run ``attacks`` at once for ``seconds`` in the ``generator``, one process, and check every promise.

    Raises:
        RuntimeError: an honest request fails before the attacks.
    """
    assert server.pid is not None
    target, names = target_of(server), [each.name for each in attacks]
    known = known_answers(server.url, target)
    generator.submit(prepare, names, target, scale).result()
    with (
        memory_of(server.pid) as memory,
        memory_of(server.pid, measure=resident_bytes_of_children) as decoders,
        probes(server.url) as probed,
        honest_clients(server.url, known) as honest,
    ):
        answers = generator.submit(attack_by_name, names, target, scale, seconds).result()
    times = {path: percentiles(found) for path, found in probed.seconds.items()}
    outcome = Outcome(name, answers, dict(honest.outcomes), times, memory, decoders)
    outcome.faults += [
        f"{each.name}: {answer} ({count:,} ×)"
        for each in attacks for answer, count in answers[each.name].items() if not each.allows(answer)
    ]  # fmt: skip
    outcome.faults += [
        f"p99 of {path} is {each['p99'] * 1e3:,.0f} ms; {PROBE_GOAL_S * 1e3:g} ms are allowed"
        for path, each in times.items() if len(attacks) == 1 and each is not None and each["p99"] > PROBE_GOAL_S
    ]  # fmt: skip
    outcome.faults += _memory_faults(outcome, Settings())
    outcome.faults += [f"{fault} ({count:,} ×)" for fault, count in Counter(probed.faults).items()]
    outcome.faults += honest.notes + faults_afterwards(server.url, known)
    return outcome


def _memory_faults(outcome: Outcome, settings: Settings) -> list[str]:
    """Processes that grew by more than the documented bound: uploads in the service, images in the decoders."""
    uploads = settings.max_concurrent_requests * 2 * settings.max_upload_bytes
    images = settings.decode_workers * settings.decode_memory_bytes
    return [
        f"{what} grew by {show(grown, 'bytes')}; {show(bound, 'bytes')} are allowed"
        for what, samples, bound in (
            ("the service", outcome.memory, uploads),
            ("the decode workers", outcome.decoders, images),
        )
        if (grown := max(size for _, size in samples) - samples[0][1]) > bound
    ]


def faults_of_log(path: Path) -> list[str]:
    """Lines of the service's log that should not be there."""
    return [
        f"the log holds {line.strip()[:200]!r}" for line in path.read_text(errors="replace").splitlines()
        if any(word in line for word in (" ERROR ", " CRITICAL ", "Traceback")) and " ERROR pydicom" not in line
    ][:NOTES]  # fmt: skip


def as_markdown(outcomes: Sequence[Outcome], faults: Sequence[str]) -> str:
    """One row for each attack that ran alone; where several ran at once, the answers to each and a row for all."""
    rows: list[Sequence[str]] = []
    for outcome in outcomes:
        if len(outcome.answers) > 1:
            rows += [(name, *_sent(counts), *[""] * 5) for name, counts in outcome.answers.items()]
        rows.append(outcome.cells())
    return "\n".join([markdown(HEADER, rows), "", *(f"- {fault}" for fault in faults)])


def _sent(answers: Mapping[str, int]) -> tuple[str, str]:
    """Requests sent, and their answers."""
    shown = sorted(answers.items(), key=lambda item: -item[1])
    return f"{sum(answers.values()):,}", ", ".join(f"{answer} × {count:,}" for answer, count in shown)


@contextlib.contextmanager
def _generator() -> Iterator[Executor]:
    """A process that sends the attacks; an exception ends it at once."""
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn"), os.nice, (10,)) as generator:
        try:
            yield generator
        except BaseException:
            for process in multiprocessing.active_children():
                process.terminate()
            raise


def run(arguments: argparse.Namespace) -> int:
    """Run the command; returns 1 if a promise was broken."""
    attacks = [each for each in ATTACKS if not arguments.only or each.name in arguments.only]
    if arguments.list:
        print(markdown(("attack", "what it sends"), [(each.name, each.what) for each in attacks]))
        return 0
    arguments.out.mkdir(parents=True, exist_ok=True)
    log_file, outcomes = arguments.out / "service.log", []
    with (
        bundle_of(arguments) as bundle,
        attacked(bundle, device=arguments.device, log=log_file) as server,
        _generator() as generator,
    ):
        for each in [[one] for one in attacks] if arguments.each else [attacks]:
            name = each[0].name if len(each) == 1 else "all at once"
            seconds = arguments.seconds if arguments.each else arguments.minutes * 60
            log.info("%s for %g s", name, seconds)
            outcomes.append(attack(server, each, seconds, generator=generator, name=name))
    faults = [f"{one.name}: {fault}" for one in outcomes for fault in one.faults] + faults_of_log(log_file)
    write_json(arguments.out / "attacks.json", {"faults": faults, "outcomes": [asdict(one) for one in outcomes]})
    plots.memory(outcomes[-1].memory, arguments.out / "attacks-memory.png", across="seconds since the start", per=60)
    print(as_markdown(outcomes, faults))
    return int(bool(faults))


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point; returns 0 if every promise was kept, 1 if one was broken, 2 if nothing could be measured."""
    parser = command_parser("attacks", __doc__, url=False, device="cpu")
    parser.add_argument("--minutes", type=float, default=10.0, help="of all attacks at once (10)")
    parser.add_argument("--each", action="store_true", help="run each attack alone instead")
    parser.add_argument("--seconds", type=float, default=10.0, help="of each attack with --each (10)")
    parser.add_argument("--only", nargs="+", choices=[each.name for each in ATTACKS], metavar="NAME")
    parser.add_argument("--list", action="store_true", help="print the attacks")
    return run_command(run, parser.parse_args(argv))


if __name__ == "__main__":
    sys.exit(main())
