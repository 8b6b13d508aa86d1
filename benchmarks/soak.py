"""Load a running service beyond its capacity for minutes, and account for every request.

    python -m benchmarks.soak --minutes 10 [--overload 2.0] [--bundle DIR | --tiny] [--url URL] [--out runs/soak]

First the capacity is measured with clients that wait for their answers (closed loop). Then requests
arrive at ``--overload`` times that rate whether or not the service keeps up (open loop): arrivals
of a Poisson process, sent by Locust, with drawn radiographs of many sizes. Some clients leave in
the middle of an upload or before their answer, upload slowly, or send garbage. Every request must
end in one of three ways: the findings and reference cases that the study gets alone; a 503 problem
with the code ``busy`` and a Retry-After; or by the client's own fault. The command exits 1 if a
request is lost, gets another answer, or has no answer within ``--deadline`` seconds, and if the
service is afterwards not healthy, not idle or answers differently.

This process and the generator are the clients; the service runs in its own. Where both share the
cores, the times include the clients' work; the JSON holds the number of cores and how late requests
were sent.
"""

from __future__ import annotations

import argparse
import collections
import dataclasses
import json
import logging
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import httpx

from benchmarks import plots
from benchmarks.load import (
    BAD,
    GOOD,
    Load,
    Record,
    Study,
    count_outcomes,
    drawn_studies,
    generate,
    percentiles,
    rate,
    with_answers,
)
from benchmarks.measure import markdown
from benchmarks.memory import Sample, memory_of, slope
from benchmarks.server import Server, command_parser, idle, run_command, server_of
from model.files import write_atomic

log = logging.getLogger("benchmarks.soak")
STUDIES = 24
CAPACITY_CLIENTS = 8  # below the default number of slots, so that none is refused while capacity is measured
CAPACITY_S = 20.0
MISBEHAVING = 0.08  # share of the requests
REFUSAL_GOAL_S = 0.050  # p99
FLAT = 1024 * 1024  # bytes a minute, second half of the run; judged from JUDGED_FROM minutes on
JUDGED_FROM = 5.0
NOTES = 50  # failed requests that are described


@dataclass
class Plan:
    """What is sent; all of it is drawn from ``seed``."""

    minutes: float
    overload: float
    deadline_s: float
    seed: int


@dataclass
class Soak:
    """What was sent, and the outcomes."""

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
        """Whether every request is accounted for and the service is healthy."""
        return not self.faults


def soak(
    server: Server, plan: Plan, *, capacity_s: float = CAPACITY_S, studies: int = STUDIES, quiet: bool = False
) -> tuple[Soak, list[Record]]:
    """Measure the capacity, overload the service, check it afterwards.

    Raises:
        RuntimeError: the service answers nothing even without load.
    """
    known = with_answers(server.url, drawn_studies(studies, seed=plan.seed), timeout_s=plan.deadline_s)
    log.info("capacity: %d clients for %.0f s", CAPACITY_CLIENTS, capacity_s)
    load = Load(server.url, capacity_s, clients=CAPACITY_CLIENTS, deadline_s=plan.deadline_s, seed=plan.seed)
    measured = generate(load, known)
    result = Soak(plan, os.cpu_count() or 1, rate(measured))
    if not result.capacity:
        raise RuntimeError(f"no answer while capacity was measured: {count_outcomes(measured)}")
    result.offered = result.capacity * plan.overload
    log.info("%.1f answers a second; sending %.1f for %g minutes", result.capacity, result.offered, plan.minutes)
    load = dataclasses.replace(
        load, seconds=plan.minutes * 60, clients=0, per_second=result.offered, misbehaving=MISBEHAVING, quiet=quiet
    )
    with memory_of(server.pid) as result.memory:
        records = generate(load, known)
    _account(result, measured, records)
    _check_afterwards(server, known, result)
    return result, records


def _account(result: Soak, measured: Sequence[Record], records: Sequence[Record]) -> None:
    """Summarise the outcomes; name every request that failed."""
    for client in sorted({record.client for record in records}):
        result.outcomes[client] = count_outcomes(record for record in records if record.client == client)
    result.codes = dict(collections.Counter(record.code for record in records if record.status == 503))
    normal = [record for record in records if record.client == "normal"]
    result.answered = percentiles(record.seconds for record in normal if record.outcome == "answered")
    result.refused = percentiles(record.seconds for record in normal if record.outcome == "refused")
    result.sent_late = percentiles(record.late for record in records)
    result.throughput = rate(records)
    each = slope(result.memory)
    result.growth = None if each is None else each * 60
    bad = [record for record in [*measured, *records] if record.outcome not in GOOD]
    result.faults += [json.dumps(dataclasses.asdict(record)) for record in bad[:NOTES]]
    if len(bad) > NOTES:
        result.faults.append(f"and {len(bad) - NOTES} more requests")
    if result.growth is not None and result.plan.minutes >= JUDGED_FROM and result.growth > FLAT:
        result.faults.append(f"memory grows by {result.growth / 2**20:.2f} MiB a minute; {FLAT / 2**20:g} are allowed")


