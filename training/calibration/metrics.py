"""Metrics of a calibration on validation studies, on OOD images, and on radiographs of another hospital."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise
from typing import Any, get_args

import numpy as np

from model.calibration.ood import ViewAssessment, assess_views, ood_scores, percentile
from model.calibration.schema import Calibration, Floats, Kind
from model.types import Pixels, View
from training.calibration.fit_confidence import SentenceTable, held_out_confidence, held_out_rate
from training.calibration.fit_ood import LabelledFeatures, cross_validated_percentiles, ood_inputs
from training.scoring.binary import Bools, auroc, brier, calibration_error, folds, reliability

_FOLDS = 5
_BOTH = (View.FRONTAL, View.LATERAL)


@dataclass(frozen=True)
class Group:
    """Images of one kind: ``pooled`` (N, D), ``pixels`` (N, S, S); ``shown``: the fit used other images of the kind."""

    pooled: Floats
    pixels: Pixels
    shown: bool = False


# --- views ------------------------------------------------------------------------------------------------------------


def view_figures(calibration: Calibration, held: LabelledFeatures) -> dict[str, Any]:
    """How often the view check is right and wrong, on pairs and on single images."""
    frontal = np.array([reading.checks[0][0] for reading in _singles(calibration, held)])
    pairs = _pairs(held)
    right = [_read(calibration, held, pair) for pair in pairs]
    exchanged = [_read(calibration, held, pair[::-1]) for pair in pairs]
    firsts, seconds = [pair[0] for pair in pairs], [pair[1] for pair in pairs]
    same = [_read(calibration, held, pair) for one in (firsts, seconds) for pair in pairwise(one)]
    alone = list(_singles(calibration, held))
    wrong = list(_singles(calibration, held, wrong=True))
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
        "single_images": len(alone),
        "single_images_wrongly_corrected": _having(alone, "view_corrected"),
        "single_images_sent_as_the_other_view_corrected": _having(wrong, "view_corrected"),
    }


def _pairs(held: LabelledFeatures) -> list[tuple[int, int]]:
    """Rows of the frontal and the lateral of each study that has both."""
    found: dict[str, dict[bool, int]] = {}
    for row, (study, frontal) in enumerate(zip(held.study, held.frontal, strict=True)):
        found.setdefault(study, {}).setdefault(bool(frontal), row)
    return [(rows[True], rows[False]) for rows in found.values() if len(rows) == 2]


def _read(calibration: Calibration, held: LabelledFeatures, rows: tuple[int, int]) -> ViewAssessment:
    """The assessment of two images that are sent as frontal and lateral."""
    pair = list(rows)
    return assess_views(calibration, _BOTH, held.pooled[pair], held.pixels[pair], correct=True)


def _singles(calibration: Calibration, held: LabelledFeatures, *, wrong: bool = False) -> Iterator[ViewAssessment]:
    for row, frontal in enumerate(held.frontal):
        sent = View.FRONTAL if frontal != wrong else View.LATERAL
        yield assess_views(calibration, [sent], held.pooled[[row]], held.pixels[[row]], correct=True)


def _having(readings: Sequence[ViewAssessment], code: str) -> int:
    return sum(any(warning.code == code for warning in reading.warnings) for reading in readings)


# --- unusual images ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class GroupScores:
    """OOD scores of a group of images, for a plot."""

    name: str
    worst: Floats


def unusual_figures(
    calibration: Calibration,
    held: LabelledFeatures,
    outside: Group | None,
    strange: Mapping[str, Group],
    *,
    seed: int = 1,
) -> tuple[dict[str, Any], list[GroupScores]]:
    """How many radiographs of this set and of another hospital, and how many OOD images, get a warning.

    Validation radiographs are scored with units and quantiles of other validation studies.
    """
    unusual, features = calibration.unusual, calibration.features
    usual = ood_inputs(features, held.pooled, held.pixels)
    shares = cross_validated_percentiles(unusual, usual, folds(held.study, _FOLDS, seed))
    validation = ood_scores(unusual, *usual)
    scored = [GroupScores("radiographs (val)", validation)]
    figures: dict[str, Any] = {
        "warn_from": unusual.warn_from,
        "threshold": float(np.interp(unusual.warn_from, np.linspace(0, 1, len(unusual.quantiles)), unusual.quantiles)),
        "val": {"n": len(validation), "warned": float((shares >= unusual.warn_from).mean())},
        "external": None,
        "strange": {},
    }
    if outside is not None:
        external = ood_scores(unusual, *ood_inputs(features, outside.pooled, outside.pixels))
        scored.append(GroupScores("radiographs (another hospital)", external))
        figures["external"] = _against(validation, external, percentile(unusual, external), unusual.warn_from)
    for name, group in strange.items():
        found = ood_scores(unusual, *ood_inputs(features, group.pooled, group.pixels))
        scored.append(GroupScores(name, found))
        entry = _against(validation, found, percentile(unusual, found), unusual.warn_from)
        if outside is not None:
            entry["auroc_against_external"] = _separation(external, found)
        figures["strange"][name] = {"shown_to_the_fit": group.shown, **entry}
    return figures, scored


def _against(usual: Floats, found: Floats, shares: Floats, warn_from: float) -> dict[str, Any]:
    return {"n": len(found), "warned": float((shares >= warn_from).mean()), "auroc": _separation(usual, found)}


def _separation(usual: Floats, found: Floats) -> float | None:
    """AUROC of telling the second group from the first by its scores."""
    every = np.concatenate([usual, found]).astype(np.float64)
    return auroc(every, np.repeat([False, True], [len(usual), len(found)]))


# --- confidence -------------------------------------------------------------------------------------------------------


def confidence_figures(rows: SentenceTable, *, seed: int = 1) -> dict[str, Any]:
    """Quality of the confidence (by a fit to other studies), of the word probability, and of the rate of the kind."""
    said = {
        "calibrated": held_out_confidence(rows, seed=seed),
        "words": rows.words,
        "rate_of_the_kind": held_out_rate(rows, seed=seed),
    }
    kinds = {kind: rows.kind == kind for kind in get_args(Kind)}
    return {
        "sentences": len(rows.correct),
        "right": float(rows.correct.mean()),
        "all": {name: _quality(values, rows.correct) for name, values in said.items()},
        **{
            kind: {
                "sentences": int(chosen.sum()),
                "right": float(rows.correct[chosen].mean()),
                **{name: _quality(values[chosen], rows.correct[chosen]) for name, values in said.items()},
                "rate_of_the_kind": {**_quality(said["rate_of_the_kind"][chosen], rows.correct[chosen]), "auroc": None},
            }
            for kind, chosen in kinds.items()
            if chosen.any()
        },
        "reliability": {
            name: [asdict(one) for one in reliability(said[name], rows.correct)] for name in ("calibrated", "words")
        },
    }


def _quality(said: Floats | np.ndarray[Any, np.dtype[np.float64]], truth: Bools) -> dict[str, float | None]:
    values = said.astype(np.float64)
    return {"ece": calibration_error(values, truth), "brier": brier(values, truth), "auroc": auroc(values, truth)}
