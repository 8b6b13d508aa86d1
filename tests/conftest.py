"""What all tests share: where the real data lies, if anywhere.

The suite needs neither real data nor a network. Where the Open-i data is at hand, beside the repository or
where the environment variable ``REPORT_DATA`` says, tests that take the ``real_data`` fixture run on it too.
"""

from __future__ import annotations

import os
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parent.parent
NO_REAL_DATA = "needs the Open-i data: put it at ../shared/data or set REPORT_DATA to its folder"


def _find_real_data() -> Path | None:
    """The folder that holds ``openi/``, or None where there is none."""
    configured = os.environ.get("REPORT_DATA")
    folder = Path(configured) if configured else REPOSITORY.parent / "shared" / "data"
    return folder.resolve() if (folder / "openi").is_dir() else None


REAL_DATA: Path | None = _find_real_data()


def pytest_report_header() -> str:
    if REAL_DATA is None:
        return f"real data: not found, its tests are skipped ({NO_REAL_DATA})"
    where = "where REPORT_DATA says" if os.environ.get("REPORT_DATA") else "at ../shared/data"
    return f"real data: found {where}, its tests run"


@pytest.fixture(scope="session")
def real_data() -> Path:
    """The folder with ``openi/``; skips the test where it is absent."""
    if REAL_DATA is None:
        pytest.skip(NO_REAL_DATA)
    return REAL_DATA
