"""Confidence and support of a sentence, from its words and from the evidence of its study.

The labeler extracts the findings of a sentence. The evidence of a study is the share of the nearest
training cases with a finding, and the probability of the finding by the classifier of the model.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt

from model.calibration.schema import Confidence, Kind, SentenceWeights, Support
from model.text.labeler import FINDINGS, NO_FINDING, label_report
from model.types import DraftWarning, Label

NEIGHBOURS: Final = 50
"""Nearest training cases whose labels count as evidence."""

_POSITIVE: Final = ("present", "uncertain")
_CERTAIN: Final = 0.02  # shares and probabilities are clipped to this distance from 0 and 1


@dataclass(frozen=True)
class Evidence:
    """Evidence of a study's images for each finding.

    Attributes:
        cases: finding -> share of the nearest cases where it is present or uncertain; empty without
            an index.
        images: finding -> probability by the finding classifier; empty without one.
        shown: findings that are present or uncertain in one of the K cases that the model reads.
    """

    cases: Mapping[str, float]
    images: Mapping[str, float]
    shown: frozenset[str]

    @classmethod
    def of(
        cls,
        labels: Sequence[Mapping[str, str | None]],
        shown: int,
        classified: npt.NDArray[np.float32] | None,
    ) -> Evidence:
        """Collect the evidence of one study.

        Args:
            labels: of the nearest cases, nearest first.
            shown: K, how many of them the model reads.
            classified: (14,) probabilities of the findings, or None.
        """
        positive = [frozenset(name for name, label in one.items() if label in _POSITIVE) for one in labels]
        cases = {name: sum(name in one for one in positive) / len(positive) for name in FINDINGS} if positive else {}
        images = {} if classified is None else dict(zip(FINDINGS, classified.tolist(), strict=True))
        return cls(cases, images, frozenset().union(*positive[:shown]))


def named_findings(text: str) -> dict[str, Label]:
    """Findings that a sentence names, without No Finding."""
    return {name: label for name, label in label_report(text).items() if label is not None and name != NO_FINDING}


def kind_of(labels: Mapping[str, Label]) -> Kind:
    """``present``: a sentence has a present or uncertain finding; ``absent``: only absent ones; ``other``: none."""
    if not labels:
        return "other"
    return "present" if any(label in _POSITIVE for label in labels.values()) else "absent"


def features(words: float, labels: Mapping[str, Label], evidence: Evidence) -> tuple[float, float, float]:
    """Logits of three probabilities of a sentence: by its words, by the share of cases, by the classifier.

    Of several findings the least supported one counts. A logit is 0 without evidence or without a
    named finding.

    Args:
        words: geometric mean of the probabilities of the sentence's words.
        labels: findings that it names.
        evidence: of the study.
    """
    is_positive = kind_of(labels) == "present"
    stated = [name for name, label in labels.items() if (label in _POSITIVE) == is_positive]
    cases, images = (
        min((source[name] if is_positive else 1 - source[name] for name in stated), default=0.5) if source else 0.5
        for source in (evidence.cases, evidence.images)
    )
    return _logit(words), _logit(cases), _logit(images)


def confidence(calibration: Confidence, words: float, labels: Mapping[str, Label], evidence: Evidence) -> float:
    """Calibrated probability that a sentence is correct; arguments as for ``features``."""
    weights: SentenceWeights = getattr(calibration, kind_of(labels))
    of_words, of_cases, of_images = features(words, labels, evidence)
    logit = weights.bias + weights.words * of_words + weights.cases * of_cases + weights.images * of_images
    return float(0.5 * (1 + np.tanh(0.5 * logit)))


def supported(calibration: Support, labels: Mapping[str, Label], evidence: Evidence) -> bool | None:
    """Whether a read case or the images support every finding that a sentence calls present or possible.

    None if it calls no finding present or possible.
    """
    named = [name for name, label in labels.items() if label in _POSITIVE]
    if not named:
        return None
    return all(
        name in evidence.shown
        or (name in evidence.images and evidence.images[name] >= calibration.thresholds.get(name, 2.0))
        for name in named
    )


def unsupported(count: int) -> DraftWarning:
    """The warning with the number of unsupported sentences of a draft."""
    what, them = ("One sentence has", "it") if count == 1 else (f"{count} sentences have", "them")
    return DraftWarning(
        "unsupported_sentence",
        f"{what} a present or possible finding that neither a reference case nor the images support. "
        f"Check {them} first.",
    )


def _logit(share: float) -> float:
    clipped = min(max(share, _CERTAIN), 1 - _CERTAIN)
    return float(np.log(clipped / (1 - clipped)))
