"""The best, median and worst studies by CIDEr."""

from __future__ import annotations

import base64
import io
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image

from model.text.labeler import FINDINGS
from model.types import Draft
from training.data.pixel_cache import PixelCache
from training.data.studies import Study
from training.evaluation.scoring import ReferenceSet
from training.scoring.metrics import present_findings
from training.scoring.protocol import full_prediction
from training.scoring.study_statistics import PerStudyStatistics

PER_GROUP = 4


@dataclass(frozen=True)
class EvaluatedSplit:
    """The studies of a split with their drafts; ``case_texts`` are training reports by case id.

    ``cache`` has the images; None for texts that were scored without images.
    """

    studies: Sequence[Study]
    drafts: Sequence[Draft]
    cache: PixelCache | None
    references: ReferenceSet
    case_texts: Mapping[str, str]

    def study_scores(self) -> tuple[Sequence[float], Sequence[float]]:
        """ROUGE-L and CIDEr of each study, comparable strings."""
        comparable, _ = self.references.draft_pairs([draft.findings for draft in self.drafts])
        rouge, cider, _ = PerStudyStatistics.of(comparable).scores.T.tolist()
        return rouge, cider

    def lengths(self) -> tuple[list[int], list[int]]:
        """Number of words of each whole draft and report, without "."."""
        drafts = [full_prediction(draft.findings) for draft in self.drafts]
        words = [[len(text.replace(" .", "").split()) for text in texts] for texts in (drafts, self.references.full)]
        return words[0], words[1]


@dataclass(frozen=True)
class Picture:
    """A radiograph as PNG, S x S pixels, and the file that Markdown shows."""

    name: str
    view: str
    png: bytes

    @property
    def data_uri(self) -> str:
        return f"data:image/png;base64,{base64.b64encode(self.png).decode()}"


def gallery(drafted: EvaluatedSplit, per_group: int = PER_GROUP) -> dict[str, list[dict[str, Any]]]:
    """``best``, ``median`` and ``worst`` studies by CIDEr, for the templates; no study twice, no empty group."""
    rouge, cider = drafted.study_scores()
    ranked = sorted(range(len(cider)), key=lambda row: (-cider[row], drafted.studies[row].study_id))
    size = min(per_group, max(1, len(ranked) // 3))
    between = ranked[size:-size]
    start = max(0, (len(between) - size) // 2)
    groups = {"best": ranked[:size], "median": between[start : start + size], "worst": ranked[size:][-size:]}
    return {
        name: [{**_shown(drafted, row), "cider": cider[row], "rouge": rouge[row]} for row in rows]
        for name, rows in groups.items() if rows
    }  # fmt: skip


def _shown(drafted: EvaluatedSplit, row: int) -> dict[str, Any]:
    study, draft = drafted.studies[row], drafted.drafts[row]
    truth, guess = present_findings(study.reference), present_findings(draft.findings)
    return {
        "study_id": study.study_id,
        "pictures": list(_pictures(study, drafted.cache)) if drafted.cache else [],
        "report": study.reference,
        "draft": draft.findings,
        "both": [name for name in FINDINGS if name in truth & guess],
        "missed": [name for name in FINDINGS if name in truth - guess],
        "added": [name for name in FINDINGS if name in guess - truth],
        "cases": [
            {"case_id": case.case_id, "similarity": case.similarity,
             "text": case.findings or drafted.case_texts.get(case.case_id)}
            for case in draft.reference_cases
        ],
    }  # fmt: skip


def _pictures(study: Study, cache: PixelCache) -> Iterator[Picture]:
    for number, ref in enumerate(study.images):
        file = io.BytesIO()
        Image.fromarray(np.array(cache.array[cache.rows[ref.key]])).save(file, "PNG", optimize=True)
        name = f"{re.sub(r'[^A-Za-z0-9_-]', '_', study.study_id)}-{number}.png"
        yield Picture(name, ref.view.value if ref.view else "unknown view", file.getvalue())
