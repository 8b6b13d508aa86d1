"""The cross-entropy stage with a trainable backbone: which weights move."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from model.config import DecodingConfig
from tests.support.parallel_worker import stage_inputs
from training.config import CEConfig
from training.data.features import OnlineFeatures
from training.phantoms import write_phantom_root
from training.stages.common import ReportGenerator
from training.stages.cross_entropy import train_cross_entropy
from training.stages.index import build_index
from training.trainer.context import RunContext


@pytest.mark.parametrize("retrieval", [True, False])
def test_moving_backbone_trains_and_text_tower_is_frozen(tmp_path: Path, retrieval: bool) -> None:
    root = write_phantom_root(tmp_path / "root", train=16, val=4, seed=5, size=64)
    cache, studies, tokenizer, model = stage_inputs(root, tmp_path / "cache", retrieval_k=3 if retrieval else 0)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    context = RunContext(torch.device("cpu"), 1, "fp32", tmp_path)
    index = build_index(model, studies.train, tokenizer, tmp_path / "index", public=False) if retrieval else None
    patches = OnlineFeatures(model, cache, context.device, view_dropout=0.5)
    config = CEConfig(epochs=2, batch_size=4, backbone_lr=1e-4, transformer_lr=2e-3)
    generator = ReportGenerator(model, tokenizer, patches, index, DecodingConfig())
    train_cross_entropy(generator, studies, config, context)
    after = model.state_dict()

    def moved(prefix: str) -> set[bool]:
        keys = [k for k in before if k.startswith(prefix) and before[k].is_floating_point()]
        return {not torch.equal(before[k], after[k]) for k in keys}

    weights = [name for name, _ in model.backbone.named_parameters()]
    assert any(not torch.equal(before[f"backbone.{name}"], after[f"backbone.{name}"]) for name in weights)
    statistics = [k for k in before if k.startswith("backbone.") and "running" in k]
    assert statistics
    assert all(torch.equal(before[k], after[k]) for k in statistics)
    assert True in moved("decoder.")
    header = (tmp_path / "ce" / "log.csv").read_text().splitlines()[0]
    assert ("contrastive" in header) is retrieval
    if retrieval:
        assert moved("text_tower.") == {False}
        assert True in moved("study_head.")
