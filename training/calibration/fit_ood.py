"""Fits the checks of images: the view, and how unusual an image looks.

Training radiographs say what is usual; radiographs that the model never saw (the validation split) say how unusual such
ones look to it, and so from where a warning is given. Of strange images only ``strangers.TURNED`` are shown to the fit.
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
)
from model.types import Pixels
from training.scoring.binary import Bools, fit_logistic, folds, held_out

DIRECTIONS = 16  # in which radiographs differ most
QUANTILES = 201
WARN_FROM = 0.99
RIDGE = 100.0
MAX_FALSE_FLIP_RATE = 0.001  # share of radiographs that the view check may contradict
MIN_VIEW_CONFIDENCE = 0.95
_UNIT_QUANTILE = 0.995  # quantile of a part that is 1 in its unit
_FOLDS = 5
_FLOOR = 0.1  # of the median spread of a feature: one that hardly varies must not outweigh all others
_SHRINK = 1e-3  # of the covariance to its diagonal


@dataclass(frozen=True)
class LabelledFeatures:
    """Upright radiographs: ``pooled`` (N, D), ``pixels`` (N, S, S), ``frontal`` (N,), and the study of each."""

    pooled: Floats
    pixels: Pixels
    frontal: Bools
    study: Sequence[str]


@dataclass(frozen=True)
class ImageFit:
    """What ``fit_images`` found."""

    features: Features
    view: ViewCheck
    unusual: OutOfDistribution


def fit_images(
    train: LabelledFeatures, held: LabelledFeatures, turned: Mapping[str, Floats], *, seed: int = 1
) -> ImageFit:
    """Fit both checks.

    Args:
        train: what the model was trained on.
        held: what it never saw; only the units and quantiles of the unusual, and the bar of the view, come from these.
        turned: way to be wrong -> pooled features (N, D) of training radiographs made so.
        seed: of the folds.
    """
    centre = PackedArray.of(train.pooled.mean(0), "float16")
    spread = train.pooled.std(0)
    scale = PackedArray.of(1 / np.maximum(spread, _FLOOR * np.median(spread) + 1e-12), "float16")

    def standard(pooled: Floats) -> npt.NDArray[np.float64]:
        values: npt.NDArray[np.float64] = (pooled.astype(np.float64) - centre.array) * scale.array
        return values

    upright = standard(train.pooled)
    view = fit_logistic(upright, train.frontal, ridge=RIDGE)
    wrong = {
        name: fit_logistic(
            np.concatenate([upright, standard(pooled)]),
            np.repeat([False, True], [len(upright), len(pooled)]),
            ridge=RIDGE,
        )
        for name, pooled in turned.items()
    }
    differ = np.linalg.eigh(upright.T @ upright)[1][:, : -1 - min(DIRECTIONS, upright.shape[1] - 6) : -1].T
    learned = [view, *wrong.values()]
    rows = np.stack([*(one.weights for one in learned), *differ])
    longest = np.maximum(np.abs(rows).max(1), 1e-12)
    features = Features(centre=centre, scale=scale, directions=PackedArray.of(rows / longest[:, None], "int8"))
    lines = [LinearScore(slope=float(step), bias=one.bias) for one, step in zip(learned, longest, strict=False)]
    check = ViewCheck(line=lines[0], certain=_certain(upright, train, held, features, lines[0], seed))
    heads = tuple(OodHead(name=name, line=line) for name, line in zip(wrong, lines[1:], strict=True))
    return ImageFit(features, check, _unusual(features, heads, train, held))


def _certain(
    upright: npt.NDArray[np.float64],
    train: LabelledFeatures,
    held: LabelledFeatures,
    features: Features,
    line: LinearScore,
    seed: int,
) -> float:
    """The probability of the other view that all but ``MAX_FALSE_FLIP_RATE`` of unseen radiographs stay below."""
    fold = folds(train.study, _FOLDS, seed)
    trained = held_out(upright, train.frontal, fold, ridge=RIDGE)
    unseen = sigmoid(line.slope * project(features, held.pooled)[0][:, 0] + line.bias)
    frontal, truth = np.concatenate([trained, unseen]), np.concatenate([train.frontal, held.frontal])
    other = np.where(truth, 1 - frontal, frontal)
    return float(np.clip(np.quantile(other, 1 - MAX_FALSE_FLIP_RATE), MIN_VIEW_CONFIDENCE, 0.999))


def _unusual(
    features: Features, heads: tuple[OodHead, ...], train: LabelledFeatures, held: LabelledFeatures
) -> OutOfDistribution:
    projections, residual = project(features, train.pooled)
    values = feature_vector(len(heads), projections, residual, statistics(train.pixels))
    views = tuple(_gaussian(values[own]) for own in (train.frontal, ~train.frontal) if own.sum() > 1)
    return calibrated(heads, views, ood_inputs(features, held.pooled, held.pixels))


OodInputs = tuple[Floats, Floats, Floats]
"""Coordinates (N, R), what is beside them (N,), and statistics of the grey values (N, 8)."""


def ood_inputs(features: Features, pooled: Floats, pixels: Pixels) -> OodInputs:
    """What the score of images is made of."""
    return *project(features, pooled), statistics(pixels)


def calibrated(heads: tuple[OodHead, ...], views: tuple[Gaussian, ...], held: OodInputs) -> OutOfDistribution:
    """Units and quantiles by radiographs that no fit saw."""
    found = component_scores(heads, views, *held)
    middle, rare = np.quantile(found, [0.5, _UNIT_QUANTILE], axis=0)
    slopes = 1 / np.maximum(rare - middle, 1e-6)
    units = tuple(LinearScore(slope=float(s), bias=float(-s * m)) for s, m in zip(slopes, middle, strict=True))
    unscaled = OutOfDistribution(heads=heads, views=views, units=units, quantiles=(0.0, 1.0), warn_from=WARN_FROM)
    quantiles = np.quantile(ood_scores(unscaled, *held), np.linspace(0, 1, QUANTILES))
    return unscaled.model_copy(update={"quantiles": tuple(float(f"{q:.5g}") for q in quantiles)})


def cross_validated_percentiles(unusual: OutOfDistribution, held: OodInputs, fold: npt.NDArray[np.int64]) -> Floats:
    """(N,) how unusual each of the radiographs of the calibration looks by units and quantiles of the other folds."""
    shares = np.zeros(len(fold), np.float32)
    for number in np.unique(fold):
        own = fold == number
        others, mine = (tuple(part[rows] for part in held) for rows in (~own, own))
        again = calibrated(unusual.heads, unusual.views, (others[0], others[1], others[2]))
        shares[own] = percentile(again, ood_scores(again, mine[0], mine[1], mine[2]))
    return shares


def _gaussian(values: Floats) -> Gaussian:
    exact = values.astype(np.float64)
    covariance = np.cov(exact.T)
    covariance += _SHRINK * np.diag(np.diag(covariance)) + 1e-8 * np.eye(len(covariance))
    whitening = np.linalg.inv(np.linalg.cholesky(covariance)).T
    return Gaussian(mean=PackedArray.of(exact.mean(0), "float16"), whitening=PackedArray.of(whitening, "float16"))
