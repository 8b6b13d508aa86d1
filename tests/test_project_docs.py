"""The documents: short, with paths, modules, links and numbers that exist."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest

from tests.support.paths import REPOSITORY
from tests.support.tables import without_blanks
from tools import api_docs, settings_docs

DOCS = REPOSITORY / "docs"
GUIDES = [REPOSITORY / "README.md", REPOSITORY / "CHANGELOG.md", *sorted(DOCS.glob("*.md"))]
CURRENT = [path for path in GUIDES if path.name != "CHANGELOG.md"]  # the changelog may name removed files
PACKAGES = ("benchmarks", "cxr_report", "deploy", "model", "retrieval_index", "service", "tests", "tools", "training")
IDS = {"ids": lambda path: path.name}


def prose(text: str) -> Iterator[str]:
    """The lines outside code blocks, tables and generated blocks."""
    inside = False
    for line in re.sub(r"<!-- generated.*?<!-- end of", "", text, flags=re.DOTALL).splitlines():
        if line.startswith("```"):
            inside = not inside
        elif not inside and not line.startswith("|"):
            yield line


def anchors(text: str) -> set[str]:
    """The anchors of a document's headings, as GitHub makes them."""
    headings = re.findall(r"^#+ (.*)$", re.sub(r"^```.*?^```", "", text, flags=re.DOTALL | re.MULTILINE), re.MULTILINE)
    plain = (re.sub(r"[^\w\- ]", "", heading.lower()) for heading in headings)
    return {heading.replace(" ", "-") for heading in plain}


def words(path: Path) -> int:
    return len(path.read_text(encoding="utf-8").split())


def test_the_documents_are_short() -> None:
    assert words(REPOSITORY / "README.md") <= 900
    assert sum(words(path) for path in DOCS.glob("*.md")) <= 16_000


@pytest.mark.parametrize("path", GUIDES, **IDS)
def test_no_prose_line_is_longer_than_100_characters(path: Path) -> None:
    long = [line for line in prose(path.read_text(encoding="utf-8")) if len(line) > 100 and "](" not in line]
    assert not long


@pytest.mark.parametrize("path", GUIDES, **IDS)
def test_every_link_and_anchor_resolves(path: Path) -> None:
    for target in re.findall(r"\]\((?!https?:)([^)]+)\)", path.read_text(encoding="utf-8")):
        name, _, anchor = target.partition("#")
        linked = (path.parent / name).resolve() if name else path
        assert linked.exists(), target
        assert not anchor or anchor in anchors(linked.read_text(encoding="utf-8")), target


@pytest.mark.parametrize("path", CURRENT, **IDS)
def test_every_file_and_module_that_is_named_exists(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    for name in re.findall(rf"(?<![\w./-])(?:{'|'.join(PACKAGES)})/[\w./-]*\w", text):
        assert (REPOSITORY / name).exists(), name
    modules = set(re.findall(r"-m ((?:benchmarks|retrieval_index|service|tests|tools|training)(?:\.\w+)*)", text))
    modules |= set(re.findall(r"`((?:benchmarks|training|service|retrieval_index)\.[a-z_]+)[`: ]", text))
    for module in modules - {"service.access"}:  # a logger
        file = REPOSITORY / module.replace(".", "/")
        assert file.with_suffix(".py").is_file() or (file / "__main__.py").is_file(), module


def test_the_readme_names_targets_of_the_makefile() -> None:
    readme = (REPOSITORY / "README.md").read_text()
    targets = set(re.findall(r"^([\w-]+):", (REPOSITORY / "Makefile").read_text(), re.MULTILINE))
    assert {"serve", "test"} <= set(re.findall(r"make ([\w-]+)", readme))
    assert set(re.findall(r"`make ([\w-]+)", readme)) <= targets


def test_every_image_is_shown() -> None:
    text = "".join(path.read_text(encoding="utf-8") for path in GUIDES)
    assert not [image.name for image in (DOCS / "images").iterdir() if image.name not in text]


@pytest.mark.parametrize("command", [api_docs, settings_docs], ids=["api", "settings"])
def test_the_generated_tables_of_the_api_guide_are_current(command: ModuleType, tmp_path: Path) -> None:
    guide = tmp_path / "api.md"
    shutil.copy(DOCS / "api.md", guide)
    assert command.main(["--into", str(guide)]) == 0
    assert guide.read_text() == (DOCS / "api.md").read_text(), f"run: python -m {command.__name__} --into docs/api.md"


def test_a_document_without_markers_is_left_alone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    guide = tmp_path / "guide.md"
    guide.write_text("no markers")
    with pytest.raises(SystemExit) as ended:
        settings_docs.main(["--into", str(guide)])
    assert ended.value.code == 1
    assert "must occur once" in capsys.readouterr().err
    assert guide.read_text() == "no markers"


def test_the_results_are_those_of_the_bundle() -> None:
    metrics = json.loads((REPOSITORY / "bundles" / "iu-xray" / "metrics.json").read_text())["val"]
    rows = {"this bundle": metrics["system"], **metrics["baselines"]}
    for name in ("images_exchanged", "cases_exchanged", "patches_exchanged"):
        rows[name] = metrics[f"system_{name}"]
    for name in ("frontal_only", "lateral_only"):
        rows[f"{name} ({metrics['n_beside'][f'system_{name}']})"] = metrics[f"system_{name}"]
    guide = without_blanks((DOCS / "results.md").read_text(encoding="utf-8"))
    for label, row in rows.items():
        names = ("BLEU_1", "BLEU_4", "METEOR", "ROUGE_L", "CIDEr", "label_f1_micro", "distinct")
        cells = [f"{row[name]:.3f}".lstrip("0") for name in names]
        assert f"|{label}|{'|'.join(cells)}|" in guide, label
