"""A small ablation from the command line: killed, resumed, with a failed cell, scored on external images."""

from __future__ import annotations

import csv
import json
import signal
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from tests.support.paths import REPOSITORY
from tests.support.processes import ENVIRONMENT, fork, kill_when
from training.ablation import runner
from training.ablation.__main__ import main
from training.ablation.cell import main as run_cell_here
from training.ablation.rows import SCALES
from training.ablation.table import read_draws
from training.data.openi import open_openi
from training.openi import annotation
from training.phantoms import make_phantom, write_phantom_root
from training.scoring.metrics import METRICS, score

VAL = 5

SCALE = {
    "name": "tiny",
    "overrides": {**SCALES["smoke"].overrides, "shape.max_length": 16, "ce.epochs": 1, "retriever.epochs": 1,
                  "decoding.beam_size": 1},
    "pretrain": {"epochs_by_size": [[64, 1]], "ema": 0.9},
    "train_limit": 12,
}  # fmt: skip


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with phantoms, outside images with a table, and a scale."""
    base = tmp_path_factory.mktemp("ablation")
    write_phantom_root(base / "root", train=16, val=VAL, test=2, seed=3, size=64)
    (base / "outside").mkdir()
    with (base / "outside.csv").open("w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(["image_id", "view_position", "Cardiomegaly", "Hernia"])
        for number in range(4):
            large = number % 2
            chest = make_phantom(number, frozenset({"cardiomegaly"}) if large else frozenset(), size=64)
            Image.fromarray(chest.frontal).save(base / "outside" / f"{number}.png")
            rows.writerow([number, "AP", large, 0])
    (base / "scale.json").write_text(json.dumps(SCALE))
    return base


def arguments(base: Path, out: Path, *more: str, rows: str = "retrieval,retrieval-scst") -> list[str]:
    """``rows`` have a small backbone; with none, ``more`` names the rows."""
    table = base / f"rows-{rows}.json"
    table.write_text(json.dumps({row: {"shape.backbone": "mobilenet_v3_small"} for row in rows.split(",")}))
    return ["--root", str(base / "root"), "--out", str(out), "--seeds", "1", "--device", "cpu", "--precision", "fp32",
            "--backbone-weights", "none", "--scale", str(base / "scale.json"),
            *(("--rows", str(table)) if rows else ()), *more]  # fmt: skip


def outside(base: Path, *more: str) -> tuple[str, ...]:
    return ("--external-images", str(base / "outside"), "--external-labels", str(base / "outside.csv"), *more)


@pytest.fixture(scope="module", autouse=True)
def _one_thread() -> Iterator[None]:
    """One thread fixes the order of sums in every training process; METEOR is left out."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    with pytest.MonkeyPatch.context() as patch:
        for name, value in {**ENVIRONMENT, "PYTHONPATH": str(REPOSITORY)}.items():
            patch.setenv(name, value)
        yield
    torch.set_num_threads(threads)


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Runs cells in this process, which saves seconds each, and lists them."""
    names: list[str] = []

    def run(folder: Path) -> int:
        names.append(folder.name)
        return run_cell_here([str(folder)])

    monkeypatch.setattr(runner, "run_cell_process", run)
    return names


@pytest.fixture(scope="module")
def out(base: Path) -> Path:
    """An ablation that was killed in the middle of its first cell and run again, then with forked cells."""
    out = base / "out"
    log = base / "log"
    process = fork(main, arguments(base, out, *outside(base)), log)
    kill_when(out / "cells" / "retrieval-seed1" / "retriever" / "result.pt", process, log)
    assert not (out / "ablation.json").exists()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(runner, "run_cell_process", forked_cell)
        assert main(arguments(base, out, *outside(base))) == 0
    return out


def forked_cell(folder: Path) -> int | None:
    """Run a cell in a process that imports nothing again."""
    process = fork(run_cell_here, [str(folder)], folder.with_name(f"{folder.name}-log"))
    process.join()
    return process.exitcode


def cell(out: Path, row: str) -> Path:
    return out / "cells" / f"{row}-seed1"


def test_killed_ablation_finishes_every_cell_when_run_again(out: Path) -> None:
    result = json.loads((out / "ablation.json").read_text())
    assert [(one["row"], one["seed"]) for one in result["cells_done"]] == [("retrieval", 1), ("retrieval-scst", 1)]
    assert result["cells_failed"] == []
    assert "retriever: done before" in (cell(out, "retrieval") / "cell.log").read_text()
    assert result["size"]["training studies"] == 12
    assert result["size"]["validation studies scored"] == VAL
    for row, entry in result["table"]["rows"].items():
        lines = [json.loads(line) for line in (cell(out, row) / "evaluate" / "val.jsonl").read_text().splitlines()]
        assert len(lines) == VAL
        expected = score([(line["reference"], line["prediction"]) for line in lines])
        for name in set(METRICS) - {"METEOR"}:
            assert entry["figures"][name]["mean"] == pytest.approx(expected[name]), name
        assert entry["external"]["label_f1_micro"]["values"].keys() == {"1"}
    assert set(result["table"]["trivial"]) == {"constant", "most_frequent", "random", "nearest"}
    assert result["cells_done"][0]["external"]["n"] == 4


def test_writes_markdown_csv_and_plot_without_report_texts(out: Path) -> None:
    text = (out / "ablation.md").read_text()
    for words in ("**retrieval-scst**", "95 %, studies", "*constant*", "(`scst`)", "As published (not measured here)",
                  "Without a counterpart: Hernia", ".1813"):  # fmt: skip
        assert words in text, words
    rows = list(csv.DictReader((out / "ablation.csv").read_text().splitlines()))
    assert {(row["row"], row["set"]) for row in rows} >= {("retrieval", "val"), ("retrieval", "external")}
    assert Image.open(out / "ablation.png").size > (400, 200)
    reports = {json.loads(line)["reference_full"] for line in (
        cell(out, "retrieval") / "evaluate" / "val.jsonl").read_text().splitlines()}  # fmt: skip
    written = "".join((out / f"ablation.{kind}").read_text() for kind in ("json", "md", "csv"))
    assert not any(report in written for report in reports)


def test_shared_stages_equal_stages_trained_again(out: Path, base: Path, started: list[str]) -> None:
    alone = base / "alone"
    assert main(arguments(base, alone, rows="retrieval-scst")) == 0
    shared, separate = (
        json.loads((cell(where, "retrieval-scst") / "result.json").read_text()) for where in (out, alone)
    )
    assert shared["reused"] == {"row": "retrieval", "stages": ["pretrain", "retriever", "index", "ce"]}
    assert separate["reused"] is None
    for name in ("model.safetensors", "index/reports.faiss"):
        files = [(cell(where, "retrieval-scst") / "bundle" / name).read_bytes() for where in (out, alone)]
        assert files[0] == files[1], name
    drawn = [read_draws(cell(where, "retrieval-scst") / "draws.npz")["CIDEr"] for where in (out, alone)]
    assert np.array_equal(*drawn)


def test_finished_cells_are_only_scored_on_a_new_external_set(out: Path, base: Path, started: list[str]) -> None:
    results = [cell(out, row) / "result.json" for row in ("retrieval", "retrieval-scst")]
    before = [path.stat().st_mtime_ns for path in results]
    assert main(arguments(base, out, *outside(base))) == 0
    assert started == []
    assert main(arguments(base, out, *outside(base, "--external-limit", "2"))) == 0
    assert started == ["retrieval-seed1", "retrieval-scst-seed1"]
    assert [path.stat().st_mtime_ns for path in results] == before
    result = json.loads((out / "ablation.json").read_text())
    assert [one["external"]["n"] for one in result["cells_done"]] == [2, 2]


def test_failed_cell_is_named_and_run_again_after_repair(out: Path, base: Path, started: list[str]) -> None:
    for row in ("retrieval", "retrieval-scst"):
        (cell(out, row) / "result.json").unlink()
    broken = cell(out, "retrieval") / "ce" / "result.pt"
    whole = broken.read_bytes()
    broken.unlink()  # the other cell holds a link to it
    broken.write_bytes(b"nothing")
    assert main(arguments(base, out, *outside(base))) == 1
    result = json.loads((out / "ablation.json").read_text())
    assert [one["row"] for one in result["cells_done"]] == ["retrieval-scst"]
    (failed,) = result["cells_failed"]
    assert (failed["row"], failed["seed"]) == ("retrieval", 1)
    assert "result.pt cannot be used" in failed["reason"]
    assert failed["reason"] in (out / "ablation.md").read_text()
    assert "**Partial: 1 of 2 cells are finished.**" in (out / "ablation.md").read_text()
    assert started == ["retrieval-seed1", "retrieval-scst-seed1"]
    broken.write_bytes(whole)
    assert main(arguments(base, out, *outside(base))) == 0
    assert started[2:] == ["retrieval-seed1"]
    assert json.loads((out / "ablation.json").read_text())["cells_failed"] == []


def test_killed_cell_process_is_named(out: Path, base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runner, "run_cell_process", lambda folder: -signal.SIGKILL)
    elsewhere = base / "ended"
    assert main(arguments(base, elsewhere, rows="retrieval")) == 1
    (failed,) = json.loads((elsewhere / "ablation.json").read_text())["cells_failed"]
    assert failed["reason"] == "its process was ended by SIGKILL (perhaps out of memory); see retrieval-seed1/cell.log"
    assert not (elsewhere / "ablation.png").exists()


def test_refuses_unusable_arguments_and_a_locked_folder(
    out: Path, base: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    (base / "other.json").write_text(json.dumps({**SCALE, "train_limit": 11}))
    assert main([*arguments(base, out), "--scale", str(base / "other.json")]) == 2
    assert "retrieval-seed1 has other settings: train_limit (12 -> 11)" in caplog.text
    assert main([*arguments(base, out), "--external-labels", "x.csv"]) == 2
    assert "need --external-images DIR" in caplog.text
    assert main([*arguments(base, out), *outside(base)[:2]]) == 2
    assert "needs --external-labels FILE or --external-annotation FILE" in caplog.text
    assert main([*arguments(base, out), "--soft-scores", str(base / "gone.csv")]) == 2
    assert "gone.csv: no such file" in caplog.text
    monkeypatch.setattr(runner, "_LOCK_TIMEOUT_S", 0.0)
    with runner.file_lock(out):
        assert main(arguments(base, out)) == 2
    assert "another ablation works in" in caplog.text
    one_file = arguments(base, base / "other", "--presets", "baseline,densenet", rows="")
    assert main(["x.pth" if word == "none" else word for word in one_file]) == 2
    assert "one file cannot fit densenet121 and resnet101" in caplog.text


def test_reports_of_another_source_are_scored(out: Path, base: Path, started: list[str]) -> None:
    table = base / "other-source.json"
    write_phantom_root(base / "other-source", train=0, val=0, test=3, seed=8, size=64)
    table.write_text(json.dumps(annotation(open_openi(base / "other-source"))))
    more = ("--external-images", str(base / "other-source" / "images"), "--external-annotation", str(table))
    assert main(arguments(base, out, *more)) == 0
    first = json.loads((cell(out, "retrieval") / "external.json").read_text())
    assert (first["n"], first["split"]) == (3, "test")
    rows = list(csv.DictReader((out / "ablation.csv").read_text().splitlines()))
    assert {row["figure"] for row in rows if row["set"] == "external"} >= {"BLEU_4", "CIDEr", "label_f1_micro"}


def test_rows_of_a_file_are_trained_and_compared(base: Path, tmp_path: Path, started: list[str]) -> None:
    rows, out = tmp_path / "rows.toml", tmp_path / "out"
    rows.write_text("""
