"""What must hold after the proof: reports in the archive, files and logs of the node."""

from __future__ import annotations

import io
import subprocess
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import pydicom

from benchmarks.pacs.peers import CANARY
from benchmarks.pacs.processes import NodeProcess
from service.pacs.structured_report import ENHANCED_SR

PROGRAMS = ("Orthanc", "storescu", "dsrdump", "dciodvfy")
MOST_MEMORY = 2**30  # bytes of the node
_FAULTS = ("Error", "Abort")  # of dciodvfy; it also prints warnings


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


def faults_of_node(node: NodeProcess) -> list[str]:
    failed = [row for row in node.rows() if row["state"] == "failed"]
    faults = [f"a study failed: {row['code']}: {row['reason']}" for row in failed]
    return faults + ["the canary is in the metrics"] * (CANARY in node.metrics())


def faults_of_files(node: NodeProcess) -> list[str]:
    left = sorted((node.directory / "spool").iterdir())
    faults = [f"{len(left)} files are left in the spool"] if left else []
    faults += [f"the node used {node.memory:,} bytes"] if node.memory > MOST_MEMORY else []
    files = [path for path in node.directory.rglob("*") if path.is_file()] + [node.log]
    faults += [f"the canary is in {path.name}" for path in files if CANARY.encode() in path.read_bytes()]
    lines = node.log.read_text(errors="replace").splitlines()
    return faults + [f"the log holds {line[:200]!r}" for line in lines if " ERROR " in line or "Traceback" in line][:5]
