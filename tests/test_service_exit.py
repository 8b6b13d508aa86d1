"""The process ends with its status, whatever its threads and its event loop do."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import httpx
import pytest

from service import __main__ as serve
from tests.support.faulty_service import blocked_loop, endless_stop, endless_threads
from tests.support.processes import fork_service
from tests.support.service import WAIT_S, free_port

START_S = 400.0  # a new process imports torch, which takes minutes where all cores are taken


def test_ends_with_its_status_when_no_bundle_can_be_loaded(tmp_path: Path) -> None:
    log = tmp_path / "log"
    arguments = ["--bundle", tmp_path, "--device", "cpu", "--port", 0]
    process = fork_service(arguments, log, change=endless_threads)
    process.join(START_S)
    process.kill()
    assert process.exitcode == serve.EXIT_BUNDLE
    assert "cannot serve" in log.read_text()  # the log was flushed


@pytest.mark.parametrize("change", [endless_threads, endless_stop, blocked_loop])
def test_sigterm_ends_the_process_within_the_drain_timeout(
    bundle: Path, tmp_path: Path, change: Callable[[], None]
) -> None:
    port, log = free_port(), tmp_path / "log"
    arguments = ["--bundle", bundle, "--device", "cpu", "--port", port]
    process = fork_service(arguments, log, change=change, REPORT_DRAIN_TIMEOUT_S=2, REPORT_WARM_UP="false")
    try:
        deadline = time.monotonic() + START_S
        while process.is_alive() and time.monotonic() < deadline:
            with suppress(httpx.TransportError):
                if httpx.get(f"http://127.0.0.1:{port}/livez", verify=False).status_code == 200:
                    break
            time.sleep(0.1)
        process.terminate()
        process.join(WAIT_S)
        assert process.exitcode == 0
    finally:
        process.kill()
    ended = "is ended; its threads: MainThread, endless" in log.read_text()
    assert ended or change is endless_threads
