"""Image checks on the pooled features of the backbone: which view, and how far out of distribution (OOD).

The OOD score is the largest of several components: the Mahalanobis distance from the training
radiographs of the nearer view (Lee et al. 2018, "A Simple Unified Framework for Detecting
Out-of-Distribution Samples"), over projections of the features, the length of their residual and
statistics of the grey values; and one linear head per kind of export error (rotated, mirrored,
negative).

A view is corrected where the view head is nearly certain and no image of the study is out of
distribution, or where the headers of both images say that the views were exchanged.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from model.calibration.schema import Calibration, Features, Floats, Gaussian, LinearScore, OodHead, OutOfDistribution
from model.types import DraftWarning, Pixels, View

WARNINGS: dict[str, str] = {  # code -> meaning; tools.api_docs writes it into docs/api.md
    "views_swapped": "the frontal and the lateral image were swapped; each was read as its true view",
    "view_corrected": "the only image is of the other view; it was read as its true view",
    "same_view": "both images are of one view; they were read as sent",
    "unusual_image": "an image differs from the radiographs of the calibration",
}


@dataclass(frozen=True)
class ViewAssessment:
    """Result of the checks of one study.

    Attributes:
        views: the view that each image is read as.
        checks: probability of a frontal and OOD percentile of each image; empty without a
            calibration.
        warnings: for the reader of the draft.
    """

    views: tuple[View, ...]
    checks: tuple[tuple[float, float], ...] = ()
    warnings: tuple[DraftWarning, ...] = ()


def unchecked(sent: Sequence[View], headers: Sequence[View | None], *, correct: bool) -> ViewAssessment:
    """The declared views; with ``correct`` exchanged where both headers say so."""
    if correct and _exchanged(sent, headers):
        return ViewAssessment(tuple(map(_other, sent)), warnings=(_SWAPPED,))
    return ViewAssessment(tuple(sent))


def assess_views(
    calibration: Calibration, sent: Sequence[View], pooled: Floats, pixels: Pixels, *, correct: bool,
    headers: Sequence[View | None] = (),
) -> ViewAssessment:  # fmt: skip
    """Check the images of one study.

    Args:
        calibration: of the bundle.
        sent: view of each image, as it was sent.
        pooled: (V, D) pooled features of the backbone.
        pixels: (V, S, S) uint8.
        correct: correct views; else they stay as sent.
        headers: view of each image in its header. Where both headers say that the views were
            exchanged, they are exchanged back, unless the view head is certain of the sent view of
            an image that is not out of distribution.
    """
    projections, residual = project(calibration.features, pooled)
    frontal = frontal_probability(calibration, projections)
    unusual = percentile(
        calibration.unusual, ood_scores(calibration.unusual, projections, residual, statistics(pixels))
    )
    warned = unusual >= calibration.unusual.warn_from
    views, warnings = tuple(sent), [_unusual(view) for view, is_ood in zip(sent, warned, strict=True) if is_ood]
    certain = calibration.view.certain
    other = [1 - p if view is View.FRONTAL else p for view, p in zip(sent, frontal.tolist(), strict=True)]
    denied = any(p <= 1 - certain and not is_ood for p, is_ood in zip(other, warned, strict=True))
    if correct and _exchanged(sent, headers) and not denied:
        views, warnings = tuple(map(_other, sent)), [*warnings, _SWAPPED]
    elif correct and not warned.any():
        views, found = _corrected_views(sent, other, certain)
        warnings += found
    return ViewAssessment(views, tuple(zip(frontal.tolist(), unusual.tolist(), strict=True)), tuple(warnings))


def frontal_probability(calibration: Calibration, projections: Floats) -> Floats:
    """The probability that an image is a frontal, (N,), from its projections (N, R)."""
    return sigmoid(_apply_linear(calibration.view.line, projections[:, 0]))


def project(features: Features, pooled: Floats) -> tuple[Floats, Floats]:
    """Project pooled features on the directions of the calibration.

    Args:
        features: directions, and mean and scale of standardised features.
        pooled: (N, D).

    Returns:
        Projections (N, R), and the logarithm of the length of the residual (N,).
    """
    standard = (pooled - features.centre.array) * features.scale.array
    directions = features.directions.array
    projections = standard @ directions.T  # (N, R)
    held = (projections @ np.linalg.pinv(directions @ directions.T) * projections).sum(1)
    residual = np.sqrt(np.maximum((standard**2).sum(1) - held, 0))
    return projections, np.log(residual + 1).astype(np.float32)


def statistics(pixels: Pixels) -> Floats:
    """Statistics of grey values: (N, S, S) uint8 -> (N, 8), each about -1 to 1.

    Mean, standard deviation, shares of black and of white, correlation with the mirrored and with
    the flipped image, roughness, and the mean of the centre minus the mean of the image.
    """
    grey = pixels.astype(np.float32) / 255
    size = pixels.shape[-1]
    inner = slice(size // 4, size - size // 4)
    mean, middle = grey.mean((1, 2)), grey[:, inner, inner].mean((1, 2))
    rough = np.abs(np.diff(grey, axis=2)).mean((1, 2))
    return np.stack(
        [
            mean,
            grey.std((1, 2)),
            (pixels < 8).mean((1, 2)),
            (pixels > 247).mean((1, 2)),
            _correlation(grey, grey[:, :, ::-1]),
            _correlation(grey, grey[:, ::-1]),
            np.log10(rough + 1e-3),
            middle - mean,
        ],
        axis=1,
    ).astype(np.float32)


def _correlation(a: Floats, b: Floats) -> Floats:
    """Correlation of images, (N,); 0 where one is blank."""
    a, b = a - a.mean((1, 2), keepdims=True), b - b.mean((1, 2), keepdims=True)
    lengths: Floats = np.sqrt((a * a).sum((1, 2)) * (b * b).sum((1, 2)))
    correlation: Floats = (a * b).sum((1, 2)) / np.maximum(lengths, 1e-3)
    return correlation


def feature_vector(heads: int, projections: Floats, residual: Floats, grey: Floats) -> Floats:
    """Input of a view's ``Gaussian``, without the direction of the view: (N, R - heads + 8)."""
    return np.column_stack([projections[:, 1 + heads :], residual, grey])


