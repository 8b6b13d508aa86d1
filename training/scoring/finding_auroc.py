"""AUROC of each finding, with percentile bootstrap intervals over studies (``training.scoring.bootstrap``)."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from training.scoring.binary import Bools
from training.scoring.bootstrap import DRAWS, Bootstrap, interval
from training.scoring.ngrams import Floats

MIN_CASES = 5  # of a finding; with fewer the value says little


def finding_aurocs(
    scores: npt.NDArray[np.floating], truth: Bools, names: Sequence[str], studies: Sequence[str], *,
    always: Collection[str] = (), draws: int = DRAWS, seed: int = 1,
) -> dict[str, Any]:  # fmt: skip
    """AUROC of the findings that have enough cases, and their mean.

    Args:
        scores, truth: (N, F), of N images or studies and F findings.
        names: of the findings.
        studies: the study of each row; rows of one study are drawn together.
        always: findings that are reported with fewer cases too; they stay out of the mean.
        draws: of the bootstrap; 0 for no intervals.

    Returns:
        ``n``; ``mean``; ``findings`` by name, each with its ``cases``. ``mean`` and each finding have
        ``auroc`` and, with draws, ``confidence_95``; ``mean`` is None where no finding has enough.
    """
    order = {study: number for number, study in enumerate(dict.fromkeys(studies))}
    drawn = Bootstrap(len(order), draws=draws, seed=seed).times
    times = drawn[:, [order[study] for study in studies]]  # (1 + draws, N)
    cases = {name: int(truth[:, column].sum()) for column, name in enumerate(names)}
    areas = {
        name: weighted_auroc(scores[:, column], truth[:, column], times)
        for column, name in enumerate(names)
        if (1 if name in always else MIN_CASES) <= cases[name] < len(truth)
    }
    enough = [area for name, area in areas.items() if cases[name] >= MIN_CASES]
    return {
        "n": len(truth),
        "mean": _summary(np.nanmean(enough, axis=0)) if enough else None,
        "findings": {name: {"cases": cases[name], **_summary(area)} for name, area in areas.items()},
    }


def weighted_auroc(scores: npt.NDArray[np.floating], truth: Bools, times: Floats) -> Floats:
    """(D,) AUROC of N scores, each counted ``times`` (D, N), ties counting half; NaN where a class is empty."""
    order = np.argsort(scores, kind="stable")
    starts = np.flatnonzero(np.diff(scores[order], prepend=-np.inf))  # of equal scores
    positive, negative = (
        np.add.reduceat(np.where(side, times, 0.0)[:, order], starts, axis=1) for side in (truth, ~truth)
    )  # (D, U) of U different scores
    below = negative.cumsum(1) - negative / 2
    with np.errstate(invalid="ignore"):
        found: Floats = (positive * below).sum(1) / (positive.sum(1) * negative.sum(1))
    return found


def _summary(area: Floats) -> dict[str, Any]:
    """The value on the studies as they are, and the interval of the draws behind it."""
    drawn = area[1:][~np.isnan(area[1:])]
    return {"auroc": float(area[0]), **({"confidence_95": interval(drawn)} if drawn.size else {})}
