"""``python -m training.run`` on phantoms: killed in every stage, resumed, refused; its bundle drafts."""

from __future__ import annotations

import csv
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from model.bundle import load_bundle
from model.images import load_pixels
from model.types import StudyView, View
from retrieval_index.index import ReportIndex
from tests.support.paths import REPOSITORY
from tests.support.processes import fork, kill_when
from tests.support.tiny import largest_file, open_drafter
from training.config import RunConfig
from training.config_changes import configure, preset_and_changes
from training.data.openi import open_openi
from training.data.studies import Source
from training.model_card import CARD
from training.phantoms import write_phantom_root
from training.prepared_run import CONFIG_DOCUMENT
from training.presets import preset
from training.run import main
from training.run_manifest import check_resume_compatible, run_manifest, write_run_manifest
from training.stage_results import STAGES, missing_prerequisites

TRAIN, VAL = 24, 6
KILLS = {  # stage -> a file that appears while it runs
    "pretrain": "pretrain/checkpoint.pt",
    "retriever": "retriever/checkpoint.pt",
    "index": "index/files",
    "ce": "ce/checkpoint.pt",
    "scst": "scst/checkpoint.previous.pt",  # the first checkpoint holds the initial model
    "evaluate": "bundle",
}


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_phantom_root(tmp_path_factory.mktemp("phantoms"), train=TRAIN, val=VAL, test=4, seed=3, size=96)


def command(root: Path, out: Path, *more: str) -> list[str]:
    return [sys.executable, "-m", "training.run", "--dataset", "openi", "--root", str(root), "--preset", "smoke",
            "--backbone", "efficientnet_lite0", "--out", str(out), "--device", "cpu", *more]  # fmt: skip


def finish(process: subprocess.Popen[bytes], log: Path) -> str:
    """Waits for success; returns the log."""
    assert process.wait(300) == 0, log.read_text()[-3000:]
    return log.read_text()


def start(arguments: list[str], log: Path) -> subprocess.Popen[bytes]:
    """Starts a command on one thread, which fixes the order of sums."""
    with log.open("wb") as file:
        return subprocess.Popen(arguments, cwd=REPOSITORY, stdout=subprocess.DEVNULL, stderr=file,
                                env={**os.environ, "OMP_NUM_THREADS": "1"})  # fmt: skip


