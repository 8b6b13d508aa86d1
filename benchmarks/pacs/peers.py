"""Peers of the node: drawn studies, storescu, and hostile ones."""

from __future__ import annotations

import contextlib
import itertools
import random
import socket
import struct
import subprocess
import threading
import time
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Self

SENDERS = 4
TOGETHER = 8  # studies whose images are interleaved
CANARY = "CANARY^JANE"
HOSTILE = "127.0.0.2"  # address of the hostile peers; storescu uses 127.0.0.1


def draw_studies(folder: Path, count: int) -> dict[str, list[Path]]:
    """Draw studies of two views with a canary in their names: StudyInstanceUID -> files."""
    from tests.support.pacs import image, new_study

    studies: dict[str, list[Path]] = {}
    for number in range(count):
        study = new_study()
        for view in ("PA", "LL"):
            path = folder / f"{number:03d}-{view}.dcm"
            names = dict.fromkeys(("PatientName", "ReferringPhysicianName", "InstitutionName"), CANARY)
            path.write_bytes(image(study, view, patient=f"P{number}", AccessionNumber=f"A{number}", **names))
            studies.setdefault(study, []).append(path)
    return studies


def in_random_order(studies: list[list[Path]], rng: random.Random) -> list[Path]:
    """The images of the studies in random order, those of ``TOGETHER`` studies interleaved."""
    rng.shuffle(studies)
    files: list[Path] = []
    for start in range(0, len(studies), TOGETHER):
        some = [path for paths in studies[start : start + TOGETHER] for path in paths]
        rng.shuffle(some)
        files += some
    return files


def send_all(files: Sequence[Path], port: int, sends: Counter[str], stop: threading.Event) -> None:
    """Send files by storescu, each until it is stored, ``SENDERS`` at a time."""

    def send(path: Path) -> None:
        while not stop.is_set():
            command = ["storescu", "-to", "5", "-ta", "5", "-td", "10", "-aec", "CXRREPORT", "127.0.0.1", str(port)]
            ended = subprocess.run([*command, str(path)], capture_output=True)
            sends["stored" if ended.returncode == 0 else "repeated"] += 1
            if ended.returncode == 0:
                return
            time.sleep(0.2)

    with ThreadPoolExecutor(SENDERS) as pool:
        list(pool.map(send, files))


class Hostile:
    """Hostile peers, one after the other, until the context ends and ``count`` connections were made.

    Attributes:
        answers: what was sent -> number of connections; connections that could not be made are ``refused``.
    """

    def __init__(self, port: int, count: int) -> None:
        self.answers: Counter[str] = Counter()
        self._port, self._count = port, count
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self) -> Self:
        if self._count:
            self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        if self._count:
            self._thread.join(300)

    def _run(self) -> None:
        messages = _messages()
        kinds = itertools.cycle(["wrong title"] * 400 + list(messages))
        while not self._stop.is_set() or self.answers.total() < self._count:
            kind = next(kinds)
            try:
                connection = socket.create_connection(("127.0.0.1", self._port), 5, (HOSTILE, 0))
            except OSError:  # the node is being started
                self.answers["refused"] += 1
                time.sleep(0.05)
                continue
            with connection, contextlib.suppress(OSError):  # the node may close first
                for message in messages[kind]:
                    connection.sendall(message)
                connection.settimeout(1)
                connection.recv(1024)
            self.answers[kind] += 1


def _messages() -> dict[str, list[bytes]]:
    """Kind of attack -> what is sent on a connection."""
    from tests.support.dicom import tiny_elements
    from tests.support.hostile_peers import DATA, LAST_COMMAND, LAST_DATA, data_pdu, request, store_command
    from tests.support.pacs import image, new_study

    begin = [request("STORESCU"), data_pdu(LAST_COMMAND, store_command(new_study()))]
    fragment = data_pdu(DATA, bytes(250_000))
    bomb = tiny_elements(image(new_study()))
    parts = [bomb[at : at + 250_000] for at in range(0, len(bomb), 250_000)]
    return {
        "wrong title": [request("STORESCU", "WRONG")],
        "half an object": [*begin, data_pdu(DATA, bytes(10_000))[:-99]],
        "PDU of 2 GiB": [*begin, struct.pack(">BBL", 4, 0, 2**31), bytes(1000)],
        "object of 2 GB": [*begin, *[fragment] * 8000],
        "bomb in private elements": [*begin, *(data_pdu(DATA, part) for part in parts), data_pdu(LAST_DATA, b"")],
    }
