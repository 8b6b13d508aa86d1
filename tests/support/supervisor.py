"""A supervisor that restarts the service whenever it ends, as ``restart: always`` does."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Self

import httpx

from tests.support.faulty_service import device_that_fails
from tests.support.processes import fork_service

START_S = 400.0  # a new process imports torch, which takes minutes where all cores are taken
STOP_S = 60.0


class Supervisor:
    """Runs ``python -m service`` on a device that fails, again whenever it ends, until the context ends.

    Attributes:
        statuses: of the processes that have ended.
    """

    def __init__(self, *arguments: object, log: Path, **environment: object) -> None:
        self.statuses: list[int] = []
        self._arguments, self._environment = arguments, environment
        self._log, self._stopping = log, threading.Event()
        self._process = self._start()
        self._thread = threading.Thread(target=self._supervise, daemon=True)

    @property
    def pid(self) -> int:
        """Of the process that runs now."""
        assert self._process.pid is not None
        return self._process.pid

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stopping.set()
        self._process.kill()
        self._thread.join(START_S)

    def stop(self) -> float:
        """Send SIGTERM, as ``docker stop`` does, and return the seconds until the process has ended."""
        self._stopping.set()
        began = time.monotonic()
        self._process.terminate()
        self._thread.join(STOP_S)
        return time.monotonic() - began

    def _start(self) -> BaseProcess:
        return fork_service(self._arguments, self._log, change=device_that_fails, **self._environment)

    def _supervise(self) -> None:
        while True:
            self._process.join()
            assert self._process.exitcode is not None
            self.statuses.append(self._process.exitcode)
            if self._stopping.is_set():
                return
            self._process = self._start()


def wait_for(condition: Callable[[], object], within_s: float = START_S) -> float:
    """Poll until it holds, whether or not the service answers; returns the seconds that it took."""
    began = time.monotonic()
    while time.monotonic() < began + within_s:
        try:
            if condition():
                return time.monotonic() - began
        except httpx.TransportError:
            pass
        time.sleep(0.05)
    raise AssertionError(f"not within {within_s:g} s")
