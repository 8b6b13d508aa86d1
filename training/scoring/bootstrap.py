"""How sure a figure is: percentile intervals over resampled studies, and paired differences between two rows.

Studies are drawn with replacement as often as there are (Efron and Tibshirani 1993, "An Introduction to the
Bootstrap"); every row is scored on the same draws, so a difference is that of the same studies (Koehn 2004,
"Statistical Significance Tests for Machine Translation Evaluation"). Corpus figures are put together anew from what
each study contributes: counts for BLEU and label F1, a score for ROUGE-L and CIDEr, whose document frequencies stay
those of all references. METEOR, which its program scores as a whole, and ``distinct``, which drawing a study twice
would change, have no interval.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from pycocoevalcap.bleu.bleu_scorer import BleuScorer

from model.text.labeler import FINDINGS, NO_FINDING
from model.text.tokenizer import END_OF_SENTENCE
from training.scoring.baselines import TrivialRow
from training.scoring.metrics import SCORED_FINDINGS, Pair, present_findings, rouge_and_cider

Floats = npt.NDArray[np.float64]

DRAWS = 1000
LEVEL = 0.95
FIGURES = (
    "BLEU_1", "BLEU_2", "BLEU_3", "BLEU_4", "ROUGE_L", "CIDEr", "label_f1_micro", "label_f1_macro", "no_finding_f1",
    "mean_length",
)  # fmt: skip
_ORDERS = 4
_TINY, _SMALL = 1e-15, 1e-9  # of pycocoevalcap's BLEU
SCORED = [FINDINGS.index(name) for name in SCORED_FINDINGS]
_NO_FINDING = FINDINGS.index(NO_FINDING)


@dataclass(frozen=True)
class PerStudyStatistics:
    """What each of N studies adds to the figures of a row.

    ``bleu`` (N, 10): words of the draft, of the reference, n-grams of the draft and those that match, order by order.
    ``scores`` (N, 3): ROUGE-L, CIDEr, words without ".". ``findings`` (3, N, 14): right, wrong and missed ones.
    """

    bleu: Floats
    scores: Floats
    findings: Floats

    @classmethod
    def of(cls, pairs: Sequence[Pair]) -> PerStudyStatistics:
        """Of (reference, prediction) strings, prepared as for ``training.scoring.metrics.score``."""
        scorer = BleuScorer(n=_ORDERS)
        for reference, prediction in pairs:
            scorer += (prediction, [reference])
        bleu = [[c["testlen"], c["reflen"][0], *c["guess"], *c["correct"]] for c in scorer.ctest]
        rouge, cider = rouge_and_cider(tuple(pairs))
        words = [sum(word != END_OF_SENTENCE for word in prediction.split()) for _, prediction in pairs]
        truth, guess = (np.array([finding_vector(pair[side]) for pair in pairs]) for side in (0, 1))
        return cls(
            np.array(bleu, np.float64),
            np.stack([rouge, cider, np.array(words, np.float64)], axis=1),
            np.stack([truth * guess, guess * (1 - truth), truth * (1 - guess)]),
        )

    @classmethod
    def of_findings(cls, truth: Sequence[frozenset[str]], guess: Sequence[frozenset[str]]) -> PerStudyStatistics:
        """Of findings alone, where there is no reference to compare words with: only label figures mean something."""
        right, named, there = (
            np.array([[float(name in found) for name in FINDINGS] for found in sets])
            for sets in ([a & b for a, b in zip(truth, guess, strict=True)], guess, truth)
        )
        blank = np.zeros((len(right), 2 + 2 * _ORDERS)), np.zeros((len(right), 3))
        return cls(*blank, np.stack([right, named - right, there - right]))

    def figures(self, times: Floats) -> dict[str, Floats]:
        """Each of ``FIGURES`` for D draws: times (D, N), how often a draw holds each study -> (D,)."""
        sums = times @ self.bleu  # (D, 10)
        ratio = (sums[:, 0] + _TINY) / (sums[:, 1] + _SMALL)
        brevity = np.exp(np.minimum(0.0, 1 - 1 / ratio))
        precision = (sums[:, 2 + _ORDERS :] + _TINY) / (sums[:, 2 : 2 + _ORDERS] + _SMALL)  # (D, 4)
        bleu = np.cumprod(precision, axis=1) ** (1 / np.arange(1, _ORDERS + 1)) * brevity[:, None]
        found = {f"BLEU_{n + 1}": bleu[:, n] for n in range(_ORDERS)}
        means = times @ self.scores / times.sum(axis=1, keepdims=True)
        found |= {"ROUGE_L": means[:, 0], "CIDEr": means[:, 1]}
        right, wrong, missed = (times @ counts for counts in self.findings)  # (D, 14) each
        each = _f1(right, wrong, missed)
        supported = (right + missed)[:, SCORED] > 0
        found["label_f1_micro"] = _f1(*(counts[:, SCORED].sum(axis=1) for counts in (right, wrong, missed)))
        found["label_f1_macro"] = (each[:, SCORED] * supported).sum(axis=1) / np.maximum(supported.sum(axis=1), 1)
        found["no_finding_f1"] = each[:, _NO_FINDING]
        found["mean_length"] = means[:, 2]
        return {name: found[name] for name in FIGURES}


@dataclass(frozen=True)
class Resampled:
    """Figures of one row: on the studies as they are, and on each draw (D,)."""

    whole: Mapping[str, float]
    drawn: Mapping[str, Floats]

    def intervals(self) -> dict[str, list[float]]:
        """Lower and upper end of each figure's interval."""
        return {name: interval(values) for name, values in self.drawn.items()}

    def minus(self, other: Resampled) -> dict[str, dict[str, Any]]:
        """Differences to another row scored on the same draws.

        Each figure has its ``difference`` on the studies as they are, ``confidence_95`` of it, and ``p``: twice the
        share of draws in which the smaller of the two directions holds.
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
    """The same draws for every row of a table.

    Args:
        studies: N.
        draws: D.
        seed: decides them.
    """

    def __init__(self, studies: int, *, draws: int = DRAWS, seed: int = 1) -> None:
        rng = np.random.default_rng((seed, 41))
        drawn = rng.multinomial(studies, np.full(studies, 1 / studies), size=draws)
        self._times = np.concatenate(
            [np.ones((1, studies)), drawn.astype(np.float64)]
        )  # the studies as they are, first

    def of(self, pairs: Sequence[Pair]) -> Resampled:
        """A row of one text a study."""
        return self.of_statistics(PerStudyStatistics.of(pairs))

    def of_statistics(self, contributions: PerStudyStatistics) -> Resampled:
        """A row by what its studies contribute."""
        found = contributions.figures(self._times)
        return Resampled(
            {name: float(values[0]) for name, values in found.items()},
            {name: values[1:] for name, values in found.items()},
        )

    def of_row(self, row: TrivialRow, variants: Sequence[Sequence[Pair]]) -> Resampled:
        """A trivial row of several variants, merged as its figures are.

        Where the better variant counts, it is the one that is better on the studies as they are.
        """
        each = [self.of(pairs) for pairs in variants]
        whole, drawn = {}, {}
        for name in FIGURES:
            if row.merge == "best":
                best = max(each, key=lambda variant: variant.whole[name])
                whole[name], drawn[name] = best.whole[name], best.drawn[name]
            else:
                whole[name] = float(np.mean([variant.whole[name] for variant in each]))
                drawn[name] = np.mean([variant.drawn[name] for variant in each], axis=0)
        return Resampled(whole, drawn)


def finding_vector(text: str) -> list[float]:
    """Which of the 14 ``FINDINGS`` a text calls present: 1 or 0 each."""
    present = present_findings(text)
    return [float(name in present) for name in FINDINGS]


def _f1(right: Floats, wrong: Floats, missed: Floats) -> Floats:
    """0 where nothing was named and nothing was there."""
    total = 2 * right + wrong + missed
    found: Floats = np.divide(2 * right, total, out=np.zeros_like(total), where=total > 0)
    return found


def interval(values: Floats) -> list[float]:
    """The ends between which ``LEVEL`` of the values (D,) lie."""
    tail = (1 - LEVEL) / 2 * 100
    return [float(end) for end in np.percentile(values, (tail, 100 - tail))]
