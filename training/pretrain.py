"""Stage ``pretrain``: the backbone learns findings, so that its patch tokens mean something before CE begins.

Multi-label binary cross-entropy on soft targets (probabilities of another network) and on findings read from the
reports, both views, growing resolution, averaged weights. Studies of the val and test splits take no part; val
frontals give the AUROC in the log.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from model.backbone import Backbone
from model.labeler import FINDINGS
from model.views import View
from training.augment import Augmentation, augmentation_draws, changed, to_float
from training.config import PretrainConfig, Runtime
from training.loop import Loop, LoopConfig, autocast
from training.pixels import PixelCache
from training.rows import Rows
from training.studies import Source, Study
from training.targets import finding_targets, read_soft_scores

log = logging.getLogger(__name__)

SCORED = ("Pleural Effusion", "Cardiomegaly", "Atelectasis", "Lung Opacity")


class FindingNet(nn.Module):
    """Backbone with one linear layer on its pooled features: (N, 1, S, S) -> (N, C) logits."""

    def __init__(self, backbone: Backbone, classes: int) -> None:
        super().__init__()
        self.backbone = backbone
        self.head = nn.Linear(backbone.width, classes)

    def forward(self, images: Tensor) -> Tensor:
        pooled: Tensor = self.backbone(images)[1]
        logits: Tensor = self.head(pooled)
        return logits


def pretrain(
    backbone: Backbone,
    source: Source,
    cache: PixelCache,
    config: PretrainConfig,
    runtime: Runtime,
    directory: Path,
    *,
    soft_scores: Path | None,
) -> Mapping[str, float]:
    """Train ``backbone`` in place and return the last row of the log.

    Raises:
        ValueError: no training image, or unreadable soft targets.
    """
    images = _images([*source.split("train"), *source.extra], cache)
    if not images:
        raise ValueError("pretraining found no readable training image; check --root")
    targets = finding_targets(images, read_soft_scores(soft_scores) if soft_scores else None)
    values, mask = torch.from_numpy(targets.values), torch.from_numpy(targets.mask)
    weight = torch.ones(values.shape[1])
    soft_width = values.shape[1] - len(FINDINGS)
    if soft_width:
        weight[:soft_width] = config.soft_weight * len(FINDINGS) / soft_width
    rows = np.array([cache.rows[key] for key, _ in images])
    pixels = Rows(cache.array, runtime.device, runtime.on_device)
    net = FindingNet(backbone, values.shape[1]).to(runtime.device).to(memory_format=torch.channels_last)
    runtime.processes.synchronised(net)
    log.info("pretrain: %d images, %d targets, soft scores: %s", len(images), values.shape[1],
             soft_scores.name if soft_scores else "none")  # fmt: skip

    sizes = [size for size, epochs in config.epochs_by_size for _ in range(epochs)]
    amount = Augmentation()
    current = {"size": sizes[0] if sizes else 0}

    def batches(epoch: int) -> Sequence[np.ndarray]:
        current["size"] = sizes[epoch]
        order = np.random.default_rng((runtime.seed, epoch)).permutation(len(images))
        return np.array_split(order, steps)

    def train_step(batch: np.ndarray, generator: torch.Generator) -> dict[str, Tensor]:
        mine = runtime.processes.rows(len(batch))
        draws = augmentation_draws(len(batch), generator)[mine]
        own = batch[mine]
        x = changed(to_float(pixels.take(rows[own]), current["size"]), amount, draws)
        y, m = values[own].to(runtime.device), (mask[own] * weight).to(runtime.device)
        known = (mask[batch] * weight).sum().clamp(min=1).to(runtime.device)  # of the whole batch
        loss = F.binary_cross_entropy_with_logits(net(x).float(), y, weight=m, reduction="sum") / known
        return {"loss": loss}

    steps = -(-len(images) // config.batch_size)
    optimizer = torch.optim.AdamW(net.parameters(), lr=config.lr, weight_decay=config.weight_decay)
    loop = Loop(
        LoopConfig("pretrain", runtime.seed, ema=config.ema, precision=runtime.precision, warmup=0.1,
                   checkpoint_seconds=runtime.checkpoint_seconds),
        directory, net, optimizer, device=runtime.device, processes=runtime.processes,
    )  # fmt: skip
    validation = _images(source.split("val"), cache, frontal_only=True)

    def validate() -> dict[str, float]:
        return _auroc(net, validation, cache, current["size"], soft_width, runtime)

    history = loop.fit(batches, [steps] * len(sizes), train_step, validate if validation else None)
    return history.rows[-1] if history.rows else {}


def _images(studies: Sequence[Study], cache: PixelCache, *, frontal_only: bool = False) -> list[tuple[str, Study]]:
    pairs = []
    for study in studies:
        usable = cache.usable(study)
        for ref in usable.images if usable else ():
            if not frontal_only or ref.view is View.FRONTAL:
                pairs.append((ref.key, study))
    return pairs


def _auroc(
    net: FindingNet, images: Sequence[tuple[str, Study]], cache: PixelCache, size: int, offset: int, runtime: Runtime
) -> dict[str, float]:
    """AUROC of the findings in SCORED on ``images`` against the labels read from their reports."""
    targets = finding_targets(images, None)
    logits = []
    for start in range(0, len(images), 64):
        rows = [cache.rows[key] for key, _ in images[start : start + 64]]
        pixels = torch.from_numpy(cache.array[rows]).to(runtime.device)
        with autocast(runtime.device, runtime.precision):
            logits.append(net(to_float(pixels, size)).float().cpu())
    scores = torch.cat(logits).numpy()[:, offset:]
    result = {}
    for name in SCORED:
        column = FINDINGS.index(name)
        value = auroc(scores[:, column], targets.values[:, column])
        if value is not None:
            result[f"auroc_{name.lower().replace(' ', '_')}"] = value
    if result:
        result["auroc_mean"] = float(np.mean(list(result.values())))
    return result


def auroc(scores: np.ndarray, positive: np.ndarray) -> float | None:
    """Area under the ROC curve by ranks (ties count half); None where one class is absent."""
    positive = positive > 0.5
    count, total = int(positive.sum()), len(positive)
    if count in (0, total):
        return None
    _, inverse, counts = np.unique(scores, return_inverse=True, return_counts=True)
    ranks = (np.cumsum(counts) - (counts - 1) / 2)[inverse]
    return float((ranks[positive].sum() - count * (count + 1) / 2) / (count * (total - count)))
