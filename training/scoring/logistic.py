"""Logistic regression by Newton's method, and probabilities for rows that the fit did not see."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]
Bools = npt.NDArray[np.bool_]

_STEPS = 50
_SETTLED = 1e-8


@dataclass(frozen=True)
class Logistic:
    """``weights`` (F,) and ``bias`` of a logit."""

    weights: Floats
    bias: float

    def logits(self, rows: Floats) -> Floats:
        """(N, F) -> (N,)."""
        found: Floats = rows @ self.weights + self.bias
        return found

    def probabilities(self, rows: Floats) -> Floats:
        """(N, F) -> (N,), 0 to 1."""
        return sigmoid(self.logits(rows))


def sigmoid(logits: Floats) -> Floats:
    """The logistic function, without overflow."""
    found: Floats = 0.5 * (1 + np.tanh(0.5 * logits))
    return found


def fit_logistic(rows: Floats, truth: Bools, *, ridge: float = 1.0) -> Logistic:
    """The weights that make the truth most probable, less ``ridge`` / 2 times their squared length.

    Columns should be of like size. Where all of the truth is one, the bias alone says so, one count short of certain.

    Args:
        rows: (N, F).
        truth: (N,).
        ridge: keeps weights finite where the classes can be told apart; the bias is free.
    """
    count, width = rows.shape
    if truth.all() or not truth.any():
        share = (truth.sum() + 0.5) / (count + 1)
        return Logistic(np.zeros(width), float(np.log(share / (1 - share))))
    wide = np.column_stack([rows, np.ones(count)])
    penalty = np.append(np.full(width, ridge), 1e-9)
    weights = np.zeros(width + 1)
    for _ in range(_STEPS):
        chance = sigmoid(wide @ weights)
        slope = wide.T @ (truth - chance) - penalty * weights
        curve = (wide * (chance * (1 - chance))[:, None]).T @ wide + np.diag(penalty)
        step = np.linalg.solve(curve, slope)
        weights += step
        if np.abs(step).max() < _SETTLED:
            break
    return Logistic(weights[:-1], float(weights[-1]))


def folds(groups: Sequence[str], count: int, seed: int) -> npt.NDArray[np.int64]:
    """(N,) a fold for each row, 0 to ``count`` - 1; rows of one group, such as a patient's, share theirs."""
    names = sorted(set(groups))
    order = np.random.default_rng((seed, 83)).permutation(len(names))
    fold = {names[place]: number % count for number, place in enumerate(order)}
    return np.array([fold[group] for group in groups], np.int64)


def held_out(rows: Floats, truth: Bools, fold: npt.NDArray[np.int64], *, ridge: float = 1.0) -> Floats:
    """(N,) probability of each row by a fit to the other folds."""
    found = np.zeros(len(rows))
    for number in np.unique(fold):
        own = fold == number
        found[own] = fit_logistic(rows[~own], truth[~own], ridge=ridge).probabilities(rows[own])
    return found
