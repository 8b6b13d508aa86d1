"""What a draft may state, given the track record of its bundle on the validation studies.

Without a track record in the calibration no restriction applies.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Final

import numpy as np
import numpy.typing as npt

from model.calibration.ood import sigmoid
from model.calibration.schema import TrackRecord
from model.calibration.sentence_confidence import kind_of
from model.text.labeler import NO_FINDING
from model.types import Label

SEPARATES: Final = 0.6
"""AUROC from which the confidence of a kind of sentences is shown."""

_SMALLEST: Final = 1e-6  # minimum distance of a probability from 0 and 1


def finding_logits(probabilities: npt.ArrayLike) -> npt.NDArray[np.float64]:
    """Logits of probabilities of the finding classifier."""
    clipped = np.clip(np.asarray(probabilities, np.float64), _SMALLEST, 1 - _SMALLEST)
    return np.log(clipped / (1 - clipped))


def calibrated_findings(record: TrackRecord | None, classified: Mapping[str, float]) -> dict[str, float] | None:
    """Calibrated probability of each finding that has a fit; None without a track record or a classifier."""
    if record is None or not classified:
        return None
    lines = {name: one.line for name, one in record.findings.items() if one.line is not None}
    return {
        name: float(sigmoid(line.slope * finding_logits(classified[name]) + line.bias)) for name, line in lines.items()
    }


def not_assessed(record: TrackRecord | None, labels: Mapping[str, str | None]) -> tuple[str, ...]:
    """Findings that a draft denies although no validation draft has called them right."""
    if record is None:
        return ()
    caught = {name for name, one in record.findings.items() if one.right > 0}
    return tuple(
        name for name, label in labels.items() if label == "absent" and name != NO_FINDING and name not in caught
    )


def shows_confidence(
    record: TrackRecord | None, labels: Mapping[str, Label], unassessed: Collection[str], *, unusual: bool
) -> bool:
    """Whether the confidence of a sentence with these labels may be shown.

    Args:
        record: of the bundle.
        labels: findings that the sentence names.
        unassessed: findings of the draft that are not assessed.
        unusual: whether an image of the study is unusual.
    """
    if record is None:
        return True
    separates = record.separation.get(kind_of(labels), 0.0) >= SEPARATES
    denied = {name for name, label in labels.items() if label == "absent"}
    return separates and not unusual and denied.isdisjoint(unassessed)
