"""Shares of drafts with faults of language."""

from __future__ import annotations

import pytest

from training.scoring.language import LANGUAGE, language_faults

TRAIN = ["The heart is normal. The lungs are clear.", "Mild cardiomegaly. No effusion, no pneumothorax."]


def faults(*drafts: str) -> list[float]:
    return [language_faults(drafts, TRAIN)[name] for name in LANGUAGE]


def test_training_sentences_have_no_fault() -> None:
    assert faults("The heart is normal. No effusion no pneumothorax.", "Mild cardiomegaly.") == [0, 0, 0, 0, 0]


def test_counts_sentences_with_an_unattested_trigram_and_drafts_with_an_unattested_pair() -> None:
    assert faults("The heart is clear.", "The lungs are clear. The heart is normal.") == [1 / 3, 0.5, 0, 0, 0]
    begins = faults("No pneumothorax. The lungs are clear.")  # no report begins so, but all pairs are known
    assert begins == [0.5, 0, 0, 0, 0]


def test_counts_drafts_with_comparison_fragment_and_contradiction() -> None:
    shares = faults(
        "Stable. The heart is normal.", "The heart is normal. Mild cardiomegaly.", "The lungs are clear.", ""
    )
    assert shares[2:] == [0.25, 0.25, 0.25]


@pytest.mark.parametrize(("drafts", "train"), [([], TRAIN), (["No effusion."], [])])
def test_refuses_empty_input(drafts: list[str], train: list[str]) -> None:
    with pytest.raises(ValueError, match="are needed"):
        language_faults(drafts, train)
