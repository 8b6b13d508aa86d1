"""Scores a bundle on radiographs of another source: how far the findings of its drafts agree with a table of findings.

Such labels come from images or from other reports, so this measures agreement, not accuracy.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from model.bundle import Bundle
from model.drafter import Drafter
from model.protocols import CaseIndex
from training.data.external import ExternalSet
from training.data.pixel_cache import build_pixel_cache
from training.evaluation.inference import DraftWriter, kept_drafts
from training.evaluation.plan import DEFAULT_OPTIONS, InferenceOptions
from training.scoring.bootstrap import DRAWS, Bootstrap, Resampled
from training.scoring.metrics import label_scores, present_findings
from training.scoring.protocol import comparable_prediction, full_prediction
from training.scoring.study_statistics import PerStudyStatistics

_F1 = ("label_f1_micro", "label_f1_macro")


def score_external(
    bundle: Bundle, index: CaseIndex | None, external: ExternalSet, *, work_dir: Path,
    options: InferenceOptions = DEFAULT_OPTIONS, draws: int = DRAWS, seed: int = 1,
) -> tuple[dict[str, Any], Resampled]:  # fmt: skip
    """Draft each image and compare the findings of the drafts with those of the table, with intervals over images.

    Returns:
        The result of ``agreement`` with counts of images, and the scores on each draw.
    """
    drafter = Drafter(bundle, index, device=options.device, precision=options.precision)
    with kept_drafts(drafter, work_dir, options) as kept:
        cache = build_pixel_cache(external.source, external.studies, drafter.image_size, work_dir,
                                  resample=drafter.resample)  # fmt: skip
        rows = [row for row, study in enumerate(external.studies) if cache.usable(study)]
        studies = [external.studies[row] for row in rows]
        texts = [draft.findings for draft in DraftWriter(drafter, cache, options, kept).write(studies)]
    truth = [external.truth[row] for row in rows]
    result, drawn = agreement(truth, texts, frozenset(external.mapped.values()), draws=draws, seed=seed)
    kept.remove()
    skipped = {**external.skipped, "unreadable": len(external.studies) - len(rows)}
    return {**result, "map": dict(external.mapped), "unmapped": list(external.unmapped), "skipped": skipped}, drawn


def agreement(
    truth: Sequence[frozenset[str]], texts: Sequence[str], names: frozenset[str], *, draws: int, seed: int
) -> tuple[dict[str, Any], Resampled]:
    """How far the findings of drafts agree with those of a table: ``truth`` holds the findings present in each image,
    ``names`` those of the table; other findings of the drafts are not counted.

    Returns:
        ``figures``: label F1, pooled over ``names`` and averaged over those present in some image, share of different
        drafts and words of a draft; ``confidence_95`` of the two F1; ``findings``: for each name the images that have
        it, the drafts that name it, and both; ``every_finding_named``: F1 of naming all of them for every image. And
        the scores on each draw.
    """
    guess = [present_findings(full_prediction(text)) & names for text in texts]
    bootstrap = Bootstrap(len(texts), draws=draws, seed=seed)
    resampled = bootstrap.of_statistics(PerStudyStatistics.of_findings(truth, guess))
    intervals = resampled.intervals()
    sides = {"images": truth, "named": guess, "both": [a & b for a, b in zip(truth, guess, strict=True)]}
    return {
        "n": len(texts),
        "figures": {
            **_f1(truth, guess),
            "distinct": len({comparable_prediction(text) for text in texts}) / len(texts),
            "mean_length": sum(len(full_prediction(text).replace(".", " ").split()) for text in texts) / len(texts),
        },
        "confidence_95": {name: intervals[name] for name in _F1},
        "every_finding_named": _f1(truth, [names] * len(truth)),
        "findings": {
            name: {side: sum(name in found for found in sets) for side, sets in sides.items()} for name in sorted(names)
        },
    }, Resampled({name: resampled.whole[name] for name in _F1}, {name: resampled.drawn[name] for name in _F1})


def _f1(truth: Sequence[frozenset[str]], guess: Sequence[frozenset[str]]) -> dict[str, float]:
    scores = label_scores(truth, guess)
    return {name: scores[name] for name in _F1}
