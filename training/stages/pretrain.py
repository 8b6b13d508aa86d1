"""Stage ``pretrain``: the backbone learns findings, so that its patch tokens mean something before CE begins.

Multi-label binary cross-entropy on the targets of ``training.data.targets``: soft scores of another network, findings
read from the reports, MeSH terms, words and sentences, labels of images of another source; both views,
growing resolution, averaged weights. Studies of the val and test splits take no part; val frontals give the AUROC in
the log.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from model.network.backbone import Backbone
from model.text.labeler import FINDINGS
from model.types import View
from training.config import PretrainConfig, RunContext
from training.data.augment import Augmentation, augmentation_draws, changed, to_float
from training.data.device_array import DeviceRows
from training.data.pixel_cache import PixelCache
from training.data.studies import Source, Study
from training.data.targets import ExternalLabels, Group, finding_targets, read_soft_scores
from training.scoring.binary import auroc
from training.trainer.loop import Loop, LoopConfig, autocast

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
    context: RunContext,
    directory: Path,
    *,
    soft_scores: Path | None,
    label_table: Mapping[str, frozenset[str]] | None = None,
    head: nn.Linear | None = None,
    labelled: ExternalLabels | None = None,
) -> Mapping[str, float]:
    """Train ``backbone`` in place and return the last row of the log.

    Args:
        backbone: what learns.
        source: the training split and the studies outside the field's set teach, the val split is scored.
        cache: decoded images of all of them.
        config: epochs, sizes, rates, weights of the groups of targets.
        context: device, seed, precision.
        directory: of the stage's checkpoints, log and curves.
        soft_scores: CSV ``image_id,<finding>,…`` of another network's probabilities, or None.
        head: gets the weights of the labeler's 14 findings, (14, D); or None.
        label_table: study uid -> findings present, a second truth for the AUROC on val; or None.
        labelled: findings of those studies of ``source.extra`` that have labels in the place of a report; or None.

    Raises:
        ValueError: no training image, or unreadable soft targets.
    """
    images = _images([*source.split("train"), *source.extra], cache)
    if not images:
        raise ValueError("pretraining found no readable training image; check --root")
    soft = read_soft_scores(soft_scores) if soft_scores else None
    targets = finding_targets(images, soft, terms=True, labelled=labelled)
    values, mask = torch.from_numpy(targets.values), torch.from_numpy(targets.mask)
    groups = {name: (targets.group(name), weight) for name, weight in _weights(config) if weight}
    groups = {name: (columns, weight) for name, (columns, weight) in groups.items() if columns.stop}
    if not groups:
        raise ValueError("every group of pretraining targets is empty or has weight 0; raise one of pretrain.weights")
    rows = np.array([cache.rows[key] for key, _ in images])
    pixels = DeviceRows(cache.array, context.device, context.on_device)
    net = FindingNet(backbone, values.shape[1]).to(context.device).to(memory_format=torch.channels_last)
    context.processes.synchronise_backbone(net)
    sizes_of = ", ".join(f"{name} {columns.stop - columns.start}" for name, (columns, _) in groups.items())
    log.info("pretrain: %d images, targets: %s", len(images), sizes_of)

    sizes = [size for size, epochs in config.epochs_by_size for _ in range(epochs)]
    amount = Augmentation()
    current = {"size": sizes[0] if sizes else 0}

    def batches(epoch: int) -> Sequence[np.ndarray]:
        current["size"] = sizes[epoch]
        order = np.random.default_rng((context.seed, epoch)).permutation(len(images))
        return np.array_split(order, steps)

    def train_step(batch: np.ndarray, generator: torch.Generator) -> dict[str, Tensor]:
        mine = context.processes.rows(len(batch))
        draws = augmentation_draws(len(batch), generator)[mine]
        own = batch[mine]
        x = changed(to_float(pixels.take(rows[own]), current["size"]), amount, draws)
        logits, y, m = net(x).float(), values[own].to(context.device), mask[own].to(context.device)
        losses: dict[str, Tensor] = {
            name: _bce(logits, y, m, columns) / mask[batch][:, columns].sum().clamp(min=1).to(context.device)
            for name, (columns, _) in groups.items()
        }  # by the known targets of the whole batch
        total = torch.stack([weight * losses[name] for name, (_, weight) in groups.items()]).sum()
        return {"loss": total, **losses}

    steps = -(-len(images) // config.batch_size)
    optimizer = torch.optim.AdamW(net.parameters(), lr=config.lr, weight_decay=config.weight_decay)
    loop = Loop(
        LoopConfig("pretrain", context.seed, ema=config.ema, precision=context.precision, warmup=0.1,
                   checkpoint_seconds=context.checkpoint_seconds),
        directory, net, optimizer, device=context.device, processes=context.processes,
    )  # fmt: skip
    validation = _images(source.split("val"), cache, frontal_only=True)

    def validate() -> dict[str, float]:
        return _auroc(net, validation, cache, current["size"], targets.group("report").start, context, label_table)

    history = loop.fit(batches, [steps] * len(sizes), train_step, validate if validation else None)
    if head is not None:
        columns = targets.group("report")
        with torch.no_grad():
            head.weight.copy_(net.head.weight[columns])
            head.bias.copy_(net.head.bias[columns])
    return history.rows[-1] if history.rows else {}


def _weights(config: PretrainConfig) -> Sequence[tuple[Group, float]]:
    weights = config.weights
    return (
        ("soft", weights.soft), ("report", weights.report), ("mesh", weights.mesh), ("text", weights.text),
        ("external", weights.external),
    )  # fmt: skip


def _bce(logits: Tensor, values: Tensor, mask: Tensor, columns: slice) -> Tensor:
    """Binary cross-entropy over the known targets of a group's columns, summed."""
    return F.binary_cross_entropy_with_logits(
        logits[:, columns], values[:, columns], weight=mask[:, columns], reduction="sum"
    )


