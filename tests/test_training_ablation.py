"""The ablation: rows that differ by one change, the table's arithmetic, a run that is killed, broken and resumed."""

from __future__ import annotations

import csv
import json
import signal
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from tests.support.processes import ENVIRONMENT, fork, kill_when
from tests.support.tiny import REPORTS
from training.ablation import runner as work
from training.ablation.__main__ import main
from training.ablation.bootstrap_io import read_draws
from training.ablation.cell import main as run_cell_here
from training.ablation.report import shown
from training.ablation.rows import ROWS, SCALES, Scale, changes, parse_weights, read_scale, resolve, shared_stages
from training.ablation.table import Cell, ScoreSummary, average, seed_interval, step, summary, tabulate
from training.config import RunConfig
from training.data.openi import open_openi
from training.openi import annotation
from training.phantoms import make_phantom, write_phantom_root
from training.scoring.bootstrap import Bootstrap
from training.scoring.metrics import METRICS, score
from training.scoring.protocol import full_prediction, full_reference

REPOSITORY = Path(__file__).resolve().parent.parent
VAL = 5

# --- rows -------------------------------------------------------------------------------------------------------------

ONE_CHANGE = {
    "densenet": ("shape.backbone",),
    "densenet-lr": ("ce.backbone_lr",),
    "retrieval": ("retrieval_k", "retriever"),  # the cases, and the stage that finds them
    "retrieval-scst": ("scst",),
}


def configs(scale: Scale, seed: int = 1) -> list[RunConfig]:
    return [resolve(row, seed=seed, scale=scale, weights="none") for row in ROWS]


@pytest.mark.parametrize("scale", SCALES.values(), ids=lambda scale: scale.name)
def test_each_row_is_one_change_from_the_row_before(scale: Scale) -> None:
    found = configs(scale, seed=2)
    assert {now.preset: changes(before, now) for before, now in pairwise(found)} == ONE_CHANGE
    assert {config.seed for config in found} == {2}


def test_a_second_change_is_seen() -> None:
    before, now = configs(SCALES["full"])[1:3]
    others = {
        "seed": now.model_copy(update={"seed": 9}),
        "ce.epochs": now.model_copy(update={"ce": now.ce.model_copy(update={"epochs": 7})}),
        "shape.d_model": now.model_copy(update={"shape": now.shape.model_copy(update={"d_model": 8})}),
    }
    for name, other in others.items():
        assert set(changes(before, other)) == {name, "ce.backbone_lr"}


def test_the_rows_are_those_of_the_study() -> None:
    baseline, densenet, slower, retrieval, scst = configs(SCALES["full"])
    assert (baseline.shape.backbone, densenet.shape.backbone) == ("resnet101", "densenet121")
    assert (baseline.ce.backbone_lr, baseline.ce.transformer_lr) == (1e-4, 5e-4)
    assert slower.ce.backbone_lr <= slower.ce.transformer_lr / 20
    assert (slower.retrieval_k, retrieval.retrieval_k) == (0, 5)
    assert retrieval.scst is None
    assert scst.scst is not None


