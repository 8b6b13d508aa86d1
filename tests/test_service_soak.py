"""The soak of `python -m benchmarks.soak` in seconds, and that it would see a request lost, wrong or turned away."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path

import aiohttp
import numpy as np
import pytest

from benchmarks import compare_servers, plots
from benchmarks.bad_clients import ALL
from benchmarks.black_box import Server, running
from benchmarks.load import GOOD, Record, Study, closed_loop, drawn_studies, essence, percentiles, post, rate, settle
from benchmarks.soak import Plan, as_markdown, soak, write
from tests.support.service import Live, live_server
from tests.support.tiny import write_tiny_bundle

REPORT = {"findings": "Clear.", "reference_cases": [{"case_id": "A"}, {"case_id": "B"}]}
STUDY = Study(b"x", "Clear. | A | B")


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_bundle(tmp_path_factory.mktemp("bundles") / "tiny")


@pytest.fixture(scope="module")
def live(bundle: Path) -> Iterator[Live]:
    with live_server(bundle, queue_size=9) as server:
        yield server


def test_every_request_of_an_overload_is_accounted_for(live: Live, tmp_path: Path) -> None:
    plan = Plan(minutes=0.06, overload=4.0, deadline_s=60, seed=0)
    result, records = asyncio.run(soak(Server(live.url), plan, capacity_s=1.5, studies=5, quiet=True))
    assert result.faults == []
    assert result.passed
    assert records
    assert {record.outcome for record in records} <= set(GOOD)
    assert sum(sum(counts.values()) for counts in result.outcomes.values()) == len(records)
    assert set(result.codes) <= {"busy"}
    assert result.offered == pytest.approx(4 * result.capacity)
    write(result, records, tmp_path)
    assert json.loads((tmp_path / "soak.json").read_text())["passed"] is True
    assert (tmp_path / "soak-latency.png").read_bytes().startswith(b"\x89PNG")
    assert f"{len(records):,} requests in 0.06 minutes" in as_markdown(result)


@pytest.mark.parametrize("how", sorted(ALL))
def test_misbehaving_clients_are_told_or_let_go(live: Live, how: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("benchmarks.bad_clients.TRICKLE_S", (0.1, 0.2))
    (study,) = drawn_studies(1)
    record = Record(0.0, how)
    asyncio.run(ALL[how](live.url, study, record, np.random.default_rng(1)))
    expected = {"trickles": ("answered",), "leaves while waiting": ("answered", "own fault")}.get(how, ("own fault",))
    assert record.outcome in expected, record


# --- what it would see ------------------------------------------------------------------------------------------------


def settled(status: int, body: object, retry_after: str = "") -> str:
    record = Record(0.0, "normal")
    settle(record, STUDY, status, retry_after, body if isinstance(body, bytes) else json.dumps(body).encode())
    return record.outcome


def test_answers_are_judged() -> None:
    assert essence(REPORT) == STUDY.expected
    assert settled(200, REPORT) == "answered"
    assert settled(200, {**REPORT, "findings": "Other."}) == "wrong"
    assert settled(200, {**REPORT, "reference_cases": REPORT["reference_cases"][::-1]}) == "wrong"
    assert settled(503, {"code": "busy"}, "2") == "refused"
    assert settled(503, {"code": "busy"}) == "unexpected"
    assert settled(503, {"code": "failed"}, "2") == "unexpected"
    assert settled(500, {"code": "internal"}) == "unexpected"
    assert settled(422, {"code": "truncated"}) == "unexpected"
    assert settled(200, b"<html>") == "unexpected"


Handler = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


async def asked(handler: Handler, timeout_s: float) -> Record:
    server = await asyncio.start_server(handler, "127.0.0.1", 0)
    record = Record(0.0, "normal")
    timeout = aiohttp.ClientTimeout(total=timeout_s)
    async with server, aiohttp.ClientSession(timeout=timeout) as session:
        await post(session, f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}", STUDY, record)
    return record


def test_closed_and_silent_connections_are_seen() -> None:
    async def close(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.close()

    async def stay_silent(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await asyncio.sleep(0.6)
        writer.close()

    assert asyncio.run(asked(close, 10)).outcome == "lost"
    assert asyncio.run(asked(stay_silent, 0.2)).outcome == "hung"


def test_rates_and_percentiles() -> None:
    records = [Record(float(n), "normal", "answered" if n % 2 else "refused", seconds=1.0) for n in range(10)]
    assert rate(records) == pytest.approx(0.5)
    times = percentiles([n / 100 for n in range(101)])
    assert times == pytest.approx({"p50": 0.5, "p95": 0.95, "p99": 0.99, "max": 1.0})
    assert percentiles([]) is None
    assert rate([]) == 0.0


# --- the comparison ---------------------------------------------------------------------------------------------------


def test_servers_are_compared_in_turn_and_must_agree(live: Live, bundle: Path, tmp_path: Path) -> None:
    measured = compare_servers.Figures("tiny", "cpu", 1, 0.2)
    naive = ("-m", "benchmarks.naive_server", str(bundle), "cpu", "{port}")
    with running(naive, environment={}, health="/openapi.json") as peer:
        found = {compare_servers.OURS: Server(live.url), compare_servers.NAIVE: Server(peer.url)}
        drawn = drawn_studies(2, sizes=(96,), both_views=True)
        asyncio.run(compare_servers.compare(found, measured, rounds=2, clients=(1, 2), drawn=drawn, quiet=True))
    assert {name: {n: len(v) for n, v in rounds.items()} for name, rounds in measured.throughput.items()} == {
        name: {1: 2, 2: 2} for name in found
    }
    table = compare_servers.as_markdown(measured)
    assert len([line for line in table.splitlines() if line.startswith("| 1 |")]) == 2
    plots.side_by_side(measured.throughput, tmp_path / "servers.png", label="answers a second")
    assert (tmp_path / "servers.png").read_bytes().startswith(b"\x89PNG")


def test_servers_that_answer_otherwise_are_not_compared(live: Live, tmp_path: Path) -> None:
    with live_server(write_tiny_bundle(tmp_path / "other", seed=5)) as other:
        found = {compare_servers.OURS: Server(live.url), "another": Server(other.url)}
        measured = compare_servers.Figures("tiny", "cpu", 1, 0.2)
        drawn = drawn_studies(1, sizes=(96,), both_views=True)
        with pytest.raises(RuntimeError, match=r"study 0: another answers .*, this service "):
            asyncio.run(compare_servers.compare(found, measured, rounds=1, clients=(1,), drawn=drawn, quiet=True))


def test_ratios_are_taken_within_a_round() -> None:
    assert compare_servers.ratios([2.0, 8.0, 9.0], [1.0, 2.0, 3.0]) == (3.0, 2.0, 4.0)


def test_a_closed_loop_keeps_as_many_under_way_as_it_has_clients(live: Live) -> None:
    async def run() -> list[Record]:
        async with aiohttp.ClientSession() as session:
            return await closed_loop(session, live.url, drawn_studies(2, sizes=(96,)), clients=2, seconds=0.5)

    records = asyncio.run(run())
    assert len(records) >= 2
    assert {record.outcome for record in records} == {"answered"}
