"""The process ends with its status, whatever its threads and its event loop do."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import httpx
import pytest

from service import __main__ as serve
from tests.support.paths import REPOSITORY
from tests.support.service import WAIT_S, free_port

START_S = 400.0  # a new process imports torch, which takes minutes where all cores are taken
SERVE = """
import threading, time
from concurrent.futures import ThreadPoolExecutor
from service import __main__ as serve
from service.inference.runtime import Runtime

threading.Thread(target=threading.Event().wait, name="endless").start()
ThreadPoolExecutor(1).submit(threading.Event().wait)
{}
serve.main_and_exit()
"""
ENDLESS_STOP = "async def stop(self): await asyncio.Event().wait()\nimport asyncio; Runtime.stop = stop"
BLOCKED_LOOP = "Runtime.drain = lambda self: time.sleep(1e6)"


def start(bundle: Path, port: int, change: str = "") -> subprocess.Popen[str]:
    """``python -m service`` with threads that never end."""
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY), "REPORT_DRAIN_TIMEOUT_S": "2"}
    command = [sys.executable, "-c", SERVE.format(change), "--bundle", str(bundle), "--device", "cpu"]
    return subprocess.Popen([*command, "--port", str(port)], env=environment, stderr=subprocess.PIPE, text=True)


def test_ends_with_its_status_when_no_bundle_can_be_loaded(tmp_path: Path) -> None:
    with start(tmp_path, 0) as process:
        try:
            _, log = process.communicate(timeout=START_S)
        finally:
            process.kill()
    assert process.returncode == serve.EXIT_BUNDLE
    assert "cannot serve" in log  # the log was flushed


@pytest.mark.parametrize("change", ["", ENDLESS_STOP, BLOCKED_LOOP], ids=["threads", "stop", "event loop"])
def test_sigterm_ends_the_process_within_the_drain_timeout(bundle: Path, change: str) -> None:
    port = free_port()
    with start(bundle, port, change) as process:
        try:
            deadline = time.monotonic() + START_S
            while process.poll() is None and time.monotonic() < deadline:
                with suppress(httpx.TransportError):
                    if httpx.get(f"http://127.0.0.1:{port}/livez", verify=False).status_code == 200:
                        break
                time.sleep(0.1)
            process.send_signal(signal.SIGTERM)
            _, log = process.communicate(timeout=WAIT_S)
        finally:
            process.kill()
    assert process.returncode == 0
    assert not change or "is ended; its threads: MainThread, endless" in log