@pytest.mark.parametrize("name", ["small", "cpu", "two-core", "smoke"])
def test_a_scale_changes_every_row_alike(name: str) -> None:
    scale = SCALES[name]
    for config in configs(scale):
        values = config.model_dump()
        for key, value in scale.overrides.items():
            section, _, last = key.rpartition(".")
            held = values if not section else values[section]
            if held is not None:
                assert held[last] == value, (config.preset, key)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ({"ce.backbone_lr": 1e-3}, "rows and seeds decide it"),
        ({"shape.backbone": "resnet18"}, "rows and seeds decide it"),
        ({"ce.epoch": 3}, r"cannot set 'ce.epoch': choose from .*ce\.epochs"),
        ({"ce.epochs": -1}, "does not fit row baseline"),
    ],
)
def test_a_scale_that_would_mix_changes_is_refused(override: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        configs(Scale(name="mine", overrides=override))


def test_a_scale_can_be_a_file(tmp_path: Path) -> None:
    path = tmp_path / "mine.json"
    path.write_text('{"name": "mine", "overrides": {"ce.epochs": 3}, "train_limit": 7}')
    assert read_scale(str(path)) == Scale(name="mine", overrides={"ce.epochs": 3}, train_limit=7)
    path.write_text('{"name": "mine", "epochs": 3}')
    with pytest.raises(ValueError, match="epochs"):
        read_scale(str(path))
    with pytest.raises(ValueError, match=r"no such scale or file; use one of full, small, cpu, two-core, smoke"):
        read_scale("large")


def test_backbones_may_start_from_different_files() -> None:
    assert parse_weights(None) is None
    assert parse_weights(["imagenet"]) == "imagenet"
    weights = parse_weights(["resnet101=r.pth", "densenet121=d.pth"])
    found = [resolve(row, seed=1, scale=SCALES["full"], weights=weights) for row in ROWS]
    assert [config.backbone_weights for config in found] == ["r.pth", *["d.pth"] * 4]
    with pytest.raises(ValueError, match="add --backbone-weights densenet121=FILE"):
        resolve("densenet", seed=1, scale=SCALES["full"], weights={"resnet101": "r.pth"})
    with pytest.raises(ValueError, match="give it once"):
        parse_weights(["a.pth", "b.pth"])


def test_only_stages_that_read_the_same_are_shared() -> None:
    baseline, densenet, slower, retrieval, scst = configs(SCALES["full"])
    assert shared_stages(retrieval, scst) == ("pretrain", "retriever", "index", "ce")
    assert shared_stages(baseline, densenet) == shared_stages(slower, retrieval) == ()
    assert shared_stages(densenet, slower) == ()  # cross-entropy reads the rate, and nothing is trained before it
    assert shared_stages(*configs(SCALES["cpu"])[1:3]) == ("pretrain",)  # where there is such a stage
    assert shared_stages(retrieval, scst.model_copy(update={"seed": 2})) == ()
    beams = retrieval.decoding.model_copy(update={"beam_size": 5})
    assert shared_stages(retrieval, scst.model_copy(update={"decoding": beams})) == ("pretrain", "retriever", "index")


# --- the table's arithmetic -------------------------------------------------------------------------------------------


def scored(wrong: int, *, count: int = 24) -> ScoreSummary:
    """Of a system that copies all references but the first ``wrong``, for which it names no finding."""
    texts = [REPORTS[place % len(REPORTS)] for place in range(count)]
    pairs = [
        (full_reference(text), full_prediction("The lungs are clear." if place < wrong else text))
        for place, text in enumerate(texts)
    ]
    figures = {name: value for name, value in score(pairs).items() if value is not None}
    return ScoreSummary({**figures, "METEOR": wrong / 10}, Bootstrap(count).of(pairs))


def test_seed_interval_is_students() -> None:
    assert seed_interval([1.0, 2.0, 3.0]) == pytest.approx([2 - 2.4842, 2 + 2.4842], abs=1e-3)  # 4.303 / sqrt(3)
    values = np.linspace(0, 1, 31)
    half = 2.0423 * values.std(ddof=1) / 31**0.5  # t of 30 degrees of freedom
    assert seed_interval(list(values)) == pytest.approx([0.5 - half, 0.5 + half], abs=1e-4)
    assert seed_interval([4.0]) is None


def test_a_row_is_the_mean_of_its_seeds_and_its_interval_that_of_the_mean_on_the_same_draws() -> None:
    seeds = {1: scored(4), 2: scored(10)}
    found = summary(seeds)
    cider = found["CIDEr"]
    assert cider["mean"] == pytest.approx((seeds[1].figures["CIDEr"] + seeds[2].figures["CIDEr"]) / 2)
    assert cider["values"] == {seed: one.figures["CIDEr"] for seed, one in seeds.items()}
    drawn = (seeds[1].drawn.drawn["CIDEr"] + seeds[2].drawn.drawn["CIDEr"]) / 2
    assert cider["studies_95"] == pytest.approx(list(np.percentile(drawn, (2.5, 97.5))))
    assert found["METEOR"] == {"mean": 0.7, "values": {1: 0.4, 2: 1.0}, "studies_95": None,
                               "seeds_95": pytest.approx([0.7 - 12.7062 * 0.3, 0.7 + 12.7062 * 0.3])}  # fmt: skip
    one = summary({1: seeds[1]})["BLEU_4"]
    assert one["studies_95"] == average([seeds[1].drawn]).intervals()["BLEU_4"]
    assert one["seeds_95"] is None


def test_a_step_is_the_paired_difference_on_common_seeds() -> None:
    before, now = {1: scored(12), 2: scored(14)}, {2: scored(4), 3: scored(0)}
    found = step(before, now)
    assert found is not None
    assert found["seeds"] == [2]
    f1 = found["figures"]["label_f1_micro"]
    assert f1["difference"] == pytest.approx(now[2].figures["label_f1_micro"] - before[2].figures["label_f1_micro"])
    low, high = f1["studies_95"]
    assert 0 < low < f1["difference"] < high
    assert f1["p"] < 0.01
    assert found["figures"]["METEOR"] == {"difference": pytest.approx(-1.0), "studies_95": None, "p": None,
                                          "seeds_95": None}  # fmt: skip
    same = step(before, before)
    assert same is not None
    assert same["figures"]["CIDEr"]["studies_95"] == [0, 0]
    assert same["figures"]["CIDEr"]["p"] == 1
    assert step(before, {3: scored(0)}) is None


def test_steps_lead_from_row_to_row_and_never_over_one_that_is_missing() -> None:
    val = {"system_images_exchanged": {"CIDEr": 0.1}, "baselines": {"constant": {"CIDEr": 0.4}, "nearest": None},
           "confidence_95": {}, "system_minus": {}}  # fmt: skip
    cells = [
        Cell(row, 1, scored(wrong), None, {"metrics": {"val": val}}, None)
        for row, wrong in (("baseline", 9), ("densenet", 6), ("retrieval", 2))
    ]
    table = tabulate(ROWS, cells)
    assert list(table["rows"]) == ["baseline", "densenet", "retrieval"]
    assert list(table["steps"]) == ["densenet"]
    assert table["trivial"]["constant"]["figures"] == {"CIDEr": 0.4}
    assert "nearest" not in table["trivial"]


@pytest.mark.parametrize(
    ("value", "text"),
    [(0.1234, ".123"), (1.5, "1.500"), (-0.02, "-.020"), (None, "–"), (-0.0001, ".000"), (10.2, "10.200")],
)
def test_figures_as_they_are_shown(value: float | None, text: str) -> None:
    assert shown(value) == text
    assert shown(0.1234, sign=True) == "+.123"
    assert shown(30.04, "mean_length") == "30.0"


# --- a run ------------------------------------------------------------------------------------------------------------

SCALE = {
    "name": "tiny",
    "overrides": {**SCALES["smoke"].overrides, "shape.max_length": 16, "ce.epochs": 1, "retriever.epochs": 1,
                  "decoding.beam_size": 1},
    "pretrain": {"epochs_by_size": [[64, 1]], "ema": 0.9},
    "train_limit": 12,
}  # fmt: skip


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with phantoms, outside images with a table, and a scale."""
    place = tmp_path_factory.mktemp("ablation")
    write_phantom_root(place / "root", train=16, val=VAL, test=2, seed=3, size=64)
    (place / "outside").mkdir()
    with (place / "outside.csv").open("w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(["image_id", "view_position", "Cardiomegaly", "Hernia"])
        for number in range(4):
            large = number % 2
            chest = make_phantom(number, frozenset({"cardiomegaly"}) if large else frozenset(), size=64)
            Image.fromarray(chest.frontal).save(place / "outside" / f"{number}.png")
            rows.writerow([number, "AP", large, 0])
    (place / "scale.json").write_text(json.dumps(SCALE))
    return place


def arguments(place: Path, out: Path, *more: str, rows: str = "retrieval,retrieval-scst") -> list[str]:
    return ["--root", str(place / "root"), "--out", str(out), "--seeds", "1", "--presets", rows, "--device", "cpu",
            "--precision", "fp32", "--scale", str(place / "scale.json"), "--backbone-weights", "none",
            *more]  # fmt: skip


def outside(place: Path, *more: str) -> tuple[str, ...]:
    return ("--external-images", str(place / "outside"), "--external-labels", str(place / "outside.csv"), *more)


@pytest.fixture(scope="module", autouse=True)
def _one_thread() -> Iterator[None]:
    """In every process that trains, sums are added in one order, and METEOR is left out."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    with pytest.MonkeyPatch.context() as patch:
        for name, value in {**ENVIRONMENT, "PYTHONPATH": str(REPOSITORY)}.items():
            patch.setenv(name, value)
        yield
    torch.set_num_threads(threads)


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Runs cells in this process, which saves seconds each, and says which were run."""
    names: list[str] = []

    def run(folder: Path) -> int:
        names.append(folder.name)
        return run_cell_here([str(folder)])

    monkeypatch.setattr(work, "run_cell_process", run)
    return names


@pytest.fixture(scope="module")
def out(place: Path) -> Path:
    """An ablation that was killed in the middle of its first cell and run again."""
    out = place / "out"
    log = place / "log"
    process = fork(main, arguments(place, out, *outside(place)), log)
    kill_when(out / "cells" / "retrieval-seed1" / "retriever" / "result.pt", process, log)
    assert not (out / "ablation.json").exists()
    assert main(arguments(place, out, *outside(place))) == 0
    return out


def cell(out: Path, row: str) -> Path:
    return out / "cells" / f"{row}-seed1"


def test_killed_and_run_again_it_has_every_cell(out: Path) -> None:
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


def test_the_table_is_there_in_every_form(out: Path) -> None:
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


def test_shared_stages_give_what_training_them_again_gives(out: Path, place: Path, started: list[str]) -> None:
    alone = place / "alone"
    assert main(arguments(place, alone, rows="retrieval-scst")) == 0
    shared, own = (json.loads((cell(where, "retrieval-scst") / "result.json").read_text()) for where in (out, alone))
    assert shared["reused"] == {"row": "retrieval", "stages": ["pretrain", "retriever", "index", "ce"]}
    assert own["reused"] is None
    for name in ("model.safetensors", "index/reports.faiss"):
        files = [(cell(where, "retrieval-scst") / "bundle" / name).read_bytes() for where in (out, alone)]
        assert files[0] == files[1], name
    drawn = [read_draws(cell(where, "retrieval-scst") / "draws.npz").drawn["CIDEr"] for where in (out, alone)]
    assert np.array_equal(*drawn)


def test_finished_cells_are_not_repeated_and_a_new_outside_set_is_scored_with_their_bundles(
    out: Path, place: Path, started: list[str]
) -> None:
    results = [cell(out, row) / "result.json" for row in ("retrieval", "retrieval-scst")]
    before = [path.stat().st_mtime_ns for path in results]
    assert main(arguments(place, out, *outside(place))) == 0
    assert started == []
    assert main(arguments(place, out, *outside(place, "--external-limit", "2"))) == 0
    assert started == ["retrieval-seed1", "retrieval-scst-seed1"]
    assert [path.stat().st_mtime_ns for path in results] == before
    result = json.loads((out / "ablation.json").read_text())
    assert [one["external"]["n"] for one in result["cells_done"]] == [2, 2]


def test_a_failed_cell_is_named_the_others_go_on_and_a_repaired_one_is_run_again(
    out: Path, place: Path, started: list[str]
) -> None:
    for row in ("retrieval", "retrieval-scst"):
        (cell(out, row) / "result.json").unlink()
    broken = cell(out, "retrieval") / "ce" / "result.pt"
    whole = broken.read_bytes()
    broken.unlink()  # the other cell holds a link to it
    broken.write_bytes(b"nothing")
    assert main(arguments(place, out, *outside(place))) == 1
    result = json.loads((out / "ablation.json").read_text())
    assert [one["row"] for one in result["cells_done"]] == ["retrieval-scst"]
    (failed,) = result["cells_failed"]
    assert (failed["row"], failed["seed"]) == ("retrieval", 1)
    assert "result.pt cannot be used" in failed["reason"]
    assert failed["reason"] in (out / "ablation.md").read_text()
    assert "**Partial: 1 of 2 cells are finished.**" in (out / "ablation.md").read_text()
    assert started == ["retrieval-seed1", "retrieval-scst-seed1"]
    broken.write_bytes(whole)
    assert main(arguments(place, out, *outside(place))) == 0
    assert started[2:] == ["retrieval-seed1"]
    assert json.loads((out / "ablation.json").read_text())["cells_failed"] == []


def test_a_cell_whose_process_is_ended_is_named(out: Path, place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(work, "run_cell_process", lambda folder: -signal.SIGKILL)
    elsewhere = place / "ended"
    assert main(arguments(place, elsewhere, rows="retrieval")) == 1
    (failed,) = json.loads((elsewhere / "ablation.json").read_text())["cells_failed"]
    assert (
        failed["reason"]
        == "its process was ended by SIGKILL (perhaps for want of memory); see retrieval-seed1/cell.log"
    )
    assert not (elsewhere / "ablation.png").exists()


def test_what_cannot_be_run_is_refused(
    out: Path, place: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    (place / "other.json").write_text(json.dumps({**SCALE, "train_limit": 11}))
    assert main([*arguments(place, out), "--scale", str(place / "other.json")]) == 2
    assert "retrieval-seed1 was made otherwise: train_limit (12 -> 11)" in caplog.text
    assert main([*arguments(place, out), "--external-labels", "x.csv"]) == 2
    assert "need --external-images DIR" in caplog.text
    assert main([*arguments(place, out), *outside(place)[:2]]) == 2
    assert "needs --external-labels FILE or --external-annotation FILE" in caplog.text
    assert main([*arguments(place, out), "--soft-scores", str(place / "gone.csv")]) == 2
    assert "gone.csv: no such file" in caplog.text
    monkeypatch.setattr(work, "_PATIENCE", 0.0)
    with work.file_lock(out):
        assert main(arguments(place, out)) == 2
    assert "another ablation works in" in caplog.text
    one_file = [*arguments(place, place / "none", rows="baseline,densenet")[:-1], "x.pth"]
    assert main(one_file) == 2
    assert "one file cannot fit densenet121 and resnet101" in caplog.text


def test_reports_of_another_source_are_scored_like_any_others(out: Path, place: Path, started: list[str]) -> None:
    table = place / "theirs.json"
    write_phantom_root(place / "theirs", train=0, val=0, test=3, seed=8, size=64)
    table.write_text(json.dumps(annotation(open_openi(place / "theirs"))))
    more = ("--external-images", str(place / "theirs" / "images"), "--external-annotation", str(table))
    assert main(arguments(place, out, *more)) == 0
    first = json.loads((cell(out, "retrieval") / "external.json").read_text())
    assert (first["n"], first["split"]) == (3, "test")
    rows = list(csv.DictReader((out / "ablation.csv").read_text().splitlines()))
    assert {row["figure"] for row in rows if row["set"] == "external"} >= {"BLEU_4", "CIDEr", "label_f1_micro"}
