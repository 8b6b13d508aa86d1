"""Metrics of a calibration on validation studies, on OOD images, and on radiographs of another hospital."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, get_args

import numpy as np

from model.calibration.ood import ViewAssessment, assess_views, ood_scores, percentile
from model.calibration.schema import Calibration, Floats, Kind
from model.types import Pixels, View
from training.calibration.fit_confidence import SentenceTable, held_out_by_kind
from training.calibration.fit_ood import LabelledFeatures, cross_validated_percentiles, ood_inputs
from training.scoring.binary import Bools, auroc, brier, calibration_error, folds, reliability

_FOLDS = 5
EXTERNAL_GROUP = "radiographs (another hospital)"
_BOTH = (View.FRONTAL, View.LATERAL)


@dataclass(frozen=True)
class Group:
    """Images of one kind: ``pooled`` (N, D), ``pixels`` (N, S, S); ``shown``: the fit used other images of the kind."""

    pooled: Floats
    pixels: Pixels
    shown: bool = False


# --- views ------------------------------------------------------------------------------------------------------------


def view_metrics(calibration: Calibration, held: LabelledFeatures) -> dict[str, Any]:
    """How often the view check is right and wrong, on pairs and on single images."""

    def assess(rows: Sequence[int], views: Sequence[View]) -> ViewAssessment:
        chosen = list(rows)
        return assess_views(calibration, views, held.pooled[chosen], held.pixels[chosen], correct=True)

    pairs = _pairs(held)
    right, exchanged = ([assess(pair[::order], _BOTH) for pair in pairs] for order in (1, -1))
    same = [assess(pair, _BOTH) for side in zip(*pairs, strict=True) for pair in pairwise(side)]
    single, wrong = (
        [assess([row], [_BOTH[int(frontal != truth)]]) for row, frontal in enumerate(held.frontal)]
        for truth in (True, False)
    )
    frontal = np.array([found.checks[0][0] for found in single])
    return {
        "certain": calibration.view.certain,
        "images": len(frontal),
        "accuracy": float(((frontal > 0.5) == held.frontal).mean()),
        "auroc": auroc(frontal, held.frontal),
        "pairs": len(pairs),
        "pairs_wrongly_exchanged": _having(right, "views_swapped"),
        "pairs_wrongly_called_same": _having(right, "same_view"),
        "exchanged_pairs_put_right": _having(exchanged, "views_swapped"),
        "pairs_of_one_view": len(same),
        "pairs_of_one_view_found": _having(same, "same_view"),
        "pairs_of_one_view_wrongly_exchanged": _having(same, "views_swapped"),
        "single_images": len(single),
        "single_images_wrongly_corrected": _having(single, "view_corrected"),
        "single_images_sent_as_the_other_view_corrected": _having(wrong, "view_corrected"),
    }


def _pairs(held: LabelledFeatures) -> list[tuple[int, int]]:
    """Rows of the frontal and the lateral of each study that has both."""
    found: dict[str, dict[bool, int]] = {}
    for row, (study, frontal) in enumerate(zip(held.study, held.frontal, strict=True)):
        found.setdefault(study, {}).setdefault(bool(frontal), row)
    return [(rows[True], rows[False]) for rows in found.values() if len(rows) == 2]


def _having(assessments: Sequence[ViewAssessment], code: str) -> int:
    return sum(any(warning.code == code for warning in one.warnings) for one in assessments)


# --- OOD images -------------------------------------------------------------------------------------------------------


def ood_metrics(
    calibration: Calibration, held: LabelledFeatures, external: Group | None, strange: Mapping[str, Group], *,
    seed: int = 1,
) -> tuple[dict[str, Any], dict[str, Floats]]:  # fmt: skip
    """How many radiographs of this set and of another hospital, and how many OOD images, get a warning.

    Validation radiographs are scored with units and quantiles of other validation studies.

    Returns:
        The metrics, and the OOD scores of each group by its name, for a plot.
    """
    head, features = calibration.unusual, calibration.features
    inputs = ood_inputs(features, held.pooled, held.pixels)
    percentiles = cross_validated_percentiles(head, inputs, folds(held.study, _FOLDS, seed))
    validation = ood_scores(head, *inputs)
    scores = {"radiographs (val)": validation}

    def measure(group: Group, name: str) -> dict[str, Any]:
        found = scores[name] = ood_scores(head, *ood_inputs(features, group.pooled, group.pixels))
        warned = float((percentile(head, found) >= head.warn_from).mean())
        return {"n": len(found), "warned": warned, "auroc": _separation(validation, found)}

    metrics: dict[str, Any] = {
        "warn_from": head.warn_from,
        "threshold": float(np.interp(head.warn_from, np.linspace(0, 1, len(head.quantiles)), head.quantiles)),
        "val": {"n": len(validation), "warned": float((percentiles >= head.warn_from).mean())},
        "external": external and measure(external, EXTERNAL_GROUP),
        "strange": {},
    }
    for name, group in strange.items():
        entry = metrics["strange"][name] = {"shown_to_the_fit": group.shown, **measure(group, name)}
        if external is not None:
            entry["auroc_against_external"] = _separation(scores[EXTERNAL_GROUP], scores[name])
    return metrics, scores


def _separation(usual: Floats, found: Floats) -> float | None:
    """AUROC of the scores for separating the second group from the first."""
    scores = np.concatenate([usual, found]).astype(np.float64)
    return auroc(scores, np.repeat([False, True], [len(usual), len(found)]))


# --- confidence -------------------------------------------------------------------------------------------------------


def confidence_metrics(rows: SentenceTable, *, seed: int = 1) -> dict[str, Any]:
    """Quality of the confidence (by a fit to other studies), of the word probability, and of the rate of the kind."""
    sources = {
        "calibrated": held_out_by_kind(rows, rows.values, seed=seed),
        "words": rows.words.astype(np.float64),
        "rate_of_the_kind": held_out_by_kind(rows, rows.values[:, :0], seed=seed),
    }

    def quality(chosen: Bools) -> dict[str, dict[str, float | None]]:
        measures = {"ece": calibration_error, "brier": brier, "auroc": auroc}
        return {
            name: {measure: of(values[chosen], rows.correct[chosen]) for measure, of in measures.items()}
            for name, values in sources.items()
        }

    metrics: dict[str, Any] = {
        "sentences": len(rows.correct),
        "right": float(rows.correct.mean()),
        "all": quality(np.ones(len(rows.correct), bool)),
    }
    for kind in get_args(Kind):
        chosen = rows.kind == kind
        if chosen.any():
            by_source = quality(chosen)
            by_source["rate_of_the_kind"]["auroc"] = None  # the rate is the same for all but the folds
            right = float(rows.correct[chosen].mean())
            metrics[kind] = {"sentences": int(chosen.sum()), "right": right, **by_source}
    metrics["reliability"] = {
        name: [
            {"said": one.mean, "came_true": one.rate, "count": one.count}
            for one in reliability(sources[name], rows.correct)
        ]
        for name in ("calibrated", "words")
    }
    return metrics
