"""Binary classification over scikit-learn: logistic regression, held-out probabilities, how good probabilities are.

SciPy and scikit-learn are imported where they are used: they take seconds, and the stages that import this module for
their validation also run without.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]
Bools = npt.NDArray[np.bool_]
Ints = npt.NDArray[np.int64]

BINS = 10


# --- fits -------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Logistic:
    """``weights`` (F,) and ``bias`` of a logit."""

    weights: Floats
    bias: float

    def probabilities(self, rows: Floats) -> Floats:
        """(N, F) -> (N,), 0 to 1."""
        from scipy.special import expit

        found: Floats = expit(rows @ self.weights + self.bias)
        return found


class Fit(Protocol):
    """``fit_logistic`` or ``fit_recalibration``."""

    def __call__(self, rows: Floats, truth: Bools, *, ridge: float) -> Logistic: ...


def fit_logistic(rows: Floats, truth: Bools, *, ridge: float = 1.0) -> Logistic:
    """The weights with the highest likelihood of ``truth`` (N,) for ``rows`` (N, F), columns of similar size.

    ``ridge`` / 2 times their squared length is subtracted, which keeps them finite for separable classes. The bias is
    free: without features it is the logit of the rate, for a single class that of (n + 0.5) / (N + 1).
    """
    count, width = rows.shape
    single = truth.all() or not truth.any()
    if single or not width:
        rate = (truth.sum() + 0.5) / (count + 1) if single else truth.mean()
        return Logistic(np.zeros(width), float(np.log(rate / (1 - rate))))
    from sklearn.linear_model import LogisticRegression

    fitted = LogisticRegression(C=1 / ridge, solver="newton-cholesky", tol=1e-10, max_iter=100).fit(rows, truth)
    return Logistic(fitted.coef_[0].astype(np.float64), float(fitted.intercept_[0]))


def fit_recalibration(rows: Floats, truth: Bools, *, ridge: float = 1.0) -> Logistic:
    """A fit of ``truth`` (N,) to one column of logits (N, 1), the order of which it keeps (Platt 1999).

    The ridge pulls the weight to 1, and the bias to 0 by a tenth of it: the bias of a classifier that was trained with
    weighted positives is large.
    """
    from scipy.optimize import minimize
    from scipy.special import expit

    x, target, strength = rows[:, 0], np.array([1.0, 0.0]), ridge * np.array([1.0, 0.1])

    def loss(line: Floats) -> tuple[float, Floats]:
        logits, away = line[0] * x + line[1], line - target
        residual = expit(logits) - truth
        value = np.logaddexp(0, np.where(truth, -logits, logits)).sum() + (strength * away**2).sum() / 2
        return float(value), np.array([residual @ x, residual.sum()]) + strength * away

    found = minimize(loss, target, jac=True, method="L-BFGS-B", bounds=((0, None), (None, None)), tol=1e-12).x
    return Logistic(found[:1], float(found[1]))


def folds(groups: Sequence[str], count: int, seed: int) -> Ints:
    """(N,) a fold for each row, 0 to ``count`` - 1; rows of one group, such as one patient, share a fold."""
    names = sorted(set(groups))
    order = np.random.default_rng((seed, 83)).permutation(len(names))
    fold = {names[position]: number % count for number, position in enumerate(order)}
    return np.array([fold[group] for group in groups], np.int64)


def held_out(rows: Floats, truth: Bools, fold: Ints, *, ridge: float = 1.0, fit: Fit = fit_logistic) -> Floats:
    """(N,) probability of each row by a fit to the other folds."""
    found = np.zeros(len(rows))
    for number in np.unique(fold):
        held = fold == number
        found[held] = fit(rows[~held], truth[~held], ridge=ridge).probabilities(rows[held])
    return found


# --- quality ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Bin:
    """Neighbouring probabilities: their ``mean``, the share of true cases (``rate``), and their ``count``."""

    mean: float
    rate: float
    count: int


def reliability(probabilities: Floats, truth: Bools, bins: int = BINS) -> list[Bin]:
    """Bins of equal count, from the lowest probability to the highest."""
    parts = np.array_split(np.argsort(probabilities, kind="stable"), min(bins, len(probabilities)))
    return [Bin(float(probabilities[part].mean()), float(truth[part].mean()), len(part)) for part in parts if len(part)]


def calibration_error(probabilities: Floats, truth: Bools) -> float:
    """Expected calibration error (Naeini et al. 2015) over the bins of ``reliability``: 0 is best."""
    bins = reliability(probabilities, truth)
    return float(sum(one.count * abs(one.mean - one.rate) for one in bins) / len(probabilities))


def brier(probabilities: Floats, truth: Bools) -> float:
    """Mean squared error of the probabilities (Brier 1950): 0 is best."""
    return float(((probabilities - truth) ** 2).mean())


def auroc(scores: npt.NDArray[np.floating], truth: Bools) -> float | None:
    """Area under the ROC curve, ties counting half; None where a class is empty."""
    from sklearn.metrics import roc_auc_score

    return float(roc_auc_score(truth, scores)) if truth.any() and not truth.all() else None
