"""The service under a supervisor: it goes on where it can, ends with its status where it cannot, and is restarted."""

from __future__ import annotations

import contextlib
import socket
from pathlib import Path

import httpx
import psutil
import pytest

from benchmarks.attacking.bodies import SMALL, jpeg_of_scans
from benchmarks.load import answer_key
from service.__main__ import EXIT_DEVICE
from tests.support.service import WAIT_S, free_port, png
from tests.support.supervisor import Supervisor, wait_for

FATAL_S = 30.0  # from a fatal state to the end of the process
DRAIN_S = 2.0
SETTINGS = {
    "REPORT_DEVICE": "cpu",
    "REPORT_DECODE_WORKERS": 1,
    "REPORT_DRAIN_TIMEOUT_S": DRAIN_S,
    "REPORT_STALL_TIMEOUT_S": 3,
}


def draft(client: httpx.Client, image: bytes) -> httpx.Response:
    return client.post("/report", files={"frontal": ("f", image)}, data={"beam_size": "1"})


def decoders(pid: int) -> list[psutil.Process]:
    """Child processes that decode images."""
    return psutil.Process(pid).children(recursive=True)


def test_restarts_after_every_fatal_state(bundle: Path, tmp_path: Path) -> None:
    port, fault, log = free_port(), tmp_path / "fault", tmp_path / "service.log"
    supervisor = Supervisor("--bundle", bundle, "--port", port, log=log, FAULT=fault, **SETTINGS)
    with supervisor, httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=WAIT_S) as client:

        def ready() -> bool:
            return client.get("/health").status_code == 200

        wait_for(ready)
        before, first = answer_key(draft(client, png()).json()), supervisor.pid

        killed = decoders(first)
        assert killed
        for process in killed:
            process.kill()
        wait_for(lambda: draft(client, png()).status_code == 200)
        assert draft(client, jpeg_of_scans(SMALL)).status_code == 422
        assert answer_key(draft(client, png()).json()) == before
        assert supervisor.pid == first, supervisor.statuses

        for number, kind in enumerate(("lost", "hang"), 1):
            fault.write_text(kind)
            with contextlib.suppress(httpx.TransportError):
                assert draft(client, png()).status_code == 503
            wait_for(lambda number=number: len(supervisor.statuses) == number, FATAL_S)
            wait_for(ready)
            assert answer_key(draft(client, png()).json()) == before

        with socket.create_connection(("127.0.0.1", port), timeout=WAIT_S) as sending:
            sending.sendall(b"POST /report HTTP/1.1\r\nHost: x\r\nContent-Length: 5000\r\n\r\n")
            assert supervisor.stop() < DRAIN_S + 3  # and the time to end the threads
    assert supervisor.statuses == [EXIT_DEVICE, EXIT_DEVICE, 0], log.read_text()[-3000:]


def test_stops_in_time_while_a_batch_hangs(bundle: Path, tmp_path: Path) -> None:
    port, fault, log = free_port(), tmp_path / "fault", tmp_path / "service.log"
    settings = {**SETTINGS, "REPORT_STALL_TIMEOUT_S": 600}
    supervisor = Supervisor("--bundle", bundle, "--port", port, log=log, FAULT=fault, **settings)
    with supervisor, httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=WAIT_S) as client:
        wait_for(lambda: client.get("/health").status_code == 200)
        fault.write_text("hang")
        with pytest.raises(httpx.ReadTimeout):
            client.post("/report", files={"frontal": ("f", png())}, timeout=1.0)
        assert supervisor.stop() < DRAIN_S + 3
    assert supervisor.statuses == [0], log.read_text()[-3000:]
