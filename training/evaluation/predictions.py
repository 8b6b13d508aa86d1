"""The file of predictions, which holds report texts, and where nothing of that kind is written."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from model.bundle import MANIFEST
from model.drafter import Draft
from training.data.studies import Study
from training.evaluation.scoring import ReferenceSet
from training.scoring.protocol import comparable_prediction, full_prediction


def prediction_lines(studies: Sequence[Study], drafts: Sequence[Draft], board: ReferenceSet) -> bytes:
    """``reference`` and ``prediction`` are the strings of the comparable row, so that they score as ``system`` does."""
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
        for study, draft, comparable, full in zip(studies, drafts, board.comparable, board.full, strict=True)
    )
    return "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines).encode()


def refuse_bundles(path: Path) -> None:
    """Report texts and images never lie among bundles.

    Raises:
        ValueError: the file ``path`` would lie in a bundle, or in a folder of bundles.
    """
    for folder in path.resolve().parents:
        if (folder / MANIFEST).exists() or (folder.name == "bundles" and any(folder.glob(f"*/{MANIFEST}"))):
            raise ValueError(
                f"{path} would lie among bundles, which are shared, and predictions hold report texts; "
                "write to another folder, for example evaluation/"
            )
