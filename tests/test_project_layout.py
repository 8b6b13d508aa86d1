"""Rules of the project beyond linting: the direction of imports, and the content of tracked files."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
import tomllib
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import pytest

from tests.support.paths import REPOSITORY

MAY_IMPORT = {
    "model": {"model"},
    "retrieval_index": {"retrieval_index", "model"},
    "training": {"training", "model", "retrieval_index"},
    "service": {"service", "model", "retrieval_index"},
    "cxr_report": {"cxr_report", "service", "training", "model", "retrieval_index"},
}
SERVING = {"cxr_report", "model", "retrieval_index", "service"}
EXTRAS = {"tqdm", "matplotlib", "tensorboard", "pycocoevalcap", "jinja2", "markupsafe", "fhir", "pytest"}
TEXT = {".py", ".md", ".toml", ".txt", ".yml", ".yaml", ".json", ".html", ".css", ".js", ".csv", ".cfg", ""}


@dataclass(frozen=True)
class Import:
    """One import statement."""

    file: Path
    line: int
    target: str  # dotted module, "model.images.read"

    def __str__(self) -> str:
        return f"{self.file.relative_to(REPOSITORY)}:{self.line} imports {self.target}"


def modules(package: str) -> list[Path]:
    return sorted((REPOSITORY / package).rglob("*.py"))


def dotted(path: Path) -> str:
    parts = path.relative_to(REPOSITORY).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


@cache
def imports(path: Path) -> list[Import]:
    """All imports of a file, at every depth of its code."""
    found: list[Import] = []
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found += [Import(path, node.lineno, alias.name) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            parents = dotted(path).split(".")[: None if path.name == "__init__.py" else -1]
            base = ".".join((*parents[: len(parents) - node.level + 1], node.module or "")).strip(".")
            origin = base if node.level else node.module or ""
            for alias in node.names:  # `from package import module` names a module, other names are in `origin`
                module = f"{origin}.{alias.name}"
                found.append(Import(path, node.lineno, module if exists(module) else origin))
    return found


def exists(module: str) -> bool:
    path = REPOSITORY / module.replace(".", "/")
    return path.with_suffix(".py").is_file() or (path / "__init__.py").is_file()


def imported(path: Path) -> set[str]:
    """Top-level names of all imports in a file."""
    return {statement.target.partition(".")[0] for statement in imports(path)}


def child_imports(folder: str) -> dict[tuple[str, str], list[Import]]:
    """(child, imported child) -> the import statements, for the modules and sub-folders of a folder.

    What a sub-folder imports at any depth counts for the sub-folder.
    """
    edges: dict[tuple[str, str], list[Import]] = defaultdict(list)
    for path in sorted((REPOSITORY / folder.replace(".", "/")).rglob("*.py")):
        for statement in imports(path):
            source, target = child(folder, dotted(path)), child(folder, statement.target)
            if target is not None and source is not None and source != target:
                edges[source, target].append(statement)
    return edges


def child(folder: str, module: str) -> str | None:
    """The module or sub-folder directly in `folder` that holds `module`; None: it is outside of the folder."""
    if module == folder:
        return f"{folder}.__init__"
    depth = folder.count(".") + 2
    return ".".join(module.split(".")[:depth]) if module.startswith(f"{folder}.") else None


def cycles(folder: str) -> list[list[str]]:
    """Groups of children of a folder that import each other, directly or through others."""
    edges = child_imports(folder)
    reach = {node: {target for source, target in edges if source == node} for edge in edges for node in edge}
    for middle in reach:  # Warshall's transitive closure
        for node, targets in reach.items():
            if middle in targets:
                reach[node] = targets | reach[middle]
    groups = {frozenset(b for b in reach if b in reach[a] and a in reach[b]) for a in reach if a in reach[a]}
    return sorted(sorted(group) for group in groups)


def explain_cycles(package: str) -> str:
    """Every group of modules and folders of a package that import each other, with files and lines; "": none do."""
    lines = []
    for path in sorted({path.parent for path in modules(package)}):
        folder = ".".join(path.relative_to(REPOSITORY).parts)
        edges = child_imports(folder)
        for group in cycles(folder):
            lines.append(f"{folder}: these import each other: {', '.join(group)}")
            for (source, target), statements in sorted(edges.items()):
                if source in group and target in group:
                    lines.append(f"  {source} → {target}")
                    lines += sorted({f"    {statement}" for statement in statements})
    return "\n".join(lines)


@pytest.mark.parametrize("package", MAY_IMPORT)
def test_packages_import_in_one_direction(package: str) -> None:
    assert modules(package)
    wrong = [
        str(statement)
        for path in modules(package)
        for statement in imports(path)
        if statement.target.partition(".")[0] in {*MAY_IMPORT, "benchmarks", "tests", "tools"} - MAY_IMPORT[package]
    ]
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize("package", MAY_IMPORT)
def test_folders_of_a_package_form_a_dag(package: str) -> None:
    problem = explain_cycles(package)
    assert not problem, "\n" + problem


def test_names_folders_that_import_each_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys.modules[__name__], "REPOSITORY", tmp_path)
    files = {
        "app/__init__.py": "",
        "app/low/__init__.py": "",
        "app/low/deep/__init__.py": "",
        "app/low/deep/a.py": "def f():\n    from app import high\n",
        "app/low/b.py": "import json\n",
        "app/high.py": "from app.low import b\n",
        "app/free.py": "from . import high\n",
    }
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    assert explain_cycles("app").splitlines() == [
        "app: these import each other: app.high, app.low",
        "  app.high → app.low",
        "    app/high.py:1 imports app.low.b",
        "  app.low → app.high",
        "    app/low/deep/a.py:2 imports app.high",
    ]


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
def test_serving_imports_no_training_extra(package: str) -> None:
    """Serving modules import no package of the extras for training."""
    for path in modules(package):
        extra = imported(path) & EXTRAS
        assert not extra, f"{path.relative_to(REPOSITORY)} imports {sorted(extra)}"


def tracked() -> Iterator[Path]:
    """Tracked files and new ones that git does not ignore; skips the test without git."""
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard", "-z"]
    try:
        listed = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=True).stdout
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("this is not a git work tree")
    return (REPOSITORY / name for name in listed.split("\0") if name and (REPOSITORY / name).is_file())


def test_no_file_names_a_registry_host_or_a_local_path() -> None:
    hosts = ["files.pythonhosted" + ".org", "pypi" + ".org", "registry.npmjs" + ".org", "deb.debian" + ".org"]
    paths = re.compile(r"(?<![\w.])/(?:wor[k]|far[m]|hom[e]/\w+|User[s]/\w+)/")
    for path in tracked():
        if path.suffix in TEXT and path.stat().st_size < 5_000_000:
            text = path.read_text(encoding="utf-8", errors="ignore")
            name = path.relative_to(REPOSITORY)
            assert not [host for host in hosts if host in text], name
            assert not paths.search(text), f"{name}: {paths.search(text)}"


def test_no_radiograph_and_no_large_file_is_tracked() -> None:
    for path in tracked():
        name = path.relative_to(REPOSITORY)
        assert path.suffix not in {".jpg", ".jpeg", ".dcm", ".pt", ".pth", ".pkl", ".tgz"}, name
        assert path.stat().st_size <= 30 * 2**20, name


def test_constraints_pin_every_dependency_without_hosts() -> None:
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]
    wanted = project["dependencies"] + [line for extra in project["optional-dependencies"].values() for line in extra]
    pins = [line for line in (REPOSITORY / "constraints.txt").read_text().splitlines() if not line.startswith("#")]
    assert all(re.fullmatch(r"[\w.-]+==[\w.]+", pin) for pin in pins)
    pinned = {canonical(pin.partition("==")[0]) for pin in pins}
    missing = {canonical(re.split(r"[\[><=;~ ]", line)[0]) for line in wanted} - pinned
    assert not missing


def test_the_oldest_pytorch_is_the_floor_of_the_dependencies() -> None:
    wanted = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]["dependencies"]
    lines = (REPOSITORY / "constraints-oldest.txt").read_text().splitlines()
    pins = [pin for pin in lines if not pin.startswith("#")]
    assert [re.sub(r"==(\d+\.\d+)\.\d+", r">=\1", pin) for pin in pins] == wanted[:2]


def canonical(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def test_packages_are_typed_and_documented_and_the_wheel_contains_data_files() -> None:
    for package in MAY_IMPORT:
        assert (REPOSITORY / package / "py.typed").is_file()
        assert ast.get_docstring(ast.parse((REPOSITORY / package / "__init__.py").read_text()))
    data = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["tool"]["setuptools"]["package-data"]
    assert "static/**" in data["service"]
    assert "data/tables/**" in data["training"]
    assert all("py.typed" in data[package] for package in MAY_IMPORT)
