"""Evidence maps: exact parts of the logits of the finding classifier, in image orientation; drafts do not change."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch

from model.config import DecodingConfig
from model.decoding.evidence_maps import FindingEvidence, evidence_of
from model.drafter import Drafter
from model.network.report_model import Patches, ReportModel
from model.text.labeler import FINDINGS
from model.types import DraftOptions, View
from tests.support.tiny import IMAGE_SIZE, noise_study, open_drafter, tiny_model, write_tiny_bundle

WITH_EVIDENCE = DraftOptions(evidence=True)
SIDE = IMAGE_SIZE // 32
OPACITY, EFFUSION = FINDINGS.index("Lung Opacity"), FINDINGS.index("Pleural Effusion")


@pytest.fixture(scope="module")
def drafter(tmp_path_factory: pytest.TempPathFactory) -> Drafter:
    decoding = DecodingConfig(candidates=4, min_length=14, block_trigrams=True)
    path = tmp_path_factory.mktemp("bundles") / "tiny"
    return open_drafter(write_tiny_bundle(path, decoding=decoding, full_stops=5.0, finding_head=True))


def classified(feature_norm: bool) -> tuple[ReportModel, Patches]:
    """A model with a finding classifier, and the patches of three studies: both views, lateral, frontal."""
    model = tiny_model(1, finding_head=True, feature_norm=feature_norm)
    if model.feature_norm is not None:
        assert model.feature_norm.running_mean is not None
        model.feature_norm.running_mean.normal_()
    images = torch.rand(3, 2, 1, IMAGE_SIZE, IMAGE_SIZE, generator=torch.Generator().manual_seed(3))
    views = torch.tensor([[0, 1], [1, 0], [0, 0]])
    with torch.no_grad():
        return model, model.encode_images(images, views, torch.tensor([[True, True], [True, False], [True, False]]))


# --- the numbers ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("feature_norm", [True, False], ids=["relative to the mean patch", "relative to 0"])
def test_contributions_of_a_view_and_the_reference_are_its_logits(feature_norm: bool) -> None:
    model, patches = classified(feature_norm)
    found = evidence_of(model, patches)
    assert found is not None
    assert model.finding_head is not None
    with torch.no_grad():
        logits = model.finding_head(patches.pooled)
        probabilities = model.findings(patches)
    assert probabilities is not None
    sums = found.contributions.sum(dim=2)  # (B, V, 14)
    real = patches.view_mask
    torch.testing.assert_close((sums + found.reference)[real], logits[real], atol=1e-5, rtol=1e-5)
    assert bool((found.contributions[~real] == 0).all())
    of_studies = sums.sum(dim=1) / real.sum(dim=1, keepdim=True) + found.reference
    torch.testing.assert_close(of_studies.sigmoid(), probabilities, atol=1e-5, rtol=1e-5)


def test_reference_is_the_logit_of_the_mean_patch() -> None:
    model, patches = classified(feature_norm=True)
    assert model.feature_norm is not None
    assert model.feature_norm.running_mean is not None
    average = patches._replace(tokens=model.feature_norm.running_mean.expand_as(patches.tokens))
    found = evidence_of(model, average)
    assert found is not None
    assert float(found.contributions.abs().max()) < 1e-6


def test_model_without_classifier_has_no_evidence(tmp_path: Path) -> None:
    assert evidence_of(tiny_model(1), classified(feature_norm=True)[1]) is None
    plain = open_drafter(write_tiny_bundle(tmp_path / "plain"))
    (draft,) = plain.draft([noise_study(1, View.FRONTAL)], WITH_EVIDENCE)
    assert [sentence.evidence for sentence in draft.sentences] == [None] * len(draft.sentences)


# --- the finding of a sentence ----------------------------------------------------------------------------------------


def evidence(opacity: float, effusion: float) -> FindingEvidence:
    contributions = torch.zeros(1, 2, 4, 14)
    contributions[0, 0, 1, OPACITY], contributions[0, 1, 2, EFFUSION] = opacity, effusion
    return FindingEvidence(contributions, torch.zeros(14))


@pytest.mark.parametrize(
    ("labels", "opacity", "effusion", "finding"),
    [
        ({"Lung Opacity": "present", "Pleural Effusion": "uncertain"}, 1.0, 2.0, "Pleural Effusion"),
        ({"Lung Opacity": "present", "Pleural Effusion": "uncertain"}, -1.0, -2.0, "Lung Opacity"),
        ({"Lung Opacity": "absent", "Pleural Effusion": "absent"}, -1.0, -2.0, "Pleural Effusion"),
        ({"Lung Opacity": "absent", "Pleural Effusion": "present"}, 9.0, -2.0, "Pleural Effusion"),
    ],
)
def test_sentence_shows_the_stated_finding_with_most_support_or_the_denied_one_with_least(
    labels: dict[str, str], opacity: float, effusion: float, finding: str
) -> None:
    found = evidence(opacity, effusion).of_sentence(0, labels, ["frontal", "lateral"])  # type: ignore[arg-type]
    assert found is not None
    assert found.finding == finding
    expected = {"frontal": np.zeros((2, 2)), "lateral": np.zeros((2, 2))}
    if finding == "Lung Opacity":
        expected["frontal"][0, 1] = opacity  # patch 1: above, right
    else:
        expected["lateral"][1, 0] = effusion  # patch 2: below, left
    for view, grid in found.patches.items():
        np.testing.assert_allclose(grid, expected[view])


def test_sentence_without_a_finding_has_no_evidence() -> None:
    assert evidence(1.0, 1.0).of_sentence(0, {}, ["frontal", "lateral"]) is None


# --- drafts -----------------------------------------------------------------------------------------------------------


def test_draft_has_maps_of_its_findings_that_sum_to_their_logits(drafter: Drafter) -> None:
    studies = [noise_study(1, View.FRONTAL, View.LATERAL), noise_study(2, View.LATERAL), noise_study(4, View.FRONTAL)]
    plain, drafts = drafter.draft(studies), drafter.draft(studies, WITH_EVIDENCE)
    model = drafter.bundle.model
    assert model.finding_head is not None
    assert model.feature_norm is not None
    with torch.no_grad():
        reference = dict(zip(FINDINGS, model.finding_head(model.feature_norm.running_mean).tolist(), strict=True))
    seen = set()
    for before, draft, study in zip(plain, drafts, studies, strict=True):
        assert [dataclasses.replace(sentence, evidence=None) for sentence in draft.sentences] == list(before.sentences)
        assert draft.timings_ms.keys() - before.timings_ms.keys() == {"evidence"}
        assert draft.finding_probabilities is not None
        for sentence in draft.sentences:
            assert (sentence.evidence is None) == (not sentence.labels)
            if sentence.evidence is None:
                continue
            finding, grids = sentence.evidence.finding, sentence.evidence.patches
            seen.add(finding)
            assert finding in sentence.labels
            assert list(grids) == [image.view.value for image in study]
            assert all(np.shape(grid) == (SIDE, SIDE) for grid in grids.values())
            logit = reference[finding] + np.mean([np.sum(grid) for grid in grids.values()])
            assert 1 / (1 + np.exp(-logit)) == pytest.approx(draft.finding_probabilities[finding], abs=1e-4)
    assert len(seen) > 1


def test_evidence_does_not_depend_on_the_order_of_views(drafter: Drafter) -> None:
    both = noise_study(3, View.FRONTAL, View.LATERAL)
    (one,), (other,) = (drafter.draft([sent], WITH_EVIDENCE) for sent in (both, both[::-1]))
    assert [sentence.evidence for sentence in one.sentences] == [sentence.evidence for sentence in other.sentences]
    assert any(sentence.evidence for sentence in one.sentences)
