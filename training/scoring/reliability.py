"""How good probabilities are: reliability, calibration error, Brier score; and how well scores part two groups."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from training.scoring.logistic import Bools, Floats

BINS = 10


@dataclass(frozen=True)
class Bin:
    """Probabilities next to each other: their mean, the share that came true, and how many they are."""

    said: float
    came_true: float
    count: int


def reliability(said: Floats, truth: Bools, bins: int = BINS) -> list[Bin]:
    """Bins of like count, from the lowest probability to the highest."""
    parts = np.array_split(np.argsort(said, kind="stable"), min(bins, len(said)))
    return [Bin(float(said[part].mean()), float(truth[part].mean()), len(part)) for part in parts if len(part)]


def calibration_error(said: Floats, truth: Bools) -> float:
    """Expected calibration error (Naeini et al. 2015) over ``reliability``'s bins: 0 is best."""
    bins = reliability(said, truth)
    return float(sum(one.count * abs(one.said - one.came_true) for one in bins) / len(said))


def brier(said: Floats, truth: Bools) -> float:
    """Mean squared error of the probabilities (Brier 1950): 0 is best."""
    return float(((said - truth) ** 2).mean())


def auroc(scores: Floats, truth: Bools) -> float | None:
    """Chance that a score of one group exceeds one of the other, ties counting half; None where a group is empty."""
    positive, negative = np.sort(scores[truth]), np.sort(scores[~truth])
    if not len(positive) or not len(negative):
        return None
    below, upto = (np.searchsorted(negative, positive, side=side) for side in ("left", "right"))
    return float((below + upto).mean() / 2 / len(negative))
