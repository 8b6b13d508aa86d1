"""Tags of the writer ``coattention``: which headings they are, that they are learned, and that a killed run resumes."""

from __future__ import annotations

import csv
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from model.config import DecodingConfig
from model.text.labeler import FINDINGS
from tests.support.parallel_worker import fit_statistics, stage_inputs
from tests.support.tiny import REPORTS
from training.config import CEConfig
from training.data.features import cache_features
from training.data.studies import Study
from training.data.targets import MIN_TAG_STUDIES, tag_names, tag_targets
from training.phantoms import write_phantom_root
from training.stages.common import ReportGenerator
from training.stages.cross_entropy import train_cross_entropy
from training.trainer.context import RunContext
from training.trainer.loop import Loop

STUDY = Study("CXR1_IM-0001", "CXR1", "train", REPORTS[1], ())


def test_tags_are_first_parts_of_headings_that_enough_studies_have() -> None:
    frequent = ("Opacity/lung/base/left", "Cardiomegaly/mild", "No Indexing")
    train = [replace(STUDY, mesh=frequent)] * MIN_TAG_STUDIES + [replace(STUDY, mesh=("Opacity/lung", "Nodule"))]
    assert tag_names(train) == ("cardiomegaly", "opacity")
    assert tag_targets(train[-2:], ("cardiomegaly", "opacity")).tolist() == [[1, 1], [0, 1]]


def test_tags_are_findings_of_the_reports_where_no_heading_is_frequent() -> None:
    assert tag_names([STUDY]) == FINDINGS
    named = dict(zip(FINDINGS, tag_targets([STUDY], FINDINGS)[0].tolist(), strict=True))
    assert [name for name, value in named.items() if value] == ["Cardiomegaly", "Pleural Effusion"]


def test_tags_are_learned_and_a_killed_stage_resumes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = write_phantom_root(tmp_path / "root", train=12, val=0, seed=3, size=64)
    tags = ("cardiomegaly", "normal", "pleural effusion")

    def train(work: Path) -> tuple[dict[str, Tensor], list[dict[str, str]], float]:
        """Weights, the log, and the share of studies whose most probable tag is one of theirs."""
        cache, studies, tokenizer, model = stage_inputs(root, tmp_path / "cache", writer="coattention", tags=tags,
                                                        retrieval_k=0, dropout=0.0)  # fmt: skip
        context = RunContext(torch.device("cpu"), 1, "fp32", work)
        fit_statistics(model.backbone, torch.from_numpy(np.array(cache.array)))
        patches = cache_features(model.backbone, cache, studies.train, 1, context, tmp_path / "cache",
                                 view_dropout=0.0, name="frozen")  # fmt: skip
        generator = ReportGenerator(model, tokenizer, patches, None, DecodingConfig())
        config = CEConfig(epochs=8, batch_size=4, backbone_lr=0.0, transformer_lr=1e-2, view_dropout=0.0)
        train_cross_entropy(generator, studies, config, context)
        with torch.no_grad():
            encoded = model.eval().encode(patches.patches(studies.train, None))
        truth = torch.from_numpy(tag_targets(studies.train, tags))
        best = truth.gather(1, encoded.tag_logits.argmax(1, keepdim=True))[truth.any(1)]
        return model.state_dict(), list(csv.DictReader((work / "ce" / "log.csv").open())), float(best.mean())

    weights, log, learned = train(tmp_path / "unbroken")
    assert learned > 0.9
    assert float(log[-1]["tags"]) < 0.5 * float(log[0]["tags"])
    assert float(log[0]["loss"]) == pytest.approx(float(log[0]["nll"]) + float(log[0]["tags"]), rel=1e-4)

    whole = Loop.save

    def killed(loop: Loop) -> None:
        whole(loop)
        if loop.step == 9:
            raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(Loop, "save", killed)
        with pytest.raises(KeyboardInterrupt):
            train(tmp_path / "killed")
    resumed, again, _ = train(tmp_path / "killed")
    assert [row["loss"] for row in again] == [row["loss"] for row in log]
    assert all(torch.equal(value, weights[key]) for key, value in resumed.items())
