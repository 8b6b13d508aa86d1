"""``cxr-report COMMAND``: runs the commands of the packages; the version and the citation are those of the project."""

from __future__ import annotations

import importlib.metadata
import re
import subprocess
import sys
import tomllib
from datetime import date
from pathlib import Path

import pytest
import yaml

import cxr_report
from cxr_report.__main__ import COMMANDS, main
from tests.support.paths import DRAWN, REPOSITORY

VERSION = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]["version"]


@pytest.mark.parametrize("command", COMMANDS)
def test_each_command_is_that_of_its_module(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    module, summary = COMMANDS[command]
    with pytest.raises(SystemExit) as ended:
        main([command, "--help"])
    assert ended.value.code == 0
    program = "python -m " + module.removesuffix(".__main__")
    assert capsys.readouterr().out.startswith(f"usage: {program} ")
    assert summary.endswith(f": {program}")


def test_draft_passes_its_options(bundle: Path, capsys: pytest.CaptureFixture[str]) -> None:
    image = str(DRAWN / "normal-frontal.png")
    assert main(["draft", image, "--bundle", str(bundle), "--device", "cpu", "--format", "json"]) == 0
    assert '"findings"' in capsys.readouterr().out
    assert main(["draft", "missing.png", "--bundle", str(bundle)]) == 1


def test_refuses_an_unknown_command(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["evaluate"])
    assert ended.value.code == 2
    assert "choose from" in capsys.readouterr().err


def test_names_the_extra_of_a_missing_package(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "training.run", None)  # as in the image of the service
    assert main(["train", "--out", "x"]) == 2
    assert capsys.readouterr().err == "cxr-report train needs training.run: pip install '.[train]' in the source tree\n"


def test_the_help_loads_no_command() -> None:
    code = (
        "import sys\nfrom cxr_report.__main__ import main\n"
        "try: main(['--help'])\nexcept SystemExit: assert not {'torch', 'fastapi'} & set(sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY, capture_output=True, text=True, check=True)
    assert all(name in done.stdout for name in COMMANDS)


def test_the_version_is_that_of_the_project(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def missing(name: str) -> str:
        raise importlib.metadata.PackageNotFoundError(name)

    with pytest.raises(SystemExit):
        main(["--version"])
    assert re.fullmatch(r"cxr-report \d+\.\d+\S*\n", capsys.readouterr().out)
    monkeypatch.setattr(importlib.metadata, "version", missing)  # a source tree that is not installed
    assert cxr_report.__version__ == VERSION


def test_the_citation_names_this_version_and_licence() -> None:
    citation = yaml.safe_load((REPOSITORY / "CITATION.cff").read_text())
    assert {"cff-version", "message", "title", "authors"} <= set(citation)
    assert (citation["cff-version"], citation["version"]) == ("1.2.0", VERSION)
    assert citation["license"] == tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]["license"]
    assert isinstance(citation["date-released"], date)
    for work in (citation, *citation["references"]):
        assert work["title"]
        assert work["type"]
        assert all("name" in author or "family-names" in author for author in work["authors"])


def test_no_text_installs_from_a_registry() -> None:
    """The name may belong to other software there."""
    this = Path(__file__).resolve()
    folders = ("cxr_report", "model", "retrieval_index", "service", "training", "tests", "deploy", "examples")
    paths = [path for folder in folders for path in (REPOSITORY / folder).rglob("*") if path.is_file()]
    for path in (*paths, *REPOSITORY.glob("*.md"), *REPOSITORY.glob("docs/*.md")):
        if path.suffix in {".py", ".md", ".sh", ".ipynb"} and path.resolve() != this and path.name != "CHANGELOG.md":
            assert not re.search(r"pip install\s+\S*cxr-report", path.read_text(encoding="utf-8")), path