def _check_afterwards(server: Server, known: Sequence[Study], result: Soak) -> None:
    """The service must be healthy and idle, and must answer every study as before."""
    try:
        health = idle(server.url)
        if health["status_code"] != 200 or health["queue"]["depth"] != 0:
            result.faults.append(f"afterwards /health answers {health['status_code']}, queue {health.get('queue')}")
        for number, (study, before) in enumerate(zip(with_answers(server.url, known), known, strict=True)):
            if study != before:
                result.faults.append(f"afterwards study {number} gets {study.expected!r}, not {before.expected!r}")
    except (httpx.HTTPError, RuntimeError) as error:
        result.faults.append(f"afterwards the service does not answer: {error}")


def write(result: Soak, records: Sequence[Record], out: Path) -> None:
    """``soak.json`` and the plots."""
    content = json.dumps({"passed": result.passed, **dataclasses.asdict(result)}, indent=1)
    write_atomic(out / "soak.json", content.encode())
    normal = [record for record in records if record.client == "normal"]
    answered, refused = ([(r.due, r.seconds) for r in normal if r.outcome == name] for name in ("answered", "refused"))
    plots.latencies(answered, refused, out / "soak-latency.png")
    if result.memory:
        plots.memory(result.memory, out / "soak-memory.png", across="seconds since the start", per=60)


def as_markdown(result: Soak) -> str:
    """Outcomes and times as tables, and a summary."""
    outcomes = (*GOOD, *BAD)
    counts = [[client, *(f"{n.get(name, 0):,}" for name in outcomes)] for client, n in result.outcomes.items()]
    times = []
    for name, values in (("answered", result.answered), ("refused", result.refused), ("sent late", result.sent_late)):
        shown = [f"{value * 1e3:,.0f} ms" for value in values.values()] if values else ["–"] * 4
        times.append([name, *shown])
    goal = "not measured"
    if result.refused is not None:
        goal = f"goal {REFUSAL_GOAL_S * 1e3:.0f} ms {'met' if result.refused['p99'] < REFUSAL_GOAL_S else 'missed'}"
    growth = "not measured" if result.growth is None else f"{result.growth / 2**20:+.2f} MiB a minute"
    plan, requests = result.plan, sum(sum(counts.values()) for counts in result.outcomes.values())
    return "\n".join([
        markdown(("client", *outcomes), counts), "",
        markdown(("times of normal clients", "p50", "p95", "p99", "max"), times), "",
        f"{requests:,} requests in {plan.minutes:g} minutes at {result.offered:.1f}/s, {plan.overload:g} times the "
        f"capacity of {result.capacity:.1f}/s; {result.throughput:.1f}/s answered; 503s: {result.codes or 'none'}; "
        f"p99 of refusals: {goal}; memory in the second half {growth}; {result.cores} cores, seed {plan.seed}.",
        *(f"- {fault}" for fault in result.faults),
    ])  # fmt: skip


def run(arguments: argparse.Namespace) -> int:
    """Run the command; returns 1 if a request is not accounted for."""
    plan = Plan(arguments.minutes, arguments.overload, arguments.deadline, arguments.seed)
    with server_of(arguments) as server:
        result, records = soak(server, plan)
    write(result, records, arguments.out)
    print(as_markdown(result))
    log.info("written to %s", arguments.out)
    return int(not result.passed)


def _positive(text: str) -> float:
    value = float(text)
    if not 0 < value < float("inf"):
        raise argparse.ArgumentTypeError(f"{value:g} must be more than 0")
    return value


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point; returns 0 if all is accounted for, 1 if not, 2 if nothing could be measured."""
    parser = command_parser("soak", __doc__)
    parser.add_argument("--minutes", type=_positive, default=10.0)
    parser.add_argument("--overload", type=_positive, default=2.0, help="times the measured capacity (2)")
    parser.add_argument("--deadline", type=_positive, default=60.0, help="seconds until a request counts as hung (60)")
    parser.add_argument("--seed", type=int, default=0, help="of arrivals, studies and misbehaviour (0)")
    return run_command(run, parser.parse_args(argv))


if __name__ == "__main__":
    sys.exit(main())
