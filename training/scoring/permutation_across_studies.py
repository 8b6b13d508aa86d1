"""Permutation test: do drafts describe their studies better than the same drafts permuted across studies?

Fisher 1935, "The Design of Experiments"; Good 2005, "Permutation, Parametric and Bootstrap Tests of Hypotheses". A
permutation keeps the style and length of the drafts and how often they name each finding. It breaks only the link
between a draft and its patient. A random training report is a weaker baseline: drafts that agree with many reports
score above it on any patient.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from training.scoring.bootstrap import interval
from training.scoring.cider import CiderD
from training.scoring.metrics import Pair, present_findings
from training.scoring.ngrams import Floats
from training.scoring.study_statistics import SCORED, finding_vectors

MEASURES = ("CIDEr", "label_f1_micro")  # these fall when a draft is not about the patient


def permutation_test(pairs: Sequence[Pair], *, draws: int, seed: int) -> dict[str, dict[str, Any]] | None:
    """Each of ``MEASURES`` over ``draws`` permutations of the drafts of N pairs, prepared as for ``metrics.score``.

    Returns:
        By measure its ``mean`` and ``interval_95`` over the permutations, and ``p``: the share of permutations, the
        original order among them, that score at least as high as the original order. None for fewer than two studies,
        and for no draws.
    """
    if len(pairs) < 2 or not draws:
        return None
    rng = np.random.default_rng((seed, 43))
    studies = len(pairs)
    orders = np.stack([np.arange(studies), *(rng.permutation(studies) for _ in range(draws))])  # (1 + D, N) drafts
    cider = _cider(pairs)[orders, np.arange(studies)].mean(axis=1)
    truth, named = _vectors(pairs)
    right = (named[orders] * truth).sum(axis=(1, 2))
    f1 = 2 * right / max(truth.sum() + named.sum(), 1)
    return {name: _summary(values) for name, values in zip(MEASURES, (cider, f1), strict=True)}


def expected_under_permutation(pairs: Sequence[Pair]) -> dict[str, float]:
    """Expectation of each of ``MEASURES`` over all permutations of the drafts of N >= 1 prepared pairs, in closed form.

    Every draft meets every study equally often. So CIDEr is the mean over all pairs of drafts and studies, and of the
    T_k studies with finding k and the G_k drafts that name it, T_k * G_k / N meet.
    """
    truth, named = _vectors(pairs)
    right = truth.sum(axis=0) @ named.sum(axis=0) / len(pairs)
    f1 = 2 * right / max(truth.sum() + named.sum(), 1)
    return dict(zip(MEASURES, (float(_cider(pairs).mean()), float(f1)), strict=True))


def lift_over_permutation(scores: Mapping[str, float], by_chance: Mapping[str, float]) -> float:
    """How far drafts score above ``expected_under_permutation``: the sum of the differences in ``MEASURES``.

    0, up to rounding, for any constant report: it scores the same on every patient.
    """
    return sum(scores[name] - by_chance[name] for name in MEASURES)


def _cider(pairs: Sequence[Pair]) -> Floats:
    """(N, N) CIDEr-D of each draft, by row, against each reference; document frequencies are the references'."""
    scorer = CiderD([reference for reference, _ in pairs])
    known = {prediction: scorer.against_all(prediction) for prediction in {pair[1] for pair in pairs}}
    return np.stack([known[prediction] for _, prediction in pairs])


def _vectors(pairs: Sequence[Pair]) -> tuple[Floats, Floats]:
    """(N, 13) findings present in the references, and in the drafts: 0 or 1."""
    truth, named = (finding_vectors([present_findings(pair[side]) for pair in pairs])[:, SCORED] for side in (0, 1))
    return truth, named


def _summary(values: Floats) -> dict[str, Any]:
    """Of (1 + D,) values; the first is that of the original order."""
    permuted = values[1:]
    return {
        "mean": float(permuted.mean()),
        "interval_95": interval(permuted),
        "p": float((values >= values[0] - 1e-12).mean()),
    }
