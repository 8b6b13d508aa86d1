"""Killed evaluations, calibrations and tunings draft only the rest, and give the results of an unbroken run."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from model.config import DecodingConfig
from model.drafter import Drafter
from tests.support.processes import fork, kill_when
from tests.support.tiny import write_tiny_bundle
from training import calibrate, evaluate, tune_decoding
from training.data.resumable_lines import ResumableLines
from training.phantoms import write_phantom_root

VAL = 14
Main = Callable[[list[str]], int]


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_phantom_root(tmp_path_factory.mktemp("data") / "root", train=20, val=VAL, seed=3, size=96)


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    decoding = DecodingConfig(method="consensus", candidates=2, temperature=1.0)
    return write_tiny_bundle(tmp_path_factory.mktemp("bundles") / "B", decoding=decoding)


def kept(path: Path) -> list[Any]:
    """The results of each complete line of a file of drafts."""
    lines = path.read_bytes().splitlines(keepends=True)[1:] if path.exists() else []
    return [json.loads(line)["results"] for line in lines if line.endswith(b"\n")]


def kill_after(lines: int, pattern: str, folder: Path, main: Main, arguments: list[str]) -> Path:
    """Kill a command once it has written so many lines to the one file of ``pattern``; returns this file."""

    def reached() -> bool:
        return any(len(kept(path)) >= lines for path in folder.glob(pattern))

    log = folder / "log"
    folder.mkdir(exist_ok=True)
    kill_when(reached, fork(main, arguments, log), log)
    log.unlink()
    (path,) = folder.glob(pattern)
    return path


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture
def drafted(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The number of studies in each call of the drafter."""
    sizes: list[int] = []
    real = Drafter.draft

    def draft(self: Drafter, studies: Any, *arguments: Any, **options: Any) -> Any:
        sizes.append(len(studies))
        return real(self, studies, *arguments, **options)

    monkeypatch.setattr(Drafter, "draft", draft)
    return sizes


# --- evaluate ---------------------------------------------------------------------------------------------------------


def evaluation(root: Path, bundle: Path, folder: Path, *more: str) -> list[str]:
    return ["--bundle", str(bundle), "--root", str(root), "--out", str(folder / "val.json"), "--device", "cpu",
            "--batch-size", "3", "--no-meteor", "--draws", "0", "--counterfactuals", *more]  # fmt: skip