@pytest.fixture(scope="module")
def both(root: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """The bundles of an unbroken run and of a run that was killed in every stage; they run in parallel."""
    alone, broken = (tmp_path_factory.mktemp(name) / "B" for name in ("unbroken", "broken"))
    log = alone.with_name("log")
    with start(command(root, alone, "--logger", "csv"), log) as process:
        killed_amid_each_stage(root, broken)
        finish(process, log)
    return alone, broken


@pytest.fixture(scope="module")
def unbroken(both: tuple[Path, Path]) -> Path:
    return both[0]


@pytest.fixture(scope="module")
def bundle_path(both: tuple[Path, Path]) -> Path:
    return both[1]


def killed_amid_each_stage(root: Path, out: Path) -> None:
    """Kill a run in every stage, resume it each time, and let it end."""
    work, log = out.with_name("B.work"), out.with_name("log")
    more = ["--checkpoint-seconds", "0"]
    for stage, sign in KILLS.items():
        end = out if stage == "evaluate" else work / stage / "result.pt"
        kill_when(work / sign, fork(main, command(root, out, *more)[3:], log), log)
        assert not end.exists(), f"{stage} was over when {sign} was seen"
        more = ["--checkpoint-seconds", "0", "--resume"]
    last = fork(main, command(root, out, *more)[3:], log)
    last.join(300)
    assert last.exitcode == 0, log.read_text()[-3000:]
    assert "scst: done before" in log.read_text()


def same_weights(one: Path, other: Path) -> bool:
    """Whether two results of a stage hold the same weights, bit for bit."""
    first, second = (torch.load(path, weights_only=True)["model"] for path in (one, other))
    return first.keys() == second.keys() and all(torch.equal(first[key], second[key]) for key in first)


def test_killed_and_resumed_equals_unbroken(unbroken: Path, bundle_path: Path) -> None:
    for stage in ("pretrain", "retriever", "index", "ce", "scst"):
        results = (path.with_name("B.work") / stage / "result.pt" for path in (unbroken, bundle_path))
        assert same_weights(*results), stage
    index = ("index/reports.faiss", "index/cases.jsonl")
    for name in ("model.safetensors", "tokenizer.json", "consensus.safetensors", *index):
        assert (unbroken / name).read_bytes() == (bundle_path / name).read_bytes(), name


@pytest.fixture
def amid_ce(unbroken: Path, tmp_path: Path) -> Iterator[Path]:
    """The bundle path of a run that stopped after the first epoch of stage ``ce``."""
    work = tmp_path / "B.work"
    shutil.copytree(unbroken.with_name("B.work"), work)
    shutil.rmtree(work / "scst")
    (work / "ce" / "result.pt").unlink()
    os.replace(work / "ce" / "checkpoint.previous.pt", work / "ce" / "checkpoint.pt")
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # as the unbroken run
    yield tmp_path / "B"
    torch.set_num_threads(threads)


def test_failures_within_a_stage_name_the_remedy_and_keep_the_checkpoint(
    root: Path, unbroken: Path, amid_ce: Path, caplog: pytest.LogCaptureFixture
) -> None:
    def resume() -> int:
        caplog.clear()
        return main(command(root, amid_ce, "--resume", "--stages", "ce")[3:])

    work = amid_ce.with_name("B.work")
    assert (work / "evaluate" / "metrics.json").exists()
    checkpoint, features = work / "ce" / "checkpoint.pt", work / "cache" / "features-frozen.npy"
    good = checkpoint.read_bytes()

    with largest_file(1_000_000):
        assert resume() == 2
    assert "checkpoint.pt" in caplog.text
    assert "Free space there, then continue with --resume" in caplog.text
    assert checkpoint.read_bytes() == good
    assert not checkpoint.with_name("checkpoint.pt.tmp").exists()

    store = np.load(features, mmap_mode="r+")
    kept = np.array(store)
    store[:] = np.inf
    assert resume() == 2
    assert "embeddings of 12 of 12 studies are not finite. The last good checkpoint is kept" in caplog.text
    assert "remove the features-* files" in caplog.text
    assert checkpoint.read_bytes() == good
    store[:] = kept

    content = torch.load(checkpoint, weights_only=True)
    content["module"]["model.to_words.weight"][5] = float("nan")
    torch.save(content, checkpoint)
    poisoned = checkpoint.read_bytes()
    assert resume() == 2
    assert "ce: the loss is nan at step 2. The last good checkpoint is kept in" in caplog.text
    assert checkpoint.read_bytes() == poisoned  # nothing was written after it

    checkpoint.write_bytes(good[:-1000])
    assert resume() == 2
    assert "cannot be resumed. Remove" in caplog.text

    checkpoint.with_name("checkpoint.previous.pt").write_bytes(good)
    assert resume() == 0
    assert "continuing from the previous one" in caplog.text
    assert not (work / "evaluate" / "metrics.json").exists(), "metrics of replaced weights"
    assert same_weights(work / "ce" / "result.pt", unbroken.with_name("B.work") / "ce" / "result.pt")


def test_names_the_file_when_the_disk_is_full(
    root: Path, unbroken: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with largest_file(100_000):
        assert main(command(root, tmp_path / "B")[3:]) == 2
    assert "pixels-64.npy" in caplog.text
    assert "Free space there" in caplog.text
    work = ["--work", str(unbroken.with_name("B.work")), "--resume", "--stages", "bundle"]
    with largest_file(1_000_000):
        assert main(command(root, tmp_path / "C", *work)[3:]) == 2
    assert "model.safetensors cannot be written" in caplog.text
    assert not (tmp_path / "C").exists()


def test_bundle_has_configuration_and_card_and_the_log_has_the_changes(
    bundle_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    stored = bundle_path / CONFIG_DOCUMENT
    assert CONFIG_DOCUMENT in load_bundle(bundle_path).manifest.files
    assert main(["--config", str(stored), "--print-config"]) == 0
    assert capsys.readouterr().out == stored.read_text()
    run = json.loads((bundle_path.with_name("B.work") / "run.json").read_text())
    assert configure(*preset_and_changes(run["config"], "")).model_dump() == RunConfig(**run["config"]).model_dump()
    card = (bundle_path / CARD).read_text()
    assert CARD in load_bundle(bundle_path).manifest.files
    assert f"On {VAL} validation studies" in card
    assert load_bundle(bundle_path).config.licence in card
    changes = [line.partition("configuration: ")[2] for line in bundle_path.with_name("log").read_text().splitlines()]
    assert set(changes) == {"", 'shape.backbone = "efficientnet_lite0" ("densenet121" in preset smoke)'}


def test_experiment_logger_gets_every_stage_and_the_scores_on_val(unbroken: Path) -> None:
    with (unbroken.with_name("B.work") / "csv" / "version_0" / "metrics.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert {name.partition("/")[0] for name in rows[0]} == {"pretrain", "retriever", "ce", "scst", "evaluate", "step"}
    val = json.loads((unbroken / "metrics.json").read_text())["val"]["system"]
    assert float(rows[-1]["evaluate/CIDEr"]) == pytest.approx(val["CIDEr"], rel=1e-5)


def test_index_holds_training_studies_only_and_metrics_hold_the_baselines(root: Path, bundle_path: Path) -> None:
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
    for folder in (bundle_path, bundle_path.with_name("B.work") / "evaluate"):
        assert not any(report in (folder / "metrics.json").read_text() for report in val_reports)
    written = json.loads((bundle_path / "metrics.json").read_text())
    (chosen,) = written["chosen_on"]
    assert (chosen["what"], chosen["half"], chosen["n"]) == ("the epochs of training", None, VAL)
    assert metrics["selection"]["statement"] == f"chosen on these studies: the epochs of training ({VAL} of {VAL})"
    assert 0 <= written["pretrain"]["auroc_mean"] <= 1
    assert written["pretrain"]["findings"]["n"] >= VAL
    assert set(metrics["finding_auroc"]) == {"labeler", "table"}
    cases = written["retrieval"]  # folds: by retrievers that have not seen the studies
    for name in ("cider_top5", "train_cider_top5", "train_in_fold_cider_top5"):
        assert 0 <= cases[name] <= 10
    assert cases["train_cider_random"] == cases["train_in_fold_cider_random"]


def test_meteor_is_computed_where_java_is_installed(unbroken: Path) -> None:
    java = shutil.which("java")
    runs = java is not None and subprocess.run([java, "-version"], capture_output=True, check=False).returncode == 0
    metrics = json.loads((unbroken / "metrics.json").read_text())["val"]["system"]
    assert (metrics["METEOR"] is not None) == runs


def test_bundle_drafts_a_val_study_from_other_cases(root: Path, bundle_path: Path) -> None:
    drafter = open_drafter(bundle_path)
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


def test_rejects_used_work_directory_changed_run_and_bad_arguments(
    root: Path, bundle_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    base = ["--root", str(root), "--preset", "smoke", "--backbone", "efficientnet_lite0", "--device", "cpu"]
    elsewhere = ["--out", str(bundle_path) + "-other", "--work", str(bundle_path.with_name("B.work"))]
    assert main([*base, *elsewhere]) == 2
    assert "add --resume" in caplog.text
    assert main([*base, *elsewhere, "--resume", "--seed", "7"]) == 2
    assert "config.seed (1 -> 7)" in caplog.text
    assert main([*base, *elsewhere, "--resume", "--preset", "compact"]) == 2
    assert "config.preset (smoke -> compact)" in caplog.text
    assert "choose another --work" in caplog.text
    scores = bundle_path.with_name("other-scores.csv")
    scores.write_text("image_id,Mass\n")
    assert main([*base, *elsewhere, "--resume", "--soft-scores", str(scores)]) == 2
    assert "the content of --soft-scores (or chexnet_scores.csv in --root); resume it with" in caplog.messages[-1]
    assert main([*base, "--out", str(bundle_path)]) == 2
    assert "already exists" in caplog.text
    assert main(["--dataset", "r2gen", "--out", str(bundle_path) + "-x"]) == 2
    assert "--annotation FILE and --images DIR" in caplog.text
    assert main([*base, "--out", str(bundle_path) + "-y", "--backbone-weights", "gone.pth"]) == 2
    assert "no such file" in caplog.text
    annotation = bundle_path.with_name("annotation.json")
    annotation.write_text(json.dumps({"train": [{"id": "a/b", "report": "Clear.", "image_path": ["x.png"]}]}))
    data = ["--dataset", "r2gen", "--annotation", str(annotation), "--images", str(root)]
    assert main([*data, "--preset", "smoke", "--device", "cpu", "--out", str(bundle_path) + "-z"]) == 2
    assert "case_id 'a/b': give 1 to 64 letters" in caplog.text


ALL = ("pretrain", "retriever", "index", "ce")


@pytest.mark.parametrize(
    ("name", "weights", "stages", "done", "missing"),
    [
        ("smoke", "none", STAGES, (), []),
        ("smoke", "none", ("pretrain",), (), []),
        ("smoke", "none", ("evaluate", "bundle"), ALL, []),  # scst may be left out
        ("smoke", "none", ("ce", "bundle"), (), [("pretrain", "ce"), ("retriever", "ce"), ("index", "ce")]),
        ("smoke", "imagenet", ("retriever", "index", "ce"), (), []),
        ("smoke", "none", ("scst",), ("ce",), [("index", "scst")]),  # the weights are in the result of ce
        ("smoke", "none", ("evaluate",), ("pretrain", "retriever", "index"), [("ce", "evaluate")]),
        ("smoke", "none", ("ce",), ("pretrain", "index"), []),
        ("densenet", "imagenet", ("ce",), (), []),
        ("densenet", "imagenet", ("bundle",), (), [("ce", "bundle")]),
    ],
)
def test_finds_missing_prerequisites_of_stages(
    name: str, weights: str, stages: tuple[str, ...], done: tuple[str, ...], missing: list[tuple[str, str]]
) -> None:
    config = preset(name).model_copy(update={"backbone_weights": weights})
    assert list(missing_prerequisites(config, stages, done)) == missing


def test_rejects_missing_prerequisite_before_any_stage_runs(
    root: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    assert main(command(root, tmp_path / "B", "--stages", "index,ce,evaluate")[3:]) == 2
    assert "stage pretrain was left out and has no result in" in caplog.text
    assert "and stage index needs it; add it to --stages" in caplog.text
    assert not (tmp_path / "B.work" / "index").exists()


def test_resume_names_changed_inputs_and_accepts_manifests_of_0_1(
    root: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    source, config = open_openi(root), preset("smoke")
    scores, labels = tmp_path / "scores.csv", tmp_path / "labels.csv"
    scores.write_text("image_id,Mass\n")
    labels.write_text("study_id\n")

    def again(
        *, of: Source = source, precision: str = "bf16", table: Path | None = labels, resume: bool = True
    ) -> None:
        content = run_manifest(config, of, precision, soft_scores=scores, label_table=table)
        check_resume_compatible(tmp_path / "work", content, resume=resume)
        if not resume:
            write_run_manifest(tmp_path / "work", content)

    again(resume=False)
    kept = (tmp_path / "work" / "run.json").read_text()
    again()
    assert not caplog.messages
    again(precision="fp32")  # the remedy for a loss that is not finite
    assert "began in bf16 and continues in fp32" in caplog.text
    with pytest.raises(ValueError, match=r"in the content of --reference-labels \(or chexbert_labels.csv in --root\);"):
        again(table=None)
    study = source.split("val")[0]
    other = tuple(replace(s, report=f"{s.report} No more.") if s is study else s for s in source.studies)
    with pytest.raises(ValueError, match="in the ids or reports of its train and val studies; resume it with the same"):
        again(of=replace(source, studies=other))
    scores.write_text("image_id,Hernia\n")
    with pytest.raises(ValueError, match=r"in the content of --soft-scores .* choose another --work"):
        again()
    assert (tmp_path / "work" / "run.json").read_text() == kept
    assert study.report not in kept
    older = {name: value for name, value in json.loads(kept).items() if name not in ("inputs", "precision")}
    older["config"]["ce"]["visual_lr"] = older["config"]["ce"].pop("backbone_lr")  # as 0.1 wrote it
    (tmp_path / "work" / "run.json").write_text(json.dumps(older))
    again()


def test_bundle_without_texts_holds_no_report(root: Path, bundle_path: Path, tmp_path: Path) -> None:
    out = tmp_path / "public"
    files = bundle_path.with_name("B.work") / "index" / "files"
    shutil.copy(files / "cases.jsonl", files / ".cases.jsonl.killed.tmp")  # a kill during its writing leaves it
    work = ["--work", str(bundle_path.with_name("B.work")), "--resume", "--without-texts", "--stages", "bundle"]
    assert main([*command(root, out, *work)[3:], "--data-licence", "drawn, CC0"]) == 0
    assert load_bundle(out).config.licence.startswith("Weights learned from data whose licence is drawn, CC0.")
    assert "Indiana" in load_bundle(bundle_path).config.licence  # of data set openi, without the option
    index = ReportIndex.load(out / "index")
    assert {index.case(row).findings for row in range(len(index))} == {None}
    kept, written = (json.loads((path / "metrics.json").read_text()) for path in (bundle_path, out))
    assert written["val"]["n"] == VAL  # of the evaluation before
    assert written == kept
    content = b"".join(path.read_bytes() for path in out.rglob("*") if path.is_file())
    assert not any(study.report.encode() in content for study in open_openi(root).split("train"))
