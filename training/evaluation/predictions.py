"""The file of predictions. It holds report texts: see ``training.evaluation.privacy``."""

from __future__ import annotations

import json
from collections.abc import Sequence

from model.types import Draft
from training.data.studies import Study
from training.evaluation.scoring import ReferenceSet
from training.scoring.protocol import comparable_prediction, full_prediction


def prediction_lines(studies: Sequence[Study], drafts: Sequence[Draft], references: ReferenceSet) -> bytes:
    """JSON lines, one a study; ``reference`` and ``prediction`` are the strings that ``system`` scores."""
    lines = (
        {
            "id": study.study_id,
            "reference": comparable,
            "prediction": comparable_prediction(draft.findings),
            "retrieved": [case.case_id for case in draft.reference_cases],
            "similarity": [round(case.similarity, 6) for case in draft.reference_cases],
            "reference_full": full,
            "prediction_full": full_prediction(draft.findings),
            "findings": draft.findings,
        }
        for study, draft, comparable, full in zip(studies, drafts, references.comparable, references.full, strict=True)
    )
    return "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines).encode()
