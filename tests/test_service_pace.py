"""Time limits follow the measured speed of the machine; the log names the cause of a slow one."""

from __future__ import annotations

import asyncio
import logging
from contextlib import ExitStack
from pathlib import Path

import pytest

from service.inference.engine import Engine
from service.inference.loader import Pace
from service.inference.runtime import MAX_REQUEST_TIMEOUT_S, REQUEST_TIMEOUT_S, Runtime
from service.web.problems import Problem, deadline
from tests.support.service import live_server, settings_for


def test_limit_that_grows_extends_a_running_deadline() -> None:
    async def work() -> str:
        limits = iter((0.02, 0.01, 60.0))  # a smaller limit does not shorten
        async with deadline(lambda: next(limits, 60.0), "The draft"):
            await asyncio.sleep(0.1)
        return "done"

    with pytest.raises(Problem, match=r"The draft was not ready within 0\.02 s"):
        asyncio.run(work())  # 0.02 ends; 0.01 does not extend it


def test_limit_read_again_at_its_end_counts() -> None:
    async def work() -> str:
        limits = iter((0.02,))
        async with deadline(lambda: next(limits, 60.0), "The draft"):
            await asyncio.sleep(0.1)
        return "done"

    assert asyncio.run(work()) == "done"


def test_automatic_limit_is_three_times_the_work_in_flight(bundle: Path) -> None:
    with live_server(bundle) as live:
        runtime: Runtime = live.app.state.runtime
        engine = runtime.serving().backend
        assert isinstance(engine, Engine)
        assert 0 < engine.seconds_per_study < 10  # measured by the warm-up
        assert runtime.request_timeout_s() == REQUEST_TIMEOUT_S
        with ExitStack() as slots:
            for _ in range(5):
                slots.enter_context(runtime.admission.acquire_slot())
            for pace, limit in ((1.0, REQUEST_TIMEOUT_S), (4.0, 60.0), (40.0, MAX_REQUEST_TIMEOUT_S)):
                engine._workers[0].seconds_per_study = pace
                assert runtime.request_timeout_s() == limit


def test_configured_limit_is_exact(bundle: Path) -> None:
    with live_server(bundle, request_timeout_s=5, warm_up=False) as live:
        runtime: Runtime = live.app.state.runtime
        backend = runtime.serving().backend
        assert isinstance(backend, Engine)
        backend._workers[0].seconds_per_study = 40.0
        with runtime.admission.acquire_slot():
            assert runtime.request_timeout_s() == 5


@pytest.mark.parametrize(("pace", "starved"), [(Pace(3.0, 1.3), True), (Pace(0.6, 1.1), False), (Pace(), False)])
def test_draft_without_a_whole_processor_is_starved(pace: Pace, starved: bool) -> None:
    assert pace.is_starved is starved
    if starved:
        assert "a draft took 3.0 s, in which this process had 0.4 processors" in pace.explain()


def test_start_warns_where_drafts_are_starved(
    bundle: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("service.inference.loader._STARVED", 1e9)  # any machine counts as slow
    with caplog.at_level(logging.WARNING), live_server(bundle):
        assert "drafts are slow here" in caplog.text


def test_default_of_the_setting_is_automatic(bundle: Path) -> None:
    assert settings_for(bundle).request_timeout_s == 0
