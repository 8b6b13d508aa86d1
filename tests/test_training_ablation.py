"""The ablation: rows that differ by one change, and the statistics of the table."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.support.tiny import REPORTS
from training.ablation.rows import (
    ROWS,
    SCALES,
    Row,
    Scale,
    changes,
    parse_weights,
    read_rows,
    read_scale,
    resolve,
    shared_stages,
)
from training.ablation.table import Cell, average, seed_interval, step, summary, tabulate
from training.config import RunConfig
from training.presets import preset
from training.scoring.bootstrap import Bootstrap, Resampled
from training.scoring.metrics import score
from training.scoring.protocol import full_prediction, full_reference

# --- rows -------------------------------------------------------------------------------------------------------------

STUDY = ROWS[1:]  # without the baseline as published, which differs from ours in all but the network
ONE_CHANGE = {
    "densenet": ("shape.backbone",),
    "densenet-lr": ("ce.backbone_lr",),
    "retrieval": ("retrieval_k", "retriever"),  # the cases, and the stage that finds them
    "retrieval-scst": ("scst",),
}


def configs(scale: Scale, seed: int = 1) -> list[RunConfig]:
    return [resolve(Row(row, row), seed=seed, scale=scale, weights="none") for row in STUDY]


@pytest.mark.parametrize(
    "scale", [scale for scale in SCALES.values() if scale.name != "evolution-two-core"], ids=lambda scale: scale.name
)
def test_each_row_is_one_change_from_the_row_before(scale: Scale) -> None:
    found = configs(scale, seed=2)
    assert {now.preset: changes(before, now) for before, now in pairwise(found)} == ONE_CHANGE
    assert {config.seed for config in found} == {2}


def test_first_row_is_the_published_baseline() -> None:
    published, ours = (resolve(Row(row, row), seed=1, scale=SCALES["full"]) for row in ROWS[:2])
    assert (published, ours) == (preset("r2gencmn"), preset("baseline"))
    assert published.shape.backbone == ours.shape.backbone
    assert {name.partition(".")[0] for name in changes(published, ours)} == {
        "augmentation", "ce", "decoding", "initial_weights", "published_text", "resample", "shape", "view_order",
    }  # fmt: skip


def test_second_change_is_found() -> None:
    before, now = configs(SCALES["full"])[1:3]
    others = {
        "seed": now.model_copy(update={"seed": 9}),
        "ce.epochs": now.model_copy(update={"ce": now.ce.model_copy(update={"epochs": 7})}),
        "shape.d_model": now.model_copy(update={"shape": now.shape.model_copy(update={"d_model": 8})}),
    }
    for name, other in others.items():
        assert set(changes(before, other)) == {name, "ce.backbone_lr"}


def test_rows_are_those_of_the_study() -> None:
    baseline, densenet, slower, retrieval, scst = configs(SCALES["full"])
    assert (baseline.shape.backbone, densenet.shape.backbone) == ("resnet101", "densenet121")
    assert (baseline.ce.backbone_lr, baseline.ce.transformer_lr) == (1e-4, 5e-4)
    assert slower.ce.backbone_lr <= slower.ce.transformer_lr / 20
    assert (slower.retrieval_k, retrieval.retrieval_k) == (0, 5)
    assert retrieval.scst is None
    assert scst.scst is not None


@pytest.mark.parametrize("name", ["small", "cpu", "two-core", "smoke"])
def test_scale_changes_every_row_equally(name: str) -> None:
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
        ({"scst": None}, "rows and seeds decide it"),
        ({"ce.epoch": 3}, r"scale custom: ce.epoch: no such value; did you mean ce\.epochs\?"),
        ({"ce.epochs": -1}, "row baseline: scale custom: ce.epochs: .* greater than or equal to 1"),
    ],
)
def test_refuses_scales_that_mix_changes(override: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        configs(Scale(name="custom", overrides=override))


def test_reads_scales_from_files(tmp_path: Path) -> None:
    path = tmp_path / "custom.json"
    path.write_text('{"name": "custom", "overrides": {"ce.epochs": 3}, "train_limit": 7}')
    assert read_scale(str(path)) == Scale(name="custom", overrides={"ce.epochs": 3}, train_limit=7)
    path.write_text('{"name": "custom", "epochs": 3}')
    with pytest.raises(ValueError, match="epochs"):
        read_scale(str(path))
    with pytest.raises(ValueError, match=f"no such scale or file; use one of {', '.join(SCALES)}"):
        read_scale("large")


def test_rows_of_a_file_change_presets_and_take_the_scale(tmp_path: Path) -> None:
    path = tmp_path / "rows.yaml"
    path.write_text("""
