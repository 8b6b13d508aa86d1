"""The configuration of a run from a preset, a file and options: names, values, sources, refusals."""

from __future__ import annotations

from pathlib import Path

import pytest

from training.config import PretrainConfig, RunConfig, ScstConfig
from training.config_changes import as_yaml, chosen_config, configure, described_changes, names, read_config
from training.presets import PRESETS, preset
from training.run import main

YAML = """
preset: compact
seed: 2
ce: {epochs: 4}
decoding.beam_size: 5
pretrain:
  lr: 1e-4
  epochs_by_size: [[160, 2]]
scst: null
"""
TOML = """
preset = "compact"
seed = 2
scst = "none"
"decoding.beam_size" = 5
[ce]
epochs = 4
[pretrain]
lr = 1e-4
epochs_by_size = [[160, 2]]
"""
JSON = """{"preset": "compact", "seed": 2, "scst": null, "decoding": {"beam_size": 5}, "ce.epochs": 4,
"pretrain": {"lr": 1e-4, "epochs_by_size": [[160, 2]]}}"""


def written(path: Path, text: str) -> Path:
    path.write_text(text)
    return path


@pytest.mark.parametrize(("name", "text"), [("c.yaml", YAML), ("c.toml", TOML), ("c.json", JSON)])
def test_file_changes_only_the_values_that_it_names(name: str, text: str, tmp_path: Path) -> None:
    config = chosen_config(None, written(tmp_path / name, text), [])
    compact = preset("compact")
    assert compact.pretrain is not None
    assert config == compact.model_copy(
        update={
            "seed": 2,
            "scst": None,
            "ce": compact.ce.model_copy(update={"epochs": 4}),
            "decoding": compact.decoding.model_copy(update={"beam_size": 5}),
            "pretrain": compact.pretrain.model_copy(update={"lr": 1e-4, "epochs_by_size": ((160, 2),)}),
        }
    )


