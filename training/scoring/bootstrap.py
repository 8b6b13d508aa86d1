"""Bootstrap: percentile intervals over resampled studies, and paired differences between two rows.

Studies are drawn with replacement, as many as there are (Efron and Tibshirani 1993, "An Introduction to the
Bootstrap"). Every row is scored on the same draws, so a difference compares the same studies (Koehn 2004, "Statistical
Significance Tests for Machine Translation Evaluation"). Corpus metrics are recomputed from what each study contributes;
CIDEr keeps the document frequencies of all references. METEOR, which its program scores as a whole, and ``distinct``,
which changes when a study is drawn twice, have no interval.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from training.scoring.baselines import TrivialRow
from training.scoring.metrics import Pair
from training.scoring.ngrams import Floats
from training.scoring.study_statistics import METRICS, PerStudyStatistics

DRAWS = 1000
LEVEL = 0.95


@dataclass(frozen=True)
class Resampled:
    """Metrics of one row: on the studies as they are, and on each draw (D,)."""

    whole: Mapping[str, float]
    drawn: Mapping[str, Floats]

    def intervals(self) -> dict[str, list[float]]:
        """Lower and upper end of each metric's interval."""
        return {name: interval(values) for name, values in self.drawn.items()}

    def minus(self, other: Resampled) -> dict[str, dict[str, Any]]:
        """Differences to another row, scored on the same draws.

        By metric the ``difference`` on the studies as they are, its interval ``confidence_95``, and ``p``: twice the
        share of draws in the rarer direction.
        """
        result = {}
        for name, values in self.drawn.items():
            differences = values - other.drawn[name]
            rarer = min(int((differences <= 0).sum()), int((differences >= 0).sum()))
            result[name] = {
                "difference": self.whole[name] - other.whole[name],
                "confidence_95": interval(differences),
                "p": min(1.0, 2 * (rarer + 1) / (len(differences) + 1)),
            }
        return result


class Bootstrap:
    """The same ``draws`` of ``studies``, decided by ``seed``, for every row of a table.

    ``times`` (1 + draws, studies) says how often each study is drawn; the first row is of the studies
    as they are.
    """

    def __init__(self, studies: int, *, draws: int = DRAWS, seed: int = 1) -> None:
        rng = np.random.default_rng((seed, 41))
        drawn = rng.multinomial(studies, np.full(studies, 1 / studies), size=draws)
        self.times = np.concatenate([np.ones((1, studies)), drawn.astype(np.float64)])

    def of(self, pairs: Sequence[Pair]) -> Resampled:
        """A row of one text a study."""
        return self.of_statistics(PerStudyStatistics.of(pairs))

    def of_statistics(self, statistics: PerStudyStatistics) -> Resampled:
        found = statistics.metrics(self.times)
        return Resampled(
            {name: float(values[0]) for name, values in found.items()},
            {name: values[1:] for name, values in found.items()},
        )

    def of_row(self, row: TrivialRow, variants: Sequence[Sequence[Pair]]) -> Resampled:
        """A trivial row of several variants, merged as its metrics are.

        For ``best``, the variant that is better on the studies as they are gives all draws.
        """
        each = [self.of(pairs) for pairs in variants]
        whole, drawn = {}, {}
        for name in METRICS:
            if row.merge == "best":
                best = max(each, key=lambda variant: variant.whole[name])
                whole[name], drawn[name] = best.whole[name], best.drawn[name]
            else:
                whole[name] = float(np.mean([variant.whole[name] for variant in each]))
                drawn[name] = np.mean([variant.drawn[name] for variant in each], axis=0)
        return Resampled(whole, drawn)


def interval(values: Floats) -> list[float]:
    """The two ends that hold ``LEVEL`` of the values (D,) between them."""
    tail = (1 - LEVEL) / 2 * 100
    return [float(end) for end in np.percentile(values, (tail, 100 - tail))]
