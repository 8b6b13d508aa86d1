"""Rules of the project that no linter knows: which way imports point, what no tracked file may hold."""

from __future__ import annotations

import ast
import re
import subprocess
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.paths import REPOSITORY

MAY_IMPORT = {
    "model": {"model"},
    "retrieval_index": {"retrieval_index", "model"},
    "training": {"training", "model", "retrieval_index"},
    "service": {"service", "model", "retrieval_index"},
}
SERVING = {"model", "retrieval_index", "service"}
TEXT = {".py", ".md", ".toml", ".txt", ".yml", ".yaml", ".json", ".html", ".css", ".js", ".csv", ".cfg", ""}


def modules(package: str) -> list[Path]:
    return sorted((REPOSITORY / package).rglob("*.py"))


def imported(path: Path) -> set[str]:
    """Top-level names of all imports in a file, wherever they stand in it."""
    package = path.relative_to(REPOSITORY).parts[0]
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            names.add(package if node.level else (node.module or "").partition(".")[0])
    return names


@pytest.mark.parametrize("package", MAY_IMPORT)
def test_imports_point_one_way(package: str) -> None:
    assert modules(package)
    for path in modules(package):
        wrong = (imported(path) & {*MAY_IMPORT, "benchmarks", "tests"}) - MAY_IMPORT[package]
        assert not wrong, f"{path.relative_to(REPOSITORY)} imports {sorted(wrong)}"


@pytest.mark.parametrize("package", MAY_IMPORT)
def test_no_pickle(package: str) -> None:
    unsafe = {"pickle", "cPickle", "dill", "joblib", "shelve", "marshal"}
    for path in modules(package):
        where = path.relative_to(REPOSITORY)
        text = path.read_text()
        assert not imported(path) & unsafe, where
        assert "weights_only=False" not in text, where
        assert "allow_pickle=True" not in text, where
        for call in re.findall(r"torch\.load\((.*?)\n", text):
            assert "weights_only=True" in call or "weights_only=True" in text, where


@pytest.mark.parametrize("package", sorted(SERVING))
def test_serving_needs_nothing_of_the_extras(package: str) -> None:
    """What only training installs is imported by no serving module (imagecodecs: its absence is handled)."""
    for path in modules(package):
        extra = imported(path) & {
            "tqdm",
            "matplotlib",
            "tensorboard",
            "pycocoevalcap",
            "jinja2",
            "markupsafe",
            "fhir",
            "pytest",
        }
        assert not extra, f"{path.relative_to(REPOSITORY)} imports {sorted(extra)}"


def tracked() -> Iterator[Path]:
    """Tracked files, and new ones that git does not ignore; without git, the sources."""
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard", "-z"]
    try:
        listed = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=True).stdout
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("this is no git work tree")
    return (REPOSITORY / name for name in listed.split("\0") if name and (REPOSITORY / name).is_file())


def test_no_registry_host_and_no_path_of_one_machine() -> None:
    hosts = ["files.pythonhosted" + ".org", "pypi" + ".org", "registry.npmjs" + ".org", "deb.debian" + ".org"]
    paths = re.compile(r"(?<![\w.])/(?:wor[k]|far[m]|hom[e]/\w+|User[s]/\w+)/")
    for path in tracked():
        if path.suffix in TEXT and path.stat().st_size < 5_000_000:
            text = path.read_text(encoding="utf-8", errors="ignore")
            name = path.relative_to(REPOSITORY)
            assert not [host for host in hosts if host in text], name
            assert not paths.search(text), f"{name}: {paths.search(text)}"


def test_no_radiograph_and_nothing_huge_is_tracked() -> None:
    for path in tracked():
        name = path.relative_to(REPOSITORY)
        assert path.suffix not in {".jpg", ".jpeg", ".dcm", ".pt", ".pth", ".pkl", ".tgz"}, name
        assert path.stat().st_size <= 30 * 2**20, name


def test_every_package_is_typed_and_says_what_it_is() -> None:
    for package in MAY_IMPORT:
        assert (REPOSITORY / package / "py.typed").is_file()
        assert ast.get_docstring(ast.parse((REPOSITORY / package / "__init__.py").read_text()))


def test_constraints_pin_every_dependency_without_hosts() -> None:
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]
    wanted = project["dependencies"] + [line for extra in project["optional-dependencies"].values() for line in extra]
    pins = [line for line in (REPOSITORY / "constraints.txt").read_text().splitlines() if not line.startswith("#")]
    assert all(re.fullmatch(r"[\w.-]+==[\w.]+", pin) for pin in pins)
    pinned = {canonical(pin.partition("==")[0]) for pin in pins}
    missing = {canonical(re.split(r"[\[><=;~ ]", line)[0]) for line in wanted} - pinned
    assert not missing


def canonical(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def test_what_the_service_shows_travels_in_the_wheel() -> None:
    data = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["tool"]["setuptools"]["package-data"]
    assert "static/**" in data["service"]
    assert "data/tables/**" in data["training"]
    assert all("py.typed" in data[package] for package in MAY_IMPORT)


def test_the_readme_names_commands_that_exist() -> None:
    readme = (REPOSITORY / "README.md").read_text()
    makefile = (REPOSITORY / "Makefile").read_text()
    targets = set(re.findall(r"^([\w-]+):", makefile, re.MULTILINE))
    assert {"serve", "test"} <= set(re.findall(r"make ([\w-]+)", readme))
    assert set(re.findall(r"`make ([\w-]+)", readme)) <= targets
    for module in set(re.findall(r"python -m ((?:training|service|retrieval_index|benchmarks)[\w.]*)", readme)):
        path = REPOSITORY / module.replace(".", "/")
        assert path.with_suffix(".py").is_file() or (path / "__main__.py").is_file(), module
    for link in re.findall(r"\]\((?!https?:|#)([^)#]+)", readme):
        assert (REPOSITORY / link).exists(), f"README links to {link}"