plain = { preset = "baseline", "shape.backbone" = "mobilenet_v3_small" }
smooth = { preset = "baseline", "shape.backbone" = "mobilenet_v3_small", ce = { label_smoothing = 0.1 } }
""")
    more = ["--rows", str(rows)]
    assert main(arguments(base, out, *more, rows="")) == 0
    assert started == ["plain-seed1", "smooth-seed1"]
    result = json.loads((out / "ablation.json").read_text())
    assert [one["row"] for one in result["cells_done"]] == ["plain", "smooth"]
    assert result["changes"] == {"smooth": ["ce.label_smoothing"]}
    assert result["configs"]["smooth"]["shape"]["backbone"] == "mobilenet_v3_small"
    assert result["table"]["steps"]["smooth"]["before"] == "plain"
    text = (out / "ablation.md").read_text()
    assert "| smooth − plain | (`ce.label_smoothing`) |" in text
    assert main(arguments(base, tmp_path / "none", "--presets", "retrieval", *more, rows="")) == 2
    assert not (tmp_path / "none").exists()


def test_published_baseline_is_trained_beside_ours(base: Path, tmp_path: Path, started: list[str]) -> None:
    scale = {**SCALE, "pretrain": None, "overrides": {**SCALE["overrides"], "shape.max_length": 24}}
    path = tmp_path / "scale.json"
    path.write_text(json.dumps(scale))
    assert main(arguments(base, tmp_path / "out", "--scale", str(path), rows="r2gencmn,baseline")) == 0
    assert started == ["r2gencmn-seed1", "baseline-seed1"]
    folder = cell(tmp_path / "out", "r2gencmn")
    config = json.loads((folder / "bundle" / "config.json").read_text())
    assert config["preprocessing"] == {"image_size": 64, "resample": "bilinear", "view_order": "as_given"}
    assert (config["model"]["norm"], config["model"]["view_embeddings"]) == ("r2gen", False)
    log = list(csv.DictReader((folder / "ce" / "log.csv").open()))
    assert float(log[0]["lr"]) == 5e-4
    assert "val_BLEU_4" in log[0]
    text = (tmp_path / "out" / "ablation.md").read_text()
    assert "**baseline, as published**" in text
    assert (
        "baseline − baseline, as published | ResNet-101, trained by the recipe of the rows below (`augmentation" in text
    )
