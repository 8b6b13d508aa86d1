"""Prove that the DICOM node loses no study: kill it, restart its archive, and look at what the archive has.

    python -m benchmarks.pacs [--studies 50] [--kills 5] [--restarts 2] [--hostile 2000] [--stow] [--tiny]

dcmtk's storescu sends the images of drawn studies in random order, several at a time, and sends again what was not
answered with success, as a PACS does. Meanwhile the node is killed (SIGKILL) while it receives, drafts and sends,
Orthanc is restarted, and hostile peers connect from another address (wrong titles, half an object, 2 GB, bombs). Then
Orthanc must have one structured report for each study, in that study, about both images, which dcmtk's dsrdump and
dicom3tools' dciodvfy accept; the spool must be empty. The command exits 1 otherwise, and 2 if a program is missing.
"""

from __future__ import annotations

import argparse
import contextlib
import logging
import shutil
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from benchmarks.measure import markdown
from benchmarks.pacs.checks import PROGRAMS
from benchmarks.pacs.proof import prove
from benchmarks.server import BUNDLE, bundle_of, command_parser, run_command, service, write_json

log = logging.getLogger("benchmarks.pacs")


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
            seed=arguments.seed, stow=arguments.stow, hostile=arguments.hostile,
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
    parser.add_argument("--hostile", type=int, default=2_000, help="connections of hostile peers meanwhile (2,000)")
    return run_command(run, parser.parse_args(argv))


if __name__ == "__main__":
    sys.exit(main())
