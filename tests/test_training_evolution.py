"""The table of earlier systems: one change a row, shared pretraining, a common scale, which rows look at the images."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.support.tiny import tiny_model
from training.ablation import published
from training.ablation.__main__ import main
from training.ablation.report import markdown
from training.ablation.rows import (
    EVOLUTION,
    ROWS,
    SCALES,
    Row,
    Scale,
    changes,
    equal_in_all,
    parse_weights,
    resolve,
    shared_stages,
)
from training.checks import check_model
from training.config import RunConfig
from training.presets import PRESETS, WRITER_PRESETS, preset
from training.stage_results import StageResults
from training.trainer.context import RunContext

SCALE = SCALES["evolution-two-core"]


def configs(scale: Scale, names: tuple[str, ...] = EVOLUTION, weights: str | None = None) -> list[RunConfig]:
    rows = [Row(name, name) for name in names]
    equal = equal_in_all(rows)
    return [
        resolve(row, seed=1, scale=scale, weights=parse_weights(weights and [weights]), equal=equal) for row in rows
    ]


@pytest.mark.parametrize("name", PRESETS)
def test_every_preset_builds_its_model(name: str) -> None:
    check_model(preset(name), weights=False)


@pytest.mark.parametrize("name", ["full", "evolution-two-core"])
def test_rows_differ_by_the_writer_then_by_the_study(name: str) -> None:
    found = {now.preset: changes(before, now) for before, now in pairwise(configs(SCALES[name]))}
    assert found == {
        **dict.fromkeys(WRITER_PRESETS[1:], ("shape.writer",)),
        "retrieval": ("retrieval_k", "retriever"),
        "retrieval-scst": ("scst",),
    }
    assert changes(preset("densenet-lr"), preset("cmn")) == ()
    assert [preset(writer).shape.writer for writer in WRITER_PRESETS] == list(WRITER_PRESETS)


def test_scale_may_set_what_all_rows_have_in_common() -> None:
    for config in configs(SCALE):
        assert (config.shape.backbone, config.backbone_weights) == ("efficientnet_lite0", "imagenet")
        assert (config.ce.backbone_lr, config.decoding.method, config.decoding.beam_size) == (0, "beam", 3)
    assert {config.backbone_weights for config in configs(SCALE, weights="efficientnet_lite0=b.pt")} == {"b.pt"}
    with pytest.raises(ValueError, match=r"cannot set 'shape\.backbone': rows and seeds decide it"):
        configs(SCALE, ROWS)
    for name, value in (("shape.writer", "cmn"), ("retrieval_k", 0), ("seed", 3)):
        with pytest.raises(ValueError, match="rows and seeds decide it"):
            configs(Scale(name="custom", overrides={name: value}))


def test_rows_share_pretraining_whatever_their_writer_and_cases() -> None:
    pretrained = SCALE.model_copy(update={"pretrain": SCALES["cpu"].pretrain})
    *_, cmn, retrieval, scst = configs(pretrained)
    other = cmn.model_copy(update={"shape": cmn.shape.model_copy(update={"writer": "other"})})
    assert shared_stages(other, cmn) == shared_stages(cmn, retrieval) == ("pretrain",)
    assert shared_stages(retrieval, scst) == ("pretrain", "retriever", "index", "ce")


def test_pretraining_of_a_model_with_other_weights_is_taken_over(tmp_path: Path) -> None:
    config = configs(SCALE.model_copy(update={"pretrain": SCALES["cpu"].pretrain}))[0]
    context = RunContext(torch.device("cpu"), 1, "fp32", tmp_path)
    first, second = (tiny_model(retrieval_k=k, finding_head=True, d_model=d) for k, d in ((2, 32), (0, 64)))
    StageResults(config, context, first, ("pretrain",)).finish("pretrain", {"auroc": 0.5})
    before = {name: value.clone() for name, value in second.state_dict().items()}
    results = StageResults(config, context, second, ("pretrain",))
    assert not results.begin("pretrain")
    assert results.metrics == {"auroc": 0.5}
    expected = first.state_dict()
    for name, value in second.state_dict().items():
        pretrained = name.startswith(("backbone.", "finding_head."))
        assert torch.equal(value, (expected if pretrained else before)[name]), name


def test_names_the_rows_that_look_at_the_images() -> None:
    def entry(*lows: float) -> dict[str, Any]:
        shown = [{"difference": low + 0.1, "confidence_95": [low, low + 0.2], "p": 0.5} for low in lows]
        return {"figures": {}, "external": None, "seeds": list(range(len(lows))), "images_exchanged": {"CIDEr": 0.321},
                "looks": {"CIDEr": shown, "label_f1_micro": shown[:1]}}  # fmt: skip

    rows = {"cmn": entry(0.02, 0.03), "retrieval": entry(0.01, -0.01), "retrieval-scst": entry(-0.1)}
    text = markdown({
        "table": {"rows": rows, "steps": {}, "trivial": {}}, "cells_done": [], "cells_planned": 0, "size": {},
        "outside": None, "changes": {}, "cells_failed": [], "published": published.content("evolution"),
    })  # fmt: skip
    words = "Rows that look at the images: cmn (Chen et al., 2021), retrieval (label F1 (micro) only)."
    assert text.index(words) < text.index("images exchanged")
    assert "| cmn (Chen et al., 2021) | +.120 (+.020 to +.220); +.130 (+.030 to +.230) |" in text
    assert ".321" in text
    assert "BrainGPT" in text
    assert ".165" in text


def test_refuses_rows_of_the_other_table(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    given = ["--root", str(tmp_path), "--out", str(tmp_path / "out"), "--table", "evolution"]
    assert main([*given, "--presets", "baseline"]) == 2
    assert "--presets baseline: table evolution has the rows" in caplog.text
    (tmp_path / "rows.yaml").write_text("cmn:")
    assert main([*given, "--rows", str(tmp_path / "rows.yaml")]) == 2
    assert "--table chooses rows of a table, and --rows gives others" in caplog.text
    assert not (tmp_path / "out" / "cells").exists()
