"""A running ``python -m service.ray_app`` and its processes."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import httpx

KEY = "a-key-that-only-tests-know"
START_S = 400.0  # each process imports torch, which takes minutes on a busy machine
ANSWER_S = 100.0  # a response that takes longer hangs


@dataclass(frozen=True)
class Cluster:
    """A running `python -m service.ray_app`."""

    process: subprocess.Popen[bytes]
    url: str
    session: Path
    output: Path

    def client(self, **headers: str) -> httpx.Client:
        headers = {"Authorization": f"Bearer {KEY}", **headers}
        return httpx.Client(base_url=self.url, timeout=ANSWER_S, headers=headers, verify=False)  # no TLS

    def descendants(self) -> dict[int, str]:
        """Child processes of any depth: id -> command line."""
        parents, names = {}, {}
        for entry in Path("/proc").iterdir():
            if entry.name.isdigit():
                try:
                    stat, name = (entry / "stat").read_text(), (entry / "cmdline").read_bytes()
                except OSError:
                    continue
                parents[int(entry.name)] = int(stat.rpartition(")")[2].split()[1])
                names[int(entry.name)] = name.replace(b"\0", b" ").decode(errors="replace")
        found = {self.process.pid}
        while more := {pid for pid, parent in parents.items() if parent in found} - found:
            found |= more
        return {pid: names[pid] for pid in found if pid in names}

    def replicas(self) -> list[int]:
        """Ids of the processes that hold a model."""
        return sorted(pid for pid, name in self.descendants().items() if ":ModelReplica" in name)

    def retries(self) -> int:
        with self.client() as client:
            found = re.search(r"^report_retries_total (\S+)$", client.get("/metrics").text, re.MULTILINE)
        assert found
        return int(float(found[1]))

    def log(self) -> str:
        return self.output.read_text(errors="replace")


def wait_for(condition: Callable[[], bool], running: Cluster, within_s: float = START_S) -> None:
    """Poll until ``condition`` holds; fails if the process ends or time runs out."""
    until = time.monotonic() + within_s
    while not condition():
        assert running.process.poll() is None, running.log()
        assert time.monotonic() < until, running.log()
        time.sleep(0.1)


def health(running: Cluster) -> int:
    """Status of ``/health``; 0 if the connection fails."""
    try:
        with running.client() as client:
            return client.get("/health").status_code
    except httpx.TransportError:
        return 0


@contextlib.contextmanager
def stopped(pids: list[int]) -> Iterator[None]:
    """Suspend processes until the block ends."""
    for pid in pids:
        os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        for pid in pids:
            os.kill(pid, signal.SIGCONT)
