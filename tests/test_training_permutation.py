"""Drafts dealt out anew: what they score by chance, and how sure it is that they belong to their studies."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from training.scoring.metrics import validation_scores
from training.scoring.permutation import MEASURES, expected_under_permutation, lift_over_permutation, permutation_test

REPORTS = [
    "the heart is enlarged . the lungs are clear .",
    "there is a left pleural effusion . the heart is normal .",
    "no acute disease .",
    "there is opacity in the right lung . degenerative changes of the spine .",
]
DRAFTS = [REPORTS[0], "there is a pleural effusion .", "no acute disease .", "the lungs are clear ."]


def test_all_deals_of_few_drafts_are_those_of_the_scorers() -> None:
    """The mean over many random deals is that over all of them, each scored as a system would be."""
    every = [validation_scores(list(zip(REPORTS, dealt, strict=True))) for dealt in itertools.permutations(DRAFTS)]
    found = permutation_test(list(zip(REPORTS, DRAFTS, strict=True)), draws=4000, seed=1)
    assert found is not None
    for name, entry in found.items():
        values = np.array([figures[name] for figures in every], np.float64)
        assert entry["mean"] == pytest.approx(values.mean(), abs=4 * values.std() / np.sqrt(4000)), name
        as_high = (values >= values[0] - 1e-9).mean()
        assert entry["p"] == pytest.approx(as_high, abs=0.03), name
        assert values.min() - 1e-9 <= entry["interval_95"][0] <= entry["interval_95"][1] <= values.max() + 1e-9


def test_drafts_that_belong_stand_out_and_a_constant_does_not() -> None:
    reports = [f"{REPORTS[number % 4]} view {number} of the chest ." for number in range(24)]
    own = permutation_test([(report, report) for report in reports], draws=200, seed=1)
    constant = permutation_test([(report, REPORTS[0]) for report in reports], draws=200, seed=1)
    assert own is not None
    assert constant is not None
    for name in own:
        assert own[name]["p"] == pytest.approx(1 / 201), name
        assert own[name]["interval_95"][1] < (10 if name == "CIDEr" else 1)
        assert constant[name]["p"] == 1, name
        low, high = constant[name]["interval_95"]
        assert low == pytest.approx(high), "the same for whoever gets it"


def test_the_expectation_is_the_mean_over_all_deals() -> None:
    pairs = list(zip(REPORTS, DRAFTS, strict=True))
    every = [validation_scores(list(zip(REPORTS, dealt, strict=True))) for dealt in itertools.permutations(DRAFTS)]
    found = expected_under_permutation(pairs)
    for name in MEASURES:
        assert found[name] > 0
        assert found[name] == pytest.approx(np.mean([figures[name] for figures in every]), abs=1e-12), name
    own = validation_scores(pairs)
    assert lift_over_permutation(own, found) == pytest.approx(sum(own[name] - found[name] for name in MEASURES))


def test_a_constant_wins_against_nothing_that_looks() -> None:
    normal, sick = "the heart is normal . the lungs are clear .", "there is a pleural effusion on the {} side ."
    reports = [normal if number % 4 else sick.format(("left", "right")[number // 4 % 2]) for number in range(24)]
    weak = ["lungs clear ." if number % 4 else "effusion ." if number else "lungs clear ." for number in range(24)]

    def judged(drafts: list[str]) -> tuple[float, float]:
        pairs = list(zip(reports, drafts, strict=True))
        scores = validation_scores(pairs)
        return scores["CIDEr"] + scores["label_f1_micro"], lift_over_permutation(
            scores, expected_under_permutation(pairs)
        )

    looking = judged(weak)
    silent, naming = (judged([text] * len(reports)) for text in (normal, f"{normal} there is a pleural effusion ."))
    assert min(silent[0], naming[0]) > looking[0], "the sum itself would keep either constant"
    for constant in (silent, naming):
        assert constant[1] == pytest.approx(0, abs=1e-9)
    assert looking[1] > 0.1


def test_it_repeats_and_needs_two_studies_and_a_deal() -> None:
    pairs = list(zip(REPORTS, REPORTS[1:] + REPORTS[:1], strict=True))
    assert permutation_test(pairs, draws=50, seed=3) == permutation_test(pairs, draws=50, seed=3)
    assert permutation_test(pairs[:1], draws=50, seed=3) is None
    assert permutation_test(pairs, draws=0, seed=3) is None
