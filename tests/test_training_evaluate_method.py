"""``training.evaluate --method``: a bundle scored by another decoding than the one that it serves."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from model.config import DecodingConfig
from tests.support.tiny import write_tiny_bundle
from training.evaluate import main
from training.evaluation.privacy import GITIGNORE
from training.phantoms import write_phantom_root

VAL = 6
METHODS = ("greedy", "beam", "rerank", "mbr")


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_phantom_root(tmp_path_factory.mktemp("data") / "root", train=8, val=VAL, seed=3, size=64)


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Path:
    decoding = DecodingConfig(method="consensus", candidates=4, temperature=1.0, beam_size=2)
    return write_tiny_bundle(tmp_path_factory.mktemp("bundles") / "B", decoding=decoding, full_stops=3.0)


def _arguments(bundle: Path, root: Path, out: Path, *more: str) -> list[str]:
    return ["--bundle", str(bundle), "--root", str(root), "--out", str(out), "--device", "cpu", "--no-meteor",
            "--draws", "0", *more]  # fmt: skip


def _drafts(out: Path) -> list[Any]:
    lines = out.with_name(f"{out.stem}.predictions.jsonl").read_text().splitlines()
    return [json.loads(line)["findings"] for line in lines]


@pytest.fixture(scope="module")
def by_method(served: Path, root: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Any, list[Any]]]:
    """Result and drafts by each method, and those that the bundle serves (``None``), each from its own folder."""
    found = {}
    for method in (*METHODS, "served"):
        out = tmp_path_factory.mktemp(method) / "val.json"
        assert main(_arguments(served, root, out, *(["--method", method] if method != "served" else []))) == 0
        found[method] = json.loads(out.read_text()), _drafts(out)
    return found


def test_scores_by_the_method_and_states_it(by_method: dict[str, tuple[Any, list[Any]]]) -> None:
    assert by_method["mbr"][1] == by_method["served"][1]
    assert len({str(drafts) for _, drafts in by_method.values()}) >= 3  # two methods may agree
    assert by_method["beam"][1] != by_method["served"][1]
    for method, (result, _) in by_method.items():
        decoded = {"mbr": "consensus", "served": "consensus"}.get(method, method)
        assert result["decoding"]["method"] == decoded
        assert result["decoding"]["beam_size"] == (1 if method == "greedy" else 2)
        assert (f"decoded by {decoded}; the bundle serves consensus" in result["notes"]) == (decoded != "consensus")


def test_drafts_of_a_stopped_run_are_not_used_for_another_method(
    served: Path, root: Path, by_method: dict[str, tuple[Any, list[Any]]], tmp_path: Path
) -> None:
    page = tmp_path / "page"
    (page / "report.html").mkdir(parents=True)  # blocks the page: the run fails and leaves its drafts
    (page / ".gitignore").write_text(GITIGNORE)
    work = ["--work", str(tmp_path / "work")]
    stopped = _arguments(served, root, tmp_path / "a.json", *work, "--report", str(page))
    assert main(stopped) == 2
    assert list((tmp_path / "work").glob("drafts-*.jsonl"))
    assert main(_arguments(served, root, tmp_path / "b.json", *work, "--method", "beam")) == 0
    assert _drafts(tmp_path / "b.json") == by_method["beam"][1]


@pytest.mark.parametrize(
    ("retrieval", "options", "words"),
    [
        (True, ["--method", "mbr"], "--method consensus needs a table of training reports"),
        (False, ["--method", "rerank"], "--method rerank needs reference cases"),
        (True, ["--method", "greedy", "--beam-size", "3"], "leave --beam-size 3 out"),
    ],
)
def test_refuses_what_the_bundle_cannot_do(
    root: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture, retrieval: bool, options: list[str], words: str
) -> None:
    plain = write_tiny_bundle(tmp_path / "plain", retrieval=retrieval)
    assert main(_arguments(plain, root, tmp_path / "val.json", *options)) == 2
    assert words in caplog.text
    assert not (tmp_path / "val.json").exists()
