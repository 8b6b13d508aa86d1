"""Load a running service beyond its capacity for minutes, and account for every request.

    python -m benchmarks.soak --minutes 10 [--overload 2.0] [--bundle DIR | --tiny] [--url URL] [--out runs/soak]

First the capacity is measured with clients that wait for their answers. Then requests arrive at
``--overload`` times that rate, whether or not the service keeps up (Poisson process, sent by
Locust); some clients misbehave. Every request must end in one of three ways: the findings and
reference cases that the study gets alone; a 503 problem with the code ``busy`` and a Retry-After;
or by the client's own fault. The command exits 1 if a request is lost, gets another answer, or has
no answer within ``--deadline`` seconds, and if the service is afterwards not healthy, not idle or
answers differently. Where clients and service share the cores, the times include the clients' work.
"""

from __future__ import annotations

import argparse
import collections
import dataclasses
import json
import logging
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field

from benchmarks import load, plots
from benchmarks.load import BAD, GOOD, Load, Record, percentiles
from benchmarks.measure import markdown
from benchmarks.memory import Sample, memory_of, slope
from benchmarks.server import Server, command_parser, run_command, server_of, write_json
from model.processors import usable_processors

log = logging.getLogger("benchmarks.soak")
STUDIES = 24
CAPACITY_CLIENTS = 8  # below the default number of slots, so that none is refused while capacity is measured
CAPACITY_S = 20.0
MISBEHAVING = 0.08  # share of the requests
REFUSAL_GOAL_S = 0.050  # p99
FLAT = 1024 * 1024  # bytes a minute, second half of the run; judged from JUDGED_FROM minutes on
JUDGED_FROM = 5.0
NOTES = 50  # failed requests that are described


@dataclass(frozen=True)
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
    capacity: float  # answers a second
    cores: int = usable_processors()
    throughput: float = 0.0  # answers a second
    outcomes: dict[str, dict[str, int]] = field(default_factory=dict)  # client -> outcome -> count
    codes: dict[str, int] = field(default_factory=dict)  # of 503 problems
    times: dict[str, dict[str, float] | None] = field(default_factory=dict)  # percentiles in seconds
    growth: float | None = None  # bytes a minute, second half
    faults: list[str] = field(default_factory=list)
    memory: list[Sample] = field(default_factory=list)  # (seconds, bytes)

    @property
    def offered(self) -> float:
        return self.capacity * self.plan.overload

    @property
    def passed(self) -> bool:
        return not self.faults


def soak(
    server: Server, plan: Plan, *, capacity_s: float = CAPACITY_S, studies: int = STUDIES, quiet: bool = False
) -> tuple[Soak, list[Record]]:
    """Measure the capacity, overload the service, check it afterwards."""
    drawn = load.drawn_studies(studies, seed=plan.seed)
    known = load.with_answers(server.url, drawn, timeout_s=plan.deadline_s)
    log.info("capacity: %d clients for %.0f s", CAPACITY_CLIENTS, capacity_s)
    closed = Load(server.url, capacity_s, clients=CAPACITY_CLIENTS, deadline_s=plan.deadline_s, seed=plan.seed)
    measured = load.generate(closed, known)
    result = Soak(plan, load.rate(measured))
    if not result.capacity:
        raise RuntimeError(f"no answer while capacity was measured: {load.count_outcomes(measured)}")
    log.info("%.1f answers a second; sending %.1f for %g minutes", result.capacity, result.offered, plan.minutes)
    seconds, misbehaving = plan.minutes * 60, MISBEHAVING
    open_loop = dataclasses.replace(
        closed, seconds=seconds, clients=0, per_second=result.offered, misbehaving=misbehaving, quiet=quiet
    )
    with memory_of(server.pid) as result.memory:
        records = load.generate(open_loop, known)
    _account(result, measured, records)
    result.faults += load.faults_afterwards(server.url, known)
    return result, records


def _account(result: Soak, measured: Sequence[Record], records: Sequence[Record]) -> None:
    """Summarise the outcomes; name every request that failed."""
    for client in sorted({record.client for record in records}):
        result.outcomes[client] = load.count_outcomes(record for record in records if record.client == client)
    result.codes = dict(collections.Counter(record.code for record in records if record.status == 503))
    for outcome in ("answered", "refused"):
        result.times[outcome] = percentiles(seconds for _, seconds in _of_normal_clients(records, outcome))
    result.times["sent late"] = percentiles(record.late for record in records)
    result.throughput = load.rate(records)
    each = slope(result.memory)
    result.growth = None if each is None else each * 60
    bad = [record for record in [*measured, *records] if record.outcome not in GOOD]
    result.faults += [json.dumps(asdict(record)) for record in bad[:NOTES]]
    if len(bad) > NOTES:
        result.faults.append(f"and {len(bad) - NOTES} more requests")
    if result.growth is not None and result.plan.minutes >= JUDGED_FROM and result.growth > FLAT:
        result.faults.append(f"memory grows by {result.growth / 2**20:.2f} MiB a minute; {FLAT / 2**20:g} are allowed")


def _of_normal_clients(records: Sequence[Record], outcome: str) -> list[tuple[float, float]]:
    return [(r.due, r.seconds) for r in records if r.client == "normal" and r.outcome == outcome]


def as_markdown(result: Soak) -> str:
    outcomes, plan = (*GOOD, *BAD), result.plan
    counts = [[client, *(f"{n.get(name, 0):,}" for name in outcomes)] for client, n in result.outcomes.items()]
    times = [
        [name, *(f"{value * 1e3:,.0f} ms" for value in values.values())] if values else [name, *["–"] * 4]
        for name, values in result.times.items()
    ]
    goal, refused = "not measured", result.times["refused"]
    if refused is not None:
        goal = f"goal {REFUSAL_GOAL_S * 1e3:.0f} ms {'met' if refused['p99'] < REFUSAL_GOAL_S else 'missed'}"
    growth = "not measured" if result.growth is None else f"{result.growth / 2**20:+.2f} MiB a minute"
    requests = sum(sum(counts.values()) for counts in result.outcomes.values())
    return "\n".join([
        markdown(("client", *outcomes), counts), "",
        markdown(("times of normal clients", "p50", "p95", "p99", "max"), times), "",
        f"{requests:,} requests in {plan.minutes:g} minutes at {result.offered:.1f}/s, {plan.overload:g} times the "
        f"capacity of {result.capacity:.1f}/s; {result.throughput:.1f}/s answered; 503s: {result.codes or 'none'}; "
        f"p99 of refusals: {goal}; memory in the second half {growth}; {result.cores} cores, seed {plan.seed}.",
        *(f"- {fault}" for fault in result.faults),
    ])  # fmt: skip


def run(arguments: argparse.Namespace) -> int:
    plan, out = Plan(arguments.minutes, arguments.overload, arguments.deadline, arguments.seed), arguments.out
    with server_of(arguments) as server:
        result, records = soak(server, plan)
    write_json(out / "soak.json", {"passed": result.passed, "offered": result.offered, **asdict(result)})
    answered, refused = (_of_normal_clients(records, outcome) for outcome in ("answered", "refused"))
    plots.latencies(answered, refused, out / "soak-latency.png")
    if result.memory:
        plots.memory(result.memory, out / "soak-memory.png", across="seconds since the start", per=60)
    print(as_markdown(result))
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
