"""Paired permutation test of two systems: could which system wrote which text decide the difference?

Approximate randomization (Noreen 1989, "Computer-Intensive Methods for Testing Hypotheses"; Riezler and Maxwell 2005,
"On Some Pitfalls in Automatic Evaluation"). Under the hypothesis that the systems are equal, the two texts of a study
can be exchanged. Each draw exchanges those of about half of the studies, and scores both sides again.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from training.scoring.metrics import Pair
from training.scoring.study_statistics import PerStudyStatistics


def paired_permutation_test(
    one: Sequence[Pair], other: Sequence[Pair], *, draws: int, seed: int
) -> dict[str, float] | None:
    """Two-sided p of the difference in each metric of ``study_statistics.METRICS``.

    ``one`` and ``other`` hold prepared texts of N studies, with the same references. p is the share of draws, the
    original assignment among them, with an absolute difference of at least the original one. None without draws.
    """
    if not draws:
        return None
    first, second = PerStudyStatistics.of(one), PerStudyStatistics.of(other)
    both = PerStudyStatistics(
        np.concatenate([first.bleu, second.bleu]),
        np.concatenate([first.scores, second.scores]),
        np.concatenate([first.findings, second.findings], axis=1),
    )
    keep = np.random.default_rng((seed, 47)).integers(0, 2, (draws, len(one))).astype(np.float64)
    keep = np.concatenate([np.ones((1, len(one))), keep])  # (1 + D, N) 1: each system keeps its text
    sides = [both.metrics(np.concatenate(times, axis=1)) for times in ((keep, 1 - keep), (1 - keep, keep))]
    found = {}
    for name, values in sides[0].items():
        difference = np.abs(values - sides[1][name])
        found[name] = float((difference >= difference[0] - 1e-12).mean())
    return found
