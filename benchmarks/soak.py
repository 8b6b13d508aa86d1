"""Load a running service beyond its capacity for minutes, and account for every single request.

    python -m benchmarks.soak --minutes 10 [--overload 2.0] [--bundle DIR | --tiny] [--url URL] [--out runs/soak]

First the capacity is measured with clients that wait for their answers. Then requests come at ``--overload`` times
that rate whether or not the service keeps up: arrivals drawn from a Poisson process, drawn radiographs of many sizes,
and among them clients that leave in the middle of an upload or before their answer, that trickle, or that send garbage.
Every request must end in one of three ways: the findings and reference cases that the study gets alone; a 503 problem
with the code ``busy`` and a Retry-After; or by the client's own fault. One that is lost, answered wrongly or otherwise,
or not answered within ``--deadline`` seconds makes the command exit 1, as does a service that is not healthy, idle and
right afterwards.

This process is the clients; the service runs in its own. On a machine where both share the cores, the times hold the
clients' own work as well; the JSON says how many cores there were and how late requests were sent.
"""

from __future__ import annotations

import argparse
import asyncio
import collections
import dataclasses
import json
import logging
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import aiohttp
import httpx
import numpy as np
from tqdm import tqdm

from benchmarks import bad_clients, plots
from benchmarks.black_box import MemoryWatch, Sample, Server, idle, server_from_arguments, slope
from benchmarks.load import GOOD, Record, Study, closed_loop, counted, drawn_studies, essence, percentiles, post, rate
from benchmarks.logging import configure_logging
from model.files import write_atomic

log = logging.getLogger("benchmarks.soak")
BUNDLE = Path("bundles/iu-xray")
STUDIES = 24
CAPACITY_CLIENTS = 8  # below the default number of places, so that none is refused while capacity is measured
CAPACITY_S = 20.0
MISBEHAVING = 0.08  # share of the requests
REFUSAL_GOAL_S = 0.050  # p99
FLAT = 1024 * 1024  # bytes a minute, second half of the run; judged from JUDGED_FROM minutes on
JUDGED_FROM = 5.0
NOTES = 50  # requests that went wrong, kept in words


@dataclass
class Plan:
    """What is offered; all of it is drawn from ``seed``."""

    minutes: float
    overload: float
    deadline_s: float
    seed: int


@dataclass
class Soak:
    """What was offered, and what came of it."""

    plan: Plan
    cores: int
    capacity: float  # answers a second
    offered: float = 0.0  # requests a second
    throughput: float = 0.0  # answers a second
    outcomes: dict[str, dict[str, int]] = field(default_factory=dict)  # client -> outcome -> count
    codes: dict[str, int] = field(default_factory=dict)  # of 503 problems
    answered: dict[str, float] | None = None
    refused: dict[str, float] | None = None
    sent_late: dict[str, float] | None = None
    growth: float | None = None  # bytes a minute, second half
    faults: list[str] = field(default_factory=list)
    memory: list[Sample] = field(default_factory=list)  # (seconds, bytes)

    @property
    def passed(self) -> bool:
        """Whether every request is accounted for and the service is well."""
        return not self.faults


async def with_answers(session: aiohttp.ClientSession, url: str, studies: Sequence[Study]) -> list[Study]:
    """The same studies with what each is answered while nothing else is asked.

    Raises:
        RuntimeError: one of them is not answered.
    """
    known = []
    for study in studies:
        async with session.post(
            url + "/report", data=study.body, headers={"Content-Type": bad_clients.CONTENT_TYPE}
        ) as response:
            answer = await response.json(content_type=None)
            if response.status != 200:
                raise RuntimeError(f"a drawn study is answered {response.status} {answer.get('code')}; is {url} ready?")
            known.append(dataclasses.replace(study, expected=essence(answer)))
    return known


