"""One run of the proof: send, kill, restart, wait, look."""

from __future__ import annotations

import random
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.measure import show
from benchmarks.pacs.checks import faults_of_files, faults_of_node, faults_of_reports
from benchmarks.pacs.peers import Hostile, draw_studies, in_random_order, send_all
from benchmarks.pacs.processes import NodeProcess, until

QUIET_S = 15.0  # longer than a kill and the images of so many studies take


@dataclass
class Proof:
    """Counts of one run; ``faults`` are broken promises."""

    studies: int
    images: int
    kills: list[str] = field(default_factory=list)
    restarts: int = 0
    sends: Counter[str] = field(default_factory=Counter)
    reports: int = 0
    hostile: dict[str, int] = field(default_factory=dict)
    memory: float = 0
    seconds: dict[str, float] = field(default_factory=dict)
    faults: list[str] = field(default_factory=list)

    def rows(self) -> list[tuple[str, str]]:
        """The table."""
        return [
            ("studies, images", f"{self.studies}, {self.images}"),
            ("storescu: stored, repeated", f"{self.sends['stored']}, {self.sends['repeated']}"),
            ("kills of the node while it", ", ".join(self.kills)),
            ("restarts of the archive", str(self.restarts)),
            ("hostile connections", ", ".join(f"{name} {count:,}" for name, count in self.hostile.items()) or "0"),
            ("peak memory of the node", show(self.memory, "bytes")),
            ("structured reports in the archive", str(self.reports)),
            ("seconds", ", ".join(f"{name} {spent:.0f}" for name, spent in self.seconds.items())),
            ("broken promises", str(len(self.faults))),
        ]


def prove(
    folder: Path, report_url: str, orthanc: Any, *, studies: int, kills: int, restarts: int, seed: int = 0,
    stow: bool = False, quiet_s: float = QUIET_S, hostile: int = 0,
) -> Proof:  # fmt: skip
    """Send, kill, restart, wait, look.

    Args:
        folder: of the images, the queue and the logs.
        report_url: of a running report service.
        orthanc: a running archive, of ``tests.support.orthanc``.
        stow: send the reports by STOW-RS instead of C-STORE.
        quiet_s: as of the node.
        hostile: connections of hostile peers meanwhile.
    """
    rng = random.Random(seed)
    drawn = draw_studies(folder, studies)
    files = in_random_order(list(drawn.values()), rng)
    proof, stop, began = Proof(studies, len(files)), threading.Event(), time.monotonic()
    node = NodeProcess(folder, orthanc if stow else None, orthanc.dicom_port, report_url=report_url, quiet_s=quiet_s)
    sender = threading.Thread(target=send_all, args=(files, node.port, proof.sends, stop))
    try:
        with Hostile(node.port, hostile) as peers:
            sender.start()
            for what, reached in _interruptions(kills, restarts, studies, len(files), node, proof):
                until(reached, 300)
                _interrupt(what, node, orthanc, proof)
            sender.join(300)
            proof.seconds["until all was received"] = time.monotonic() - began
            until(lambda: node.counts()["sent"] + node.counts()["failed"] >= studies, 300)
            proof.seconds["until all was sent"] = time.monotonic() - began
        proof.hostile = dict(peers.answers)
        proof.faults += faults_of_node(node)
    finally:
        stop.set()
        status = node.stop()
    proof.memory, proof.reports = node.memory, len(reports := orthanc.files("SR"))
    proof.faults += [f"the node ended with status {status}"] if status else []
    proof.faults += faults_of_reports(reports, drawn, folder) + faults_of_files(node)
    return proof


def _interrupt(what: str, node: NodeProcess, orthanc: Any, proof: Proof) -> None:
    """Kill the node, or restart the archive."""
    if what == "restart":
        orthanc.stop()
        time.sleep(1)
        orthanc.start()
        proof.restarts += 1
    else:
        node.kill()
        proof.kills.append(what)


def _interruptions(
    kills: int, restarts: int, studies: int, images: int, node: NodeProcess, proof: Proof
) -> Iterator[tuple[str, Callable[[], bool]]]:
    """Kills of the node while it receives, drafts and sends, and restarts of the archive between them."""

    def stored(count: int) -> Callable[[], bool]:
        return lambda: proof.sends["stored"] >= count

    def sent(count: int) -> Callable[[], bool]:
        return lambda: node.counts()["sent"] >= count

    while_receiving = kills // 2
    for number in range(while_receiving):
        yield "receives", stored(images * (number + 1) // (while_receiving + 1))
    steps = [
        (step + 1) / (kills - while_receiving + restarts + 1) for step in range(kills - while_receiving + restarts)
    ]
    for number, share in enumerate(steps):
        restart = number % 2 == 1 and restarts > number // 2
        yield ("restart" if restart else "drafts and sends"), sent(int(studies * share))