def distance(view: Gaussian, values: Floats) -> Floats:
    """Mahalanobis distance of (N, M) numbers from a view's radiographs: (N,)."""
    found: Floats = np.linalg.norm((values - view.mean.array) @ view.whitening.array, axis=1)
    return found


def component_scores(
    heads: Sequence[OodHead], views: Sequence[Gaussian], projections: Floats, residual: Floats, grey: Floats
) -> Floats:
    """Distance from the nearer view and the logit of each head, unscaled: (N, 1 + H)."""
    values = feature_vector(len(heads), projections, residual, grey)
    nearest = np.min([distance(view, values) for view in views], axis=0)
    return np.column_stack(
        [nearest, *(_apply_linear(head.line, projections[:, 1 + number]) for number, head in enumerate(heads))]
    )


def ood_scores(unusual: OutOfDistribution, projections: Floats, residual: Floats, grey: Floats) -> Floats:
    """Largest scaled component of each image: (N,)."""
    found = component_scores(unusual.heads, unusual.views, projections, residual, grey)
    worst: Floats = np.max([_apply_linear(unit, found[:, row]) for row, unit in enumerate(unusual.units)], axis=0)
    return worst


def percentile(unusual: OutOfDistribution, ood_score: Floats) -> Floats:
    """Share of the calibration radiographs with a lower score: (N,), 0 to 1."""
    quantiles = np.array(unusual.quantiles, np.float32)
    return np.interp(ood_score, quantiles, np.linspace(0, 1, len(quantiles)))


def sigmoid(logits: Floats) -> Floats:
    """The logistic function, without overflow."""
    found: Floats = 0.5 * (1 + np.tanh(0.5 * logits))
    return found


def _apply_linear(line: LinearScore, values: Floats) -> Floats:
    return line.slope * values + line.bias


def _corrected_views(
    sent: Sequence[View], other: Sequence[float], certain: float
) -> tuple[tuple[View, ...], list[DraftWarning]]:
    """Views to read the images as, and a warning for each correction; ``other``: probability of the other view."""
    if max(other) < certain or list(sent) not in ([View.FRONTAL], [View.LATERAL], list(View)):
        return tuple(sent), []
    if len(sent) == 1:
        return (_other(sent[0]),), [_corrected(sent[0])]
    if min(other) >= 0.5:
        return tuple(_other(view) for view in sent), [_SWAPPED]
    return tuple(sent), [_same(sent[other.index(min(other))])]


def _exchanged(sent: Sequence[View], headers: Sequence[View | None]) -> bool:
    """Whether the headers of a frontal and a lateral image both name the other view."""
    return list(sent) == list(View) and list(headers) == list(map(_other, sent))


def _other(view: View) -> View:
    return View.LATERAL if view is View.FRONTAL else View.FRONTAL


_SWAPPED = DraftWarning(
    "views_swapped",
    "The images seem to be swapped: the one sent as frontal is a lateral, the other a frontal. They were swapped back.",
)


def _corrected(sent: View) -> DraftWarning:
    message = f"The image sent as {sent.value} looks like a {_other(sent).value} and was read as one."
    return DraftWarning("view_corrected", message)


def _same(view: View) -> DraftWarning:
    return DraftWarning(
        "same_view",
        f"Both images look like {view.value} views. They were read as sent; check that the right files were chosen.",
    )


def _unusual(sent: View) -> DraftWarning:
    return DraftWarning(
        "unusual_image",
        f"The {sent.value} image differs from the training radiographs: it may show no chest, be rotated or be a "
        "negative. The draft may be invalid.",
    )
