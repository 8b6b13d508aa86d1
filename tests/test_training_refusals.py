"""What cannot work is refused before any stage, with the name of the value, and leaves nothing behind."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from model.decoding import attested
from model.network.torchvision_models import models
from training import prepared_run
from training.ablation.__main__ import main as ablation
from training.checks import check_batches, check_model, doubtful
from training.config import RunConfig
from training.config_changes import chosen_config, names
from training.phantoms import write_phantom_root
from training.presets import PRESETS, preset
from training.run import main

STAGES = [(stage, {}, "preset") for stage in ("pretrain", "retriever", "scst")]  # added to a preset without them


def changed(name: str, **changes: Any) -> RunConfig:
    return chosen_config(name, None, [(key.replace("__", "."), value, "--set") for key, value in changes.items()])


def leaves() -> list[tuple[str, Any]]:
    """Each value of a configuration with all stages."""
    values = chosen_config("r2gencmn", None, STAGES).model_dump(by_alias=False)
    found = []
    for name in names():
        value: Any = values
        for part in name.split("."):
            value = value[part]
        if not isinstance(value, dict) and name != "preset":
            found.append((name, value))
    return found


@pytest.mark.parametrize(("name", "value"), leaves())
def test_every_value_is_refused_outside_its_range_with_its_name(name: str, value: Any) -> None:
    wrong = [["x"]] if not isinstance(value, str) else [["x"], 3]
    if isinstance(value, int | float) and not isinstance(value, bool):
        wrong += ["x", -1, float("nan"), float("inf")]
    for other in wrong:
        if name == "decoding.suppress" and other == ["x"]:
            other = [1]
        with pytest.raises(ValueError, match=rf"^(--set {name}: |.*\b{name.rpartition('.')[2]}\b)"):
            chosen_config("r2gencmn", None, [*STAGES, (name, other, "--set")])


@pytest.mark.parametrize(
    ("name", "changes", "message"),
    [
        ("retrieval", {"retrieval_k": 0, "decoding__method": "consensus"}, "method=consensus .* retrieval_k is 0"),
        ("retrieval", {"retrieval_k": 0, "decoding__method": "rerank"}, "method=rerank .* retrieval_k is 0"),
        ("compact", {"retrieval_k": 0}, "decoding.method=consensus needs retrieved cases, and retrieval_k is 0"),
        ("compact", {"decoding__method": "beam"}, "language.attested=true .* the method is beam; set it false"),
        ("compact", {"pretrain": None}, "decoding.consensus.classifier_weight .* pretrain is null; set it 0"),
        ("smoke", {f"decoding__consensus__{one}": 0 for one in ("cider", "bleu4", "rouge", "finding")},
         "every weight of decoding.consensus is 0"),
        ("smoke", {"pretrain": None, "decoding__consensus__classifier_weight": 0}, "would keep its random weights"),
        ("smoke", {"shape__max_length": 5, "decoding__min_length": 5}, "decoding.min_length=5 must be below"),
        ("smoke", {"decoding__suppress": ["<eos>"]}, "decoding.suppress has <eos>"),
        ("smoke", {"shape__heads": 7}, "--set shape: d_model=64 is not divisible by heads=7"),
        ("smoke", {"shape__memory_heads": 3}, "d_model=64 is not divisible by memory_heads=3"),
        ("smoke", {"shape__writer": "r2gen", "shape__relational_heads": 7},
         "d_model=64 is not divisible by relational_heads=7"),
        ("smoke", {"shape__writer": "lstm"}, "writer 'lstm' is unknown; use cnn-rnn, r2gen, cmn, coattention"),
        ("smoke", {"shape__memory_dim": 63}, "memory_dim=63 is not divisible by memory_heads=4"),
        ("smoke", {"shape__memory_top_k": 300}, "memory_top_k=300 exceeds memory_slots=256"),
        ("smoke", {"shape__layers": 65}, "shape.layers: .* less than or equal to 64"),
        ("smoke", {"shape__max_length": 2000}, "shape.max_length: .* less than or equal to 1024"),
        ("smoke", {"image_size": 31}, r"image_size: .* greater than or equal to 32 \(it is 31\)"),
        ("smoke", {"image_size": 4096}, "image_size: .* less than or equal to 2048"),
        ("smoke", {"retrieval_k": 65}, "retrieval_k: .* less than or equal to 64"),
        ("smoke", {"seed": 2**31}, "seed: .* less than 2147483648"),
        ("smoke", {"pretrain__epochs_by_size": [[16, 2]]}, "pretrain.epochs_by_size: .* equal to 32"),
        ("smoke", {"pretrain__epochs_by_size": []}, "pretrain: epochs_by_size has no epoch"),
        ("smoke", {"pretrain__epochs_by_size": [[64, 0]]}, "pretrain: epochs_by_size has no epoch"),
        ("smoke", {"pretrain__epochs_by_size": [[32, 1]], "pretrain__batch_size": 1}, "pretrain: batch_size=1"),
        ("smoke", {f"pretrain__weights__{one}": 0 for one in ("soft", "report", "mesh", "text", "external")},
         "pretrain.weights: every weight is 0"),
        ("smoke", {"retriever__batch_size": 1}, "retriever: batch_size=1 has no other report"),
        ("smoke", {"ce__epochs": 0}, "ce.epochs: .* greater than or equal to 1"),
        ("smoke", {"scst__lr": 0}, "scst.lr: .* greater than 0"),
        ("smoke", {"scst__samples": 1}, "scst: samples=1 has no other sample"),
        ("smoke", {"scst__reward": {"cider": 0}}, "scst.reward: every weight of the reward is 0"),
    ],
)  # fmt: skip
def test_combinations_that_cannot_work_are_refused(name: str, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        changed(name, **changes)


@pytest.mark.parametrize(
    "name", ["resnet18", "densenet121", "efficientnet_lite1", "convnext_tiny", "mobilenet_v3_small"]
)
def test_accepts_backbones_whose_features_are_a_map_of_stride_32(name: str) -> None:
    check_model(changed("smoke", shape__backbone=name))


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("swin_t", r"shape.backbone: backbone 'swin_t' turns 64 x 64 pixels into features of shape \(1, 2, 2, 768\)"),
        ("vit_b_32", "shape.backbone: VisionTransformer has no single spatial feature map"),
        ("regnet_x_400mf", "shape.backbone: RegNet has no single spatial feature map"),
        ("squeezenet1_1", r"shape.backbone: backbone 'squeezenet1_1' turns .* \(1, 512, 3, 3\)"),
        ("densnet121", "shape.backbone: backbone 'densnet121' is not .* try 'densenet121'"),
        ("my_net", "shape.backbone: backbone 'my_net' is not .* try 'densenet121' or 'resnet101'"),
        ("", "shape.backbone: backbone '' is not"),
    ],
)
def test_refuses_other_backbones(name: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        check_model(changed("smoke", shape__backbone=name))


def test_weights_of_another_backbone_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "resnet18.pth"
    torch.save(models.get_model("resnet18", weights=None).state_dict(), path)
    check_model(changed("smoke", shape__backbone="resnet18", backbone_weights=str(path)))
    with pytest.raises(ValueError, match=r"backbone_weights: resnet18\.pth does not match"):
        check_model(changed("smoke", shape__backbone="resnet34", backbone_weights=str(path)))
    with pytest.raises(ValueError, match=r"backbone_weights: .*no such file"):
        check_model(changed("smoke", backbone_weights="imagnet"))


def test_images_of_more_patches_than_positions_are_refused() -> None:
    check_model(changed("smoke", image_size=2048))
    with pytest.raises(ValueError, match="image_size=2048: two images have 8192 patches"):
        check_model(changed("smoke", image_size=2048, shape__patch_positions="sequence"))


def test_published_initial_weights_are_those_of_one_writer() -> None:
    check_model(changed("smoke", initial_weights="r2gencmn"))
    with pytest.raises(ValueError, match="needs writer cmn, but the writer is r2gen; use initial_weights=default"):
        check_model(changed("smoke", initial_weights="r2gencmn", shape__writer="r2gen"))


def test_batches_are_shared_by_the_processes() -> None:
    check_batches(preset("smoke"), 16)
    with pytest.raises(ValueError, match=r"ce\.batch_size=16 cannot be shared by 17 processes"):
        check_batches(preset("smoke"), 17)


def test_warns_of_settings_that_work_but_hardly_as_intended() -> None:
    assert not any(doubtful(config) for config in PRESETS.values())
    assert doubtful(changed("smoke", image_size=32)) == [
        "pretrain.epochs_by_size has 64 pixels, above image_size=32: enlarged images show no more"
    ]
    assert "an untrained retriever chooses the cases" in doubtful(changed("retrieval", retriever=None))[0]
    short = doubtful(changed("baseline", protocol="mimic-cxr"))
    assert "shape.max_length=60 cuts reports and drafts that protocol mimic-cxr scores up to 99 words" in short[0]
    assert "stage retriever is left out" in doubtful(changed("retrieval", retrieval_k=0))[0]


# --- the commands -----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = write_phantom_root(tmp_path_factory.mktemp("phantoms"), train=4, val=2, test=1, seed=3, size=64)
    (root / "scores.csv").write_text("image_id,Mass\nx,7\n")
    (root / "empty.json").write_text(json.dumps({"val": [{"id": "a", "report": "Clear.", "image_path": ["a.png"]}]}))
    (root / "gone.json").write_text(json.dumps({"train": [{"id": "a", "report": "Clear.", "image_path": ["a.png"]}]}))
    (root / "file").write_text("")
    return root


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--backbone", "swin_t"], "shape.backbone: backbone 'swin_t'"),
        (["--weights", "gone.pth"], "backbone_weights: .*no such file"),
        (["--set", "retrieval_k=0"], "retrieval_k is 0"),
        (["--set", "ce.epoch=1"], "did you mean ce.epochs"),
        (["--config", "gone.yaml"], "No such file"),
        (["--stages", "index,ce"], "stage pretrain was left out"),
        (["--soft-scores", "{root}/scores.csv"], "needs 1 probabilities"),
        (["--soft-scores", "gone.csv"], "no such file"),
        (["--annotation", "gone.json", "--images", "{root}"], "--annotation gone.json: no such file"),
        (["--out", "{work}/a b"], "--out .*/a b: the name of a bundle is"),
        (["--work", "{work}/B"], "would replace files of the work directory"),
        (["--work", "{work}/B/work"], "would replace files of the work directory"),
        (["--work", "{work}", "--out", "{work}/ce"], "would replace files of the work directory"),
        (["--work", "{root}/file"], "is no folder"),
        (["--out", "{root}/file/B"], "is no folder"),
        (["--annotation", "{root}/empty.json", "--images", "{root}"], "the data set has no training study"),
        (["--annotation", "{root}/gone.json", "--images", "{root}"], "none of 1 images could be read"),
        (["--external-labels", "x.csv"], "need each other"),
        (["--set", *(f"pretrain.weights.{name}=0" for name in ("report", "text", "mesh", "external"))],
         "only pretrain.weights.soft is above 0, and the data has no such targets"),
        (["--device", "cuda:99"], "cuda"),
    ],
)  # fmt: skip
def test_refused_start_leaves_nothing_behind(
    root: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture, arguments: list[str], message: str
) -> None:
    given = [one.format(root=root, work=tmp_path) for one in arguments]
    data = [] if "--annotation" in given else ["--root", str(root)]
    command = ["--preset", "smoke", *data, "--out", str(tmp_path / "B"), "--device", "cpu", *given]
    before = sorted(root.rglob("*"))
    assert main(command) == 2
    assert re.search(message, caplog.text), caplog.messages
    assert list(tmp_path.iterdir()) == []
    assert sorted(root.rglob("*")) == before


@pytest.mark.parametrize(
    "arguments", [["--stages", ","], ["--out", ""], ["--checkpoint-seconds", "nan"], ["--seed", "x"]]
)
def test_unusable_options_are_refused(arguments: list[str], tmp_path: Path) -> None:
    with pytest.raises(SystemExit):
        main(["--preset", "smoke", "--out", str(tmp_path / "B"), *arguments])
    assert list(tmp_path.iterdir()) == []


def test_too_many_words_for_attested_sentences_are_refused(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    assert prepared_run.MOST_WORDS == attested.MOST_WORDS
    monkeypatch.setattr(prepared_run, "MOST_WORDS", 10)
    command = ["--preset", "smoke", "--root", str(root), "--out", str(tmp_path / "B"), "--device", "cpu"]
    assert main([*command, "--set", "retriever.folds=2"]) == 2
    assert "decoding.language.attested takes 10 words at most" in caplog.text
    assert list(tmp_path.iterdir()) == []


def test_print_config_refuses_what_a_run_would(caplog: pytest.LogCaptureFixture) -> None:
    assert main(["--backbone", "swin_t", "--print-config"]) == 2
    assert "shape.backbone: backbone 'swin_t'" in caplog.text


def test_refused_ablation_leaves_nothing_behind(root: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    rows = root / "rows.yaml"
    rows.write_text("a: {preset: baseline, shape.backbone: swin_t}")
    command = ["--root", str(root), "--out", str(tmp_path / "A"), "--backbone-weights", "none", "--device", "cpu"]
    assert ablation([*command, "--rows", str(rows)]) == 2
    assert "row a: shape.backbone: backbone 'swin_t'" in caplog.text
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("command", [main, ablation])
def test_refused_start_leaves_no_view_table(root: Path, tmp_path: Path, command: Callable[[list[str]], int]) -> None:
    shutil.copy(root / "gone.json", tmp_path / "annotation.json")
    data = ["--annotation", str(tmp_path / "annotation.json"), "--images", str(root), "--out", str(tmp_path / "A")]
    refused = [*data, "--device", "cpu", "--backbone-weights", "none"]
    assert command(refused) == 2
    assert [path.name for path in tmp_path.iterdir()] == ["annotation.json"]
    (tmp_path / "views.csv").write_text("image_id,view,how\nother.png,frontal,mine\n")
    assert command(refused) == 2
    assert "other.png,frontal,mine" in (tmp_path / "views.csv").read_text()