baseline:
plain: {preset: baseline, shape.backbone: resnet18, backbone_weights: none}
k-3: {preset: retrieval, retrieval_k: 3, ce: {epochs: 9}, shape: {d_model: 128}}
rl: {preset: baseline, scst: {lr: 1e-5}, pretrain: null}
""")
    rows = read_rows(path)
    assert [(row.name, row.preset) for row in rows] == [
        ("baseline", "baseline"), ("plain", "baseline"), ("k-3", "retrieval"), ("rl", "baseline")
    ]  # fmt: skip
    scale = SCALES["cpu"]
    baseline, plain, k3, rl = (resolve(row, seed=2, scale=scale, weights="imagenet") for row in rows)
    assert baseline == resolve(Row("baseline", "baseline"), seed=2, scale=scale, weights="imagenet")
    assert changes(baseline, plain) == ("backbone_weights", "shape.backbone")
    assert (k3.retrieval_k, k3.ce.epochs, k3.shape.d_model) == (3, 9, 128)  # the row's, not the scale's
    assert (k3.seed, k3.image_size, k3.retriever and k3.retriever.epochs) == (2, 96, 8)
    assert (rl.scst and rl.scst.lr, rl.scst and rl.scst.epochs, rl.pretrain) == (1e-5, 2, None)
    assert baseline.pretrain is not None
    by_backbone = {"resnet101": "r.pth", "densenet121": "d.pth"}
    assert [resolve(row, seed=1, scale=scale, weights=by_backbone).backbone_weights for row in rows] == [
        "r.pth", "none", "d.pth", "r.pth"
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "names no row"),
        ("a/b: {preset: baseline}", "row a/b: its name must be"),
        ("mine: {ce.epochs: 3}", "row mine: names no preset; add one of "),
        ("mine: {preset: baselin}", "preset 'baselin' is unknown; did you mean baseline?"),
        ("mine: {preset: baseline, ce.epoch: 3}", "row mine: ce.epoch: no such value; did you mean ce.epochs?"),
        ("mine: {preset: baseline, seed: 3}", "row mine: must not set seed; --seeds decides it"),
        ("mine: 3", "row mine: must hold a preset and changes"),
        ("mine: {preset: baseline}\nmine: {preset: densenet}", "mine occurs twice"),
    ],
)
def test_refuses_rows_that_are_none(text: str, message: str, tmp_path: Path) -> None:
    path = tmp_path / "rows.yaml"
    path.write_text(text)
    with pytest.raises(ValueError, match="--rows") as refused:
        read_rows(path)
    assert message in str(refused.value)


def test_reads_weights_for_each_backbone() -> None:
    assert parse_weights(None) is None
    assert parse_weights(["imagenet"]) == "imagenet"
    weights = parse_weights(["resnet101=r.pth", "densenet121=d.pth"])
    found = [resolve(Row(row, row), seed=1, scale=SCALES["full"], weights=weights) for row in STUDY]
    assert [config.backbone_weights for config in found] == ["r.pth", *["d.pth"] * 4]
    with pytest.raises(ValueError, match="add --backbone-weights densenet121=FILE"):
        resolve(Row("densenet", "densenet"), seed=1, scale=SCALES["full"], weights={"resnet101": "r.pth"})
    with pytest.raises(ValueError, match="give it once"):
        parse_weights(["a.pth", "b.pth"])


def test_stages_with_equal_inputs_are_shared() -> None:
    baseline, densenet, slower, retrieval, scst = configs(SCALES["full"])
    assert shared_stages(retrieval, scst) == ("pretrain", "retriever", "index", "ce")
    assert shared_stages(baseline, densenet) == shared_stages(slower, retrieval) == ()
    assert shared_stages(densenet, slower) == ()  # cross-entropy reads the rate, and nothing is trained before it
    assert shared_stages(*configs(SCALES["cpu"])[1:3]) == ("pretrain",)  # where there is such a stage
    assert shared_stages(retrieval, scst.model_copy(update={"seed": 2})) == ()
    beams = retrieval.decoding.model_copy(update={"beam_size": 5})
    assert shared_stages(retrieval, scst.model_copy(update={"decoding": beams})) == ("pretrain", "retriever", "index")


# --- statistics of the table ------------------------------------------------------------------------------------------


def scored(wrong: int, *, count: int = 24) -> Resampled:
    """Of a system that copies all references but the first ``wrong``, for which it names no finding."""
    texts = [REPORTS[row % len(REPORTS)] for row in range(count)]
    pairs = [
        (full_reference(text), full_prediction("The lungs are clear." if row < wrong else text))
        for row, text in enumerate(texts)
    ]
    metrics = {name: value for name, value in score(pairs).items() if value is not None}
    return Resampled({**metrics, "METEOR": wrong / 10}, Bootstrap(count).of(pairs).drawn)


def test_seed_interval_is_students_t() -> None:
    assert seed_interval([1.0, 2.0, 3.0]) == pytest.approx([2 - 2.4842, 2 + 2.4842], abs=1e-3)  # 4.303 / sqrt(3)
    values = np.linspace(0, 1, 31)
    half = 2.0423 * values.std(ddof=1) / 31**0.5  # t of 30 degrees of freedom
    assert seed_interval(list(values)) == pytest.approx([0.5 - half, 0.5 + half], abs=1e-4)
    assert seed_interval([4.0]) is None


def test_row_is_the_mean_of_its_seeds_on_the_same_draws() -> None:
    seeds = {1: scored(4), 2: scored(10)}
    found = summary(seeds)
    cider = found["CIDEr"]
    assert cider["mean"] == pytest.approx((seeds[1].whole["CIDEr"] + seeds[2].whole["CIDEr"]) / 2)
    assert cider["values"] == {seed: one.whole["CIDEr"] for seed, one in seeds.items()}
    drawn = (seeds[1].drawn["CIDEr"] + seeds[2].drawn["CIDEr"]) / 2
    assert cider["studies_95"] == pytest.approx(list(np.percentile(drawn, (2.5, 97.5))))
    assert found["METEOR"] == {"mean": 0.7, "values": {1: 0.4, 2: 1.0}, "studies_95": None,
                               "seeds_95": pytest.approx([0.7 - 12.7062 * 0.3, 0.7 + 12.7062 * 0.3])}  # fmt: skip
    one = summary({1: seeds[1]})["BLEU_4"]
    assert one["studies_95"] == average([seeds[1]]).intervals()["BLEU_4"]
    assert one["seeds_95"] is None


def test_step_is_the_paired_difference_on_common_seeds() -> None:
    before, now = {1: scored(12), 2: scored(14)}, {2: scored(4), 3: scored(0)}
    found = step(before, now)
    assert found is not None
    assert found["seeds"] == [2]
    f1 = found["figures"]["label_f1_micro"]
    assert f1["difference"] == pytest.approx(now[2].whole["label_f1_micro"] - before[2].whole["label_f1_micro"])
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


def test_steps_connect_neighbouring_rows_only() -> None:
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
