"""Fits the image checks: the view, and the out-of-distribution (OOD) score.

Training radiographs define what is in distribution. Validation radiographs, which the model never saw, give the units
of the score and the threshold of the warning. Of other images the fit uses only ``ood_examples.TURNED``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from model.calibration.ood import component_scores, feature_vector, ood_scores, percentile, project, sigmoid, statistics
from model.calibration.schema import (
    Features,
    Floats,
    Gaussian,
    LinearScore,
    OodHead,
    OutOfDistribution,
    PackedArray,
    ViewCheck,
)  # fmt: skip
from model.types import Pixels
from training.scoring.binary import Bools, fit_logistic, folds, held_out

DIRECTIONS = 16  # principal directions of the radiographs
QUANTILES = 201
WARN_FROM = 0.99
RIDGE = 100.0
MAX_FALSE_FLIP_RATE = 0.001  # share of radiographs that the view check may contradict
MIN_VIEW_CONFIDENCE = 0.95  # the view check never contradicts below this probability
_UNIT_QUANTILE = 0.995  # this quantile of a component score is 1 in its unit
_FOLDS = 5
_FLOOR = 0.1  # of the median spread, for features that hardly vary
_SHRINK = 1e-3  # of the covariance to its diagonal


@dataclass(frozen=True)
class LabelledFeatures:
    """Upright radiographs: ``pooled`` (N, D), ``pixels`` (N, S, S), ``frontal`` (N,), and the study of each."""

    pooled: Floats
    pixels: Pixels
    frontal: Bools
    study: Sequence[str]


def fit_images(
    train: LabelledFeatures, held: LabelledFeatures, turned: Mapping[str, Floats], *, seed: int = 1
) -> tuple[Features, ViewCheck, OutOfDistribution]:
    """Fit both checks to the radiographs ``train``, on which the model was trained.

    ``held`` are radiographs that it never saw: they give the units and quantiles of the OOD score and the view
    threshold. ``turned`` has the pooled features (N, D) of altered training radiographs by kind of alteration.
    """
    centre = PackedArray.of(train.pooled.mean(0), "float16")
    spread = train.pooled.std(0)
    scale = PackedArray.of(1 / np.maximum(spread, _FLOOR * np.median(spread) + 1e-12), "float16")

    def standard(pooled: Floats) -> npt.NDArray[np.float64]:
        values: npt.NDArray[np.float64] = (pooled.astype(np.float64) - centre.array) * scale.array
        return values

    upright = standard(train.pooled)
    view = fit_logistic(upright, train.frontal, ridge=RIDGE)
    altered = {
        name: fit_logistic(np.concatenate([upright, standard(pooled)]),
                           np.repeat([False, True], [len(upright), len(pooled)]), ridge=RIDGE)
        for name, pooled in turned.items()
    }  # fmt: skip
    principal = np.linalg.eigh(upright.T @ upright)[1][:, : -1 - min(DIRECTIONS, upright.shape[1] - 6) : -1].T
    fits = [view, *altered.values()]
    rows = np.stack([*(one.weights for one in fits), *principal])
    largest = np.maximum(np.abs(rows).max(1), 1e-12)
    features = Features(centre=centre, scale=scale, directions=PackedArray.of(rows / largest[:, None], "int8"))
    lines = [LinearScore(slope=float(step), bias=one.bias) for one, step in zip(fits, largest, strict=False)]
    check = ViewCheck(line=lines[0], certain=_view_threshold(upright, train, held, features, lines[0], seed))
    heads = tuple(OodHead(name=name, line=line) for name, line in zip(altered, lines[1:], strict=True))
    return features, check, _fit_ood(features, heads, train, held)


def _view_threshold(
    upright: npt.NDArray[np.float64], train: LabelledFeatures, held: LabelledFeatures, features: Features,
    line: LinearScore, seed: int,
) -> float:  # fmt: skip
    """The probability of the other view that at most ``MAX_FALSE_FLIP_RATE`` of unseen radiographs exceed."""
    fold = folds(train.study, _FOLDS, seed)
    trained = held_out(upright, train.frontal, fold, ridge=RIDGE)
    unseen = sigmoid(line.slope * project(features, held.pooled)[0][:, 0] + line.bias)
    frontal, truth = np.concatenate([trained, unseen]), np.concatenate([train.frontal, held.frontal])
    other = np.where(truth, 1 - frontal, frontal)
    return float(np.clip(np.quantile(other, 1 - MAX_FALSE_FLIP_RATE), MIN_VIEW_CONFIDENCE, 0.999))


def _fit_ood(
    features: Features, heads: tuple[OodHead, ...], train: LabelledFeatures, held: LabelledFeatures
) -> OutOfDistribution:
    projections, residual = project(features, train.pooled)
    values = feature_vector(len(heads), projections, residual, statistics(train.pixels))
    views = tuple(_gaussian(values[view]) for view in (train.frontal, ~train.frontal) if view.sum() > 1)
    return calibrated(heads, views, ood_inputs(features, held.pooled, held.pixels))


OodInputs = tuple[Floats, Floats, Floats]
"""Projections (N, R), residual (N,), and statistics of the grey values (N, 8)."""


def ood_inputs(features: Features, pooled: Floats, pixels: Pixels) -> OodInputs:
    return *project(features, pooled), statistics(pixels)


def calibrated(heads: tuple[OodHead, ...], views: tuple[Gaussian, ...], held: OodInputs) -> OutOfDistribution:
    """Units and quantiles of the score, from radiographs that no fit used."""
    found = component_scores(heads, views, *held)
    middle, rare = np.quantile(found, [0.5, _UNIT_QUANTILE], axis=0)
    slopes = 1 / np.maximum(rare - middle, 1e-6)
    units = tuple(LinearScore(slope=float(s), bias=float(-s * m)) for s, m in zip(slopes, middle, strict=True))
    unscaled = OutOfDistribution(heads=heads, views=views, units=units, quantiles=(0.0, 1.0), warn_from=WARN_FROM)
    quantiles = np.quantile(ood_scores(unscaled, *held), np.linspace(0, 1, QUANTILES))
    return unscaled.model_copy(update={"quantiles": tuple(float(f"{q:.5g}") for q in quantiles)})


def cross_validated_percentiles(ood: OutOfDistribution, held: OodInputs, fold: npt.NDArray[np.int64]) -> Floats:
    """(N,) OOD percentile of each calibration radiograph, with units and quantiles of the other folds."""
    percentiles = np.zeros(len(fold), np.float32)
    for number in np.unique(fold):
        inside = fold == number
        others, tested = (tuple(part[rows] for part in held) for rows in (~inside, inside))
        again = calibrated(ood.heads, ood.views, (others[0], others[1], others[2]))
        percentiles[inside] = percentile(again, ood_scores(again, tested[0], tested[1], tested[2]))
    return percentiles


def _gaussian(values: Floats) -> Gaussian:
    exact = values.astype(np.float64)
    covariance = np.cov(exact.T)
    covariance += _SHRINK * np.diag(np.diag(covariance)) + 1e-8 * np.eye(len(covariance))
    whitening = np.linalg.inv(np.linalg.cholesky(covariance)).T
    return Gaussian(mean=PackedArray.of(exact.mean(0), "float16"), whitening=PackedArray.of(whitening, "float16"))
