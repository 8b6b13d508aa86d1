"""``calibration.json`` of a bundle: view check, out-of-distribution (OOD) score, sentence confidence, track record.

It holds numbers only, no image and no text. ``python -m training.calibrate`` fits it on training
and validation images; ``model.calibration.ood`` and ``model.calibration.sentence_confidence`` apply
it.
"""

from __future__ import annotations

import base64
import binascii
from functools import lru_cache
from itertools import pairwise
from typing import Annotated, Literal, Self, TypeVar

import numpy as np
import numpy.typing as npt
from pydantic import Field, JsonValue, field_validator, model_validator

from model.config import Frozen
from model.text.labeler import FINDINGS

Floats = npt.NDArray[np.floating]
STATISTICS = 8  # length of ``model.calibration.ood.statistics``
Number = Annotated[float, Field(allow_inf_nan=False)]
Kind = Literal["present", "absent", "other"]
T = TypeVar("T")


def _known(by_finding: dict[str, T], what: str) -> dict[str, T]:
    if unknown := sorted(set(by_finding) - set(FINDINGS)):
        raise ValueError(f"{what} of unknown findings: {unknown}")
    return by_finding


class PackedArray(Frozen):
    """An array in base64: its bytes, little-endian, row by row.

    Attributes:
        shape: of the array.
        dtype: ``int8`` or ``float16``.
        data: base64 of the bytes.
        step: value of a stored 1.
    """

    shape: tuple[Annotated[int, Field(ge=1)], ...]
    dtype: Literal["int8", "float16"]
    data: str
    step: Annotated[float, Field(gt=0)]

    @model_validator(mode="after")
    def _is_whole(self) -> Self:
        try:
            content = base64.b64decode(self.data, validate=True)
        except binascii.Error as error:
            raise ValueError("data is not valid base64") from error
        if len(content) != int(np.prod(self.shape)) * np.dtype(self.dtype).itemsize:
            raise ValueError(f"data holds {len(content)} bytes, not an array of {self.dtype} {self.shape}")
        if not np.isfinite(self.array).all():
            raise ValueError("data holds a value that is not finite")
        return self

    @property
    def array(self) -> Floats:
        """The values as float32, read-only."""
        return _unpacked(self)

    @classmethod
    def of(cls, values: npt.NDArray[np.floating], dtype: Literal["int8", "float16"]) -> Self:
        """Pack an array with loss: ``int8`` keeps 127 steps on either side of 0, ``float16`` three digits."""
        most = float(np.abs(values).max()) or 1.0
        step = most / 127 if dtype == "int8" else most
        narrow = np.rint(values / step).astype("i1") if dtype == "int8" else (values / step).astype("<f2")
        return cls(shape=values.shape, dtype=dtype, data=base64.b64encode(narrow.tobytes()).decode("ascii"), step=step)


@lru_cache(maxsize=64)
def _unpacked(packed: PackedArray) -> Floats:
    content = base64.b64decode(packed.data)
    values = np.frombuffer(content, np.dtype(packed.dtype).newbyteorder("<")).astype(np.float32)
    unpacked: Floats = values.reshape(packed.shape) * np.float32(packed.step)
    unpacked.flags.writeable = False
    return unpacked


class LinearScore(Frozen):
    """A logit that is linear in one number: ``slope`` × number + ``bias``."""

    slope: Number
    bias: Number


class Features(Frozen):
    """Linear projection of the D pooled features of an image.

    Attributes:
        centre: (D,) subtracted from the features.
        scale: (D,) multiplied with the difference.
        directions: (R, D) to project on: the view, then each of ``OutOfDistribution.heads``, then
            the principal components of radiographs.
    """

    centre: PackedArray
    scale: PackedArray
    directions: PackedArray

    @property
    def width(self) -> int:
        """D."""
        return self.directions.shape[-1]

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if len(self.directions.shape) != 2 or not self.centre.shape == self.scale.shape == (self.width,):
            shapes = f"{self.centre.shape}, {self.scale.shape} and {self.directions.shape}"
            raise ValueError(f"centre, scale and directions are {shapes}, not (D,), (D,) and (R, D)")
        return self


class ViewCheck(Frozen):
    """Frontal or lateral.

    Attributes:
        line: logit of a frontal, from the first projection.
        certain: minimum probability of the other view at which the declared view is corrected.
    """

    line: LinearScore
    certain: Annotated[float, Field(gt=0.5, lt=1)]


class OodHead(Frozen):
    """One kind of faulty radiograph, ``name``, and its logit from the projection with the same index."""

    name: str
    line: LinearScore


