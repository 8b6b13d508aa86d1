"""The service beside a naive FastAPI handler and LitServe, around the same model, in one run.

    python -m benchmarks.compare_servers [--bundle DIR] [--device auto] [--rounds 5] [--out runs/servers]

All three are started with the same bundle, device and number of threads, this service with batches as large as
LitServe's (``REPORT_MAX_BATCH_SIZE=8``), and are asked in turn, in another order each
round, so that whatever else the machine does meets them alike; those not asked are stopped meanwhile, as LitServe's
worker polls while it waits. Clients send their next study when they have
the answer to the one before. Every answer of every server must hold the same findings and reference cases for a
study; a difference ends the run. Ratios are taken within a round; the table gives their median and their range over the
rounds.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import dataclasses
import json
import logging
import os
import statistics
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import aiohttp
from tqdm import tqdm

from benchmarks import plots
from benchmarks.black_box import Server, running, service, tiny_bundle
from benchmarks.load import Study, closed_loop, counted, drawn_studies, percentiles, rate
from benchmarks.logging import configure_logging
from benchmarks.soak import BUNDLE, with_answers
from model.files import write_atomic
from training.cli import choose_device, positive

log = logging.getLogger("benchmarks.compare_servers")
OURS, NAIVE, LITSERVE = "this service", "naive FastAPI handler", "LitServe"
CLIENTS = (1, 4, 16)
STUDIES, SIZE = 12, 512  # below three times the model's square, where all three shrink images alike
MAX_BATCH = 8  # as in benchmarks.litserve_server, which cannot be imported without LitServe
DEADLINE_S = 300.0
REST_S = 0.2  # until the threads of the server asked before no longer wait on a core


@dataclass
class Figures:
    """One value a round, by server and number of clients."""

    bundle: str
    device: str
    threads: int
    seconds: float
    throughput: dict[str, dict[int, list[float]]] = field(default_factory=dict)  # answers a second
    p50: dict[str, dict[int, list[float]]] = field(default_factory=dict)  # seconds

    def add(self, name: str, clients: int, throughput: float, p50: float) -> None:
        """Keep the values of one round."""
        self.throughput.setdefault(name, {}).setdefault(clients, []).append(throughput)
        self.p50.setdefault(name, {}).setdefault(clients, []).append(p50)


@contextlib.contextmanager
def servers(bundle: Path, device: str, threads: int) -> Iterator[dict[str, Server]]:
    """All three, ready."""
    environment = {"OMP_NUM_THREADS": str(threads), "MKL_NUM_THREADS": str(threads)}
    os.environ.update(environment)  # the service takes them from here
    peer = [str(bundle), device, "{port}"]
    with contextlib.ExitStack() as stack:
        ours = service(bundle, device=device, queue_size=4 * max(CLIENTS), max_batch_size=MAX_BATCH)
        found = {OURS: stack.enter_context(ours)}
        for name, module, health in (
            (NAIVE, "benchmarks.naive_server", "/openapi.json"),
            (LITSERVE, "benchmarks.litserve_server", "/health"),
        ):
            log.info("starting: %s", name)
            command = ["-m", module, *peer]
            found[name] = stack.enter_context(running(command, environment=environment, health=health))
        yield found


async def compare(
    found: dict[str, Server],
    measured: Figures,
    *,
    rounds: int,
    clients: Sequence[int] = CLIENTS,
    drawn: Sequence[Study] | None = None,
    quiet: bool = False,
) -> None:
    """Ask all servers in turn, for ``drawn`` or the usual drawn studies.

    Raises:
        RuntimeError: one of them does not answer, or not with the findings of the others.
    """
    studies = await _agreed(found, drawn or drawn_studies(STUDIES, sizes=(SIZE,), both_views=True))
    names = list(found)
    progress = tqdm(total=rounds * len(clients) * len(names), unit=" readings", disable=quiet)
    for turn in range(rounds):
        for number in clients:
            for name in names[turn % len(names) :] + names[: turn % len(names)]:
                with contextlib.ExitStack() as others:
                    for other in names:
                        if other != name:
                            others.enter_context(found[other].paused())
                    await asyncio.sleep(REST_S)
                    throughput, p50 = await _reading(found[name].url, studies, number, measured.seconds, name)
                measured.add(name, number, throughput, p50)
                progress.update()
    progress.close()


def _session() -> aiohttp.ClientSession:
    """For one server at a time: one that is stopped would close its idle connections once it goes on."""
    timeout = aiohttp.ClientTimeout(total=DEADLINE_S)
    return aiohttp.ClientSession(timeout=timeout, connector=aiohttp.TCPConnector(limit=0))


async def _agreed(found: dict[str, Server], drawn: Sequence[Study]) -> list[Study]:
    """Studies with what all servers answer to them; this warms each of them up as well."""
    known: list[Study] = []
    for name, server in found.items():
        async with _session() as session:
            mine = await with_answers(session, server.url, drawn)
        for number, (study, other) in enumerate(zip(mine, known or mine, strict=True)):
            if study.expected != other.expected:
                raise RuntimeError(f"study {number}: {name} answers {study.expected!r}, {OURS} {other.expected!r}")
        known = known or mine
    return known


async def _reading(url: str, studies: Sequence[Study], clients: int, seconds: float, name: str) -> tuple[float, float]:
    async with _session() as session:
        records = await closed_loop(session, url, studies, clients=clients, seconds=seconds)
    times = percentiles(record.seconds for record in records if record.outcome == "answered")
    wrong = [record for record in records if record.outcome != "answered"]
    if wrong or times is None:
        raise RuntimeError(f"{name}, {clients} clients: {counted(records)}; {wrong[0].note if wrong else 'no answer'}")
    return rate(records), times["p50"]


# --- the command --------------------------------------------------------------------------------------------------


def ratios(mine: Sequence[float], others: Sequence[float]) -> tuple[float, float, float]:
    """Median, smallest and largest of mine / other, round by round."""
    each = [a / b for a, b in zip(mine, others, strict=True)]
    return statistics.median(each), min(each), max(each)


def as_markdown(measured: Figures) -> str:
    """One line a server and number of clients; ratios above 1 are in favour of the service."""
    lines = [
        "| clients | server | answers/s | p50 | ours answers, times as many | our p50, times as short |",
        "|---|---|---|---|---|---|",
    ]
    for clients in measured.throughput[OURS]:
        for name, rounds in measured.throughput.items():
            times = measured.p50[name][clients]
            cells = [f"{statistics.median(rounds[clients]):.2f}", f"{statistics.median(times) * 1e3:,.0f} ms"]
            if name == OURS:
                cells += ["", ""]
            else:
                for middle, low, high in (
                    ratios(measured.throughput[OURS][clients], rounds[clients]),
                    ratios(times, measured.p50[OURS][clients]),
                ):
                    cells.append(f"{middle:.2f} × ({low:.2f}–{high:.2f})")
            lines.append(f"| {clients} | {name} | " + " | ".join(cells) + " |")
    count = len(measured.throughput[OURS][next(iter(measured.throughput[OURS]))])
    lines += [
        "",
        f"Bundle {measured.bundle} on {measured.device}, {measured.threads} threads each, medians and ranges of "
        f"{count} rounds of {measured.seconds:g} s; all answers equal.",
    ]
    return "\n".join(lines)


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point; returns 0, or 2 where the servers could not be measured or do not agree."""
    arguments = _parser().parse_args(argv)
    try:
        device = str(choose_device(arguments.device))
        with tempfile.TemporaryDirectory() as folder:
            bundle = tiny_bundle(Path(folder)) if arguments.tiny else arguments.bundle
            measured = Figures(bundle.name, device, arguments.threads, arguments.seconds)
            with servers(bundle, device, arguments.threads) as found:
                asyncio.run(compare(found, measured, rounds=arguments.rounds))
    except (OSError, RuntimeError, ValueError) as error:
        log.error("%s", error)
        return 2
    write_atomic(arguments.out / "servers.json", json.dumps(dataclasses.asdict(measured), indent=1).encode())
    plots.side_by_side(measured.throughput, arguments.out / "servers.png", label="answers a second")
    print(as_markdown(measured))
    log.info("written to %s", arguments.out)
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.compare_servers", description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    which = parser.add_mutually_exclusive_group()
    which.add_argument("--bundle", type=Path, default=BUNDLE)
    which.add_argument("--tiny", action="store_true", help="a tiny untrained bundle: shows the servers, not the model")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda")
    parser.add_argument("--rounds", type=positive, default=5)
    parser.add_argument("--seconds", type=float, default=6.0, help="of one reading (6)")
    parser.add_argument("--threads", type=positive, default=os.cpu_count() or 1, help="OpenMP threads of each server")
    parser.add_argument("--out", type=Path, default=Path("runs/servers"))
    return parser


if __name__ == "__main__":
    configure_logging()
    sys.exit(main())
