"""The node as a process that is killed and started again."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx

from service.pacs.queue import read_worklist


class NodeProcess:
    """``python -m service.dicom_node``, started again whenever it is killed."""

    def __init__(self, folder: Path, dicomweb: Any, archive_port: int, **settings: Any) -> None:
        """Start it.

        Args:
            folder: of its directory and its log.
            dicomweb: an archive that receives the reports by STOW-RS; None: by C-STORE.
            archive_port: of the archive.
            settings: of the node.
        """
        from tests.support.orthanc import CREDENTIALS
        from tests.support.service import free_port

        self.directory, self.log, credentials = folder / "node", folder / "node.log", folder / "credentials"
        self.memory = 0  # peak of all processes, bytes
        self.port, self._status_port = free_port(), free_port()
        given = {
            "port": self.port, "status_port": self._status_port, "dir": self.directory, "spool": True,
            "peers": "STORESCU", "retry_max_s": 2, **settings,
            "destination": "dicomweb" if dicomweb else f"ORTHANC@127.0.0.1:{archive_port}",
        }  # fmt: skip
        self._environment = os.environ | {f"REPORT_PACS_{name.upper()}": str(value) for name, value in given.items()}
        if dicomweb:
            credentials.write_text(":".join(CREDENTIALS))
            self._environment["REPORT_DICOMWEB_URL"] = dicomweb.dicomweb
            self._environment["REPORT_DICOMWEB_CREDENTIALS_FILE"] = str(credentials)
        self.process = self._start()

    def _start(self) -> subprocess.Popen[bytes]:
        with self.log.open("ab") as output:
            command = [sys.executable, "-m", "service.dicom_node"]
            process = subprocess.Popen(command, env=self._environment, stdout=output, stderr=output)
        until(lambda: self.ready() or process.poll() is not None, 120)
        if process.poll() is not None:
            raise RuntimeError(f"the node ended with status {process.returncode}; see {self.log}")
        return process

    def ready(self) -> bool:
        """Whether it answers ``/health``."""
        with contextlib.suppress(httpx.TransportError):
            return httpx.get(f"http://127.0.0.1:{self._status_port}/health", timeout=5, verify=False).status_code == 200
        return False

    def metrics(self) -> str:
        """Its answer to ``/metrics``."""
        return httpx.get(f"http://127.0.0.1:{self._status_port}/metrics", timeout=5, verify=False).text

    def kill(self) -> None:
        """SIGKILL, then start it again."""
        self._look()
        self.process.kill()
        self.process.wait()
        self.process = self._start()

    def stop(self) -> int:
        """SIGTERM; the status of the process."""
        self._look()
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(60)

    def _look(self) -> None:
        """Read the peak of the resident memory, where the system has it."""
        status = Path(f"/proc/{self.process.pid}/status")
        found = re.search(r"VmHWM:\s+(\d+) kB", status.read_text()) if status.exists() else None
        self.memory = max(self.memory, int(found[1]) * 1024 if found else 0)

    def rows(self) -> list[dict[str, Any]]:
        """The studies of its queue."""
        return read_worklist(self.directory / "queue.sqlite", 100_000)[0]

    def counts(self) -> Counter[str]:
        """State -> number of studies."""
        return Counter(row["state"] for row in self.rows())


def until(condition: Callable[[], object], within_s: float) -> None:
    """Poll until it holds.

    Raises:
        TimeoutError: it did not.
    """
    deadline = time.monotonic() + within_s
    while not condition():
        if time.monotonic() > deadline:
            raise TimeoutError(f"not within {within_s:g} s")
        time.sleep(0.05)
