"""``python -m training.run`` as a user runs it: phantoms in, killed, resumed, a bundle that drafts out."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from model.bundle import load_bundle
from model.drafter import Drafter, StudyView
from model.images import load_pixels
from model.views import View
from retrieval_index.index import ReportIndex
from training.openi import open_openi
from training.phantom import write_phantom_root
from training.run import main

REPOSITORY = Path(__file__).resolve().parent.parent
TRAIN, VAL = 24, 6


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_phantom_root(tmp_path_factory.mktemp("phantoms"), train=TRAIN, val=VAL, test=4, seed=3, size=96)


def command(root: Path, out: Path, *more: str) -> list[str]:
    return [sys.executable, "-m", "training.run", "--dataset", "openi", "--root", str(root), "--preset", "smoke",
            "--out", str(out), "--device", "cpu", *more]  # fmt: skip


def start(arguments: list[str]) -> subprocess.Popen[str]:
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}  # one thread: sums are added in one order
    return subprocess.Popen(arguments, cwd=REPOSITORY, env=environment, text=True,
                            stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)  # fmt: skip


def finish(arguments: list[str]) -> str:
    process = start(arguments)
    _, log = process.communicate(timeout=300)
    assert process.returncode == 0, log[-3000:]
    return log


def kill_when(process: subprocess.Popen[str], sign: Path) -> None:
    """SIGKILL as soon as a file appears."""
    deadline = time.monotonic() + 240
    while not sign.exists():
        assert process.poll() is None, process.communicate()[1][-3000:]
        assert time.monotonic() < deadline, f"{sign} did not appear"
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.communicate()


@pytest.fixture(scope="module")
def bundle_path(root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle of a run that was killed in two stages and resumed twice."""
    out = tmp_path_factory.mktemp("broken") / "B"
    work = out.with_name("B.work")
    kill_when(start(command(root, out)), work / "retriever" / "checkpoint.pt")
    kill_when(start(command(root, out, "--resume")), work / "ce" / "checkpoint.pt")
    assert not out.exists()
    log = finish(command(root, out, "--resume"))
    assert "retriever: done before" in log
    return out


def test_killed_and_resumed_equals_unbroken(root: Path, bundle_path: Path, tmp_path: Path) -> None:
    unbroken = tmp_path / "B"
    finish(command(root, unbroken))
    index = ("index/reports.faiss", "index/cases.jsonl")
    for name in ("model.safetensors", "tokenizer.json", "consensus.safetensors", *index):
        assert (unbroken / name).read_bytes() == (bundle_path / name).read_bytes(), name


def test_the_run_leaves_logs_and_curves(bundle_path: Path) -> None:
    work = bundle_path.with_name("B.work")
    for stage in ("pretrain", "retriever", "ce"):
        assert (work / stage / "log.csv").read_text().startswith("epoch,")
        assert (work / stage / "curves.png").stat().st_size > 1000
        assert list((work / stage / "tensorboard").iterdir())


def test_only_training_studies_are_cases_and_the_figures_stand_beside_the_constant(
    root: Path, bundle_path: Path
) -> None:
    bundle = load_bundle(bundle_path)
    index = ReportIndex.load(bundle_path / "index", expected_sha256=bundle.index_sha256())
    source = open_openi(root)
    cases = {index.case(row).case_id for row in range(len(index))}
    assert cases == {study.study_id for study in source.split("train")}
    assert bundle.config.trained_on["train_studies"] == TRAIN
    metrics = json.loads((bundle_path / "metrics.json").read_text())["val"]
    assert metrics["n"] == VAL
    assert metrics["baselines"]["constant"]["BLEU_4"] > 0
    assert {"system", "system_full", "system_images_exchanged"} <= metrics.keys()
    val_reports = [study.report for study in source.split("val")]
    assert not any(report in (bundle_path / "metrics.json").read_text() for report in val_reports)


def test_the_bundle_drafts_a_val_study_and_never_shows_it_as_its_own_case(root: Path, bundle_path: Path) -> None:
    bundle = load_bundle(bundle_path)
    drafter = Drafter(bundle, ReportIndex.load(bundle_path / "index"))
    source = open_openi(root)
    study = source.split("val")[0]
    images = dict(source.images.iter([ref.key for ref in study.images]))
    views = [
        StudyView(load_pixels(images[ref.key] or b"", drafter.image_size), ref.view or View.FRONTAL)
        for ref in study.ordered()
    ]
    draft = drafter.draft([views])[0]
    assert draft.findings
    assert len(draft.reference_cases) == 5
    assert study.study_id not in {case.case_id for case in draft.reference_cases}


def test_an_occupied_work_directory_a_changed_run_and_bad_arguments_are_refused(
    root: Path, bundle_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    base = ["--dataset", "openi", "--root", str(root), "--preset", "smoke", "--device", "cpu"]
    elsewhere = ["--out", str(bundle_path) + "-other", "--work", str(bundle_path.with_name("B.work"))]
    assert main([*base, *elsewhere]) == 2
    assert "add --resume" in caplog.text
    assert main([*base, *elsewhere, "--resume", "--seed", "7"]) == 2
    assert "config.seed (1 -> 7)" in caplog.text
    assert main([*base, "--out", str(bundle_path)]) == 2
    assert "already exists" in caplog.text
    assert main(["--dataset", "r2gen", "--out", str(bundle_path) + "-x"]) == 2
    assert "--annotation FILE and --images DIR" in caplog.text
    assert main([*base, "--out", str(bundle_path) + "-y", "--backbone-weights", "gone.pth"]) == 2
    assert "no such file" in caplog.text


def test_texts_can_be_left_out(root: Path, bundle_path: Path, tmp_path: Path) -> None:
    out = tmp_path / "public"
    arguments = ["--dataset", "openi", "--root", str(root), "--preset", "smoke", "--device", "cpu", "--out", str(out),
                 "--work", str(bundle_path.with_name("B.work")), "--resume", "--without-texts",
                 "--stages", "bundle"]  # fmt: skip
    assert main(arguments) == 0
    index = ReportIndex.load(out / "index")
    assert {index.case(row).findings for row in range(len(index))} == {None}
    content = b"".join(path.read_bytes() for path in out.rglob("*") if path.is_file())
    assert not any(study.report.encode() in content for study in open_openi(root).split("train"))
