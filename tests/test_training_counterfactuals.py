"""Counterfactuals swap only the evidence that they name; single views use the studies that have them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from torch import nn

from model.drafter import Drafter
from model.types import Draft, StudyView, View
from tests.support.tiny import IMAGE_SIZE, open_drafter
from training.data.openi import open_openi
from training.data.pixel_cache import build_pixel_cache
from training.data.resumable_lines import ResumableLines
from training.data.studies import ImageRef, Source, Study
from training.evaluation.counterfactuals import (
    CounterfactualRow,
    make_counterfactual_rows,
    score_counterfactual_rows,
    swapped_row,
)
from training.evaluation.inference import DraftWriter, swap_images, with_images
from training.evaluation.plan import SWAPS, EvaluationPlan, InferenceOptions
from training.evaluation.rows import KEYWORD_F1
from training.evaluation.scoring import ReferenceSet
from training.phantoms import write_phantom_root
from training.scoring.metrics import score
from training.scoring.protocol import full_prediction, full_reference

VAL = 6


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("side")


@pytest.fixture(scope="module")
def source(folder: Path) -> Source:
    return open_openi(write_phantom_root(folder / "root", train=8, val=VAL, size=64))


@pytest.fixture(scope="module")
def drafter(folder: Path, bundle: Path) -> Drafter:
    """An untrained bundle whose drafts depend on the image: its norms use the statistics of some images."""
    drafter = open_drafter(bundle)
    backbone = drafter.bundle.model.backbone
    for module in backbone.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = None  # the mean over all batches
    backbone.train()
    drafter.draft([_radiographs(seed) for seed in range(20, 36)])
    backbone.eval()
    return drafter


def _radiographs(seed: int) -> list[StudyView]:
    rng = np.random.default_rng(seed)
    coarse = rng.integers(0, 255, (2, 4, 4), np.uint8)
    return [
        StudyView(np.kron(half, np.ones((16, 16), np.uint8)), view) for half, view in zip(coarse, View, strict=True)
    ]


def _outputs(drafts: Sequence[Draft]) -> list[tuple[str, tuple[str, ...]]]:
    return [(draft.findings, tuple(case.case_id for case in draft.reference_cases)) for draft in drafts]


def test_evidence_of_the_same_study_changes_nothing(drafter: Drafter) -> None:
    studies = [_radiographs(seed) for seed in range(4)]
    unchanged = _outputs(drafter.draft(studies))
    assert (
        _outputs(drafter.draft(studies, counterfactual_patches=studies, counterfactual_retrieval=studies)) == unchanged
    )


def test_patches_and_cases_together_equal_the_other_images(drafter: Drafter) -> None:
    studies = [_radiographs(seed) for seed in range(4)]
    others = studies[1:] + studies[:1]
    assert _outputs(drafter.draft(studies, counterfactual_patches=others, counterfactual_retrieval=others)) == _outputs(
        drafter.draft(others)
    )


def test_each_swap_changes_only_its_evidence(drafter: Drafter) -> None:
    studies = [_radiographs(seed) for seed in range(6)]
    others = studies[1:] + studies[:1]
    unchanged, shifted = _outputs(drafter.draft(studies)), _outputs(drafter.draft(others))
    cases, patches = (
        _outputs(drafter.draft(studies, **{name: others}))
        for name in ("counterfactual_retrieval", "counterfactual_patches")
    )
    assert [case_ids for _, case_ids in cases] == [case_ids for _, case_ids in shifted]
    assert [case_ids for _, case_ids in patches] == [case_ids for _, case_ids in unchanged]
    assert unchanged != shifted
    texts = [[text for text, _ in row] for row in (unchanged, shifted, cases, patches)]
    assert len({tuple(row) for row in texts}) == 4  # both kinds of evidence decide what is written


@pytest.fixture
def written(drafter: Drafter, source: Source, folder: Path, tmp_path: Path) -> tuple[DraftWriter, list[Study]]:
    wanted = source.split("val")
    cache = build_pixel_cache(source, wanted, IMAGE_SIZE, folder / "pixels")
    studies, _ = with_images(wanted, cache, "both", {})
    kept = ResumableLines(tmp_path / "drafts.jsonl", "")
    return DraftWriter(drafter, cache, InferenceOptions(batch_size=4, progress=False), kept), studies


def test_rows_are_drafts_on_exchanged_evidence(written: tuple[DraftWriter, list[Study]], tmp_path: Path) -> None:
    writer, studies = written
    others = swap_images(studies, seed=3)
    expected = {"images": writer.write(others), "cases": writer.write(studies, counterfactual_retrieval=others),
                "patches": writer.write(studies, counterfactual_patches=others)}  # fmt: skip
    writer = replace(writer, kept=ResumableLines(tmp_path / "again.jsonl", ""))  # nothing is taken from the first
    for swap in SWAPS:
        row = swapped_row(writer, studies, swap, seed=3)
        assert list(row.findings) == [draft.findings for draft in expected[swap]], swap
        assert list(row.rows) == list(range(VAL))


def test_single_views_use_the_studies_that_have_them(written: tuple[DraftWriter, list[Study]]) -> None:
    writer, studies = written
    frontal = tuple(ref for ref in studies[2].images if ref.view == View.FRONTAL)
    some = [*studies[:2], replace(studies[2], images=frontal), *studies[3:]]
    rows, reasons = make_counterfactual_rows(writer, some, EvaluationPlan(single_views=True), retrieval=True)
    assert list(rows["system_frontal_only"].rows) == list(range(VAL))
    assert list(rows["system_lateral_only"].rows) == [0, 1, 3, 4, 5]
    assert rows["system_frontal_only"].findings[2] == writer.write([some[2]])[0].findings
    assert reasons == {}
    rows, reasons = make_counterfactual_rows(writer, [some[2]], EvaluationPlan(single_views=True), retrieval=True)
    assert list(rows) == ["system_frontal_only"]
    assert reasons == {"system_lateral_only": "no study has a lateral image"}


def _never(*_: object, **__: object) -> list[Draft]:
    raise AssertionError("nothing should be written")


def test_names_swaps_that_cannot_be_made() -> None:
    lone = [Study("A", "A", "val", "Text.", (ImageRef("a", View.FRONTAL),))]
    rows, reasons = make_counterfactual_rows(_never, lone, EvaluationPlan(swaps=SWAPS), retrieval=True)
    assert rows == {}
    assert set(reasons) == {f"system_{swap}_exchanged" for swap in SWAPS}
    rows, reasons = make_counterfactual_rows(_never, lone * 2, EvaluationPlan(swaps=("cases",)), retrieval=False)
    assert "has no reference cases" in reasons["system_cases_exchanged"]


def test_scores_of_a_row_are_those_of_its_studies() -> None:
    reports = ["The heart is large.", "No effusion. The lungs are clear.", "A small nodule.", "Rib fracture."]
    words = frozenset(word for report in reports for word in full_reference(report).split())
    board = ReferenceSet(reports, words, meteor=False)
    system, alone = [*reports[:3], "Clear."], ["The heart is large.", "A large nodule."]
    result: dict[str, Any] = {name: {} for name in (*KEYWORD_F1, "annotations", "confidence_95", "system_minus")}
    rows = {"system_lateral_only": CounterfactualRow([0, 2], alone)}
    score_counterfactual_rows(result, rows, board, system, EvaluationPlan(draws=50))
    pairs = [(full_reference(reports[row]), full_prediction(text)) for row, text in zip((0, 2), alone, strict=True)]
    assert result["system_full_lateral_only"] == score(pairs)
    assert result["n_beside"] == {"system_lateral_only": 2}
    system_scores = score([(board.comparable[row], board.comparable[row]) for row in (0, 2)])
    minus = result["system_minus"]["system_lateral_only"]["ROUGE_L"]
    assert minus["difference"] == pytest.approx(system_scores["ROUGE_L"] - result["system_lateral_only"]["ROUGE_L"])
    assert result["keyword_f1"]["system_lateral_only"]["landmark"]["support"] == 1  # the heart
    low, high = result["confidence_95"]["system_lateral_only"]["ROUGE_L"]
    assert low <= result["system_lateral_only"]["ROUGE_L"] <= high


def test_single_views_need_both_views() -> None:
    with pytest.raises(ValueError, match="--views frontal"):
        EvaluationPlan(views="frontal", single_views=True)
