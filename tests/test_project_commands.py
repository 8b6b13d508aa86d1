"""Every ``python -m`` command of the project refuses abbreviated options."""

from __future__ import annotations

import ast
import importlib
import tomllib
from pathlib import Path

import pytest

from tests.support.paths import REPOSITORY

PARSER = "model/command_line.py"
WITHOUT_OPTIONS = {"training.ablation.cell"}  # the ablation starts it, with a folder


def paths() -> list[Path]:
    packages = ("model", "retrieval_index", "service", "training", "benchmarks", "tools", "tests")
    found = (path for package in packages for path in sorted((REPOSITORY / package).rglob("*.py")))
    return [path.relative_to(REPOSITORY) for path in found]


def commands() -> list[str]:
    """Modules with a ``main`` that takes arguments and runs where the module is the program, and console scripts."""
    found = []
    for path in paths():
        if path.parts[0] == "tests" or "__main__" not in (REPOSITORY / path).read_text():
            continue  # the others are not parsed, because this runs while tests are collected
        tree = ast.parse((REPOSITORY / path).read_text())
        runs = any(isinstance(node, ast.If) and "__main__" in ast.unparse(node.test) for node in tree.body)
        mains = [node for node in tree.body if isinstance(node, ast.FunctionDef) and node.name == "main"]
        if runs and mains and mains[0].args.args:
            found.append(".".join(path.with_suffix("").parts))
    scripts = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"].get("scripts", {})
    found += [target.partition(":")[0] for target in scripts.values()]
    return sorted(set(found) - WITHOUT_OPTIONS)


@pytest.mark.parametrize("module", commands())
def test_refuses_abbreviated_options(module: str, capsys: pytest.CaptureFixture[str]) -> None:
    """``--hel`` would be ``--help``, with exit code 0, where abbreviations are allowed."""
    with pytest.raises(SystemExit) as ended:
        importlib.import_module(module).main(["--hel"])
    assert ended.value.code == 2, capsys.readouterr().out
    assert "usage:" in capsys.readouterr().err


def test_all_parsers_are_the_shared_one() -> None:
    """Also those that no command above creates, such as parsers of subcommands and of test tools."""
    others = [
        f"{path}:{node.lineno}"
        for path in paths() if path.as_posix() != PARSER and not path.name.startswith("test_")
        for node in ast.walk(ast.parse((REPOSITORY / path).read_text()))
        if isinstance(node, ast.Call) and ast.unparse(node.func).endswith("ArgumentParser")
    ]  # fmt: skip
    assert not others, f"use model.command_line.CommandParser in {others}"


def test_finds_the_commands_of_all_packages() -> None:
    found = commands()
    assert {"training.run", "retrieval_index.hydrate", "service.__main__", "tools.api_docs"} <= set(found)
    assert len(found) >= 20
