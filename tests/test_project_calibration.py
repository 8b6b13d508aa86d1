"""The shipped calibration, on real radiographs if they are available."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from model.bundle import load_bundle
from model.config import DecodingConfig
from model.drafter import Drafter
from model.images import load_pixels
from model.text.labeler import FINDINGS, NO_FINDING
from model.types import Draft, DraftOptions, StudyView, View
from tests.support.paths import REPOSITORY, SHIPPED
from tests.support.tables import without_blanks
from tests.support.tiny import drawn_study
from training.calibration.ood_examples import TURNED, drawn
from training.calibration.report import (
    confidence_table,
    finding_table,
    ood_table,
    separation_table,
    support_table,
    view_table,
)
from training.data.openi import open_openi

METRICS = REPOSITORY / "docs" / "calibration.json"


@pytest.fixture(scope="module")
def study(shipped_drafter: Drafter, real_data: Path) -> list[StudyView]:
    """A validation study, frontal and lateral."""
    source = open_openi(real_data / "openi")
    chosen = next(one for one in source.split("val") if [ref.view for ref in one.ordered()] == list(View))
    data = dict(source.images.iter([ref.key for ref in chosen.images]))
    files = [(data[ref.key], view) for ref, view in zip(chosen.ordered(), View, strict=True)]
    return [StudyView(load_pixels(content or b"", shipped_drafter.image_size), view) for content, view in files]


@pytest.fixture(scope="module")
def greedy_drafter(shipped_drafter: Drafter) -> Drafter:
    """The shipped bundle with the fastest decoding; warnings about images do not depend on it."""
    bundle = shipped_drafter.bundle
    config = bundle.config.model_copy(update={"decoding": DecodingConfig(method="greedy")})
    return Drafter(replace(bundle, config=config), shipped_drafter.index)


def codes(draft: Draft) -> set[str]:
    others = {"texts_not_available", "missing_view", "unsupported_sentence"}
    return {warning.code for warning in draft.warnings} - others


def sent(study: Sequence[StudyView], *views: View) -> list[StudyView]:
    return [replace(image, view=view) for image, view in zip(study, views, strict=True)]


def test_calibration_fits_the_weights_and_covers_every_finding(shipped_drafter: Drafter) -> None:
    calibration = shipped_drafter.bundle.calibration
    assert calibration is not None
    assert calibration.fitted_on["val_studies"] == 296
    assert set(calibration.support.thresholds) <= set(FINDINGS) - {NO_FINDING}
    assert len(calibration.support.thresholds) >= 8
    assert {head.name for head in calibration.unusual.heads} == set(TURNED)


def test_real_pairs_keep_their_views_and_exchanged_pairs_are_corrected(
    shipped_drafter: Drafter, study: list[StudyView]
) -> None:
    right, exchanged, alone = shipped_drafter.draft(
        [study, sent(study, View.LATERAL, View.FRONTAL), sent(study[:1], View.LATERAL)],
        DraftOptions(attention=True, evidence=True),
    )
    assert codes(right) == set()
    assert [check.view for check in right.image_checks] == list(View)
    assert codes(exchanged) == {"views_swapped"}
    assert exchanged.findings == right.findings
    for one, other in zip(right.sentences, exchanged.sentences, strict=True):
        assert one.attention is not None
        assert other.attention is not None
        for view, field in (("frontal", "lateral"), ("lateral", "frontal")):  # an overlay follows its image
            np.testing.assert_allclose(other.attention.patches[field], one.attention.patches[view], atol=1e-5)
            if one.evidence is not None and other.evidence is not None:
                np.testing.assert_allclose(other.evidence.patches[field], one.evidence.patches[view], atol=1e-5)
    assert any(part.evidence is not None for part in right.sentences)
    assert all(part.attention is not None and set(part.attention.patches) == {"lateral"} for part in alone.sentences)
    assert codes(alone) == {"view_corrected"}
    assert alone.image_checks[0].view is View.FRONTAL


def test_unusual_images_exchanged_against_both_headers_give_the_draft_of_the_right_order(
    shipped_drafter: Drafter,
) -> None:
    frontal, lateral = drawn_study("effusion", shipped_drafter.image_size)
    negative = [replace(image, pixels=255 - image.pixels) for image in (frontal, lateral)]
    exchanged = sent(negative, View.LATERAL, View.FRONTAL)
    headed = [replace(image, header_view=view) for image, view in zip(exchanged, View, strict=True)]
    right, corrected, uncorrected = shipped_drafter.draft([negative, headed, exchanged])
    assert codes(right) == codes(uncorrected) == {"unusual_image"}
    assert codes(corrected) == {"unusual_image", "views_swapped"}
    assert corrected.findings == right.findings
    confidence = [[sentence.confidence for sentence in draft.sentences] for draft in (right, corrected, uncorrected)]
    assert confidence[1] == pytest.approx(confidence[0], abs=1e-5)
    assert confidence[2] != pytest.approx(confidence[0], abs=1e-3)


def test_warns_about_rotated_and_inverted_radiographs(greedy_drafter: Drafter, study: list[StudyView]) -> None:
    strange = [
        [replace(study[0], pixels=np.ascontiguousarray(how(study[0].pixels))), study[1]] for how in TURNED.values()
    ]
    assert [codes(draft) for draft in greedy_drafter.draft(strange)] == [{"unusual_image"}] * len(TURNED)


def test_warns_about_images_that_are_not_radiographs(greedy_drafter: Drafter) -> None:
    kinds = {
        name: pixels[0] for name, pixels in drawn(greedy_drafter.image_size, 1, seed=2).items() if name != "clouds"
    }
    drafts = greedy_drafter.draft([[StudyView(pixels, View.FRONTAL)] for pixels in kinds.values()])
    found = {name: codes(draft) for name, draft in zip(kinds, drafts, strict=True)}
    assert found == {name: {"unusual_image"} for name in kinds}


def test_sentences_with_a_present_finding_have_a_confidence(shipped_drafter: Drafter) -> None:
    studies = [drawn_study(name, shipped_drafter.image_size) for name in ("effusion", "consolidation", "normal")]
    for draft in shipped_drafter.draft(studies):
        for sentence in draft.sentences:
            assert (sentence.supported is None) == (not {"present", "uncertain"} & set(sentence.labels.values()))
        unsupported = any(sentence.supported is False for sentence in draft.sentences)
        assert unsupported == any(warning.code == "unsupported_sentence" for warning in draft.warnings)


def test_the_guide_has_the_metrics() -> None:
    metrics = json.loads(METRICS.read_text())
    guide = without_blanks((REPOSITORY / "docs" / "calibration.md").read_text())
    assert metrics["weights_sha256"] == load_bundle(SHIPPED).manifest.files["model.safetensors"].sha256
    tables = [view_table, ood_table, confidence_table, support_table, separation_table]
    tables += [finding_table] if "findings" in metrics else []  # fitted by an older version
    printed = {without_blanks(row) for table in tables for row in table(metrics).splitlines()}
    rows = [line for line in guide.splitlines() if line.startswith("|")]
    assert len(rows) > 20
    assert set(rows) <= printed
    view, confidence = metrics["view"], metrics["confidence"]["all"]
    assert view["pairs_wrongly_exchanged"] == 0
    assert view["exchanged_pairs_put_right"] >= 0.95 * view["pairs"]
    assert metrics["unusual"]["val"]["warned"] <= 0.02
    assert confidence["calibrated"]["ece"] < 0.05 < confidence["words"]["ece"]
    assert confidence["calibrated"]["brier"] < confidence["rate_of_the_kind"]["brier"]
