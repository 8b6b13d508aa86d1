"""The shipped bundle: small, complete, without report texts; its drafts depend on the images."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import pytest

from model.bundle import load_bundle
from model.drafter import Drafter
from model.images import load_pixels
from model.types import Draft, StudyView, View
from retrieval_index.hydrate import hydrate
from tests.support.paths import REPOSITORY, SHIPPED
from tests.support.tables import without_blanks
from tests.support.tiny import drawn_study, open_drafter
from training.data.openi import open_openi
from training.data.studies import Source, Study
from training.model_card import CARD, model_card


def numbers(draft: Draft) -> list[float]:
    confidences = [sentence.confidence for sentence in draft.sentences]
    return confidences + [case.similarity for case in draft.reference_cases]


def test_shipped_bundle_is_small_and_has_no_report_texts() -> None:
    files = [path for path in SHIPPED.rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) <= 30 * 2**20
    lines = (SHIPPED / "index" / "cases.jsonl").read_text().splitlines()
    assert len(lines) == 2069
    assert all(json.loads(line)["findings"] is None for line in lines)


def test_drafts_have_five_cases_and_a_warning_about_missing_texts(shipped_drafter: Drafter) -> None:
    size = shipped_drafter.image_size
    normal, effusion = shipped_drafter.draft([drawn_study("normal", size), drawn_study("effusion", size)])
    for draft in (normal, effusion):
        assert draft.findings
        assert "xxxx" not in draft.findings.lower()
        assert len(draft.reference_cases) == 5
        odd = any(check.unusual >= 0.99 for check in draft.image_checks)  # a phantom may be out of distribution
        assert [warning.code for warning in draft.warnings] == ["unusual_image"] * odd + ["texts_not_available"]
    assert normal.findings != effusion.findings


def test_batched_drafts_equal_single_drafts(shipped_drafter: Drafter) -> None:
    studies = [drawn_study(name, shipped_drafter.image_size) for name in ("consolidation", "effusion", "effusion")]
    together = shipped_drafter.draft(studies)
    for study, batched in zip(studies[:2], together, strict=False):
        (alone,) = shipped_drafter.draft([study])
        assert batched.findings == alone.findings
        assert [case.case_id for case in batched.reference_cases] == [case.case_id for case in alone.reference_cases]
        assert numbers(batched) == pytest.approx(numbers(alone), abs=1e-5)
    assert together[1].sentences == together[2].sentences


def test_metrics_show_that_drafts_depend_on_the_images() -> None:
    metrics = json.loads((SHIPPED / "metrics.json").read_text())["val"]
    assert metrics["n"] == 296
    system, constant, nearest = metrics["system"], metrics["baselines"]["constant"], metrics["baselines"]["nearest"]
    assert system["CIDEr"] >= constant["CIDEr"] + 0.10
    assert system["CIDEr"] > nearest["CIDEr"]
    assert system["label_f1_micro"] >= max(0.30, nearest["label_f1_micro"])
    assert system["BLEU_4"] >= 0.175
    assert system["ROUGE_L"] >= 0.38
    assert system["distinct"] >= 0.25
    assert metrics["copied"] <= 0.5
    exchanged = metrics["system_images_exchanged"]
    assert exchanged["CIDEr"] < 0.7 * system["CIDEr"]
    assert exchanged["label_f1_micro"] < 0.5 * system["label_f1_micro"]


def test_model_card_is_that_of_the_configuration_and_metrics() -> None:
    card = model_card(load_bundle(SHIPPED).config, json.loads((SHIPPED / "metrics.json").read_text()))
    assert (SHIPPED / CARD).read_text() == card


def test_the_readme_has_the_metrics_of_the_bundle() -> None:
    metrics = json.loads((SHIPPED / "metrics.json").read_text())["val"]
    readme = without_blanks((REPOSITORY / "README.md").read_text())
    rows = {"this bundle": metrics["system"], "one constant report": metrics["baselines"]["constant"],
            "this bundle, images exchanged between studies": metrics["system_images_exchanged"]}  # fmt: skip
    names = ("BLEU_1", "BLEU_4", "METEOR", "ROUGE_L", "CIDEr", "label_f1_micro", "label_f1_macro", "distinct")
    for label, row in rows.items():
        cells = [f"{row[name]:.3f}".lstrip("0") for name in names]
        assert f"|{label}|{'|'.join(cells)}|" in readme


# --- on real studies --------------------------------------------------------------------------------------------------


def read(studies: Sequence[Study], source: Source, size: int) -> list[list[StudyView]]:
    images = dict(source.images.iter([ref.key for study in studies for ref in study.images]))
    views = [[(images[ref.key], ref.view or View.FRONTAL) for ref in study.ordered()] for study in studies]
    return [[StudyView(load_pixels(data, size), view) for data, view in study if data] for study in views]


def test_a_validation_study_gets_five_other_cases_with_texts(real_data: Path, tmp_path: Path) -> None:
    root = real_data / "openi"
    out = tmp_path / "hydrated"
    hydrate(SHIPPED, root / "NLMCXR_reports.tgz", out=out)
    assert load_bundle(out).calibration == load_bundle(SHIPPED).calibration is not None
    drafter, source = open_drafter(out), open_openi(root)
    val = source.split("val")
    drafts: list[Draft] = drafter.draft(read(val[:6], source, drafter.image_size))
    val_ids = {study.study_id for study in val}
    for draft in drafts:
        assert len(draft.reference_cases) == 5
        assert all(case.findings for case in draft.reference_cases)
        assert not val_ids & {case.case_id for case in draft.reference_cases}
    assert len({draft.findings for draft in drafts}) >= 4
