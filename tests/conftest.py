"""Fixtures of all tests: one tiny bundle, a service over it, and real data where this machine has it.

The suite needs neither real data nor a network. Tests with the ``real_data`` fixture run only if the Open-i data is in
``../shared/data`` or in the folder of the environment variable ``REPORT_DATA``. Tests with ``published_fixtures`` run
only if the outputs of the published implementation are in ``fixtures/`` next to that data.
"""

from __future__ import annotations

import gc
import os
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import httpx
import pytest

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

    from model.drafter import Drafter
    from tests.support.browser import Tab
    from tests.support.service import Gate, Live

from tests.support.paths import REPOSITORY

NO_REAL_DATA = "needs the Open-i data: put it at ../shared/data or set REPORT_DATA to its folder"


NO_FIXTURES = "needs the published model's outputs: put r2gencmn_tiny* into fixtures/ next to the real data"


# The slowest modules, slowest first: started last, one of them would delay the end of the whole run.
LONG = (
    "test_service_ray", "test_training_run", "test_benchmarks_gpu", "test_training_resume_drafts",
    "test_training_ablation_run", "test_training_parallel", "test_training_scst", "test_service_supervisor",
    "test_service_soak", "test_training_import_r2gencmn_command", "test_training_out_of_fold",
)  # fmt: skip
if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ.setdefault("OMP_NUM_THREADS", "1")  # the cores are shared with other processes of the same suite

_DATA = Path(os.environ.get("REPORT_DATA") or REPOSITORY.parent / "shared" / "data").resolve()
REAL_DATA = _DATA if (_DATA / "openi").is_dir() else None
_FIXTURES = _DATA.parent / "fixtures"
FIXTURES = _FIXTURES if (_FIXTURES / "r2gencmn_tiny.json").is_file() else None


def pytest_xdist_auto_num_workers() -> int:
    """One process more than processors, at most four: the tests of servers wait often."""
    from model.processors import usable_processors

    return min(4, usable_processors() + 1)


def pytest_report_header() -> list[str]:
    where = "in REPORT_DATA" if os.environ.get("REPORT_DATA") else "at ../shared"
    return [
        f"{name}: found {where}, its tests run" if found else f"{name}: not found, its tests are skipped ({missing})"
        for name, found, missing in (
            ("real data", REAL_DATA, NO_REAL_DATA),
            ("published model's outputs", FIXTURES, NO_FIXTURES),
        )
    ]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Long modules first; the order within a module stays."""
    items.sort(key=lambda item: LONG.index(item.path.stem) if item.path.stem in LONG else len(LONG))


def pytest_collection_finish() -> None:
    """The garbage collector skips what was imported, which takes it most of a second."""
    gc.freeze()


@pytest.fixture(scope="session")
def anyio_backend() -> str:
    """Async tests run on asyncio alone."""
    return "asyncio"


@pytest.fixture(scope="module")
def no_java() -> Iterator[None]:
    """METEOR is left out, because its Java program takes seconds to start."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PATH", str(Path(sys.executable).parent))
        yield


@pytest.fixture(scope="session")
def real_data() -> Path:
    """The folder with ``openi/``; skips the test if it is absent."""
    if REAL_DATA is None:
        pytest.skip(NO_REAL_DATA)
    return REAL_DATA


@pytest.fixture(scope="session")
def published_fixtures() -> Path:
    """The folder with a tiny published model, its inputs and outputs; skips the test if it is absent."""
    if FIXTURES is None:
        pytest.skip(NO_FIXTURES)
    return FIXTURES


@pytest.fixture(scope="session")
def shipped_drafter() -> Drafter:
    """The drafter of the shipped bundle."""
    from tests.support.paths import SHIPPED
    from tests.support.tiny import open_drafter

    return open_drafter(SHIPPED)


@pytest.fixture(scope="session")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """An untrained bundle with reference cases and their texts, for reading only; `bundle_copy` may be changed."""
    from model.manifest import verify_bundle
    from tests.support.tiny import write_tiny_bundle

    path = write_tiny_bundle(tmp_path_factory.mktemp("bundles") / "tiny")
    yield path
    verify_bundle(path)


@pytest.fixture(scope="session")
def page_server(bundle: Path) -> Iterator[Live]:
    """A server of `bundle` without a key."""
    from tests.support.service import live_server

    with live_server(bundle, warm_up=False) as live:
        yield live


@pytest.fixture(scope="session")
def client(page_server: Live) -> Iterator[httpx.Client]:
    """A client of that server; do not change its headers."""
    with page_server.client() as client:
        yield client


@pytest.fixture(scope="session")
def keyed(bundle: Path) -> Iterator[httpx.Client]:
    """A client of such a service with the key `KEY`; send it with `AUTHORIZED`."""
    from tests.support.service import KEY, ready_client

    with ready_client(bundle, warm_up=False, api_key=KEY) as client:
        yield client


@pytest.fixture
def gates(monkeypatch: pytest.MonkeyPatch) -> list[Gate]:
    """The gates before the drafters that the service of this test loads."""
    from tests.support.service import gate_drafters

    return gate_drafters(monkeypatch)


@pytest.fixture
def bundle_copy(bundle: Path, tmp_path: Path) -> Path:
    """A copy of `bundle` that a test may change."""
    return Path(shutil.copytree(bundle, tmp_path / "tiny"))


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """A headless Chromium; skips the test where playwright or the browser is absent."""
    pytest.importorskip("playwright", reason="needs pip install playwright")
    from tests.support.browser import chromium, find_chromium

    executable = find_chromium()
    if executable is None:
        pytest.skip("needs a Chromium: apt install chromium, or name one in REPORT_CHROMIUM")
    with chromium(executable) as browser:
        yield browser


@pytest.fixture(scope="module")
def tab(browser: Browser) -> Tab:
    """The browser tab in which the tests of a module open the page."""
    from tests.support.browser import Tab

    return Tab(browser)


@pytest.fixture
def page(tab: Tab, page_server: Live) -> Iterator[Page]:
    """The opened page, without what earlier tests stored; the test fails if one of its scripts raises an error."""
    with tab.opened(page_server.url) as page:
        yield page
