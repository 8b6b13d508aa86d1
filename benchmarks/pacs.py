"""Prove that the DICOM node loses no study: kill it, restart its archive, and look at what the archive has.

    python -m benchmarks.pacs [--studies 50] [--kills 5] [--restarts 2] [--stow] [--tiny | --bundle DIR]

dcmtk's storescu sends the images of drawn studies in random order, several at a time, and sends again what was not
answered with success, as a PACS does. Meanwhile the node is killed (SIGKILL) while it receives, drafts and sends, and
Orthanc is restarted. Then Orthanc must have one structured report for each study, in that study, about both images,
which dcmtk's dsrdump and dicom3tools' dciodvfy accept; the spool must be empty. The command exits 1 otherwise, and 2
if a program is missing.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import logging
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any

import httpx
import pydicom

from benchmarks.measure import markdown
from benchmarks.server import BUNDLE, bundle_of, command_parser, run_command, service, write_json
from service.pacs.queue import read_worklist
from service.pacs.structured_report import ENHANCED_SR

log = logging.getLogger("benchmarks.pacs")
PROGRAMS = ("Orthanc", "storescu", "dsrdump", "dciodvfy")
SENDERS = 4
TOGETHER = 8  # studies whose images are interleaved
QUIET_S = 15.0  # longer than a kill and the images of so many studies take
CANARY = "CANARY^JANE"
_FAULTS = ("Error", "Abort")  # of dciodvfy; it also prints warnings


@dataclass
class Proof:
    """Counts of one run; ``faults`` are broken promises."""

    studies: int
    images: int
    kills: list[str] = field(default_factory=list)
    restarts: int = 0
    sends: Counter[str] = field(default_factory=Counter)
    reports: int = 0
    seconds: dict[str, float] = field(default_factory=dict)
    faults: list[str] = field(default_factory=list)

    def rows(self) -> list[tuple[str, str]]:
        """The table."""
        return [
            ("studies, images", f"{self.studies}, {self.images}"),
            ("storescu: stored, repeated", f"{self.sends['stored']}, {self.sends['repeated']}"),
            ("kills of the node while it", ", ".join(self.kills)),
            ("restarts of the archive", str(self.restarts)),
            ("structured reports in the archive", str(self.reports)),
            ("seconds", ", ".join(f"{name} {spent:.0f}" for name, spent in self.seconds.items())),
            ("broken promises", str(len(self.faults))),
        ]


class NodeProcess:
    """``python -m service.dicom_node``, started again whenever it is killed."""

    def __init__(self, folder: Path, environment: Mapping[str, str] = MappingProxyType({}), **settings: Any) -> None:
        self.directory, self.log = folder / "node", folder / "node.log"
        self.port, self._status_port = _free_port(), _free_port()
        given = {
            "port": self.port, "status_port": self._status_port, "dir": self.directory, "spool": True,
            "peers": "STORESCU", "retry_max_s": 2, "log_level": "INFO", **settings,
        }  # fmt: skip
        named = {f"REPORT_PACS_{name.upper()}": str(value) for name, value in given.items()}
        self._environment = os.environ | named | dict(environment)
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
            return httpx.get(f"http://127.0.0.1:{self._status_port}/health", timeout=5).status_code == 200
        return False

    def metrics(self) -> str:
        """Its answer to ``/metrics``."""
        return httpx.get(f"http://127.0.0.1:{self._status_port}/metrics", timeout=5).text

    def kill(self) -> None:
        """SIGKILL, then start it again."""
        self.process.kill()
        self.process.wait()
        self.process = self._start()

    def stop(self) -> int:
        """SIGTERM; the status of the process."""
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(60)

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


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


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


def send_all(files: Sequence[Path], port: int, proof: Proof, stop: threading.Event) -> None:
    """Send files by storescu, each until it is stored, ``SENDERS`` at a time."""

    def send(path: Path) -> None:
        while not stop.is_set():
            command = ["storescu", "-to", "5", "-ta", "5", "-td", "10", "-aec", "CXRREPORT", "127.0.0.1", str(port)]
            ended = subprocess.run([*command, str(path)], capture_output=True)
            proof.sends["stored" if ended.returncode == 0 else "repeated"] += 1
            if ended.returncode == 0:
                return
            time.sleep(0.2)

    with ThreadPoolExecutor(SENDERS) as pool:
        list(pool.map(send, files))


def prove(
    folder: Path, report_url: str, orthanc: Any, *, studies: int, kills: int, restarts: int, seed: int = 0,
    stow: bool = False, quiet_s: float = QUIET_S,
) -> Proof:  # fmt: skip
    """Send, kill, restart, wait, look.

    Args:
        folder: of the images, the queue and the logs.
        report_url: of a running report service.
        orthanc: a running archive, of ``tests.support.orthanc``.
        stow: send the reports by STOW-RS instead of C-STORE.
        quiet_s: as of the node.
    """
    rng = random.Random(seed)
    drawn = draw_studies(folder, studies)
    files = in_random_order(list(drawn.values()), rng)
    proof, stop, began = Proof(studies, len(files)), threading.Event(), time.monotonic()
    from tests.support.orthanc import CREDENTIALS

    (folder / "credentials").write_text(":".join(CREDENTIALS))
    dicomweb = {
        "REPORT_DICOMWEB_URL": orthanc.dicomweb,
        "REPORT_DICOMWEB_CREDENTIALS_FILE": str(folder / "credentials"),
    }
    destination = "dicomweb" if stow else f"ORTHANC@127.0.0.1:{orthanc.dicom_port}"
    node = NodeProcess(
        folder, dicomweb if stow else {}, destination=destination, report_url=report_url, quiet_s=quiet_s
    )
    sender = threading.Thread(target=send_all, args=(files, node.port, proof, stop))
    sender.start()
    try:
        for what, reached in _interruptions(kills, restarts, studies, len(files), node, proof):
            until(reached, 300)
            if what == "restart":
                orthanc.stop()
                time.sleep(1)
                orthanc.start()
                proof.restarts += 1
            else:
                node.kill()
                proof.kills.append(what)
        sender.join(300)
        proof.seconds["until all was received"] = time.monotonic() - began
        until(lambda: node.counts()["sent"] + node.counts()["failed"] >= studies, 300)
        proof.seconds["until all was sent"] = time.monotonic() - began
        proof.faults += _faults_of_node(node)
    finally:
        stop.set()
        status = node.stop()
    if status:
        proof.faults.append(f"the node ended with status {status}")
    reports = list(reports_of(orthanc))
    proof.reports = len(reports)
    proof.faults += faults_of_reports(reports, drawn, folder) + _faults_of_files(node, files)
    return proof


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


def reports_of(orthanc: Any) -> Iterator[bytes]:
    """The structured reports that the archive has."""
    yield from orthanc.files("SR")


def faults_of_reports(reports: Sequence[bytes], drawn: dict[str, list[Path]], folder: Path) -> list[str]:
    """Broken promises of the structured reports: number, study, images, patient, validity."""
    faults, found = [], Counter[str]()
    for number, data in enumerate(reports):
        report = pydicom.dcmread(io.BytesIO(data))
        study = str(report.StudyInstanceUID)
        found[study] += 1
        if study not in drawn or report.SOPClassUID != ENHANCED_SR:
            faults.append("a report is in no study that was sent, or of another class")
            continue
        images = [pydicom.dcmread(path, stop_before_pixels=True) for path in drawn[study]]
        series = report.CurrentRequestedProcedureEvidenceSequence[0].ReferencedSeriesSequence
        named = {str(item.ReferencedSOPInstanceUID) for each in series for item in each.ReferencedSOPSequence}
        if named != {str(image.SOPInstanceUID) for image in images}:
            faults.append("a report is not about the images of its study")
        if (report.PatientID, report.AccessionNumber) != (images[0].PatientID, images[0].AccessionNumber):
            faults.append("a report is of another patient or order")
        path = folder / f"report-{number}.dcm"
        path.write_bytes(data)
        faults += _invalid(path)
    faults += [f"a study has {count} reports" for study in drawn if (count := found[study]) != 1]
    return faults


def _invalid(path: Path) -> list[str]:
    """Why dsrdump or dciodvfy do not accept a report."""
    dumped = subprocess.run(["dsrdump", str(path)], capture_output=True, text=True)
    checked = subprocess.run(["dciodvfy", "-new", str(path)], capture_output=True, text=True)
    errors = [line for line in (checked.stderr + checked.stdout).splitlines() if line.startswith(_FAULTS)]
    return [f"dsrdump: {dumped.stderr.strip()[:200]}"] * (dumped.returncode != 0) + [f"dciodvfy: {e}" for e in errors]


def _faults_of_node(node: NodeProcess) -> list[str]:
    failed = [row for row in node.rows() if row["state"] == "failed"]
    faults = [f"a study failed: {row['code']}: {row['reason']}" for row in failed]
    return faults + ["the canary is in the metrics"] * (CANARY in node.metrics())


def _faults_of_files(node: NodeProcess, images: Sequence[Path]) -> list[str]:
    left = sorted((node.directory / "spool").iterdir())
    faults = [f"{len(left)} files are left in the spool"] if left else []
    files = [path for path in node.directory.rglob("*") if path.is_file()] + [node.log]
    faults += [f"the canary is in {path.name}" for path in files if CANARY.encode() in path.read_bytes()]
    lines = node.log.read_text(errors="replace").splitlines()
    return faults + [f"the log holds {line[:200]!r}" for line in lines if " ERROR " in line or "Traceback" in line][:5]


def run(arguments: argparse.Namespace) -> int:
    """Run the command; returns 1 if a promise was broken."""
    if missing := [name for name in PROGRAMS if shutil.which(name) is None]:
        raise RuntimeError(f"{', '.join(missing)} are missing: apt install orthanc orthanc-dicomweb dcmtk dicom3tools")
    from tests.support.orthanc import running_orthanc

    arguments.out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as name, bundle_of(arguments) as bundle, contextlib.ExitStack() as stack:
        folder = Path(name)
        server = stack.enter_context(service(bundle, device=arguments.device, log=arguments.out / "service.log"))
        orthanc = stack.enter_context(running_orthanc(folder))
        proof = prove(
            folder, server.url, orthanc, studies=arguments.studies, kills=arguments.kills, restarts=arguments.restarts,
            seed=arguments.seed, stow=arguments.stow,
        )  # fmt: skip
        shutil.copy(folder / "node.log", arguments.out / "node.log")
    write_json(arguments.out / "pacs.json", {"rows": dict(proof.rows()), "faults": proof.faults})
    print(markdown(("", ""), proof.rows()), *(f"- {fault}" for fault in proof.faults), sep="\n")
    return int(bool(proof.faults))


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point; returns 0 if every promise was kept, 1 if one was broken, 2 if nothing could be measured."""
    parser = command_parser("pacs", __doc__, bundle=BUNDLE, url=False, device="cpu")
    parser.add_argument("--studies", type=int, default=50)
    parser.add_argument("--kills", type=int, default=5)
    parser.add_argument("--restarts", type=int, default=2)
    parser.add_argument("--seed", type=int, default=0, help="of the order of the images (0)")
    parser.add_argument("--stow", action="store_true", help="send the reports by STOW-RS instead of C-STORE")
    return run_command(run, parser.parse_args(argv))


if __name__ == "__main__":
    sys.exit(main())