def _images(studies: Sequence[Study], cache: PixelCache, *, frontal_only: bool = False) -> list[tuple[str, Study]]:
    pairs = []
    for study in studies:
        usable = cache.usable(study)
        for ref in usable.images if usable else ():
            if not frontal_only or ref.view is View.FRONTAL:
                pairs.append((ref.key, study))
    return pairs


def _auroc(
    net: FindingNet,
    images: Sequence[tuple[str, Study]],
    cache: PixelCache,
    size: int,
    offset: int,
    context: RunContext,
    table: Mapping[str, frozenset[str]] | None,
) -> dict[str, float]:
    """AUROC of the findings in SCORED on ``images``: against our labeler, and as ``table_…`` against the table."""
    logits = []
    for start in range(0, len(images), 64):
        rows = [cache.rows[key] for key, _ in images[start : start + 64]]
        pixels = torch.from_numpy(cache.array[rows]).to(context.device)
        with autocast(context.device, context.precision):
            logits.append(net(to_float(pixels, size)).float().cpu())
    scores = torch.cat(logits).numpy()[:, offset : offset + len(FINDINGS)]
    result = _aurocs("auroc", scores, finding_targets(images, None).values)
    if table:
        known = [row for row, (_, study) in enumerate(images) if study.uid in table]
        truth = np.array([[name in table[images[row][1].uid] for name in FINDINGS] for row in known], np.float32)
        result |= _aurocs("table_auroc", scores[known], truth)
    return result


def _aurocs(prefix: str, scores: np.ndarray, truth: np.ndarray) -> dict[str, float]:
    result = {}
    for name in SCORED:
        column = FINDINGS.index(name)
        value = auroc(scores[:, column], truth[:, column] > 0.5) if len(truth) else None
        if value is not None:
            result[f"{prefix}_{name.lower().replace(' ', '_')}"] = value
    if result:
        result[f"{prefix}_mean"] = float(np.mean(list(result.values())))
    return result
