"""The options of ``training.evaluate.evaluate``: what is scored, how drafts are computed, where results go."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, Literal, get_args

import torch

from model.types import DraftOptions, Precision
from training.data.selection import Half
from training.evaluation.privacy import check_page_folder, refuse_bundles
from training.scoring.bootstrap import DRAWS
from training.scoring.forte import ForteKeywords

SplitName = Literal["val", "test"]
Views = Literal["both", "frontal", "lateral"]
Swap = Literal["images", "cases", "patches"]
SWAPS: tuple[Swap, ...] = get_args(Swap)


@dataclass(frozen=True, kw_only=True)
class ScoringPlan:
    """How texts are scored, those of a bundle or of a file."""

    baselines: bool = True  # score the trivial rows
    meteor: bool = False  # needs Java
    external_scorers: bool = False  # run RadGraph and CheXbert where their packages and weights are installed
    reference_labels: Path | None = None  # CSV ``study_id,<finding>,…``; adds a label F1 against this table
    forte_keywords: ForteKeywords | None = None  # the published lists; adds FORTE as published
    draws: int = DRAWS  # bootstrap draws of studies, and permutations of the drafts; 0 leaves both out
    seed: int = 1  # of the swaps, the draws and the permutations


@dataclass(frozen=True)
class EvaluationPlan(ScoringPlan):
    """Which studies are drafted, and which rows and scorers the result holds."""

    split: SplitName = "val"  # ``test`` for the final result; the index holds ``train``
    limit: int | None = None  # only the first studies of the split
    half: Half | None = None  # of val: ``training.data.selection``
    views: Views = "both"  # keep only these images, and only the studies that have them
    swaps: Sequence[Swap] = ()  # rows for which each study gets the images, cases or patch tokens of another one
    single_views: bool = False  # two more rows, from the frontal and from the lateral images alone

    def __post_init__(self) -> None:
        if self.single_views and self.views != "both":
            raise ValueError(f"--single-views scores both views; leave --views {self.views} or --single-views out")


@dataclass(frozen=True)
class InferenceOptions:
    """How drafts are computed."""

    device: str | torch.device = "cpu"
    precision: Precision = "fp32"
    draft: DraftOptions = field(default_factory=DraftOptions)
    batch_size: int = 16
    progress: bool = True
    resume: bool = True  # take the drafts that an interrupted evaluation with the same inputs left


DEFAULT_OPTIONS: Final = InferenceOptions()


@dataclass(frozen=True)
class Outputs:
    """Where an evaluation writes."""

    work_dir: Path  # decoded images, in one folder for each choice of studies; until the end the drafts: report texts
    metrics: Path | None = None  # a file that holds no text
    predictions: Path | None = None  # JSON lines with id, reference, prediction, retrieved cases: report texts
    report: Path | None = None  # folder of the page (``training.evaluation.page``): report texts and radiographs

    def check(self) -> None:
        """Refuse paths among bundles and folders with other files, before anything is computed: ValueError."""
        for path in (self.metrics, self.predictions, self.work_dir / "drafts.jsonl"):
            if path is not None:
                refuse_bundles(path)
        if self.report is not None:
            check_page_folder(self.report)
