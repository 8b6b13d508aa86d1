"""Drafts dealt out anew: what they score by chance, and how sure it is that they belong to their studies."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from training.chance import chance
from training.metrics import score

REPORTS = [
    "the heart is enlarged . the lungs are clear .",
    "there is a left pleural effusion . the heart is normal .",
    "no acute disease .",
    "there is opacity in the right lung . degenerative changes of the spine .",
]


def test_all_deals_of_few_drafts_are_those_of_the_scorers() -> None:
    """The mean over many random deals is that over all of them, each scored as a system would be."""
    drafts = [REPORTS[0], "there is a pleural effusion .", "no acute disease .", "the lungs are clear ."]
    every = [score(list(zip(REPORTS, dealt, strict=True))) for dealt in itertools.permutations(drafts)]
    found = chance(list(zip(REPORTS, drafts, strict=True)), draws=4000, seed=1)
    assert found is not None
    for name, entry in found.items():
        values = np.array([figures[name] for figures in every], np.float64)
        assert entry["mean"] == pytest.approx(values.mean(), abs=4 * values.std() / np.sqrt(4000)), name
        as_high = (values >= values[0] - 1e-9).mean()
        assert entry["p"] == pytest.approx(as_high, abs=0.03), name
        assert values.min() - 1e-9 <= entry["interval_95"][0] <= entry["interval_95"][1] <= values.max() + 1e-9


def test_drafts_that_belong_stand_out_and_a_constant_does_not() -> None:
    reports = [f"{REPORTS[number % 4]} view {number} of the chest ." for number in range(24)]
    own = chance([(report, report) for report in reports], draws=200, seed=1)
    constant = chance([(report, REPORTS[0]) for report in reports], draws=200, seed=1)
    assert own is not None
    assert constant is not None
    for name in own:
        assert own[name]["p"] == pytest.approx(1 / 201), name
        assert own[name]["interval_95"][1] < (10 if name == "CIDEr" else 1)
        assert constant[name]["p"] == 1, name
        low, high = constant[name]["interval_95"]
        assert low == pytest.approx(high), "the same for whoever gets it"


def test_it_repeats_and_needs_two_studies_and_a_deal() -> None:
    pairs = list(zip(REPORTS, REPORTS[1:] + REPORTS[:1], strict=True))
    assert chance(pairs, draws=50, seed=3) == chance(pairs, draws=50, seed=3)
    assert chance(pairs[:1], draws=50, seed=3) is None
    assert chance(pairs, draws=0, seed=3) is None
