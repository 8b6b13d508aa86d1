"""`python -m benchmarks.soak` for seconds: every request is accounted for; lost, wrong and hung ones are detected."""

from __future__ import annotations

import json
import socket
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from benchmarks import compare_servers, plots
from benchmarks.load import (
    BAD_CLIENTS,
    GOOD,
    Load,
    Record,
    Study,
    answer_key,
    drawn_studies,
    generate,
    judge,
    percentiles,
    rate,
)
from benchmarks.server import Server, running
from benchmarks.soak import Plan, as_markdown, soak
from tests.support.service import Live, live_server
from tests.support.tiny import write_tiny_bundle

REPORT = {"findings": "Clear.", "reference_cases": [{"case_id": "A"}, {"case_id": "B"}]}
STUDY = Study(b"x", "Clear. | A | B")


@pytest.fixture(scope="module")
def live(bundle: Path) -> Iterator[Live]:
    with live_server(bundle, max_concurrent_requests=9) as server:
        yield server


def test_accounts_for_every_request_of_an_overload(live: Live, tmp_path: Path) -> None:
    plan = Plan(minutes=0.06, overload=4.0, deadline_s=60, seed=0)
    result, records = soak(Server(live.url), plan, capacity_s=1.5, studies=5, quiet=True)
    assert result.faults == []
    assert result.passed
    assert records
    assert {record.outcome for record in records} <= set(GOOD)
    assert sum(sum(counts.values()) for counts in result.outcomes.values()) == len(records)
    assert set(result.codes) <= {"busy"}
    assert result.offered == pytest.approx(4 * result.capacity)
    plots.latencies([(1.0, 2.0)] * 200, [], tmp_path / "soak-latency.png")
    assert (tmp_path / "soak-latency.png").read_bytes().startswith(b"\x89PNG")
    assert f"{len(records):,} requests in 0.06 minutes" in as_markdown(result)


def test_misbehaving_clients_get_an_answer_or_fail_by_their_own_fault(live: Live) -> None:
    load = Load(live.url, 4.0, per_second=5, misbehaving=1.0, quiet=True)
    outcomes: dict[str, set[str]] = {}
    for record in generate(load, drawn_studies(1)):
        outcomes.setdefault(record.client, set()).add(record.outcome)
    assert sorted(outcomes) == sorted(BAD_CLIENTS)
    assert outcomes.pop("uploads slowly") <= {"answered", "refused"}
    assert outcomes.pop("leaves while waiting") <= {"answered", "own fault", "refused"}
    assert set.union(*outcomes.values()) <= {"own fault", "refused"}


# --- detection --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("status", "body", "retry_after", "outcome"),
    [
        (200, REPORT, "", "answered"),
        (200, {**REPORT, "findings": "Other."}, "", "wrong"),
        (200, {**REPORT, "reference_cases": REPORT["reference_cases"][::-1]}, "", "wrong"),
        (503, {"code": "busy"}, "2", "refused"),
        (503, {"code": "busy"}, "", "unexpected"),
        (503, {"code": "failed"}, "2", "unexpected"),
        (500, {"code": "internal"}, "", "unexpected"),
        (422, {"code": "truncated"}, "", "unexpected"),
        (200, b"<html>", "", "unexpected"),
    ],
)
def test_judges_answers(status: int, body: object, retry_after: str, outcome: str) -> None:
    assert answer_key(REPORT) == STUDY.expected
    record = Record(0.0)
    judge(record, STUDY, status, retry_after, body if isinstance(body, bytes) else json.dumps(body).encode())
    assert record.outcome == outcome


def generated(handler: Callable[[socket.socket], None], deadline_s: float) -> list[Record]:
    """Records of an open loop against a server that treats each connection with `handler`."""
    listener = socket.create_server(("127.0.0.1", 0))

    def serve() -> None:
        while True:
            try:
                connection, _ = listener.accept()
            except OSError:
                return
            threading.Thread(target=handler, args=(connection,), daemon=True).start()

    threading.Thread(target=serve, daemon=True).start()
    with listener:
        url = f"http://127.0.0.1:{listener.getsockname()[1]}"
        return generate(Load(url, 0.5, per_second=40, deadline_s=deadline_s, quiet=True), [STUDY])


def test_closed_connections_are_lost_and_silent_ones_hang() -> None:
    silence = threading.Event()
    lost = generated(lambda connection: connection.close(), 10)

    def stay_silent(connection: socket.socket) -> None:
        with connection:
            silence.wait(20)

    hung = generated(stay_silent, 0.3)
    silence.set()
    assert {record.outcome for record in lost} == {"lost"}
    assert {record.outcome for record in hung} == {"hung"}
    assert len(hung) > 10  # arrivals do not wait for answers
    assert max(record.seconds for record in hung) < 1.5


def test_rates_and_percentiles() -> None:
    records = [Record(float(n), "normal", "answered" if n % 2 else "refused", seconds=1.0) for n in range(10)]
    assert rate(records) == pytest.approx(0.5)
    times = percentiles([n / 100 for n in range(101)])
    assert times == pytest.approx({"p50": 0.5, "p95": 0.95, "p99": 0.99, "max": 1.0})
    assert percentiles([]) is None
    assert rate([]) == 0.0


# --- the comparison ---------------------------------------------------------------------------------------------------


def test_compares_servers_in_turn(live: Live, bundle: Path, tmp_path: Path) -> None:
    measured = compare_servers.Comparison("tiny", "cpu", 1, 0.2)
    with running("benchmarks.naive_server", bundle, "cpu", health="/openapi.json") as peer:
        found = {compare_servers.SERVICE: Server(live.url), compare_servers.NAIVE: Server(peer.url)}
        drawn = drawn_studies(2, sizes=(96,), both_views=True)
        compare_servers.compare(found, measured, drawn, rounds=2, clients=(2,), quiet=True)
    assert {name: len(rounds[2]) for name, rounds in measured.throughput.items()} == dict.fromkeys(found, 2)
    assert len([line for line in compare_servers.as_markdown(measured).splitlines() if line.startswith("| 2 |")]) == 2
    plots.side_by_side(measured.throughput, tmp_path / "servers.png", label="answers a second")
    assert (tmp_path / "servers.png").read_bytes().startswith(b"\x89PNG")


def test_does_not_compare_servers_with_different_answers(live: Live, tmp_path: Path) -> None:
    with live_server(write_tiny_bundle(tmp_path / "other", seed=5)) as other:
        found = {compare_servers.SERVICE: Server(live.url), "another": Server(other.url)}
        measured = compare_servers.Comparison("tiny", "cpu", 1, 0.2)
        drawn = drawn_studies(1, sizes=(96,), both_views=True)
        with pytest.raises(RuntimeError, match=r"study 0: another answers .*, this service "):
            compare_servers.compare(found, measured, drawn, rounds=1, clients=(1,), quiet=True)


def test_computes_ratios_within_a_round() -> None:
    assert compare_servers.ratios([2.0, 8.0, 9.0], [1.0, 2.0, 3.0]) == (3.0, 2.0, 4.0)


def test_closed_loop_waits_for_each_answer(live: Live) -> None:
    records = generate(Load(live.url, 0.7, clients=2), drawn_studies(2, sizes=(96,)))
    assert len(records) >= 2
    assert {record.outcome for record in records} == {"answered"}
    assert sum(record.seconds for record in records) <= 2 * max(record.due + record.seconds for record in records)
