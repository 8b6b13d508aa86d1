"""The page of an evaluation: complete, self-contained, escaped, ignored by git."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest

from model.types import Draft, ReferenceCase, View
from training.data.openi import open_openi
from training.data.pixel_cache import PixelCache
from training.data.studies import ImageRef, Study
from training.evaluate import main
from training.evaluation.page import EvaluatedSplit, write_page
from training.evaluation.page.gallery import gallery
from training.evaluation.privacy import GITIGNORE, check_page_folder
from training.evaluation.scoring import ReferenceSet
from training.evaluation.tables import number
from training.phantoms import write_phantom_root

VAL = 7
HOSTILE = "<script>alert(1)</script> & *bold* `code` [link](http://x) | # \"quoted\" 'it'"


class Page(HTMLParser):
    """Tags, ids, links, and addresses that a browser would fetch."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.fetched: list[str] = []
        self.links: list[str] = []
        self.ids: set[str] = set()
        self.words: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        for name, value in attrs:
            if name in ("src", "srcset", "data") or (name == "href" and tag == "link"):
                self.fetched.append(value or "")
            if name == "href" and tag == "a":
                self.links.append(value or "")
            if name == "id":
                self.ids.add(value or "")

    def handle_data(self, data: str) -> None:
        self.words.append(data)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, bundle: Path) -> Path:
    """The whole command on drawn phantoms: ``val.json`` and ``report/``."""
    where = tmp_path_factory.mktemp("page")
    root = write_phantom_root(where / "root", train=10, val=VAL, size=64)
    copy = shutil.copytree(bundle, where / "tiny")
    arguments = ["--bundle", str(copy), "--root", str(root), "--out", str(where / "val.json"), "--device", "cpu",
                 "--beam-size", "2", "--no-meteor", "--draws", "60", "--counterfactuals", "--single-views",
                 "--report", str(where / "report")]  # fmt: skip
    assert main(arguments) == 0
    return where


def test_metrics_hold_every_row(folder: Path) -> None:
    result = json.loads((folder / "val.json").read_text())
    rows = {f"system_{name}" for name in ("images_exchanged", "cases_exchanged", "patches_exchanged", "frontal_only",
                                            "lateral_only")}  # fmt: skip
    assert set(result["n_beside"]) == rows
    assert rows < set(result["confidence_95"])
    assert rows < set(result["system_minus"])
    for key in ("forte", "forte_without_negated"):
        assert set(result[key]) == {"system", "baselines", *rows}
        assert set(result[key]["baselines"]) == set(result["baselines"])
    assert result["labels"]["system"]["No Finding"]["prevalence"] > 0
    assert set(result["not_run"]) == {name for name, table in result["clinical"].items() if table is None}


def test_page_is_self_contained_and_complete(folder: Path) -> None:
    text = (folder / "report" / "report.html").read_text()
    page = Page(text)
    result = json.loads((folder / "val.json").read_text())
    assert all(source.startswith("data:image/png;base64,") for source in page.fetched)
    assert not re.search(r"url\((?!#)|@import|<script", text)
    assert all(link.removeprefix("#") in page.ids for link in page.links)
    assert page.tags.count("svg") == 4
    assert "Do not share this page." in text
    text = " ".join(" ".join(page.words).split())
    assert result["bundle"]["digest"] in text
    shown = [study for study in open_openi(folder / "root").split("val") if study.study_id in text]
    assert len(shown) == 6  # best, median, worst: two of each
    for study in shown:
        assert " ".join(study.report.split()) in text
    for row in ("images exchanged", "only cases exchanged", "only patch tokens exchanged", "frontal only",
                "the bundle's drafts, permuted"):  # fmt: skip
        assert row in text
    p = number(result["by_chance"]["CIDEr"]["p"])
    assert f"Share of the permutations that score at least as high as the original order: CIDEr p {p}, label" in text
    for name, why in result["not_run"].items():
        assert f"{name} was not run: {why}." in text


def test_metrics_are_kept_if_the_page_fails_and_page_needs_no_draws(folder: Path, bundle: Path, tmp_path: Path) -> None:
    out, report = tmp_path / "val.json", tmp_path / "report"
    (report / "report.html").mkdir(parents=True)  # blocks the page's file
    (report / ".gitignore").write_text(GITIGNORE)
    predictions = tmp_path / "texts" / "p.jsonl"
    arguments = ["--bundle", str(bundle), "--root", str(folder / "root"), "--out", str(out), "--draws", "0",
                 "--work", str(folder / "val.work"), "--device", "cpu", "--beam-size", "2", "--no-meteor",
                 "--counterfactuals", "--report", str(report), "--predictions", str(predictions)]  # fmt: skip
    assert main(arguments) == 2
    result = json.loads(out.read_text())
    assert result["predictions"] == "texts/p.jsonl"
    assert result["by_chance"] is None
    (report / "report.html").rmdir()
    assert main(arguments) == 0
    for name in ("report.html", "report.md"):
        text = (report / name).read_text()
        assert "images exchanged" in text
        assert "Chance is shown" not in text


