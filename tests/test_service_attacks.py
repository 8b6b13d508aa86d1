"""Every attack of `python -m benchmarks.attacks` once, at small size, against one real server process."""

from __future__ import annotations

import asyncio
import dataclasses
import multiprocessing
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import pytest

from benchmarks.attacking.attacks import ATTACKS, Attack
from benchmarks.attacking.bodies import MIB, SMALL
from benchmarks.attacking.honest import Known, faults_afterwards, known_answers, probes
from benchmarks.attacks import as_markdown, attack, attacked, faults_of_log, target_of
from benchmarks.memory import memory_of
from benchmarks.server import Server

SLOWEST_PROBE_S = 2.0  # the suite shares the cores with other processes; the command measures the goal of 250 ms
MOST_GROWTH_MIB = 100  # of the server process, in which no image may be decoded


@pytest.fixture(scope="module")
def server(bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    log = tmp_path_factory.mktemp("attacked") / "service.log"
    with attacked(bundle, log=log, module="tests.support.short_timeouts") as server:
        yield server


@pytest.fixture(scope="module")
def known(server: Server) -> list[Known]:
    return known_answers(server.url, target_of(server), studies=2)


@pytest.mark.parametrize("attack", ATTACKS, ids=[attack.name for attack in ATTACKS])
def test_survives_attack(server: Server, known: list[Known], attack: Attack) -> None:
    target, outcomes = target_of(server), Counter[str]()
    requests = attack.requests(target, SMALL)
    with memory_of(server.pid, every_s=0.02) as memory, probes(server.url) as probed:
        asyncio.run(attack.once(target, SMALL, requests, outcomes))
    assert [outcome for outcome in outcomes if not attack.allows(outcome)] == [], outcomes
    assert sum(outcomes.values()) == len(requests)
    assert probed.faults == []
    assert max(max(seconds) for seconds in probed.seconds.values()) < SLOWEST_PROBE_S
    assert (max(size for _, size in memory) - memory[0][1]) / MIB < MOST_GROWTH_MIB
    assert faults_afterwards(server.url, known) == []


def test_command_reports_broken_promises(server: Server) -> None:
    kept, broken = ATTACKS[-1], dataclasses.replace(ATTACKS[0], allowed=("201",))
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as generator:
        outcome = attack(server, [kept, broken], 3.0, generator=generator, scale=SMALL)
    assert outcome.honest["right"] > 3
    assert any(fault.startswith(f"{broken.name}: 422") for fault in outcome.faults)
    assert not any(fault.startswith((kept.name, "an honest", "afterwards")) for fault in outcome.faults)
    table = as_markdown([outcome], outcome.faults).splitlines()
    assert [line.split("|")[1].strip() for line in table[2:5]] == [broken.name, kept.name, "all at once"]


def test_log_holds_no_error_after_all_attacks(server: Server, tmp_path: Path) -> None:
    assert server.log is not None
    assert faults_of_log(server.log) == []
    (tmp_path / "service.log").write_text("2026 INFO fine\n2026 ERROR broken\n")
    assert faults_of_log(tmp_path / "service.log") == ["the log holds '2026 ERROR broken'"]
