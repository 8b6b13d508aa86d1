"""A calibration with simple weights: one feature is the view logit, one the OOD percentile."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from model.bundle import WEIGHTS, add_calibration, load_bundle
from model.calibration.schema import (
    Calibration,
    Confidence,
    Features,
    Gaussian,
    LinearScore,
    OodHead,
    OutOfDistribution,
    PackedArray,
    SentenceWeights,
    Support,
    TrackRecord,
    ViewCheck,
)

_NUMBERS = 10  # of 3 directions, 1 head and 8 statistics of the grey values


def plain_calibration(
    *, width: int = 3, weights_sha256: str = "0" * 64, thresholds: dict[str, float] | None = None,
    track_record: TrackRecord | None = None,
) -> Calibration:  # fmt: skip
    """Feature 0 is the logit of a frontal, feature 1 the share of radiographs that look less unusual."""
    zeros, line = np.zeros((_NUMBERS, _NUMBERS)), LinearScore(slope=1.0, bias=0.0)
    return Calibration(
        weights_sha256=weights_sha256,
        fitted_on={"dataset": "none"},
        features=Features(
            centre=PackedArray.of(np.zeros(width), "float16"),
            scale=PackedArray.of(np.ones(width), "float16"),
            directions=PackedArray.of(np.eye(3, width), "int8"),
        ),
        view=ViewCheck(line=line, certain=0.99),
        unusual=OutOfDistribution(
            heads=(OodHead(name="negative", line=line),),
            views=(Gaussian(mean=PackedArray.of(zeros[0], "float16"), whitening=PackedArray.of(zeros, "float16")),),
            units=(LinearScore(slope=0.0, bias=0.0), line),
            quantiles=tuple(np.linspace(0, 1, 101).tolist()),
            warn_from=0.99,
        ),
        confidence=Confidence(
            present=SentenceWeights(bias=-1.0, words=0.0, cases=1.0, images=0.0),
            absent=SentenceWeights(bias=1.0, words=0.0, cases=0.0, images=1.0),
            other=SentenceWeights(bias=0.0, words=1.0, cases=0.0, images=0.0),
        ),
        support=Support(thresholds={"Cardiomegaly": 0.5} if thresholds is None else thresholds),
        track_record=track_record,
    )


def plain_track_record(
    findings: Mapping[str, tuple[int, int, int]] | None = None, *, separation: Mapping[str, float] | None = None
) -> TrackRecord:
    """Counts (studies, called, right) by finding; by default effusions are caught and pneumothoraces are not.

    With five studies or more, the calibrated logit is half that of the classifier, less 1.
    """
    counts = findings or {"Pleural Effusion": (9, 8, 6), "Pneumothorax": (2, 0, 0), "Fracture": (7, 3, 0)}
    line = LinearScore(slope=0.5, bias=-1.0)
    return TrackRecord.model_validate(
        {
            "findings": {
                name: {"studies": studies, "called": called, "right": right, "line": line if studies >= 5 else None}
                for name, (studies, called, right) in counts.items()
            },
            "separation": separation or {"present": 0.69, "absent": 0.78, "other": 0.53},
        }
    )


def add_plain_calibration(path: Path, **changes: Any) -> Path:
    """Add a calibration with `changes` to a bundle; returns its path."""
    bundle = load_bundle(path)
    weights = bundle.manifest.files[WEIGHTS].sha256
    calibration = plain_calibration(width=bundle.model.backbone.width, weights_sha256=weights)
    add_calibration(path, calibration.model_copy(update=changes), path)
    return path
