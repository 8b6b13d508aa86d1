"""The permutation test equals the scores of all permutations, and separates drafts from constants."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from training.scoring.metrics import validation_scores
from training.scoring.permutation_across_studies import (
    MEASURES,
    expected_under_permutation,
    lift_over_permutation,
    permutation_test,
)

REPORTS = [
    "the heart is enlarged . the lungs are clear .",
    "there is a left pleural effusion . the heart is normal .",
    "no acute disease .",
    "there is opacity in the right lung . degenerative changes of the spine .",
]
DRAFTS = [REPORTS[0], "there is a pleural effusion .", "no acute disease .", "the lungs are clear ."]


def test_random_permutations_agree_with_all_permutations() -> None:
    """The mean over many random permutations is that over all of them."""
    every = [
        validation_scores(list(zip(REPORTS, permuted, strict=True))) for permuted in itertools.permutations(DRAFTS)
    ]
    found = permutation_test(list(zip(REPORTS, DRAFTS, strict=True)), draws=4000, seed=1)
    assert found is not None
    for name, entry in found.items():
        values = np.array([scores[name] for scores in every], np.float64)
        assert entry["mean"] == pytest.approx(values.mean(), abs=4 * values.std() / np.sqrt(4000)), name
        as_high = (values >= values[0] - 1e-9).mean()
        assert entry["p"] == pytest.approx(as_high, abs=0.03), name
        assert values.min() - 1e-9 <= entry["interval_95"][0] <= entry["interval_95"][1] <= values.max() + 1e-9


def test_correct_drafts_are_significant_and_a_constant_is_not() -> None:
    reports = [f"{REPORTS[number % 4]} view {number} of the chest ." for number in range(24)]
    correct = permutation_test([(report, report) for report in reports], draws=200, seed=1)
    constant = permutation_test([(report, REPORTS[0]) for report in reports], draws=200, seed=1)
    assert correct is not None
    assert constant is not None
    for name in correct:
        assert correct[name]["p"] == pytest.approx(1 / 201), name
        assert correct[name]["interval_95"][1] < (10 if name == "CIDEr" else 1)
        assert constant[name]["p"] == 1, name
        low, high = constant[name]["interval_95"]
        assert low == pytest.approx(high), "the same for every permutation"


def test_expectation_is_the_mean_over_all_permutations() -> None:
    pairs = list(zip(REPORTS, DRAFTS, strict=True))
    every = [
        validation_scores(list(zip(REPORTS, permuted, strict=True))) for permuted in itertools.permutations(DRAFTS)
    ]
    found = expected_under_permutation(pairs)
    for name in MEASURES:
        assert found[name] > 0
        assert found[name] == pytest.approx(np.mean([scores[name] for scores in every]), abs=1e-12), name
    scores = validation_scores(pairs)
    assert lift_over_permutation(scores, found) == pytest.approx(sum(scores[name] - found[name] for name in MEASURES))


def test_constant_has_no_lift_over_its_permutations() -> None:
    normal, sick = "the heart is normal . the lungs are clear .", "there is a pleural effusion on the {} side ."
    reports = [normal if number % 4 else sick.format(("left", "right")[number // 4 % 2]) for number in range(24)]
    weak = ["lungs clear ." if number % 4 else "effusion ." if number else "lungs clear ." for number in range(24)]

    def scored(drafts: list[str]) -> tuple[float, float]:
        pairs = list(zip(reports, drafts, strict=True))
        scores = validation_scores(pairs)
        return scores["CIDEr"] + scores["label_f1_micro"], lift_over_permutation(
            scores, expected_under_permutation(pairs)
        )

    looking = scored(weak)
    silent, naming = (scored([text] * len(reports)) for text in (normal, f"{normal} there is a pleural effusion ."))
    assert min(silent[0], naming[0]) > looking[0], "the sum alone would prefer either constant"
    for constant in (silent, naming):
        assert constant[1] == pytest.approx(0, abs=1e-9)
    assert looking[1] > 0.1


def test_seed_decides_and_two_studies_and_draws_are_needed() -> None:
    pairs = list(zip(REPORTS, REPORTS[1:] + REPORTS[:1], strict=True))
    assert permutation_test(pairs, draws=50, seed=3) == permutation_test(pairs, draws=50, seed=3)
    assert permutation_test(pairs[:1], draws=50, seed=3) is None
    assert permutation_test(pairs, draws=0, seed=3) is None
