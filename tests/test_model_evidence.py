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
from model.network.backbone import Backbone
from model.network.report_model import Patches, ReportModel
from model.text.labeler import FINDINGS, SCORED_FINDINGS
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


def test_specific_contributions_sum_to_the_logit_minus_most_of_the_mean_logit() -> None:
    model, patches = classified(feature_norm=True)
    found = evidence_of(model, patches)
    assert found is not None
    assert model.finding_head is not None
    with torch.no_grad():
        logits = model.finding_head(patches.pooled) - found.reference
    scored = [FINDINGS.index(name) for name in SCORED_FINDINGS]
    expected = logits - 0.75 * logits[..., scored].mean(-1, keepdim=True)
    real = patches.view_mask
    torch.testing.assert_close(found.specific.sum(2)[real], expected[real], atol=1e-5, rtol=1e-5)


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
    lesion = FINDINGS.index("Lung Lesion")
    contributions[..., lesion] = -contributions.sum(-1)  # so that no contribution is common to all findings
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


def test_draft_has_maps_of_its_findings_that_sum_to_their_specific_logits(drafter: Drafter) -> None:
    studies = [noise_study(1, View.FRONTAL, View.LATERAL), noise_study(2, View.LATERAL), noise_study(4, View.FRONTAL)]
    plain, drafts = drafter.draft(studies), drafter.draft(studies, WITH_EVIDENCE)
    model = drafter.bundle.model
    assert model.finding_head is not None
    assert model.feature_norm is not None
    with torch.no_grad():
        reference = model.finding_head(model.feature_norm.running_mean).numpy()
    scored = [FINDINGS.index(name) for name in SCORED_FINDINGS]
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
            probabilities = np.array([draft.finding_probabilities[name] for name in FINDINGS])
            logits = np.log(probabilities / (1 - probabilities)) - reference
            expected = logits[FINDINGS.index(finding)] - 0.75 * logits[scored].mean()
            assert np.mean([np.sum(grid) for grid in grids.values()]) == pytest.approx(expected, abs=1e-3)
    assert len(seen) > 1


def test_evidence_does_not_depend_on_the_order_of_views(drafter: Drafter) -> None:
    both = noise_study(3, View.FRONTAL, View.LATERAL)
    (one,), (other,) = (drafter.draft([sent], WITH_EVIDENCE) for sent in (both, both[::-1]))
    assert [sentence.evidence for sentence in one.sentences] == [sentence.evidence for sentence in other.sentences]
    assert any(sentence.evidence for sentence in one.sentences)


# --- geometry ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["efficientnet_lite0", "resnet18", "densenet121"])
def test_offset_is_the_centre_of_the_receptive_field_of_a_token(name: str) -> None:
    """With equal positive weights, the gradient of a token is its receptive field; of equal values, max pooling takes
    the first one, two pixels away."""
    backbone = Backbone(name).eval()
    with torch.no_grad():
        for parameter_name, parameter in backbone.features.named_parameters():
            if parameter.dim() == 4:
                parameter.fill_(1 / parameter[0].numel())
            else:
                parameter.fill_(0.0 if parameter_name.endswith("bias") else 1.0)
    cells, size = 11, 352
    little = float(backbone.mean.max()) + 5e-4  # above the mean, far below the limit of ReLU6
    pixels = torch.full((1, 1, size, size), little, requires_grad=True)
    token = backbone(pixels)[0][0, cells * cells // 2]  # in the middle
    token.sum().backward()  # type: ignore[no-untyped-call]
    assert pixels.grad is not None
    field = pixels.grad[0, 0]
    for axis in (0, 1):
        weights = field.sum(axis)
        centre = float((weights * (torch.arange(size) + 0.5)).sum() / weights.sum())
        assert (centre - size / 2) / 32 == pytest.approx(backbone.offset, abs=0.12)


def test_values_move_by_the_offset_and_keep_their_sum() -> None:
    backbone = Backbone("efficientnet_lite0")
    values = torch.zeros(2, 9)
    values[0, 0], values[1, 5] = 4.0, 4.0  # at the upper left; at the right edge of the middle row
    found = backbone.onto_patches(values).view(2, 3, 3).tolist()
    assert found[0] == [[1, 1, 0], [1, 1, 0], [0, 0, 0]]
    assert found[1] == [[0, 0, 0], [0, 0, 2], [0, 0, 2]]
    backbone.offset = -0.5
    assert backbone.onto_patches(values).view(2, 3, 3).tolist()[1] == [[0, 1, 1], [0, 1, 1], [0, 0, 0]]
    backbone.offset = 0.0
    assert backbone.onto_patches(values) is values