class Gaussian(Frozen):
    """Distribution of one view's radiographs: ``mean`` (M,), and ``whitening`` (M, M) to unit variance."""

    mean: PackedArray
    whitening: PackedArray

    @model_validator(mode="after")
    def _fits(self) -> Self:
        count = self.mean.shape[-1]
        if self.mean.shape != (count,) or self.whitening.shape != (count, count):
            raise ValueError(
                f"mean and whitening are {self.mean.shape} and {self.whitening.shape}, not (M,) and (M, M)"
            )
        return self


class OutOfDistribution(Frozen):
    """OOD score: the largest of several components, each in its unit.

    Attributes:
        heads: kinds of faulty radiographs.
        views: distributions of upright frontals and laterals; the distance from the nearer one
            counts.
        units: (1 + heads) scale of each component, the distance first: 0 is ordinary, 1 is rare.
        quantiles: of the score over radiographs outside the fit, evenly spaced from 0 to 1.
        warn_from: OOD percentile from which a warning is given.
    """

    heads: tuple[OodHead, ...]
    views: Annotated[tuple[Gaussian, ...], Field(min_length=1)]
    units: tuple[LinearScore, ...]
    quantiles: Annotated[tuple[Number, ...], Field(min_length=2)]
    warn_from: Annotated[float, Field(gt=0, le=1)]

    @field_validator("quantiles")
    @classmethod
    def _ascend(cls, quantiles: tuple[float, ...]) -> tuple[float, ...]:
        if any(later < earlier for earlier, later in pairwise(quantiles)):
            raise ValueError("quantiles are not in ascending order")
        return quantiles


class SentenceWeights(Frozen):
    """Linear weights of a sentence's logit over the three inputs of ``sentence_confidence.features``."""

    bias: Number
    words: Number
    cases: Number
    images: Number


class Confidence(Frozen):
    """Weights by kind of sentence: it states a finding, only absent findings, or none."""

    present: SentenceWeights
    absent: SentenceWeights
    other: SentenceWeights


class Support(Frozen):
    """Classifier probability from which the images support a finding; findings without an entry have no support."""

    thresholds: dict[str, Annotated[float, Field(ge=0, le=1)]]

    @field_validator("thresholds")
    @classmethod
    def _are_known(cls, thresholds: dict[str, float]) -> dict[str, float]:
        return _known(thresholds, "thresholds")


class FindingRecord(Frozen):
    """One finding on the validation studies; a finding counts if it is present or uncertain.

    Attributes:
        studies: reports with it.
        called: drafts with it.
        right: drafts with it whose report has it too.
        line: calibrated logit of the finding from that of the classifier; None if too few reports
            have it.
    """

    studies: Annotated[int, Field(ge=0)]
    called: Annotated[int, Field(ge=0)]
    right: Annotated[int, Field(ge=0)]
    line: LinearScore | None = None

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if self.right > min(self.studies, self.called):
            raise ValueError(f"right={self.right} exceeds studies={self.studies} or called={self.called}")
        return self


class TrackRecord(Frozen):
    """What the validation studies show about the drafts.

    Attributes:
        findings: by name.
        separation: kind of sentence -> AUROC of its confidence, held out; kinds without both right
            and wrong sentences are left out.
    """

    findings: dict[str, FindingRecord]
    separation: dict[Kind, Annotated[float, Field(ge=0, le=1)]]

    @field_validator("findings")
    @classmethod
    def _are_known(cls, findings: dict[str, FindingRecord]) -> dict[str, FindingRecord]:
        return _known(findings, "records")


class Calibration(Frozen):
    """``calibration.json``.

    Attributes:
        schema_version: of this layout.
        weights_sha256: digest of the ``model.safetensors`` that the calibration was fitted to; it
            is valid for no other.
        fitted_on: counts of the data of the fit.
        features: of an image.
        view: check of its view.
        unusual: its OOD score.
        confidence: of a sentence.
        support: of a sentence.
        track_record: on the validation studies; None in a file of an older version.
    """

    schema_version: Literal[1] = 1
    weights_sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
    fitted_on: dict[str, JsonValue]
    features: Features
    view: ViewCheck
    unusual: OutOfDistribution
    confidence: Confidence
    support: Support
    track_record: TrackRecord | None = None

    @model_validator(mode="after")
    def _fits(self) -> Self:
        heads, directions = len(self.unusual.heads), self.features.directions.shape[0]
        if directions <= 1 + heads:
            raise ValueError(f"{directions} directions are too few for the view, {heads} heads and the distance")
        if len(self.unusual.units) != 1 + heads:
            raise ValueError(
                f"there are {len(self.unusual.units)} units; expected {1 + heads}, for the distance and {heads} heads"
            )
        numbers = directions - heads + STATISTICS
        if any(view.mean.shape != (numbers,) for view in self.unusual.views):
            raise ValueError(f"the views must have {numbers} numbers, as the directions and the pixel statistics give")
        return self