@pytest.fixture(scope="module")
def unbroken(root: Path, bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """The files of an evaluation that was not interrupted."""
    folder = tmp_path_factory.mktemp("unbroken")
    assert evaluate.main(evaluation(root, bundle, folder)) == 0
    return contents(folder)


def test_killed_evaluation_drafts_only_the_rest(
    root: Path, bundle: Path, unbroken: dict[str, bytes], drafted: list[int], tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    folder = tmp_path / "killed"
    arguments = evaluation(root, bundle, folder)
    path = kill_after(2, "val.work/drafts-*.jsonl", folder, evaluate.main, arguments)
    finished = kept(path)
    done = sum(len(batch) for batch in finished)
    assert 0 < done < VAL, "the evaluation was over before it was killed"
    assert not (folder / "val.predictions.jsonl").exists()
    with path.open("ab") as file:
        file.write(b'{"key": "')  # the line that the end of a process truncates
    with caplog.at_level(logging.INFO):
        assert evaluate.main(arguments) == 0
    assert f"draft: resumed {done} of {VAL} studies" in caplog.text
    assert sum(drafted) == 4 * VAL - done  # of the system and of three counterfactual rows
    assert contents(folder) == unbroken


def test_evaluation_killed_amid_counterfactuals_has_its_predictions(
    root: Path, bundle: Path, unbroken: dict[str, bytes], drafted: list[int], tmp_path: Path
) -> None:
    folder = tmp_path / "killed"
    path = kill_after(VAL // 3 + 3, "val.work/drafts-*.jsonl", folder, evaluate.main, evaluation(root, bundle, folder))
    done = sum(len(batch) for batch in kept(path))
    assert VAL < done < 4 * VAL
    assert (folder / "val.predictions.jsonl").read_bytes() == unbroken["val.predictions.jsonl"]
    assert evaluate.main(evaluation(root, bundle, folder)) == 0
    assert sum(drafted) == 4 * VAL - done
    assert contents(folder) == unbroken


def test_evaluation_starts_over_for_other_inputs_or_on_request(
    root: Path, bundle: Path, unbroken: dict[str, bytes], drafted: list[int], tmp_path: Path
) -> None:
    folder = tmp_path / "killed"
    kill_after(2, "val.work/drafts-*.jsonl", folder, evaluate.main, evaluation(root, bundle, folder))
    assert evaluate.main([*evaluation(root, bundle, folder), "--limit", "2", "--beam-size", "2"]) == 0
    assert sum(drafted) == 4 * 2
    drafted.clear()
    assert evaluate.main(evaluation(root, bundle, folder, "--no-resume")) == 0
    assert sum(drafted) == 4 * VAL
    assert contents(folder)["val.predictions.jsonl"] == unbroken["val.predictions.jsonl"]


def test_second_evaluation_in_the_same_folder_is_refused(
    root: Path, bundle: Path, drafted: list[int], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = tmp_path / "two"
    path = kill_after(1, "val.work/drafts-*.jsonl", folder, evaluate.main, evaluation(root, bundle, folder))
    before = path.read_bytes()
    with ResumableLines(path, json.loads(before.splitlines()[0])["identity"]):
        assert evaluate.main(evaluation(root, bundle, folder)) == 2
    assert f"another command writes {path}; wait until it ends" in caplog.text
    assert drafted == []
    assert path.read_bytes() == before


# --- calibrate and tune_decoding --------------------------------------------------------------------------------------


def test_killed_calibration_drafts_only_the_rest(root: Path, bundle: Path, drafted: list[int], tmp_path: Path) -> None:
    def arguments(folder: Path) -> list[str]:
        return ["--bundle", str(bundle), "--root", str(root), "--work", str(folder / "work"), "--device", "cpu",
                "--out", str(folder / "out")]  # fmt: skip

    killed, whole = tmp_path / "killed", tmp_path / "whole"
    path = kill_after(2, "work/drafts.jsonl", killed, calibrate.main, arguments(killed))
    done = len(kept(path))
    assert 0 < done < VAL, "the calibration was over before it was killed"
    assert not (killed / "out").exists()
    assert calibrate.main(arguments(killed)) == 0
    assert sum(drafted) == VAL - done
    assert calibrate.main(arguments(whole)) == 0
    assert contents(killed) == contents(whole)


def test_killed_tuning_draws_only_the_rest(
    root: Path, bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def arguments(folder: Path) -> list[str]:
        return ["--bundle", str(bundle), "--root", str(root), "--out", str(folder / "decoding.json"),
                "--device", "cpu"]  # fmt: skip

    calls: dict[str, int] = {"draw_candidates": 0, "mbr_search": 0}

    def count(name: str) -> None:
        real = getattr(tune_decoding, name)

        def counted(*inputs: Any) -> Any:
            calls[name] += 1
            return real(*inputs)

        monkeypatch.setattr(tune_decoding, name, counted)

    killed, whole = tmp_path / "killed", tmp_path / "whole"
    path = kill_after(1, "decoding.work/candidates.jsonl", killed, tune_decoding.main, arguments(killed))
    batches = -(-VAL // 16)
    kill_after(batches + 2, "decoding.work/candidates.jsonl", killed, tune_decoding.main, arguments(killed))
    trials = len(kept(path)) - batches
    assert not (killed / "decoding.json").exists()
    for name in calls:
        count(name)
    assert tune_decoding.main(arguments(killed)) == 0
    rest = calls["mbr_search"]
    assert calls["draw_candidates"] == 0
    assert tune_decoding.main(arguments(whole)) == 0
    assert calls["draw_candidates"] == batches
    assert calls["mbr_search"] == rest + trials + rest
    assert contents(killed) == contents(whole)
