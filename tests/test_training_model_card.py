"""The model card of a bundle, from its configuration and metrics."""

from __future__ import annotations

import json

import pytest

from model.config import BundleConfig
from tests.support.paths import REPOSITORY
from training.model_card import model_card

BUNDLE = REPOSITORY / "bundles" / "iu-xray"
CONFIG = BundleConfig.model_validate_json((BUNDLE / "config.json").read_text())
METRICS = json.loads((BUNDLE / "metrics.json").read_text())


def test_states_model_data_scores_and_licence() -> None:
    card = model_card(CONFIG, METRICS)
    assert card.startswith("# iu-xray\n\nIt drafts the findings of a chest X-ray report")
    for line in (
        "It is not a medical device: no draft may reach a patient's record unread",
        "- backbone: efficientnet_lite0, images of 224 × 224 pixels",
        "- retrieval: 5 of 2069 training cases",
        "- decoding: consensus",
        "- train studies: 2069",
        "On 296 validation studies",
        "| metric | this bundle | 95 % | one constant report |",
        "| CIDEr | .520 | .419 to .634 | .415 |",
        CONFIG.licence,
    ):
        assert line in card, line


def test_states_what_was_chosen_on_the_scored_studies() -> None:
    val = {**METRICS["val"], "selection": {"statement": "chosen on these studies: the epochs (296 of 296)"}}
    assert "\n\nChosen on these studies: the epochs (296 of 296).\n" in model_card(CONFIG, {"val": val})


def test_states_the_changes_of_the_preset() -> None:
    changes = {"retriever": {"epochs": 1}, "ce.patience": None}
    card = model_card(CONFIG.model_copy(update={"trained_on": {"preset": "baseline", "changes": changes}}), {})
    assert '- changes: `retriever` {"epochs": 1}, `ce.patience` null' in card


def test_bundle_without_scores_or_licence_says_so() -> None:
    card = model_card(CONFIG.model_copy(update={"licence": "", "retrieval": None}), {})
    assert "None are stored in this bundle; `python -m training.evaluate` measures them." in card
    assert card.endswith("## Licence\n\nNot stated.\n")
    assert "retrieval" not in card
    assert "|" not in card


@pytest.mark.parametrize(
    ("writer", "dimensions"),
    [
        ("cmn", "d_model 256, 2 + 2 layers, 512 memory slots, 715 words"),
        ("r2gen", "d_model 256, 2 + 2 layers, 3 relational slots, 715 words"),
        ("cnn-rnn", "d_model 256, 2 LSTM layers, 715 words"),
        ("coattention", "d_model 256, 715 words"),
    ],
)
def test_states_the_dimensions_that_the_writer_has(writer: str, dimensions: str) -> None:
    model = CONFIG.model.model_copy(update={"writer": writer})
    assert f"- size: {dimensions}\n" in model_card(CONFIG.model_copy(update={"model": model}), {})
