"""The options of ``training.evaluate.evaluate``: what is scored, how drafts are computed, where results go."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal, get_args

import torch

from model.types import Precision
from training.evaluation.privacy import check_page_folder, refuse_bundles
from training.scoring.bootstrap import DRAWS

SplitName = Literal["val", "test"]
Views = Literal["both", "frontal", "lateral"]
Swap = Literal["images", "cases", "patches"]
SWAPS: tuple[Swap, ...] = get_args(Swap)


@dataclass(frozen=True)
class EvaluationPlan:
    """Which studies are drafted, and which rows and scorers the result holds.

    Attributes:
        split: ``val``, or ``test`` for the final result. The index holds the training studies, so ``train`` is refused.
        limit: only the first studies of the split; None takes all.
        views: keep only these images, and only the studies that have them.
        swaps: counterfactual rows. Each study gets the images, only the reference cases, or only the patch tokens of
            another study, drawn by ``seed``.
        single_views: two more rows, from the frontal and from the lateral images alone.
        baselines: score the trivial rows.
        meteor: compute METEOR, which needs Java.
        external_scorers: run RadGraph and CheXbert where their packages and weights are installed.
        reference_labels: CSV ``study_id,<finding>,…`` with 1 for present; adds a label F1 against this table.
        draws: bootstrap draws of studies, and permutations of the drafts; 0 leaves both out.
        seed: of the swaps, the draws and the permutations.

    Raises:
        ValueError: ``single_views`` with a choice of ``views``.
    """

    split: SplitName = "val"
    limit: int | None = None
    views: Views = "both"
    swaps: Sequence[Swap] = ()
    single_views: bool = False
    baselines: bool = True
    meteor: bool = False
    external_scorers: bool = False
    reference_labels: Path | None = None
    draws: int = DRAWS
    seed: int = 1

    def __post_init__(self) -> None:
        if self.single_views and self.views != "both":
            raise ValueError(f"--single-views scores both views; leave --views {self.views} or --single-views out")


@dataclass(frozen=True)
class InferenceOptions:
    """How drafts are computed; ``beam_size`` and ``top_k`` None keep the bundle's values."""

    device: str | torch.device = "cpu"
    precision: Precision = "fp32"
    beam_size: int | None = None
    top_k: int | None = None
    batch_size: int = 16
    progress: bool = True


DEFAULT_OPTIONS: Final = InferenceOptions()


@dataclass(frozen=True)
class Outputs:
    """Where an evaluation writes.

    Attributes:
        work_dir: decoded images, in one folder for each choice of studies.
        metrics: the metrics file; it holds no text.
        predictions: JSON lines with id, reference, prediction, retrieved cases. It holds report texts.
        report: folder of the page (``training.evaluation.page``). It holds report texts and radiographs.
    """

    work_dir: Path
    metrics: Path | None = None
    predictions: Path | None = None
    report: Path | None = None

    def check(self) -> None:
        """Refuse unusable paths before anything is computed.

        Raises:
            ValueError: a path lies among bundles, or ``report`` holds other files.
        """
        for path in (self.metrics, self.predictions):
            if path is not None:
                refuse_bundles(path)
        if self.report is not None:
            check_page_folder(self.report)
