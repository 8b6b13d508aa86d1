"""What packages can add to training and evaluation: losses, metrics, data sets. See ``model.registry``."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from torch import Tensor

from model.registry import Registry
from training.data.studies import DatasetOptions, Source

Loss = Callable[[Tensor, Tensor, float], Tensor]
"""(logits (B, T, V) float32, target ids (B, T) with 0 where no word counts, label smoothing) -> the sum over words."""

Metric = Callable[[Sequence[tuple[str, str]]], float | Mapping[str, float | None]]
"""Pairs of (reference, prediction), tokens joined by spaces -> the value, or values by name."""

OpenDataset = Callable[[DatasetOptions], Source]

LOSSES: Registry[Loss] = Registry(
    "cxr_report.losses", "loss", {"cross_entropy": "training.stages.common:cross_entropy"}
)
METRIC_GROUPS: Registry[Metric] = Registry(
    "cxr_report.metrics",
    "metric",
    {
        "bleu": "training.scoring.metrics:bleu",
        "meteor": "training.scoring.metrics:meteor",
        "rouge": "training.scoring.metrics:rouge",
        "cider": "training.scoring.metrics:cider",
        "findings": "training.scoring.metrics:findings",
        "variety": "training.scoring.metrics:variety",
    },
)
DATASETS: Registry[OpenDataset] = Registry(
    "cxr_report.datasets",
    "data set",
    {"openi": "training.data.openi:from_options", "r2gen": "training.data.r2gen:from_options"},
)
