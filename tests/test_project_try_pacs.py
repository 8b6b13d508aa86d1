"""``deploy/try-pacs.sh``: docker-compose.pacs.yml without Docker, from storescu to the structured report."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("pynetdicom", reason="needs pip install '.[pacs]' in the source tree")
from tests.support.orthanc import find_orthanc
from tests.support.pacs import image, new_study
from tests.support.paths import REPOSITORY
from tests.support.service import free_port


def test_study_of_a_modality_gets_its_structured_report_without_docker(bundle: Path, tmp_path: Path) -> None:
    find_orthanc()
    if missing := [name for name in ("storescu", "echoscu") if shutil.which(name) is None]:
        pytest.skip(f"needs {' and '.join(missing)}: apt install dcmtk")
    study = new_study()
    for view in ("PA", "LL"):
        (tmp_path / view).write_bytes(image(study, view))
    ports = ("ORTHANC_DICOM_PORT", "ORTHANC_HTTP_PORT", "NODE_PORT", "REPORT_PORT", "STATUS_PORT")
    environment = os.environ | {name: str(free_port()) for name in ports}
    environment |= {"PYTHON": sys.executable, "BUNDLE": str(bundle), "QUIET_S": "1", "TMPDIR": str(tmp_path)}
    environment["PATH"] += ":/usr/sbin"
    environment["REPORT_WARM_UP"] = "false"
    done = subprocess.run(
        ["sh", "deploy/try-pacs.sh", str(tmp_path / "PA"), str(tmp_path / "LL")],
        cwd=REPOSITORY, env=environment, capture_output=True, text=True, timeout=240,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert study in done.stdout
    assert sorted(path.name for path in tmp_path.iterdir()) == ["LL", "PA"]  # nothing is left behind
