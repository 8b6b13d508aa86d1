"""Stage ``ce``: teacher-forced cross-entropy with retrieved cases.

Each step runs the data flow of serving: images through the backbone once, study embedding, search,
K report embeddings appended to the patch tokens. A study never retrieves its own report. The index
does not change. If the backbone is trained, the contrastive loss against the fixed vectors of the
index keeps the study embedding close to them.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from retrieval_index.index import ReportIndex
from training.config import CEConfig
from training.data.targets import tag_targets
from training.registries import LOSSES
from training.stages import common
from training.stages.common import ReportGenerator, Rows, StudySplits
from training.stages.contrastive import contrastive_loss, label_overlap, label_vectors
from training.stages.validation import validate_generation
from training.trainer.context import RunContext
from training.trainer.loop import Loop, LoopConfig

_CONTRASTIVE_SCALE, _CONTRASTIVE_LABEL_WEIGHT = 20.0, 0.5


def train_cross_entropy(
    generator: ReportGenerator, studies: StudySplits, config: CEConfig, context: RunContext
) -> Mapping[str, float]:
    """Train the generator's model in place; returns the selected epoch's row of the log."""
    model, index, train = generator.model, generator.index, studies.train
    processes, device = context.processes, context.device
    train_backbone = config.backbone_lr > 0
    if config.full_batches:
        processes.rows(len(train) % config.batch_size or config.batch_size)  # refuses a last batch too small to share
    module = common.FrozenPartsModule(model, train_backbone, config.batch_statistics)
    processes.synchronise_features(module)
    optimizer = common.build_optimizer(model, backbone_lr=config.backbone_lr, head_lr=config.transformer_lr,
                                       weight_decay=config.weight_decay, eps=config.adam_eps)  # fmt: skip
    reports = common.TrainingReports(generator, train)
    loss = LOSSES.get(config.loss)
    labels = label_vectors(train)
    tags = torch.from_numpy(tag_targets(train, model.config.tags)) if model.config.tags else None
    report_vectors = None if index is None else torch.from_numpy(index.vectors(_rows_of(index, reports.names)))

    def train_step(batch: Rows, random: torch.Generator) -> dict[str, Tensor]:
        local = processes.rows(len(batch))
        patches, cases, case_mask = reports.inputs(batch, local, random)
        if case_mask is not None:
            dropped = torch.rand(len(batch), 1, generator=random)[local] < config.case_dropout
            case_mask = case_mask & ~dropped.to(device)
        encoded = model.encode(patches, cases, case_mask)
        nll = reports.nll(encoded, batch, local, config.label_smoothing, loss)
        losses = {"loss": nll, "nll": nll}
        if tags is not None:
            for name, total in model.auxiliary_losses(encoded, tags[batch[local]].to(device)).items():
                losses[name] = total / len(batch)
                losses["loss"] = losses["loss"] + config.tag_weight * losses[name]
        if train_backbone and report_vectors is not None and config.contrastive_weight:
            embedded = processes.gather(model.embed_study(patches), len(batch))
            similarity = embedded @ report_vectors[batch].to(device).t()
            agreement = label_overlap(labels[batch].to(device))
            contrast = contrastive_loss(similarity, agreement, _CONTRASTIVE_SCALE, _CONTRASTIVE_LABEL_WEIGHT)
            contrast = contrast / processes.count
            losses |= {"contrastive": contrast, "loss": losses["loss"] + config.contrastive_weight * contrast}
        return losses

    as_published = config.select == "BLEU_4"
    chosen = studies.val[: config.validate_limit]

    def validate() -> Mapping[str, float]:
        return validate_generation(generator, chosen, reports.reports, context, as_served=as_published)[0]

    steps = -(-len(train) // config.batch_size)
    decay = config.step_decay
    loop_config = LoopConfig(
        "ce", clip=math.inf if config.clip_norm is None else config.clip_norm,
        step_decay=None if decay is None else (decay.every, decay.factor), select=config.select if chosen else None,
        latest=as_published, patience=config.patience if chosen else None,
    )  # fmt: skip
    loop = Loop(loop_config, context, module, optimizer)
    batches = common.shuffled_batches(len(train), steps, context.seed, 29,
                                      size=config.batch_size if config.full_batches else None)  # fmt: skip
    history = loop.fit(batches, epochs=config.epochs, steps=steps, train_step=train_step,
                       validate=validate if chosen else None)  # fmt: skip
    return history.selected_row()


def _rows_of(index: ReportIndex, names: Sequence[str]) -> Rows:
    rows = {index.case(row).case_id: row for row in range(len(index))}
    return np.array([rows[name] for name in names], np.int64)
