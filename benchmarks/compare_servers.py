"""Compare the service with a naive FastAPI handler and LitServe around the same model, in one run.

    python -m benchmarks.compare_servers [--bundle DIR] [--device auto] [--rounds 5] [--out runs/servers]

All three are started with the same bundle, device and number of threads, this service with batches
as large as LitServe's (``REPORT_MAX_BATCH_SIZE=8``). They are measured in turn, in another order
each round; the others are suspended meanwhile, because LitServe's worker polls while it waits.
Clients send their next study when they have the answer to the last one. All servers must give the
same findings and reference cases for a study; a difference ends the run. Ratios are computed within
a round; the table shows their median and range.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import itertools
import os
import statistics
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from tqdm import tqdm

from benchmarks import plots
from benchmarks.load import Load, Study, count_outcomes, drawn_studies, generate, rate, with_answers
from benchmarks.measure import markdown
from benchmarks.server import Server, bundle_of, command_parser, run_command, running, service, write_json
from model.devices import choose_device
from model.processors import usable_processors
from training.cli import positive

SERVICE, NAIVE, LITSERVE = "this service", "naive FastAPI handler", "LitServe"
CLIENTS = (1, 4, 16)
STUDIES, SIZE = 12, 512  # pixels: below three times the model's input, where all three downscale in the same way
MAX_BATCH = 8  # as in benchmarks.litserve_server, which cannot be imported without LitServe
DEADLINE_S = 300.0
REST_S = 0.2  # until the threads of the previous server have stopped spinning


@dataclass
class Comparison:
    """One value per round, by server and number of clients."""

    bundle: str
    device: str
    threads: int
    seconds: float
    throughput: dict[str, dict[int, list[float]]] = field(default_factory=dict)  # answers a second
    p50: dict[str, dict[int, list[float]]] = field(default_factory=dict)  # seconds


@contextlib.contextmanager
def servers(bundle: Path, device: str, threads: int) -> Iterator[dict[str, Server]]:
    """All three, ready."""
    os.environ |= {"OMP_NUM_THREADS": str(threads), "MKL_NUM_THREADS": str(threads)}  # the servers inherit them
    with (
        service(bundle, device=device, max_concurrent_requests=4 * max(CLIENTS), max_batch_size=MAX_BATCH) as ours,
        running("benchmarks.naive_server", bundle, device, health="/openapi.json") as naive,
        running("benchmarks.litserve_server", bundle, device) as litserve,
    ):
        yield {SERVICE: ours, NAIVE: naive, LITSERVE: litserve}


def compare(
    found: dict[str, Server], measured: Comparison, drawn: Sequence[Study], *, rounds: int,
    clients: Sequence[int] = CLIENTS, quiet: bool = False,
) -> None:  # fmt: skip
    """Measure all servers in turn with the ``drawn`` studies; raises RuntimeError where their findings differ."""
    answered = {
        name: with_answers(server.url, drawn, timeout_s=DEADLINE_S) for name, server in found.items()
    }  # warm-up
    names, studies = list(found), answered[SERVICE]
    for name, number in itertools.product(names, range(len(studies))):
        answer, expected = answered[name][number].expected, studies[number].expected
        if answer != expected:
            raise RuntimeError(f"study {number}: {name} answers {answer!r}, {SERVICE} {expected!r}")
    turns = itertools.product(range(rounds), clients, range(len(names)))
    for turn, number, offset in tqdm(list(turns), unit=" readings", disable=quiet):
        name = names[(turn + offset) % len(names)]
        with contextlib.ExitStack() as others:
            for other in found.keys() - {name}:
                others.enter_context(found[other].paused())
            time.sleep(REST_S)
            records = generate(Load(found[name].url, measured.seconds, number, deadline_s=DEADLINE_S), studies)
        if set(outcomes := count_outcomes(records)) != {"answered"}:
            notes = [record.note for record in records if record.note]
            raise RuntimeError(f"{name}, {number} clients: {outcomes}; {notes[:1]}")
        p50 = statistics.median(record.seconds for record in records)
        measured.throughput.setdefault(name, {}).setdefault(number, []).append(rate(records))
        measured.p50.setdefault(name, {}).setdefault(number, []).append(p50)


def ratios(upper: Sequence[float], lower: Sequence[float]) -> tuple[float, float, float]:
    """Median, smallest and largest of upper / lower, round by round."""
    each = [a / b for a, b in zip(upper, lower, strict=True)]
    return statistics.median(each), min(each), max(each)


def as_markdown(measured: Comparison) -> str:
    """One line per server and number of clients; ratios above 1 are in favour of the service."""
    rows = []
    ours, our_p50 = measured.throughput[SERVICE], measured.p50[SERVICE]
    for clients in ours:
        for name, rounds in measured.throughput.items():
            times = measured.p50[name][clients]
            row = [str(clients), name, f"{statistics.median(rounds[clients]):.2f}"]
            row.append(f"{statistics.median(times) * 1e3:,.0f} ms")
            for upper, lower in ((ours[clients], rounds[clients]), (times, our_p50[clients])):
                middle, low, high = ratios(upper, lower)
                row.append("" if name == SERVICE else f"{middle:.2f} × ({low:.2f}–{high:.2f})")
            rows.append(row)
    header = ("clients", "server", "answers/s", "p50", "throughput ratio", "p50 ratio")
    rounds_run = len(next(iter(ours.values())))
    return (
        f"{markdown(header, rows)}\n\nBundle {measured.bundle} on {measured.device}, {measured.threads} threads each, "
        f"medians and ranges of {rounds_run} rounds of {measured.seconds:g} s; all answers equal."
    )


def run(arguments: argparse.Namespace) -> int:
    """Run the command."""
    device = str(choose_device(arguments.device))
    with bundle_of(arguments) as bundle, servers(bundle, device, arguments.threads) as found:
        measured = Comparison(bundle.name, device, arguments.threads, arguments.seconds)
        drawn = drawn_studies(STUDIES, sizes=(SIZE,), both_views=True)
        compare(found, measured, drawn, rounds=arguments.rounds)
    write_json(arguments.out / "servers.json", dataclasses.asdict(measured))
    plots.side_by_side(measured.throughput, arguments.out / "servers.png", label="answers a second")
    print(as_markdown(measured))
    return 0


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point; returns 0, or 2 if the servers could not be measured or do not agree."""
    parser = command_parser("compare_servers", __doc__, url=False)
    parser.add_argument("--rounds", type=positive, default=5)
    parser.add_argument("--seconds", type=float, default=6.0, help="of one reading (6)")
    parser.add_argument("--threads", type=positive, default=usable_processors(), help="OpenMP threads of each server")
    parser.set_defaults(out=Path("runs/servers"))
    return run_command(run, parser.parse_args(argv))


if __name__ == "__main__":
    sys.exit(main())
