"""Measures of the maps of sentences: evidence maps and attention, of the same sentences.

A map is an array (V, P) of a study's V images and their P patches; its hottest patch is the one farthest from 0.

``heart``: share of sentences on cardiomegaly whose hottest frontal patch lies in ``HEART_BOX``; by chance ``chance``.
``correlation``: of the maps of two sentences of a draft on different findings, mean over such pairs.
``deletion``: images are blurred in the N patches that speak most for a finding, and in N random ones; how much more
the finding's probability, or its logit, falls by the first.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import combinations
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import torch
from scipy.ndimage import gaussian_filter

from model.calibration.ood import sigmoid
from model.decoding.attention_maps import image_names
from model.decoding.evidence_maps import FindingEvidence, evidence_of
from model.network.report_model import ReportModel
from model.text.labeler import FINDINGS
from model.types import Draft, Pixels, SentenceAttention, StudyView, View
from training.scoring.bootstrap import Bootstrap, interval
from training.scoring.ngrams import Floats

HEART: Final = "Cardiomegaly"
HEART_BOX: Final = (0.40, 0.80, 0.33, 0.80)
"""Top, bottom, left and right of the heart in a frontal that is squashed to a square, as shares of its side.

No radiograph of the data sets has boxes. This one holds the heart of the mean frontal of Open-i, with a margin for
other hearts: a patch counts by its centre, so at 7 x 7 patches it has rows 4 to 6 and columns 3 to 6 of 7.
"""
MAPS: Final = ("evidence", "evidence_logit", "attention")
MEASURES: Final = ("heart", "correlation", "deletion_probability", "deletion_logit")
_RANDOM = 4  # random choices of patches for each study
_BLUR = 1 / 8  # standard deviation, as a share of the side of an image


@dataclass
class MapScores:
    """Values of each study by (map, measure); a study without any has an empty list."""

    studies: list[dict[tuple[str, str], list[float]]] = field(default_factory=list)

    def summary(self, *, draws: int, seed: int) -> dict[str, dict[str, Any]]:
        """Map -> measure -> its ``mean``, its number ``n`` of values and, with draws of studies, ``confidence_95``."""
        times = Bootstrap(len(self.studies), draws=draws, seed=seed).times
        return {name: {measure: self._mean((name, measure), times) for measure in MEASURES} for name in MAPS}

    def _mean(self, key: tuple[str, str], times: Floats) -> dict[str, Any]:
        sums = np.array([sum(study.get(key, ())) for study in self.studies])
        counts = np.array([len(study.get(key, ())) for study in self.studies])
        if not counts.any():
            return {"mean": None, "n": 0}
        total = times @ counts
        means = (times @ sums)[total > 0] / total[total > 0]
        ends = {"confidence_95": interval(means[1:])} if len(means) > 1 else {}
        return {"mean": float(means[0]), "n": int(counts.sum()), **ends}


def heart_patches(grid: int) -> npt.NDArray[np.bool_]:
    """Which patches of a frontal have their centre in ``HEART_BOX``: (grid * grid,), row by row."""
    centres = (np.arange(grid) + 0.5) / grid
    top, bottom, left, right = HEART_BOX
    rows, columns = (centres > top) & (centres < bottom), (centres > left) & (centres < right)
    return np.outer(rows, columns).ravel()


def classified(model: ReportModel, variants: Pixels, views: Sequence[View]) -> FindingEvidence:
    """Evidence on N variants of a study with V views: (N, V, S, S) pixels, by a model with a finding classifier."""
    device = next(model.parameters()).device
    images = torch.from_numpy(variants).to(device).unsqueeze(2).float() / 255  # (N, V, 1, S, S)
    rows = torch.tensor([[view.row for view in views]] * len(variants), device=device)
    found = evidence_of(model, model.encode_images(images, rows, torch.ones_like(rows, dtype=torch.bool)))
    assert found is not None
    return found


def logits_of(evidence: FindingEvidence) -> Floats:
    """Logits of the findings of each study: (N, 14)."""
    logits: Floats = (evidence.contributions.sum(2).mean(1) + evidence.reference).numpy().astype(np.float64)
    return logits


def blurred(images: Pixels) -> Pixels:
    """Images (V, S, S) without their details."""
    smooth: Floats = gaussian_filter(images.astype(np.float64), (0, *[_BLUR * images.shape[1]] * 2))
    return smooth.round().astype(np.uint8)


def erased(images: Pixels, without: Pixels, patches: npt.NDArray[np.intp], grid: int) -> Pixels:
    """A copy of images (V, S, S), like ``without`` in some of their V * grid**2 patches, numbered view by view."""
    chosen = np.zeros(len(images) * grid**2, dtype=bool)
    chosen[patches] = True
    step = images.shape[1] // grid
    mask = chosen.reshape(-1, grid, grid).repeat(step, axis=1).repeat(step, axis=2)  # (V, S, S)
    return np.where(mask, without, images)


@torch.inference_mode()
def score_study(
    model: ReportModel, study: Sequence[StudyView], draft: Draft, *, patches: int, random: np.random.Generator
) -> dict[tuple[str, str], list[float]]:
    """Values of a draft by (map, measure).

    Args:
        model: of the draft, with a finding classifier.
        study: its images, frontals first.
        draft: with evidence, and with attention if the writer has any.
        patches: to erase.
        random: draws the other patches.
    """
    images, views = np.stack([image.pixels for image in study]), [image.view for image in study]
    whole = classified(model, images[None], views)
    grid = math.isqrt(whole.contributions.shape[2])
    sentences = [
        (sentence.evidence.finding, _maps(sentence.evidence.finding, whole, sentence.attention, views))
        for sentence in draft.sentences
        if sentence.evidence is not None
    ]
    values = defaultdict[tuple[str, str], list[float]](list)
    if not sentences:
        return values
    names = [name for name in MAPS if all(name in maps for _, maps in sentences)]
    cells = len(images) * grid**2
    others = [random.choice(cells, min(patches, cells), replace=False) for _ in range(_RANDOM)]
    hottest = [np.argsort(-maps[name].ravel(), kind="stable")[:patches] for _, maps in sentences for name in names]
    without = blurred(images)
    variants = np.stack([erased(images, without, chosen, grid) for chosen in [*others, *hottest]])
    after = logits_of(classified(model, variants, views))
    by_chance, by_map = after[: len(others)], after[len(others) :].reshape(len(sentences), len(names), -1)
    for (finding, maps), logits in zip(sentences, by_map, strict=True):
        column = FINDINGS.index(finding)
        for name, changed in zip(names, logits[:, column], strict=True):
            values[name, "deletion_logit"].append(float(by_chance[:, column].mean() - changed))
            fall = sigmoid(by_chance[:, column]).mean() - sigmoid(changed)
            values[name, "deletion_probability"].append(float(fall))
            if finding == HEART and View.FRONTAL in views:
                frontal = np.abs(maps[name][views.index(View.FRONTAL)])
                values[name, "heart"].append(float(heart_patches(grid)[frontal.argmax()]))
    for (finding, maps), (other, other_maps) in combinations(sentences, 2):
        for name in names if finding != other else ():
            values[name, "correlation"].append(_correlation(maps[name], other_maps[name]))
    return values


def _maps(
    finding: str, evidence: FindingEvidence, attention: SentenceAttention | None, views: Sequence[View]
) -> dict[str, Floats]:
    """The maps (V, P) of a sentence, without attention if the writer has none.

    ``evidence_logit`` keeps what is common to all findings.
    """
    specific, plain = (
        part[0, ..., FINDINGS.index(finding)].numpy().astype(np.float64)
        for part in (evidence.specific, evidence.contributions)
    )
    maps = {"evidence": specific, "evidence_logit": plain}
    if attention is not None:
        weights = [attention.patches[name] for name in image_names(views)]
        maps["attention"] = np.array(weights).reshape(plain.shape)
    return maps


def _correlation(one: Floats, other: Floats) -> float:
    if not (np.ptp(one) and np.ptp(other)):
        return 0.0
    return float(np.corrcoef(one.ravel(), other.ravel())[0, 1])