async def offer(
    url: str, studies: Sequence[Study], per_second: float, plan: Plan, *, quiet: bool = False
) -> tuple[list[Record], list[float]]:
    """Send requests in an open loop; returns their records and by how many seconds each was sent late."""
    loop, rng = asyncio.get_running_loop(), np.random.default_rng([plan.seed, 31])
    seconds = plan.minutes * 60
    arrivals = np.cumsum(rng.exponential(1 / per_second, int(seconds * per_second * 1.5) + 50))
    arrivals = arrivals[arrivals < seconds]
    hows = sorted(bad_clients.ALL)
    records, late, under_way = [], [], set()
    connector = aiohttp.TCPConnector(limit=0, force_close=True)  # every client comes on a connection of its own
    timeout = aiohttp.ClientTimeout(total=None)
    async with aiohttp.ClientSession(connector=connector, timeout=timeout) as session:
        began = loop.time()

        async def one(record: Record, study: Study, number: int) -> None:
            try:
                async with asyncio.timeout(plan.deadline_s):
                    if record.client == "normal":
                        await post(session, url, study, record)
                    else:
                        await bad_clients.misbehave(
                            record.client, url, study, record, np.random.default_rng([plan.seed, number])
                        )
            except TimeoutError:
                record.outcome, record.note = "hung", f"no answer within {plan.deadline_s:g} s"
            record.seconds = loop.time() - began - record.due

        progress = tqdm(total=len(arrivals), unit=" requests", disable=quiet, mininterval=2, smoothing=0.05)
        for number, due in enumerate(arrivals):
            await asyncio.sleep(max(0.0, began + due - loop.time()))
            late.append(loop.time() - began - due)
            client = hows[int(rng.integers(len(hows)))] if rng.random() < MISBEHAVING else "normal"
            record = Record(float(due), client)
            records.append(record)
            task = asyncio.create_task(one(record, studies[int(rng.integers(len(studies)))], number))
            under_way.add(task)
            task.add_done_callback(under_way.discard)
            progress.update()
            if number % 50 == 0:
                progress.set_postfix_str(
                    ", ".join(f"{name} {n}" for name, n in counted(r for r in records if r.outcome).items())
                )
        await asyncio.gather(*under_way)
        progress.close()
    return records, late


async def soak(
    server: Server, plan: Plan, *, capacity_s: float = CAPACITY_S, studies: int = STUDIES, quiet: bool = False
) -> tuple[Soak, list[Record]]:
    """Measure the capacity, overload the service, look after it.

    Raises:
        RuntimeError: the service answers nothing even without load.
    """
    pool = drawn_studies(studies, seed=plan.seed)
    timeout = aiohttp.ClientTimeout(total=plan.deadline_s)
    async with aiohttp.ClientSession(timeout=timeout) as session:
        known = await with_answers(session, server.url, pool)
        log.info("capacity: %d clients for %.0f s", CAPACITY_CLIENTS, capacity_s)
        measured = await closed_loop(session, server.url, known, clients=CAPACITY_CLIENTS, seconds=capacity_s)
    result = Soak(plan, os.cpu_count() or 1, rate(measured))
    if not result.capacity:
        raise RuntimeError(f"no answer while capacity was measured: {counted(measured)}")
    result.offered = result.capacity * plan.overload
    log.info("%.1f answers a second; offering %.1f for %g minutes", result.capacity, result.offered, plan.minutes)
    with MemoryWatch(server.pid) as watch:
        records, late = await offer(server.url, known, result.offered, plan, quiet=quiet)
    result.memory = watch.samples
    _account(result, [*measured, *records], records)
    result.sent_late = percentiles(late)
    await asyncio.to_thread(_look_after, server, known, result)
    return result, records


def _account(result: Soak, everything: Sequence[Record], records: Sequence[Record]) -> None:
    for client in dict.fromkeys(record.client for record in records):
        result.outcomes[client] = counted(record for record in records if record.client == client)
    result.codes = dict(collections.Counter(record.code for record in records if record.status == 503))
    normal = [record for record in records if record.client == "normal"]
    result.answered = percentiles(record.seconds for record in normal if record.outcome == "answered")
    result.refused = percentiles(record.seconds for record in normal if record.outcome == "refused")
    result.throughput = rate(records)
    each = slope(result.memory)
    result.growth = None if each is None else each * 60
    bad = [record for record in everything if record.outcome not in GOOD]
    result.faults += [bad_clients.described(record) for record in bad[:NOTES]]
    if len(bad) > NOTES:
        result.faults.append(f"and {len(bad) - NOTES} more requests")
    if result.growth is not None and result.plan.minutes >= JUDGED_FROM and result.growth > FLAT:
        result.faults.append(f"memory grows by {result.growth / 2**20:.2f} MiB a minute; {FLAT / 2**20:g} are allowed")


def _look_after(server: Server, known: Sequence[Study], result: Soak) -> None:
    try:
        health = idle(server.url)
        if health["status_code"] != 200 or health["queue"]["depth"] != 0:
            result.faults.append(f"afterwards /health answers {health['status_code']}, queue {health.get('queue')}")
        for number, study in enumerate(known):
            answer = httpx.post(
                server.url + "/report",
                content=study.body,
                headers={"Content-Type": bad_clients.CONTENT_TYPE},
                timeout=60,
            )
            if answer.status_code != 200 or essence(answer.json()) != study.expected:
                result.faults.append(f"afterwards study {number} is answered {answer.status_code}, not as before")
    except httpx.HTTPError as error:
        result.faults.append(f"the service does not answer any more: {error}")


