"""Inputs and outputs of a draft: views, options, sentences, reference cases, warnings, events.

Every other module of the package may import this one.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Literal

import numpy as np
import numpy.typing as npt

MAX_TOP_K, MAX_BEAM_SIZE = 50, 8

Grid = tuple[tuple[float, ...], ...]  # a value for each patch of an image, rows from top to bottom
Pixels = npt.NDArray[np.uint8]  # (S, S), 0 black to 255 white
Resample = Literal["bicubic", "bilinear"]
Label = Literal["present", "absent", "uncertain"]
Precision = Literal["fp32", "bf16"]


class View(StrEnum):
    """Projection of one radiograph. The order of the members is the order of encoding: frontals first."""

    FRONTAL = "frontal"
    LATERAL = "lateral"

    @property
    def row(self) -> int:
        """Row of this view in the view-embedding table: 0 frontal, 1 lateral."""
        return 0 if self is View.FRONTAL else 1


@dataclass(frozen=True)
class DraftWarning:
    """A warning about a draft or an image. ``code`` is stable for programs, ``message`` is a sentence for people.

    Codes: no_retrieval, missing_view, empty_draft, texts_not_available, unsupported_sentence; those
    of the image checks, ``model.calibration.ood.WARNINGS``; and those of a DICOM header,
    ``model.images.dicom.header.WARNINGS``.
    """

    code: str
    message: str


# --- in ---------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class StudyView:
    """One radiograph of a study.

    Attributes:
        pixels: (S, S) uint8, 0 black to 255 white.
        view: the projection that the sender declared.
        warnings: about the image, copied to the draft.
        header_view: the projection in the file's header; None if it has none.
    """

    pixels: Pixels
    view: View
    warnings: tuple[DraftWarning, ...] = ()
    header_view: View | None = None


@dataclass(frozen=True)
class DraftOptions:
    """Options of a request; None takes the default of the bundle.

    ``top_k`` is the number of returned reference cases; the model reads the nearest K in any case.
    ``attention`` adds each sentence's attention over the images and the cases, ``evidence`` the
    evidence map of a finding that it names.

    Raises:
        ValueError: ``top_k`` outside 1..50 or ``beam_size`` outside 1..8.
    """

    top_k: int | None = None
    beam_size: int | None = None
    attention: bool = False
    evidence: bool = False

    def __post_init__(self) -> None:
        for name, value, most in (("top_k", self.top_k, MAX_TOP_K), ("beam_size", self.beam_size, MAX_BEAM_SIZE)):
            if value is not None and not 1 <= value <= most:
                raise ValueError(f"{name}={value} must lie between 1 and {most}")


# --- out --------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class SentenceAttention:
    """Cross-attention of the decoder for a sentence; all weights of a sentence sum to 1.

    Attributes:
        patches: view as sent -> weights of its grid of patches, rows from top to bottom, columns
            from left to right as in that image. A second image of the same view is ``frontal-2``,
            and so on.
        cases: weights of the K reference cases that the model read, nearest first; a draft may
            return fewer of them.
    """

    patches: Mapping[str, Grid]
    cases: tuple[float, ...]


@dataclass(frozen=True)
class SentenceEvidence:
    """Evidence map of a finding that a sentence names (``model.decoding.evidence_maps``).

    Attributes:
        finding: of the labeler.
        patches: as of ``SentenceAttention``, but contributions to the specific logit of the finding:
            positive ones speak for it, negative ones against it.
    """

    finding: str
    patches: Mapping[str, Grid]


@dataclass(frozen=True)
class Sentence:
    """One sentence of a draft.

    Attributes:
        text: for display.
        confidence: 0..1; the geometric mean of its words' probabilities, or the calibrated
            probability.
        labels: findings that the sentence names.
        supported: whether a reference case or the images support each of its present or possible
            findings; None if it has none, or without a calibration.
        attention: if requested.
        evidence: if requested; None if it names no finding, or without a finding classifier.
        show_confidence: whether readers may see the confidence: it separates right from wrong
            sentences of this kind, every denied finding is assessed, and no image is unusual.
    """

    text: str
    confidence: float
    labels: Mapping[str, Label] = field(default_factory=dict)
    supported: bool | None = None
    attention: SentenceAttention | None = None
    evidence: SentenceEvidence | None = None
    show_confidence: bool = True


@dataclass(frozen=True)
class ImageCheck:
    """Result of the calibrated checks of one image.

    Attributes:
        view: the view as which the model read the image.
        frontal: probability of a frontal against a lateral view, 0..1.
        unusual: out-of-distribution percentile: share of the calibration radiographs with a lower
            score, 0..1.
    """

    view: View
    frontal: float
    unusual: float


@dataclass(frozen=True)
class ReferenceCase:
    """A retrieved training or added case.

    ``findings`` is None if texts are not redistributed; ``images`` names the views with a small
    picture.
    """

    rank: int
    case_id: str
    similarity: float
    findings: str | None
    labels: dict[str, str | None]
    source_url: str | None
    images: tuple[str, ...] = ()


@dataclass(frozen=True)
class Draft:
    """A findings draft with its evidence.

    Attributes:
        timings_ms: of its batch.
        finding_probabilities: of the finding classifier, by finding; None without one.
        calibrated_findings: calibrated probabilities, of the findings that have a fit; None without
            a track record.
        not_assessed: findings that the draft denies, although no validation draft of the bundle has
            called them right; empty without a track record.
    """

    findings: str
    sentences: tuple[Sentence, ...]
    labels: dict[str, str | None]
    reference_cases: tuple[ReferenceCase, ...]
    warnings: tuple[DraftWarning, ...]
    timings_ms: dict[str, float]
    image_checks: tuple[ImageCheck, ...] = ()
    finding_probabilities: Mapping[str, float] | None = field(default=None, compare=False)
    calibrated_findings: Mapping[str, float] | None = None
    not_assessed: tuple[str, ...] = ()


# --- events while a draft is written ----------------------------------------------------------------------------------


@dataclass(frozen=True)
class CasesFound:
    """Retrieval is done: these are the draft's ``reference_cases``."""

    cases: tuple[ReferenceCase, ...] = field(repr=False)


EventCallback = Callable[[CasesFound], None]
