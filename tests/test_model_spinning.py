"""Threads of OpenMP sleep sooner while other processes take the processors."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from model import spinning
from model.spinning import BEGIN, END, SpinControl

pytestmark = pytest.mark.skipif(
    spinning._libgomp() is None or spinning._times() is None, reason="needs Linux and a PyTorch with libgomp"
)


@pytest.fixture
def control() -> Iterator[SpinControl]:
    made = SpinControl()
    yield made
    made.adapt(0.0)


def threads() -> int:
    return len(list(Path("/proc/self/task").iterdir()))


def test_keeps_idle_threads_in_reserve_while_work_waits(control: SpinControl) -> None:
    before, computing = threads(), torch.get_num_threads()
    control.adapt(BEGIN + 0.01)
    assert control.shortened
    assert threads() >= before + len(os.sched_getaffinity(0)) + 1  # libgomp has more threads than processors
    assert torch.get_num_threads() == computing, "another number of threads could change results"
    control.adapt((BEGIN + END) / 2)
    assert control.shortened
    control.adapt(END / 2)
    assert not control.shortened
    deadline = time.monotonic() + 10
    while threads() > before and time.monotonic() < deadline:
        time.sleep(0.01)
    assert threads() <= before


def test_watched_work_beside_a_busy_process_shortens_spinning(control: SpinControl) -> None:
    allowed = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(allowed)})  # of this thread; the busy process inherits it
    try:
        with subprocess.Popen([sys.executable, "-c", "while True: pass"]) as busy:
            try:
                time.sleep(0.2)
                with control.watch():
                    until = time.thread_time() + 0.1
                    while time.thread_time() < until:
                        pass
            finally:
                busy.kill()
    finally:
        os.sched_setaffinity(0, allowed)
    assert control.shortened


def test_failed_work_is_not_measured(control: SpinControl) -> None:
    with pytest.raises(ZeroDivisionError), control.watch():
        _ = 1 / 0
    assert not control.shortened


def test_starts_no_threads_for_very_many_processors(control: SpinControl, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(100)))
    before = threads()
    control.adapt(1.0)
    assert not control.shortened
    assert threads() == before


def test_changes_nothing_without_libgomp(control: SpinControl, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(spinning, "_libgomp", lambda: None)
    before = threads()
    control.adapt(1.0)
    assert not control.shortened
    assert threads() == before
