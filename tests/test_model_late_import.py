"""Modules that are imported when they are needed; the service does without PyTorch's compiler."""

from __future__ import annotations

import importlib
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from model.network.late_import import put_off
from tests.support.paths import REPOSITORY

MODULE = "slow_to_import"


@pytest.fixture
def _module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    (tmp_path / f"{MODULE}.py").write_text("def double(x, *, plus=0):\n    return 2 * x + plus\n\nWIDTH = 7\n")
    (tmp_path / "takes_the_function.py").write_text(f"from {MODULE} import double\n")
    (tmp_path / "takes_more.py").write_text(f"from {MODULE} import WIDTH, double\n")
    (tmp_path / "fails.py").write_text(f"import {MODULE}\n\n{MODULE}.is_not_there\n")
    monkeypatch.syspath_prepend(tmp_path)
    yield
    for name in (MODULE, "takes_the_function", "takes_more"):
        sys.modules.pop(name, None)


@pytest.mark.usefixtures("_module")
def test_the_function_is_there_and_its_module_only_once_it_is_called() -> None:
    with put_off(MODULE, "double"):
        library = importlib.import_module("takes_the_function")
    assert MODULE not in sys.modules
    assert library.double(3, plus=1) == 7
    assert sys.modules[MODULE].double(3) == 6


@pytest.mark.usefixtures("_module")
def test_whoever_asks_for_more_gets_the_module() -> None:
    with put_off(MODULE, "double"):
        library = importlib.import_module("takes_more")
        assert library.WIDTH == sys.modules[MODULE].WIDTH == 7
    assert MODULE in sys.modules
    assert library.double(3) == 6


@pytest.mark.usefixtures("_module")
def test_a_module_that_is_there_stays_and_an_error_is_the_modules_own() -> None:
    real = importlib.import_module(MODULE)
    with put_off(MODULE, "double"):
        assert sys.modules[MODULE] is real
    del sys.modules[MODULE]
    with pytest.raises(AttributeError, match="is_not_there"), put_off(MODULE, "double"):
        importlib.import_module("fails")


def test_the_service_starts_without_the_compiler() -> None:
    code = "import sys, service.app; sys.exit('torch._dynamo' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY, check=False).returncode == 0