def test_options_change_the_file_and_the_file_the_preset(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = written(tmp_path / "c.yaml", YAML)
    options = ["--set", "ce.epochs=7", "shape.backbone=resnet18", "--set", "ce.patience=null", "--seed", "3"]
    assert main(["--config", str(file), *options, "--print-config"]) == 0
    config = chosen_config(None, written(tmp_path / "printed.yaml", capsys.readouterr().out), [])
    assert (config.preset, config.seed, config.shape.backbone) == ("compact", 3, "resnet18")
    assert (config.ce.epochs, config.ce.patience, config.decoding.beam_size) == (7, None, 5)
    assert [path.name for path in tmp_path.iterdir()] == ["c.yaml", "printed.yaml"]


@pytest.mark.parametrize("name", PRESETS)
def test_printed_configuration_is_read_back(name: str, tmp_path: Path) -> None:
    printed = written(tmp_path / "c.yaml", as_yaml(preset(name)))
    assert chosen_config(None, printed, []) == preset(name)
    assert read_config(printed)[0] == name


def test_value_of_an_absent_stage_adds_it_with_its_defaults() -> None:
    assert preset("baseline").scst is None
    config = chosen_config("baseline", None, [("scst.reward.bleu4", 1, "--set"), ("pretrain", {}, "--set")])
    assert config.scst == ScstConfig.model_validate({"reward": {"bleu4": 1}})
    assert config.pretrain == PretrainConfig()
    assert chosen_config("compact", None, [("pretrain", {}, "--set")]) == preset("compact")


def test_accepts_old_and_present_names() -> None:
    for name in ("decoding.consensus.finding_threshold", "decoding.consensus.finding_cost"):
        assert chosen_config("smoke", None, [(name, 0.5, "--set")]).decoding.consensus.finding_threshold == 0.5
    assert "finding_threshold" in as_yaml(preset("smoke"))


@pytest.mark.parametrize(
    ("name", "nearest"),
    [
        ("ce.epoch", "did you mean ce.epochs?"),
        ("epochs", "did you mean retriever.epochs or ce.epochs or scst.epochs?"),
        ("shape.backbon", "did you mean shape.backbone?"),
        ("finding_threshold", "did you mean decoding.consensus.finding_threshold?"),
        ("decoding.consensus.finding_treshold", "did you mean decoding.consensus.finding_threshold?"),
        ("seed.x", "did you mean seed?"),
        ("memory_slot", "did you mean shape.memory_slots?"),
        ("colour", "no such value; python -m training.run --print-config lists all names"),
    ],
)
def test_unknown_name_is_refused_with_the_nearest(name: str, nearest: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no such value") as refused:
        chosen_config("smoke", None, [(name, 1, "--set")])
    assert str(refused.value).startswith(f"--set {name}: no such value; ")
    assert nearest in str(refused.value)
    path = written(tmp_path / "c.yaml", f"{name}: 1")
    with pytest.raises(ValueError, match="no such value") as refused:
        chosen_config("smoke", path, [])
    assert str(refused.value).startswith(f"--config {path}: {name}: no such value; ")


def test_invalid_values_are_refused_with_source_and_name(tmp_path: Path) -> None:
    path = written(tmp_path / "c.yaml", "ce: {epochs: -1}\nretriever: {folds: 1}\nscst: 3")
    with pytest.raises(ValueError, match="epochs") as refused:
        chosen_config("smoke", path, [("decoding.beam_size", 9, "--set"), ("seed", 1.5, "--seed")])
    text = str(refused.value)
    assert f"--config {path}: ce.epochs: Input should be greater than or equal to 1 (it is -1)" in text
    assert f"--config {path}: retriever: folds=1 leaves no study to train on" in text
    assert f"--config {path}: scst: Input should be a valid dictionary" in text
    assert "--set decoding.beam_size: Input should be less than or equal to 8 (it is 9)" in text
    assert "--seed seed: Input should be a valid integer" in text
    assert "\n" not in text
    assert "pydantic" not in text


def test_true_is_no_number(tmp_path: Path) -> None:
    path = written(tmp_path / "c.yaml", "retrieval_k: yes\nce: {full_batches: yes, patience: null}")
    with pytest.raises(ValueError, match=f"--config {path}: retrieval_k: true is neither a number nor a text"):
        chosen_config(None, path, [])
    assert chosen_config(None, None, [("ce.full_batches", True, "--set")]).ce.full_batches


def test_mbr_is_the_other_name_of_consensus() -> None:
    assert chosen_config("retrieval", None, [("decoding.method", "mbr", "--set")]).decoding.method == "consensus"


@pytest.mark.parametrize(
    ("text", "suffix", "message"),
    [
        ("ce: {epochs: 1}\nce: {lr: 2}", "yaml", "ce occurs twice"),
        ("a: [", "yaml", "cannot be read"),
        ("a = ", "toml", "cannot be read"),
        ("[1, 2]", "json", "must hold names and values"),
        ("seed: 1", "txt", r"must end in one of \.yaml, \.yml, \.json, \.toml"),
        ("preset: compakt", "yaml", "preset 'compakt' is unknown; did you mean compact?"),
        ("1: 2", "yaml", "1: no such value"),
        ("config: 3", "yaml", "config: no such value"),
        ("!!python/name:os.system x: 1", "yaml", "cannot be read"),
    ],
)
def test_refuses_files_that_are_no_configuration(text: str, suffix: str, message: str, tmp_path: Path) -> None:
    path = written(tmp_path / f"c.{suffix}", text)
    with pytest.raises(ValueError, match=message) as refused:
        chosen_config(None, path, [])
    assert str(path) in str(refused.value)
    with pytest.raises(ValueError, match="No such file"):
        chosen_config(None, tmp_path / "none.yaml", [])


def test_refuses_contradictions(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = written(tmp_path / "c.yaml", YAML)
    with pytest.raises(ValueError, match=f"--preset smoke contradicts preset compact in {path}"):
        chosen_config("smoke", path, [])
    assert chosen_config("compact", path, []) == chosen_config(None, path, [])
    assert main(["--seed", "4", "--set", "seed=5", "--print-config"]) == 2
    assert "--seed seed=4 contradicts --set seed=5; give one of them" in caplog.text
    assert main(["--seed", "4", "--set", "seed=4", "--print-config"]) == 0
    assert main(["--protocol", "mimic-cxr", "--set", "protocol=iu-xray", "--print-config"]) == 2
    assert "--protocol mimic-cxr contradicts --set protocol=iu-xray; give one of them" in caplog.text
    with pytest.raises(ValueError, match=r"--set ce\.transformer_lr: .*finite"):
        chosen_config(None, None, [("ce.transformer_lr", float("nan"), "--set")])
    with pytest.raises(ValueError, match="on the command line use --preset"):
        chosen_config(None, None, [("preset", "smoke", "--set")])


@pytest.mark.parametrize("arguments", [["--set", "none"], ["--set", "=1"], ["--preset", "smoke"]])
def test_command_line_is_refused_by_its_parser(arguments: list[str]) -> None:
    """The last one lacks ``--out``."""
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    assert ended.value.code == 2


def test_lists_each_difference_from_the_preset() -> None:
    config = configure("baseline", [])
    assert described_changes(config) == []
    changed = chosen_config("baseline", None, [("ce.epochs", 3, "--set"), ("scst.lr", 1e-5, "--set"), ("seed", 2, "")])
    lines = described_changes(changed)
    assert lines[:2] == ["seed = 2 (1 in preset baseline)", "ce.epochs = 3 (100 in preset baseline)"]
    assert "scst.lr = 1e-05 (absent in preset baseline)" in lines
    assert len(lines) == 2 + sum(name.startswith("scst.") for name in names()) - 2  # reward and guards are sections
    assert described_changes(chosen_config("smoke", None, [("scst", None, "--set")])) == [
        "scst = null (set in preset smoke)"
    ]


def test_every_value_of_the_configuration_has_a_name() -> None:
    """Each name is accepted with the preset's value, and no other one exists."""
    config = preset("retrieval-scst").model_dump(by_alias=False)
    for name in names():
        value = config
        for part in name.split("."):
            value = value[part] if isinstance(value, dict) else None
        if name != "preset" and value is not None:
            assert chosen_config("retrieval-scst", None, [(name, value, "--set")]) == preset("retrieval-scst"), name
    assert set(RunConfig.model_fields) <= set(names())
