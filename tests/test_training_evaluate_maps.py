"""Measures of maps: the heart's box, correlation and deletion by hand, and the command on phantoms."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from model.config import DecodingConfig
from model.text.labeler import FINDINGS
from model.types import Draft, Sentence, SentenceAttention, SentenceEvidence, View
from tests.support.tiny import IMAGE_SIZE, noise_study, open_drafter, write_tiny_bundle
from training.evaluate_maps import main
from training.evaluation.map_measures import (
    HEART_BOX,
    MAPS,
    MEASURES,
    MapScores,
    blurred,
    classified,
    erased,
    heart_patches,
    logits_of,
    score_study,
)
from training.phantoms import write_phantom_root
from training.phantoms.chest import Chest
from training.phantoms.draw import draw_frontal

HEART, EFFUSION = "Cardiomegaly", "Pleural Effusion"


@pytest.fixture(scope="module")
def bundle_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    decoding = DecodingConfig(min_length=14, block_trigrams=True)
    path = tmp_path_factory.mktemp("bundles") / "tiny"
    return write_tiny_bundle(path, decoding=decoding, full_stops=5.0, finding_head=True)


# --- the heart's box --------------------------------------------------------------------------------------------------


def test_box_holds_what_an_enlarged_heart_changes_in_a_phantom() -> None:
    small, large = (draw_frontal(Chest(heart_ratio=ratio), 224, 1).astype(float) for ratio in (0.42, 0.60))
    changed = np.abs(large - small)
    top, bottom, left, right = (round(share * 224) for share in HEART_BOX)
    assert changed[top:bottom, left:right].sum() / changed.sum() > 0.9
    assert heart_patches(7).mean() < 0.25


def test_patches_of_the_box_are_those_with_their_centre_in_it() -> None:
    expected = np.zeros((7, 7), dtype=bool)
    expected[3:6, 2:6] = True
    np.testing.assert_array_equal(heart_patches(7).reshape(7, 7), expected)


# --- the measures -----------------------------------------------------------------------------------------------------


def test_erased_patches_are_blurred_and_no_others() -> None:
    images = np.stack([image.pixels for image in noise_study(1, View.FRONTAL, View.LATERAL)])
    without = blurred(images)
    assert without.std() < images.std() / 5
    changed = erased(images, without, np.array([1, 6]), 2)
    half = IMAGE_SIZE // 2
    expected = images.copy()
    expected[0, :half, half:] = without[0, :half, half:]  # patch 1 of the frontal: above, right
    expected[1, half:, :half] = without[1, half:, :half]  # patch 2 of the lateral: below, left
    np.testing.assert_array_equal(changed, expected)


def test_measures_of_a_study_are_those_by_hand(bundle_path: Path) -> None:
    drafter = open_drafter(bundle_path)
    study = noise_study(1, View.FRONTAL, View.LATERAL)
    grid = ((0.4, 0.1), (0.2, 0.0))
    attention = SentenceAttention({"frontal": grid, "lateral": ((0.1, 0.1), (0.1, 0.0))}, ())
    other = replace(attention, patches={"frontal": ((0.0, 0.3), (0.2, 0.4)), "lateral": ((0.1, 0.0), (0.0, 0.0))})

    def sentence(finding: str, weights: SentenceAttention) -> Sentence:
        return Sentence("-", 1.0, {finding: "present"}, None, weights, SentenceEvidence(finding, {}))

    draft = Draft("", (sentence(HEART, attention), sentence(EFFUSION, other), Sentence("-", 1.0)), {}, (), (), {})
    model = drafter.bundle.model
    values = score_study(model, study, draft, patches=1, random=np.random.default_rng(3))

    views = list(View)
    images = np.stack([image.pixels for image in study])
    contributions = classified(model, images[None], views).specific[0].numpy()  # (2, 4, 14)
    heart, effusion = (FINDINGS.index(name) for name in (HEART, EFFUSION))
    expected = np.corrcoef(contributions[..., heart].ravel(), contributions[..., effusion].ravel())[0, 1]
    assert values["evidence", "correlation"] == [pytest.approx(expected, abs=1e-5)]
    weights = [[*np.ravel(part.patches["frontal"]), *np.ravel(part.patches["lateral"])] for part in (attention, other)]
    assert values["attention", "correlation"] == [pytest.approx(np.corrcoef(weights)[0, 1], abs=1e-5)]
    assert [len(values[name, "heart"]) for name in MAPS] == [1, 1, 1]
    hottest = np.abs(contributions[0, :, heart]).argmax()
    assert values["evidence", "heart"] == [float(heart_patches(2)[hottest])]

    random = np.random.default_rng(3)
    chances = [random.choice(8, 1, replace=False) for _ in range(4)]
    variants = [erased(images, blurred(images), chosen, 2) for chosen in [*chances, np.array([0])]]
    logits = logits_of(classified(model, np.stack(variants), views))[:, heart]
    assert values["attention", "deletion_logit"][0] == pytest.approx(logits[:4].mean() - logits[4], abs=1e-5)
    probabilities = 1 / (1 + np.exp(-logits))
    expected = probabilities[:4].mean() - probabilities[4]
    assert values["attention", "deletion_probability"][0] == pytest.approx(expected, abs=1e-6)


def test_evidence_of_a_writer_without_attention_is_measured_alone(bundle_path: Path) -> None:
    model, study = open_drafter(bundle_path).bundle.model, noise_study(1, View.FRONTAL, View.LATERAL)
    parts = [Sentence("-", 1.0, {name: "present"}, evidence=SentenceEvidence(name, {})) for name in (HEART, EFFUSION)]
    random = np.random.default_rng(3)
    values = score_study(model, study, Draft("", tuple(parts), {}, (), (), {}), patches=1, random=random)
    assert {name for name, _ in values} == {"evidence", "evidence_logit"}
    assert [len(values["evidence", measure]) for measure in MEASURES] == [
        {"heart": 1, "correlation": 1}.get(measure, 2) for measure in MEASURES
    ]


def test_means_are_over_sentences_and_intervals_over_studies() -> None:
    key = ("evidence", "heart")
    scores = MapScores([{key: [1.0, 1.0, 1.0]}, {key: [0.0]}, {}])
    found = scores.summary(draws=200, seed=1)["evidence"]["heart"]
    assert (found["mean"], found["n"]) == (0.75, 4)
    assert found["confidence_95"] == [0.0, 1.0]
    assert scores.summary(draws=0, seed=1)["evidence"]["correlation"] == {"mean": None, "n": 0}


# --- the command ------------------------------------------------------------------------------------------------------


def test_command_writes_the_measures_of_all_maps(
    bundle_path: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = write_phantom_root(tmp_path / "root", train=2, val=3, size=IMAGE_SIZE)
    out = tmp_path / "maps.json"
    arguments = ["--bundle", str(bundle_path), "--root", str(root), "--out", str(out), "--patches", "1"]
    assert main([*arguments, "--limit", "2", "--draws", "20", "--device", "cpu"]) == 0
    result = json.loads(out.read_text())
    assert (result["studies"], result["erased_patches"]) == (2, 1)
    assert {name: set(measures) for name, measures in result["maps"].items()} == {name: set(MEASURES) for name in MAPS}
    assert result["maps"]["evidence"]["deletion_logit"]["n"] > 0
    table = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in table] == ["map", *MAPS, "2"]
    assert not list((tmp_path / "maps.work").glob("drafts*")), "the drafts hold texts"


def test_bundle_without_a_classifier_is_refused(bundle: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    root = write_phantom_root(tmp_path / "root", train=2, val=1, size=IMAGE_SIZE)
    assert main(["--bundle", str(bundle), "--root", str(root), "--out", str(tmp_path / "maps.json")]) == 2
    assert "bundle tiny has no finding classifier; train one with the stage pretrain" in caplog.text
