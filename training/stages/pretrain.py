"""Stage ``pretrain``: the backbone learns findings before cross-entropy begins.

Multi-label binary cross-entropy on the targets of ``training.data.targets`` for both views, at
growing resolution, with averaged weights. Studies of the val and test splits take no part; val
frontals give the AUROC in the log.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from model.network.backbone import Backbone
from model.text.labeler import FINDINGS
from model.types import View
from training.config import PretrainConfig
from training.data.augment import Augmentation, augmentation_draws, changed, to_float
from training.data.device_array import DeviceRows
from training.data.pixel_cache import PixelCache
from training.data.studies import Study
from training.data.targets import FindingTargets, Floats, finding_targets, read_soft_scores
from training.scoring.binary import auroc
from training.stages.common import Rows, RunInputs, shuffled_batches
from training.trainer.context import RunContext
from training.trainer.loop import Loop, LoopConfig

log = logging.getLogger(__name__)

_VAL_BATCH = 64
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
    backbone: Backbone, finding_head: nn.Linear | None, inputs: RunInputs, cache: PixelCache, config: PretrainConfig,
    context: RunContext,
) -> Mapping[str, float]:  # fmt: skip
    """Train ``backbone`` in place on the training split and the ``extra`` studies; returns the last row of the log.

    ``finding_head`` (14, D), where given, receives the weights of the labeler's 14 findings.

    Raises:
        ValueError: unreadable soft targets, or no target with a weight above 0.
    """
    source, processes, device = inputs.source, context.processes, context.device
    images = _images([*source.split("train"), *source.extra], cache)
    soft = read_soft_scores(inputs.soft_scores) if inputs.soft_scores else None
    targets = finding_targets(images, soft, terms=True, external=inputs.external_labels)
    values, mask = torch.from_numpy(targets.values), torch.from_numpy(targets.mask)
    groups = _weighted_groups(targets, config)
    rows = np.array([cache.rows[key] for key, _ in images])
    pixels = DeviceRows(cache.array, device, context.on_device)
    net = FindingNet(backbone, values.shape[1]).to(device).to(memory_format=torch.channels_last)
    processes.synchronise_backbone(net)
    optimizer = torch.optim.AdamW(net.parameters(), lr=config.lr, weight_decay=config.weight_decay)
    sizes = [size for size, epochs in config.epochs_by_size for _ in range(epochs)]
    size = sizes[0] if sizes else 0
    shuffled = shuffled_batches(len(images), -(-len(images) // config.batch_size), context.seed)

    def batches(epoch: int) -> Sequence[Any]:
        nonlocal size
        size = sizes[epoch]
        return shuffled(epoch)

    def train_step(batch: Rows, random: torch.Generator) -> dict[str, Tensor]:
        local = processes.rows(len(batch))
        draws = augmentation_draws(len(batch), random)[local]
        local_ids = batch[local]
        x = changed(to_float(pixels.take(rows[local_ids]), size), Augmentation(), draws)
        logits, y, known = net(x).float(), values[local_ids].to(device), mask[local_ids].to(device)
        losses: dict[str, Tensor] = {}
        for name, (columns, _) in groups.items():
            summed = F.binary_cross_entropy_with_logits(logits[:, columns], y[:, columns], weight=known[:, columns],
                                                        reduction="sum")  # fmt: skip
            losses[name] = summed / mask[batch][:, columns].sum().clamp(min=1).to(device)  # known in the whole batch
        total = torch.stack([weight * losses[name] for name, (_, weight) in groups.items()]).sum()
        return {"loss": total, **losses}

    frontals = _images(source.split("val"), cache, frontal_only=True)

    def validate() -> dict[str, float]:
        scores = _finding_scores(net, frontals, cache, size, context)[:, targets.group("report")]
        return _validation_aurocs(scores, frontals, inputs.label_table)

    loop = Loop(LoopConfig("pretrain", ema=config.ema, warmup=0.1), context, net, optimizer)
    history = loop.fit(batches, epochs=len(sizes), steps=-(-len(images) // config.batch_size), train_step=train_step,
                       validate=validate if frontals else None)  # fmt: skip
    if finding_head is not None:
        columns = targets.group("report")
        with torch.no_grad():
            finding_head.weight.copy_(net.head.weight[columns])
            finding_head.bias.copy_(net.head.bias[columns])
    return history.selected_row()


def _weighted_groups(targets: FindingTargets, config: PretrainConfig) -> dict[str, tuple[slice, float]]:
    """Group -> (its columns, its weight in the loss), without empty groups and those of weight 0."""
    groups = {name: (targets.group(name), weight) for name, weight in config.weights if weight}
    groups = {name: (columns, weight) for name, (columns, weight) in groups.items() if columns.stop}
    if not groups:
        raise ValueError("every group of pretraining targets is empty or has weight 0; raise one of pretrain.weights")
    sizes = ", ".join(f"{name} {columns.stop - columns.start}" for name, (columns, _) in groups.items())
    log.info("pretrain: %d images, targets: %s", len(targets.values), sizes)
    return groups


def _images(studies: Sequence[Study], cache: PixelCache, *, frontal_only: bool = False) -> list[tuple[str, Study]]:
    """(image key, its study) of the readable images."""
    return [
        (ref.key, study)
        for study in studies if (usable := cache.usable(study))
        for ref in usable.images if not frontal_only or ref.view is View.FRONTAL
    ]  # fmt: skip


def _finding_scores(
    net: FindingNet, images: Sequence[tuple[str, Study]], cache: PixelCache, size: int, context: RunContext
) -> Floats:
    """(N, C) logits of images."""
    logits = []
    for start in range(0, len(images), _VAL_BATCH):
        rows = [cache.rows[key] for key, _ in images[start : start + _VAL_BATCH]]
        pixels = torch.from_numpy(cache.array[rows]).to(context.device)
        with context.autocast():
            logits.append(net(to_float(pixels, size)).float().cpu())
    return torch.cat(logits).numpy()


def _validation_aurocs(
    scores: Floats, images: Sequence[tuple[str, Study]], table: Mapping[str, frozenset[str]] | None
) -> dict[str, float]:
    """AUROC of (N, 14) scores against the labeler, and as ``table_…`` against the table."""
    result = _aurocs("auroc", scores, finding_targets(images, None).values)
    if table:
        known = [row for row, (_, study) in enumerate(images) if study.uid in table]
        truth = np.array([[name in table[images[row][1].uid] for name in FINDINGS] for row in known], np.float32)
        result |= _aurocs("table_auroc", scores[known], truth)
    return result


def _aurocs(prefix: str, scores: Floats, truth: Floats) -> dict[str, float]:
    result = {}
    for name in SCORED:
        column = FINDINGS.index(name)
        value = auroc(scores[:, column], truth[:, column] > 0.5) if len(truth) else None
        if value is not None:
            result[f"{prefix}_{name.lower().replace(' ', '_')}"] = value
    if result:
        result[f"{prefix}_mean"] = float(np.mean(list(result.values())))
    return result
