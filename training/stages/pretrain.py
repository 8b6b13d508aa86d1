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
from training.evaluation.tables import interval, number
from training.scoring.bootstrap import DRAWS
from training.scoring.finding_auroc import finding_aurocs
from training.stages.common import Rows, RunInputs, shuffled_batches
from training.stages.finding_loss import finding_loss, positive_weights
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
) -> dict[str, Any]:  # fmt: skip
    """Train ``backbone`` in place on the training split and the ``extra`` studies.

    ``finding_head`` (14, D), where given, receives the weights of the labeler's 14 findings.

    Returns:
        AUROC on val frontals as in the last row of the log, and with intervals of all findings that
        have enough cases: ``findings`` against the labeler, ``table_findings`` against the table.

    Raises:
        ValueError: unreadable soft targets, or no target with a weight above 0.
    """
    source, processes, device = inputs.source, context.processes, context.device
    images = _images([*source.split("train"), *source.extra], cache)
    soft = read_soft_scores(inputs.soft_scores) if inputs.soft_scores else None
    targets = finding_targets(images, soft, terms=True, external=inputs.external_labels)
    values, mask = torch.from_numpy(targets.values), torch.from_numpy(targets.mask)
    groups = _weighted_groups(targets, config)
    positive = positive_weights(values, mask, config.positive_power)
    rows = np.array([cache.rows[key] for key, _ in images])
    pixels = DeviceRows(cache.array, device, context.on_device)
    net = FindingNet(backbone, values.shape[1]).to(device).to(memory_format=torch.channels_last)
    processes.synchronise_backbone(net)
    optimizer = torch.optim.AdamW(net.parameters(), lr=config.lr, weight_decay=config.weight_decay)
    sizes = [size for size, epochs in config.epochs_by_size for _ in range(epochs)]
    size = sizes[-1] if sizes else cache.size
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
            rare = None if positive is None else positive[columns].to(device)
            summed = finding_loss(logits[:, columns], y[:, columns], known[:, columns], rare, config.focus)
            losses[name] = summed / mask[batch][:, columns].sum().clamp(min=1).to(device)  # known in the whole batch
        total = torch.stack([weight * losses[name] for name, (_, weight) in groups.items()]).sum()
        return {"loss": total, **losses}

    frontals = _images(source.split("val"), cache, frontal_only=True)

    def aurocs(draws: int) -> dict[str, Any]:
        scores = _finding_scores(net, frontals, cache, size, context)[:, targets.group("report")]
        return _validation_aurocs(scores, frontals, inputs.label_table, draws, context.seed)

    def validate() -> dict[str, float]:
        return _of_log(aurocs(draws=0))

    loop = Loop(LoopConfig("pretrain", ema=config.ema, warmup=0.1), context, net, optimizer)
    loop.fit(batches, epochs=len(sizes), steps=-(-len(images) // config.batch_size), train_step=train_step,
             validate=validate if frontals else None)  # fmt: skip
    if finding_head is not None:
        columns = targets.group("report")
        with torch.no_grad():
            finding_head.weight.copy_(net.head.weight[columns])
            finding_head.bias.copy_(net.head.bias[columns])
    if not frontals:
        return {}
    net.eval()
    with torch.inference_mode():
        found = aurocs(DRAWS)
    for against, result in found.items():
        log.info("pretrain: AUROC on val, %s: %s", against, _in_words(result))
    return {**_of_log(found), **found}


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
    scores: Floats, images: Sequence[tuple[str, Study]], table: Mapping[str, frozenset[str]] | None, draws: int,
    seed: int,
) -> dict[str, Any]:  # fmt: skip
    """``findings``: AUROC of (N, 14) scores against the labeler; ``table_findings``: against the table."""
    studies = [study.study_id for _, study in images]
    truth = finding_targets(images, None).values > 0.5
    options: Any = {"always": SCORED, "draws": draws, "seed": seed}
    result = {"findings": finding_aurocs(scores, truth, FINDINGS, studies, **options)}
    known = [row for row, (_, study) in enumerate(images) if table and study.uid in table]
    if table and known:
        truth = np.array([[name in table[images[row][1].uid] for name in FINDINGS] for row in known])
        result["table_findings"] = finding_aurocs(
            scores[known], truth, FINDINGS, [studies[row] for row in known], **options
        )
    return result


def _of_log(found: Mapping[str, Any]) -> dict[str, float]:
    """The values of each epoch: AUROC of ``SCORED``, their mean, and the mean of all findings."""
    row: dict[str, float] = {}
    for against, result in found.items():
        prefix = against.replace("findings", "auroc")
        named = {name: result["findings"][name]["auroc"] for name in SCORED if name in result["findings"]}
        row |= {f"{prefix}_{name.lower().replace(' ', '_')}": value for name, value in named.items()}
        if named:
            row[f"{prefix}_mean"] = float(np.mean(list(named.values())))
        if result["mean"]:
            row[f"{prefix}_mean_of_all"] = result["mean"]["auroc"]
    return row


def _in_words(result: Mapping[str, Any]) -> str:
    """``Pleural Effusion (30 cases) .950 (.91 to .98), …`` and the mean."""
    rows = {f"{name} ({row['cases']} cases)": row for name, row in result["findings"].items()}
    if result["mean"]:
        rows["mean of those with enough cases"] = result["mean"]
    return ", ".join(f"{name} {number(row['auroc'])} ({interval(row.get('confidence_95'))})"
                     for name, row in rows.items())  # fmt: skip
