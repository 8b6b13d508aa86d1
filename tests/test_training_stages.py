"""Parts of the stages: augmentation, targets, losses, leave-one-out, learning rates, presets."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from model.config import DecodingConfig
from model.text.labeler import FINDINGS
from model.types import View
from tests.support.parallel_worker import stage_inputs
from tests.support.tiny import REPORTS, random_patches, tiny_index, tiny_model, tiny_tokenizer
from training.config import CEConfig
from training.data.augment import Augmentation, augment, to_float
from training.data.features import OnlineFeatures, select_views
from training.data.studies import ImageRef, Study
from training.data.targets import finding_targets, read_soft_scores
from training.phantoms import write_phantom_root
from training.presets import PRESETS, preset
from training.stages.common import (
    FrozenPartsModule,
    ReportGenerator,
    build_optimizer,
    mask_suppressed_targets,
    retrieve,
)
from training.stages.contrastive import contrastive_loss, label_overlap, label_vectors, phrase_overlap, report_agreement
from training.stages.cross_entropy import train_cross_entropy
from training.stages.index import build_index, label_agreement, recall
from training.stages.mbr_table import analyse, report_tokens
from training.trainer.context import RunContext


def study(number: int, report: str, *views: View | None, split: str = "train") -> Study:
    images = tuple(ImageRef(f"CXR{number}-{i}", view) for i, view in enumerate(views or (View.FRONTAL, View.LATERAL)))
    return Study(f"CXR{number}_IM-0001", f"CXR{number}", split, report, images)  # type: ignore[arg-type]


# --- augmentation -----------------------------------------------------------------------------------------------------


def test_augmentation_of_strength_zero_is_identity_and_never_flips() -> None:
    images = torch.zeros(8, 1, 64, 64)
    images[:, :, :, :20] = 0.8  # bright at the image's left
    still = augment(images, Augmentation(0, 0, 0, 0), torch.Generator().manual_seed(0))
    torch.testing.assert_close(still, images.clamp(1e-4, 1), atol=1e-3, rtol=0)
    moved = augment(images, Augmentation(), torch.Generator().manual_seed(0))
    assert bool((moved[..., :16].mean((1, 2, 3)) > 3 * moved[..., 40:].mean((1, 2, 3))).all())
    assert float(moved.min()) >= 0
    assert float(moved.max()) <= 1
    assert not torch.equal(moved[0], moved[1])


def test_augmentation_is_not_rounded_to_bfloat16_under_autocast() -> None:
    images = torch.rand(2, 1, 224, 224, generator=torch.Generator().manual_seed(0))
    exact = augment(images, Augmentation(), torch.Generator().manual_seed(0))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(augment(images, Augmentation(), torch.Generator().manual_seed(0)), exact)


def test_to_float_averages_areas_when_it_shrinks() -> None:
    pixels = torch.zeros(1, 64, 64, dtype=torch.uint8)
    pixels[:, ::2] = 200  # lines finer than the smaller grid
    small = to_float(pixels, 16)
    torch.testing.assert_close(small[:, :, 2:-2, 2:-2], torch.full((1, 1, 12, 12), 100 / 255), atol=0.02, rtol=0)


# --- targets ----------------------------------------------------------------------------------------------------------


def test_targets_concatenate_soft_scores_and_report_labels(tmp_path: Path) -> None:
    table = tmp_path / "scores.csv"
    table.write_text("image_id,Mass,Hernia\nCXR1-0,0.25,0.5\n")
    one, none = study(1, REPORTS[1]), study(2, "")
    targets = finding_targets([("CXR1-0", one), ("CXR1-1", one), ("CXR2-0", none)], read_soft_scores(table))
    assert targets.columns[:2] == ("soft/Mass", "soft/Hernia")
    assert targets.values[0, :2].tolist() == [0.25, 0.5]
    assert targets.mask[:, :2].tolist() == [[1, 1], [0, 0], [0, 0]]
    column = 2 + FINDINGS.index("Pleural Effusion")
    assert targets.values[:2, column].tolist() == [1, 1]
    assert targets.mask[2].sum() == 0  # a report without words has no labels


def test_mesh_and_text_targets_need_enough_studies() -> None:
    headings = ("Opacity/lung/base/left", "Cardiomegaly/mild")
    pairs = [
        (f"CXR{row}-0", replace(study(row, REPORTS[row % 2]), mesh=headings[: 1 + row % 2] if row < 30 else ()))
        for row in range(40)
    ]
    targets = finding_targets(pairs, None, terms=True)
    assert targets.columns[targets.group("report")] == tuple(f"report/{name}" for name in FINDINGS)
    mesh, text = targets.group("mesh"), targets.group("text")
    # terms of all indexed studies separate nothing: only those of the second heading are left
    assert targets.columns[mesh] == ("mesh/cardiomegaly", "mesh/cardiomegaly/mild")
    assert targets.values[:4, mesh].tolist() == [[0, 0], [1, 1], [0, 0], [1, 1]]
    assert targets.mask[:, mesh].sum() == 2 * 30  # ten studies were not indexed
    words = {column.removeprefix("text/") for column in targets.columns[text]}
    assert {"enlarged", "the heart is enlarged"} <= words
    assert "the" not in words  # it is in every report
    assert targets.values[:2, targets.columns.index("text/enlarged")].tolist() == [0, 1]
    assert targets.group("soft") == slice(0, 0)


@pytest.mark.parametrize("text", ["id,Mass\nA,0.1\n", "image_id,Mass\nA,1.5\n", "image_id,Mass\nA,0.1,0.2\n"])
def test_rejects_malformed_soft_scores(tmp_path: Path, text: str) -> None:
    (tmp_path / "scores.csv").write_text(text)
    with pytest.raises(ValueError, match=r"scores\.csv"):
        read_soft_scores(tmp_path / "scores.csv")


# --- retriever --------------------------------------------------------------------------------------------------------


def test_contrastive_loss_without_agreement_is_the_symmetric_cross_entropy() -> None:
    similarity = torch.randn(5, 5, generator=torch.Generator().manual_seed(0))
    expected = (
        torch.nn.functional.cross_entropy(similarity * 3, torch.arange(5))
        + torch.nn.functional.cross_entropy(similarity.t() * 3, torch.arange(5))
    ) / 2
    for label_weight in (0.0, 0.5):
        torch.testing.assert_close(contrastive_loss(similarity, torch.eye(5), 3.0, label_weight), expected)


def test_contrastive_loss_tolerates_reports_with_equal_findings() -> None:
    together = torch.tensor([[1.0, 1.0, -1.0], [1.0, 1.0, -1.0], [-1.0, -1.0, 1.0]])
    apart = torch.tensor([[1.0, -1.0, -1.0], [-1.0, 1.0, -1.0], [-1.0, -1.0, 1.0]])
    agreement = torch.tensor([[1.0, 1.0, 0.0], [1.0, 1.0, 0.0], [0.0, 0.0, 1.0]])
    assert contrastive_loss(together, agreement, 5.0, 0.9) < contrastive_loss(apart, agreement, 5.0, 0.9)


def test_recall_and_mrr_by_hand() -> None:
    similarity = torch.eye(12)
    similarity[0, 1] = 2.0  # its report is second
    similarity[3, 4:10] = 2.0  # its report is seventh
    expected = {"recall_1": 10 / 12, "recall_5": 11 / 12, "recall_10": 1.0, "mrr": (10 + 1 / 2 + 1 / 7) / 12}
    assert recall(similarity) == pytest.approx(expected)


def test_report_agreement_mixes_findings_and_phrases() -> None:
    studies = [study(row, REPORTS[number]) for row, number in enumerate((1, 1, 0, 7) * 3)]
    vectors = torch.from_numpy(analyse(report_tokens(studies, tiny_tokenizer(), 40), 16, 1).coordinates[:4])
    phrases = phrase_overlap(vectors)
    assert phrases[0, 1] == pytest.approx(1, abs=1e-3)
    assert (phrases[0, 2:] < 0.5).all()
    labels = label_vectors(studies[:4])
    findings = label_overlap(labels)
    torch.testing.assert_close(report_agreement(labels, vectors, 0.0), findings / findings.sum(1, keepdim=True))
    mixed = 0.75 * findings / findings.sum(1, keepdim=True) + 0.25 * phrases / phrases.sum(1, keepdim=True)
    torch.testing.assert_close(report_agreement(labels, vectors, 0.25), mixed)


def test_overlap_and_agreement_follow_the_findings() -> None:
    reports = [REPORTS[1], "A left pleural effusion is small. Enlarged heart.", REPORTS[0], "x", "Left effusion."]
    overlap = label_overlap(label_vectors([study(i, report) for i, report in enumerate(reports)]))
    assert overlap[0, 1] == pytest.approx(1.0)
    assert overlap[0, 2] == overlap[2, 4] == 0
    assert overlap[0, 4] == pytest.approx(0.25)  # one finding of two: cosine 1/sqrt(2), to the fourth
    assert overlap.diagonal().tolist() == [1.0] * 5
    assert label_agreement([[reports[1]], [reports[2]]], [reports[0], reports[0]]) == pytest.approx(0.5)


# --- views and retrieval ----------------------------------------------------------------------------------------------


def test_frontal_view_comes_first_and_one_view_may_be_dropped() -> None:
    pair = study(1, "x", View.LATERAL, View.FRONTAL)
    known = {"CXR1-0": 0, "CXR1-1": 1}
    assert select_views(pair, known, 1.0, None) == [(1, 0), (0, 1)]
    assert select_views(study(1, "x", None, None), known, 0.0, None) == [(0, 0), (1, 1)]
    kept = {tuple(select_views(pair, known, 1.0, torch.Generator().manual_seed(s))) for s in range(20)}
    assert kept == {((1, 0),), ((0, 1),)}  # always one dropped, never both, either one
    assert len(select_views(study(1, "x", View.LATERAL), known, 1.0, torch.Generator().manual_seed(0))) == 1


def test_study_never_retrieves_itself_in_training() -> None:
    model = tiny_model()
    index = tiny_index(model)
    patches = random_patches(model, 8)
    queries = model.embed_study(patches).detach().numpy()
    _, rows = index.search(queries, 1)
    nearest_ids = [index.case(int(row)).case_id for row in rows[:, 0]]  # each study takes the id of its nearest case
    with_self, _ = retrieve(model, index, patches, None)
    without, found = retrieve(model, index, patches, nearest_ids)
    assert with_self is not None
    assert without is not None
    assert found is not None
    nearest = torch.from_numpy(index.vectors(rows[:, 0]))
    assert torch.equal(with_self[:, 0], nearest)
    assert bool(found.all())
    assert not bool((without == nearest[:, None]).all(-1).any())


def test_only_training_studies_enter_the_index(tmp_path: Path) -> None:
    model = tiny_model()
    train = [study(i, report) for i, report in enumerate(REPORTS)]
    index = build_index(model, train, tiny_tokenizer(), tmp_path / "index", public=True)
    assert len(index) == len(REPORTS)
    assert index.case(1).labels["Pleural Effusion"] == "present"
    assert index.case(1).source_url == "https://openi.nlm.nih.gov/detailedresult?img=CXR1-0&req=4"
    with pytest.raises(ValueError, match="only training studies"):
        build_index(model, [study(9, "x", split="val")], tiny_tokenizer(), tmp_path / "index", public=True)


# --- cross-entropy ----------------------------------------------------------------------------------------------------


def test_suppressed_words_are_no_targets() -> None:
    tokenizer = tiny_tokenizer()
    ids = torch.tensor([[tokenizer.bos_id, tokenizer.id_of("heart"), tokenizer.unk_id, tokenizer.eos_id]])
    assert mask_suppressed_targets(ids, DecodingConfig(), tokenizer).tolist() == [
        [tokenizer.bos_id, tokenizer.id_of("heart"), 0, tokenizer.eos_id]
    ]


def test_optimizer_has_two_rates_and_leaves_out_frozen_parts() -> None:
    model = tiny_model()
    stage = FrozenPartsModule(model, train_backbone=True).train()
    visual, rest = build_optimizer(model, backbone_lr=1e-5, head_lr=1e-3, weight_decay=0.0).param_groups
    assert (visual["lr"], rest["lr"]) == (1e-5, 1e-3)
    assert sum(p.numel() for p in visual["params"]) == sum(p.numel() for p in model.backbone.parameters())
    assert not model.backbone.training
    assert stage.training
    FrozenPartsModule(model, train_backbone=False)
    (only,) = build_optimizer(model, backbone_lr=0.0, head_lr=1e-3, weight_decay=0.0).param_groups
    frozen = {id(p) for part in (model.backbone, model.text_tower, model.study_head) for p in part.parameters()}
    assert not frozen & {id(p) for p in only["params"]}


# --- presets ----------------------------------------------------------------------------------------------------------


def test_all_presets_are_valid_and_unknown_names_are_rejected() -> None:
    ours = {"baseline", "densenet", "densenet-lr", "retrieval", "retrieval-scst", "compact", "smoke"}
    earlier = {"cnn-rnn", "coattention", "r2gen", "cmn"}
    assert ours | earlier | {"r2gencmn", "r2gencmn-mimic"} == set(PRESETS)
    for config in PRESETS.values():
        assert type(config).model_validate_json(config.model_dump_json()) == config
    with pytest.raises(ValueError, match="choose one of r2gencmn"):
        preset("huge")


# --- a trainable backbone ---------------------------------------------------------------------------------------------


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