def test_markdown_shows_files_that_are_there(folder: Path) -> None:
    text = (folder / "report" / "report.md").read_text()
    pictures = re.findall(r"!\[[^\]]*\]\(([^)]+)\)", text)
    assert len(pictures) == 4 + 2 * 6
    assert all((folder / "report" / name).is_file() for name in pictures)
    for line in (line for line in text.splitlines() if line.startswith("|")):
        assert line.endswith("|")


def test_git_ignores_the_folder(folder: Path) -> None:
    git = ["git", "-C", str(folder)]
    subprocess.run([*git, "init", "-q"], check=True)
    listed = subprocess.run([*git, "ls-files", "-o", "--exclude-standard", "report"], check=True, capture_output=True)
    assert listed.stdout == b""
    assert (folder / "report" / ".gitignore").read_text() == GITIGNORE


def _drafted(texts: list[str], cases: list[str | None]) -> EvaluatedSplit:
    pixels = np.random.default_rng(0).integers(0, 255, (1, 16, 16), np.uint8)
    studies = [Study(f"s{row:02d}", "u", "val", text, (ImageRef("k", View.FRONTAL),)) for row, text in enumerate(texts)]
    drafts = [
        Draft(text, (), {}, (ReferenceCase(1, f"case{row}", 0.5, case, {}, None),), (), {})
        for row, (text, case) in enumerate(zip(texts, cases, strict=True))
    ]
    references = ReferenceSet(texts, frozenset(" ".join(texts).lower().split()), meteor=False)
    return EvaluatedSplit(
        studies, drafts, PixelCache(pixels, {"k": 0}, {}, {}), references, {"case1": "known from training"}
    )


@pytest.mark.parametrize(("count", "sizes"), [(1, [1]), (2, [1, 1]), (3, [1, 1, 1]), (13, [4, 4, 4]), (40, [4, 4, 4])])
def test_gallery_shows_no_study_twice(count: int, sizes: list[int]) -> None:
    drafted = _drafted([f"word{row} is here." for row in range(count)], [None] * count)
    groups = gallery(drafted)
    assert [len(group) for group in groups.values()] == sizes
    assert len({study["study_id"] for group in groups.values() for study in group}) == sum(sizes)


def test_gallery_ranks_by_cider() -> None:
    drafted = _drafted([f"finding{row} is here." for row in range(9)], [None] * 9)
    wrong = [*drafted.drafts[:6], *(Draft("other.", (), {}, (), (), {}) for _ in range(3))]
    groups = gallery(EvaluatedSplit(drafted.studies, wrong, drafted.cache, drafted.references, {}), per_group=3)
    assert [study["study_id"] for study in groups["worst"]] == ["s06", "s07", "s08"]
    assert all(study["cider"] == 0.0 for study in groups["worst"])
    assert min(study["cider"] for study in groups["best"] + groups["median"]) > 2


def test_hostile_texts_are_escaped(folder: Path, tmp_path: Path) -> None:
    result = json.loads((folder / "val.json").read_text())
    result["notes"] = [HOSTILE]
    result["bundle"]["name"] = HOSTILE
    texts = [f"{HOSTILE} {row}" for row in range(3)]
    write_page(tmp_path / "report", result, _drafted(texts, [HOSTILE, None, None]))
    text = (tmp_path / "report" / "report.html").read_text()
    assert "script" not in Page(text).tags
    assert HOSTILE in " ".join(Page(text).words)
    markdown = (tmp_path / "report" / "report.md").read_text()
    assert "<script" not in markdown.replace("\\<script", "")
    assert r"\*bold\*" in markdown
    assert r"\[link\]" in markdown
    assert "known from training" in text  # texts of cases that the bundle does not hold


def test_second_page_replaces_the_first(folder: Path, tmp_path: Path) -> None:
    result = json.loads((folder / "val.json").read_text())
    for count in (9, 3):
        write_page(tmp_path / "report", result, _drafted(["Clear lungs."] * count, [None] * count))
    shown = {path.name for path in (tmp_path / "report" / "images").iterdir()}
    assert shown == {"s00-0.png", "s01-0.png", "s02-0.png"}


def test_refuses_folders_with_other_files(
    tmp_path: Path, folder: Path, bundle: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "notes.txt").write_text("kept")
    with pytest.raises(ValueError, match="holds other files"):
        check_page_folder(tmp_path / "other")
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match="is a file"):
        check_page_folder(tmp_path / "file")
    with pytest.raises(ValueError, match="among bundles"):
        check_page_folder(bundle)
    arguments = ["--bundle", str(bundle), "--root", str(folder / "root"), "--out", str(tmp_path / "o.json")]
    assert main([*arguments, "--device", "cpu", "--report", str(tmp_path / "other")]) == 2
    assert "holds other files" in caplog.text
    assert sorted(path.name for path in (tmp_path / "other").iterdir()) == ["notes.txt"]


@pytest.mark.parametrize(
    ("value", "shown"),
    [(0.3761, ".376"), (-0.0123, "−.012"), (1.2041, "1.204"), (27.31, "27.3"), (0.9999, "1.000"), (0.0, ".000"),
     (None, "–"), (10.04, "10.0")],
)  # fmt: skip
def test_numbers_are_short(value: float | None, shown: str) -> None:
    assert number(value) == shown
    assert number(0.1234, sign=True) == "+.123"
    assert number(float("nan")) == "–"
