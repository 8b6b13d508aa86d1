"""Cases of the training studies by retrievers that have not seen them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from pydantic import ValidationError

from model.network.dual_encoder import dual_encoder
from model.network.report_model import Patches, ReportModel
from model.types import View
from tests.support.tiny import REPORTS, tiny_model, tiny_tokenizer
from training.config import RetrieverConfig
from training.data.studies import ImageRef, Split, Study
from training.stages.common import ReportGenerator, StudySplits, TrainingReports
from training.stages.index import build_index, embed_studies, retrieval_scores
from training.stages.out_of_fold import DRAWS, load_cases, out_of_fold_cases, save_cases
from training.stages.retriever import train_retriever
from training.trainer.context import RunContext

CONFIG = RetrieverConfig(epochs=15, batch_size=16, lr=1e-2, label_weight=0.0, dropout=0.0, folds=4)


class RandomImages:
    """Features that tell studies apart and say nothing about their reports: a retriever can only memorise."""

    def __init__(self, model: ReportModel, studies: Sequence[Study]) -> None:
        generator = torch.Generator().manual_seed(0)
        self._pooled = {study.study_id: torch.randn(model.backbone.width, generator=generator) for study in studies}

    def patches(
        self, studies: Sequence[Study], generator: torch.Generator | None, *, tokens: bool = True,
        part: slice = slice(None),
    ) -> Patches:  # fmt: skip
        pooled = torch.stack([self._pooled[study.study_id] for study in studies])[part].unsqueeze(1)  # (B, 1, D)
        if generator is not None:
            pooled = pooled + 0.1 * torch.randn(pooled.shape, generator=generator)
        views = torch.zeros(len(pooled), 1, dtype=torch.int64)
        return Patches(pooled.unsqueeze(2), pooled, views, torch.ones_like(views, dtype=torch.bool))


def studies(split: Split, count: int) -> list[Study]:
    """Studies of eight different reports; two studies in a row are of one patient."""
    return [
        Study(f"{split}{i}", f"{split}{i // 2}", split, REPORTS[i % 8], (ImageRef(f"{split}{i}", View.FRONTAL),))
        for i in range(count)
    ]


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> dict[str, object]:
    """Cases by a retriever of all studies, and by those of the folds."""
    folder = tmp_path_factory.mktemp("run")
    model, train, val = tiny_model(retrieval_k=3), studies("train", 48), studies("val", 16)
    features, context = RandomImages(model, [*train, *val]), RunContext(torch.device("cpu"), 1, "fp32", folder)
    splits = StudySplits(train, val)
    encoders = (model.study_head, model.text_tower)
    train_retriever(encoders, tiny_tokenizer(), features, StudySplits(train, ()), CONFIG, context)
    index = build_index(model, train, tiny_tokenizer(), folder / "index", public=False)
    cases = out_of_fold_cases(model.config, model.backbone.width, tiny_tokenizer(), features, splits, CONFIG, context)
    return {"model": model, "train": train, "val": val, "features": features, "index": index, "cases": cases,
            "context": context, "splits": splits}  # fmt: skip


def test_retriever_finds_better_cases_for_its_own_studies_and_folds_close_the_gap(trained: dict[str, object]) -> None:
    model, train, val, index, cases = (trained[name] for name in ("model", "train", "val", "index", "cases"))
    found = {}
    for name, chosen in (("train", train), ("val", val)):
        queries = embed_studies(model.study_head, trained["features"], chosen)
        _, rows = index.search(queries, 3, exclude=[study.study_id for study in chosen])
        found[name] = retrieval_scores(index, rows, chosen, seed=1)
    found["folds"] = retrieval_scores(index, cases[:, 0], train, seed=1)
    memorised, unseen, held_out = (found[name]["cider_top3"] for name in ("train", "val", "folds"))
    assert memorised > 2 * unseen
    assert held_out < unseen + (memorised - unseen) / 4
    assert found["folds"]["cider_random"] == found["train"]["cider_random"]
    assert abs(unseen - found["val"]["cider_random"]) < (memorised - unseen) / 4


def test_no_study_gets_its_own_report_and_draws_differ(trained: dict[str, object]) -> None:
    cases = trained["cases"]
    assert cases.shape == (48, DRAWS, 3)
    assert ((cases >= 0) & (cases < 48)).all()
    assert not (cases == np.arange(48)[:, None, None]).any()
    assert (cases[:, 0] != cases[:, 1]).any()


def test_a_resumed_run_finds_the_same_cases(trained: dict[str, object]) -> None:
    model = trained["model"]
    again = out_of_fold_cases(model.config, model.backbone.width, tiny_tokenizer(), trained["features"],
                              trained["splits"], CONFIG, trained["context"])  # fmt: skip
    assert np.array_equal(again, trained["cases"])


def test_studies_of_one_patient_share_a_fold(trained: dict[str, object]) -> None:
    model, splits = trained["model"], trained["splits"]
    train = [replace(study, uid=study.study_id, patient=study.uid) for study in splits.train]
    found = out_of_fold_cases(model.config, model.backbone.width, tiny_tokenizer(), trained["features"],
                              StudySplits(train, splits.val), CONFIG, trained["context"])  # fmt: skip
    assert np.array_equal(found, trained["cases"]), "the folds are those of studies with the patient as uid"


def test_training_stages_draw_from_the_cases_of_the_folds(trained: dict[str, object]) -> None:
    model, index = trained["model"], trained["index"]
    cases = (np.arange(48)[:, None, None] + np.arange(DRAWS)[:, None] + np.array([1, 2, 3])) % 48  # of eight reports
    generator = ReportGenerator(model, tiny_tokenizer(), trained["features"], index, None, cases=cases)  # type: ignore[arg-type]
    reports = TrainingReports.__new__(TrainingReports)
    reports._generator, reports._train = generator, trained["train"]
    batch, seen = np.array([5, 17, 40]), set()
    for seed in range(30):
        _, vectors, mask = reports.inputs(batch, slice(1, 3), torch.Generator().manual_seed(seed))
        assert mask is not None
        assert bool(mask.all())
        for row, found in zip(batch[1:], vectors, strict=True):
            draws = [draw for draw in range(DRAWS) if np.array_equal(index.vectors(cases[row, draw]), found)]
            assert draws
            seen.add((int(row), draws[0]))
    assert len(seen) > DRAWS


def test_cases_round_trip_and_a_file_of_another_run_is_refused(trained: dict[str, object], tmp_path: Path) -> None:
    save_cases(tmp_path / "cases.npy", trained["cases"])
    assert np.array_equal(load_cases(tmp_path / "cases.npy", 48), trained["cases"])
    with pytest.raises(ValueError, match=r"cases of 48 studies, not of 47; remove .* to repeat stage retriever"):
        load_cases(tmp_path / "cases.npy", 47)
    with pytest.raises(ValueError, match=r"cannot be read .* to repeat stage retriever"):
        load_cases(tmp_path / "gone.npy", 48)


def test_one_fold_is_refused() -> None:
    with pytest.raises(ValidationError, match="folds=1 leaves no study to train on"):
        RetrieverConfig(folds=1)


def test_encoders_have_the_shapes_of_the_model() -> None:
    model = tiny_model()
    head, tower = dual_encoder(model.config, model.backbone.width)
    assert {k: v.shape for k, v in head.state_dict().items()} == {
        k: v.shape for k, v in model.study_head.state_dict().items()
    }
    tower.load_state_dict(model.text_tower.state_dict())
