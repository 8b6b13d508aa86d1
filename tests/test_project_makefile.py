"""The targets of the Makefile and deploy/install.sh; a script that records its arguments replaces Python."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.support.paths import REPOSITORY

pytestmark = pytest.mark.skipif(shutil.which("make") is None, reason="make is not installed")

STAND_IN = """#!/bin/sh
echo "$*" >> "$CALLS"
case "$*" in
  "-m venv "*) mkdir -p "$3/bin" && cp "$0" "$3/bin/python" ;;
  "-m pip install -c "*) cp "$5" constraints.used ;;
  *urlopen*) [ -z "$OFFLINE" ] || exit 1 ;;
  *retrieval_index.hydrate*)
    [ -z "$OFFLINE" ] || exit 3
    [ -e .bundles/iu-xray-hydrated ] && exit 0  # up to date, left alone
    mkdir -p .bundles/iu-xray-hydrated && touch .bundles/iu-xray-hydrated/MANIFEST.json ;;
  *retrieval_index.examples*) [ -z "$OFFLINE" ] || exit 1; mkdir -p .bundles/examples ;;
  "-m service "*) echo "$REPORT_EXAMPLES_DIR" > examples.dir ;;
esac
"""


# A make that runs the tests exports these where its command line sets them.
VARIABLES = {"PYTEST_ARGS", *re.findall(r"^(\w+) +\?=", (REPOSITORY / "Makefile").read_text(), re.MULTILINE)}


class Clone:
    """A folder with the Makefile, a bundle, and a Python that does nothing."""

    def __init__(self, root: Path) -> None:
        self.root = root
        (root / "deploy").mkdir()
        for name in ("Makefile", "pyproject.toml", "constraints.txt", "constraints-oldest.txt", "deploy/install.sh"):
            shutil.copy(REPOSITORY / name, root / name)
        self.write("bundles/iu-xray/MANIFEST.json", "{}")
        self.write("bundles/iu-xray/index/cases.jsonl", '{"case_id": "CXR1", "findings": null}\n')
        self.write("retrieval_index/examples.py", "")
        self.write("stand-in", STAND_IN).chmod(0o755)

    def write(self, name: str, text: str) -> Path:
        path = self.root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        return path

    def make(self, *arguments: str, offline: bool = False, fails: bool = False) -> tuple[list[str], str]:
        """Run make; returns the arguments of each call of Python, and the output, or the errors if it ``fails``."""
        calls = self.write("calls", "")
        environment = {key: value for key, value in os.environ.items() if key not in VARIABLES and "MAKE" not in key}
        environment |= {"CALLS": str(calls), "OFFLINE": "1" if offline else ""}
        run = subprocess.run(
            ["make", "PYTHON=./stand-in", *arguments],
            cwd=self.root, env=environment, capture_output=True, text=True, timeout=60, check=False,
        )  # fmt: skip
        assert (run.returncode != 0) == fails, run.stderr
        return calls.read_text().splitlines(), run.stderr if fails else run.stdout

    def pins(self) -> set[str]:
        """The versions of PyTorch that the last installation was limited to."""
        lines = (self.root / "constraints.used").read_text().splitlines()
        return {line for line in lines if line.startswith("torch")}


@pytest.fixture
def clone(tmp_path: Path) -> Clone:
    return Clone(tmp_path)


def test_serve_installs_hydrates_and_serves_and_a_second_run_only_serves(clone: Clone) -> None:
    first, _ = clone.make("serve")
    assert "-m venv .venv" in first
    assert any("pip install" in call and call.endswith("-c constraints.txt -e .") for call in first)
    assert any("retrieval_index.hydrate --bundle bundles/iu-xray --reports https://openi" in call for call in first)
    assert first[-1] == "-m service --bundle bundles/iu-xray --host 127.0.0.1 --port 8000 --device auto"
    assert "-m retrieval_index.examples --images https://openi.nlm.nih.gov --out .bundles/examples" in first
    assert (clone.root / "examples.dir").read_text() == ".bundles/examples\n"
    second, _ = clone.make("serve", "PORT=9000", "HOST=0.0.0.0")
    assert second == ["-m service --bundle bundles/iu-xray --host 0.0.0.0 --port 9000 --device auto"]


def test_serve_continues_without_texts_if_open_i_is_unreachable(clone: Clone) -> None:
    calls, printed = clone.make("serve", offline=True)
    assert "serving without them" in printed
    assert calls[-1].startswith("-m service")
    assert "not all example studies could be fetched" in printed
    again, _ = clone.make("serve", "REPORTS=my.tgz", "EXAMPLES=images")
    assert any("--reports my.tgz" in call for call in again)
    assert "-m retrieval_index.examples --images images --out .bundles/examples" in again


def test_examples_are_fetched_again_only_for_another_list_and_can_be_switched_off(clone: Clone) -> None:
    none, _ = clone.make("serve", "EXAMPLES=")
    assert not any("examples" in call for call in none)
    clone.make("serve")
    complete = clone.root / ".bundles/examples/complete"
    os.utime(complete, (0, 0))
    assert any("retrieval_index.examples" in call for call in clone.make("serve")[0])
    assert not any("retrieval_index.examples" in call for call in clone.make("serve")[0])


def test_a_bundle_that_holds_its_texts_is_not_hydrated(clone: Clone) -> None:
    clone.write("bundles/iu-xray/index/cases.jsonl", '{"case_id": "CXR1", "findings": "A drawn chest."}\n')
    calls, _ = clone.make("serve")
    assert not any("hydrate" in call for call in calls)


def test_a_new_bundle_is_hydrated_again(clone: Clone) -> None:
    clone.make("serve")
    hydrated = clone.root / ".bundles/iu-xray-hydrated/MANIFEST.json"
    os.utime(hydrated, (0, 0))
    calls, _ = clone.make("serve")
    assert any("hydrate" in call for call in calls)
    calls, _ = clone.make("serve")
    assert not any("hydrate" in call for call in calls)


def test_test_installs_the_extras_once_and_serve_needs_no_further_install(clone: Clone) -> None:
    calls, _ = clone.make("test", "PYTEST_ARGS=-q")
    assert any("pip install" in call and call.endswith(".[train,dev]") for call in calls)
    several = "--dist loadfile --no-loadscope-reorder"
    assert calls[-1] == f"-m pytest -n auto {several} -q"
    assert clone.make("test", "WORKERS=0")[0] == [f"-m pytest -n 0 {several}"]
    assert not any("pip" in call for call in clone.make("serve")[0])


def test_a_changed_dependency_is_installed(clone: Clone) -> None:
    clone.make("test")
    later = (clone.root / ".venv/.stamps/develop").stat().st_mtime + 10
    os.utime(clone.root / "pyproject.toml", (later, later))
    assert any("pip install" in call for call in clone.make("test")[0])


def installs(calls: list[str]) -> list[str]:
    return [call.split(" install ")[1] for call in calls if "pip install" in call]


FROM_PYTORCH = "--no-deps --index-url https://download.pytorch.org/whl"


def test_serve_installs_pytorch_without_cuda_from_its_index_and_later_commands_keep_it(clone: Clone) -> None:
    calls, _ = clone.make("serve", "TORCH=cpu")
    assert installs(calls) == [
        f"-c constraints.txt {FROM_PYTORCH}/cpu torch torchvision", "-c constraints.txt -e ."
    ]  # fmt: skip
    tests, _ = clone.make("test")
    assert len(installs(tests)) == 2
    assert "/whl/cpu" in installs(tests)[0]
    _, error = clone.make("serve", "TORCH=cu126", fails=True)
    assert ".venv has TORCH=cpu; add VENV=.venv-cu126, or run make clean first" in error
    assert not installs(clone.make("serve")[0])


def test_an_environment_without_a_note_keeps_the_default_pytorch(clone: Clone) -> None:
    clone.make("serve")
    (clone.root / ".venv/.stamps/torch").unlink()
    _, error = clone.make("serve", "TORCH=cpu", fails=True)
    assert ".venv has TORCH=default" in error
    assert not (clone.root / ".venv/.stamps/torch").exists()


def test_without_the_index_of_pytorch_the_default_one_serves(clone: Clone) -> None:
    calls, printed = clone.make("serve", "TORCH=cpu", offline=True)
    assert installs(calls) == ["-c constraints.txt -e ."]
    assert "note: https://download.pytorch.org/whl/cpu cannot be used; PyTorch comes from the default index" in printed
    assert calls[-1].startswith("-m service")


def test_cuda_12_gets_the_oldest_pytorch(clone: Clone) -> None:
    oldest = {line for line in (REPOSITORY / "constraints-oldest.txt").read_text().splitlines() if "==" in line}
    calls, _ = clone.make("serve", "TORCH=cu126")
    assert f"{FROM_PYTORCH}/cu126 torch torchvision" in installs(calls)[0]
    assert clone.pins() == oldest
    tests, _ = clone.make("test-oldest")
    assert len(installs(tests)) == 1
    assert clone.pins() == oldest
    assert (clone.root / ".venv-oldest/.stamps/develop").is_file()
    clone.make("test", "VENV=.venv-new")
    assert len(clone.pins()) == 2
    assert not clone.pins() & oldest


def test_refuses_an_unknown_pytorch(clone: Clone) -> None:
    calls, error = clone.make("serve", "TORCH=cu118", fails=True)
    assert not installs(calls)
    assert not (clone.root / ".venv/.stamps/torch").exists()
    assert "TORCH=cu118: unknown; use default, oldest, cpu, cu126, cu128 or cu130" in error


def test_train_smoke_draws_phantoms_or_reads_a_given_root(clone: Clone) -> None:
    drawn, _ = clone.make("train-smoke")
    assert "-m training.phantoms --out runs/phantoms --studies 60" in drawn
    assert drawn[-1].startswith("-m training.run --dataset openi --root runs/phantoms --preset smoke --out runs/smoke")
    given, _ = clone.make("train-smoke", "ROOT=elsewhere", "OUT=runs/mine", "DEVICE=cpu")
    assert not any("training.phantoms" in call for call in given)
    assert "--root elsewhere --preset smoke --out runs/mine --device cpu" in given[-1]


def test_help_lists_the_commands(clone: Clone) -> None:
    calls, printed = clone.make()
    assert not calls
    assert all(f"make {name}" in printed for name in ("serve", "test", "lint", "train-smoke"))