# --- the command --------------------------------------------------------------------------------------------------


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point; returns 0 where all is accounted for, 1 where not, 2 where nothing could be measured."""
    arguments = _parser().parse_args(argv)
    plan = Plan(arguments.minutes, arguments.overload, arguments.deadline, arguments.seed)
    try:
        with server_from_arguments(arguments, tiny=arguments.tiny) as server:
            result, records = asyncio.run(soak(server, plan))
    except (OSError, RuntimeError, ValueError, httpx.HTTPError, aiohttp.ClientError) as error:
        log.error("%s", error)
        return 2
    write(result, records, arguments.out)
    print(as_markdown(result))
    log.info("written to %s", arguments.out)
    return int(not result.passed)


def write(result: Soak, records: Sequence[Record], out: Path) -> None:
    """``soak.json`` and the pictures."""
    write_atomic(
        out / "soak.json", json.dumps({"passed": result.passed, **dataclasses.asdict(result)}, indent=1).encode()
    )
    normal = [record for record in records if record.client == "normal"]
    answered, refused = ([(r.due, r.seconds) for r in normal if r.outcome == name] for name in ("answered", "refused"))
    plots.latencies(answered, refused, out / "soak-latency.png")
    if result.memory:
        plots.memory(result.memory, out / "soak-memory.png", across="seconds since the start", per=60)


def as_markdown(result: Soak) -> str:
    """The figures as tables."""
    requests = sum(sum(counts.values()) for counts in result.outcomes.values())
    lines = ["| client | " + " | ".join(names := [*GOOD, "wrong", "unexpected", "lost", "hung"]) + " |",
             "|" + "---|" * (len(names) + 1)]  # fmt: skip
    for client, counts in sorted(result.outcomes.items()):
        lines.append(f"| {client} | " + " | ".join(f"{counts.get(name, 0):,}" for name in names) + " |")
    lines += ["", "| times of normal clients | p50 | p95 | p99 | max |", "|---|---|---|---|---|"]
    for name, times in (("answered", result.answered), ("refused", result.refused), ("sent late by", result.sent_late)):
        shown = [f"{times[key] * 1e3:,.0f} ms" for key in ("p50", "p95", "p99", "max")] if times else ["–"] * 4
        lines.append(f"| {name} | " + " | ".join(shown) + " |")
    goal = "not measured"
    if result.refused is not None:
        goal = f"goal {REFUSAL_GOAL_S * 1e3:.0f} ms {'met' if result.refused['p99'] < REFUSAL_GOAL_S else 'missed'}"
    growth = "not measured" if result.growth is None else f"{result.growth / 2**20:+.2f} MiB a minute"
    plan = result.plan
    lines += [
        "",
        f"{requests:,} requests in {plan.minutes:g} minutes at {result.offered:.1f}/s, {plan.overload:g} times the "
        f"capacity of {result.capacity:.1f}/s; {result.throughput:.1f}/s answered; 503s: {result.codes or 'none'}; "
        f"p99 of refusals: {goal}; memory in the second half {growth}; {result.cores} cores, seed {plan.seed}.",
        *(f"- {fault}" for fault in result.faults),
    ]
    return "\n".join(lines)


def _positive(text: str) -> float:
    value = float(text)
    if not 0 < value < float("inf"):
        raise argparse.ArgumentTypeError(f"{value:g} must be more than 0")
    return value


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.soak", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--minutes", type=_positive, default=10.0)
    parser.add_argument("--overload", type=_positive, default=2.0, help="times the measured capacity (2)")
    parser.add_argument("--deadline", type=_positive, default=60.0, help="seconds until a request counts as hung (60)")
    parser.add_argument("--seed", type=int, default=0, help="of arrivals, studies and misbehaviour (0)")
    where = parser.add_mutually_exclusive_group()
    where.add_argument("--url", help="a service that runs already; its memory is not watched")
    where.add_argument("--bundle", type=Path, default=BUNDLE)
    where.add_argument("--tiny", action="store_true", help="serve a tiny untrained bundle: more requests a second")
    parser.add_argument("--device", default="auto", help="of the service: auto, cpu, cuda")
    parser.add_argument("--out", type=Path, default=Path("runs/soak"))
    return parser


if __name__ == "__main__":
    configure_logging()
    sys.exit(main())
