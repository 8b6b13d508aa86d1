"""Stage ``ce``: teacher-forced cross-entropy with retrieved cases.

Each step runs the data flow of serving: images through the backbone once, study embedding, search,
K report embeddings appended to the patch tokens. A study never retrieves its own report. The index
does not change: where the backbone moves, the contrastive loss against the index's fixed vectors
makes the study embedding follow it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from retrieval_index.index import ReportIndex
from training.config import CEConfig
from training.stages.common import (
    FrozenPartsModule,
    ReportGenerator,
    Rows,
    StudySplits,
    build_optimizer,
    count_targets,
    encode_reports,
    mask_suppressed_targets,
    retrieve,
    shuffled_batches,
    teacher_forced,
)
from training.stages.contrastive import contrastive_loss, label_overlap, label_vectors
from training.stages.validation import validate_generation
from training.trainer.context import RunContext
from training.trainer.loop import Loop, LoopConfig

_CONTRASTIVE_SCALE, _CONTRASTIVE_LABEL_WEIGHT = 20.0, 0.5


def train_cross_entropy(
    generator: ReportGenerator, studies: StudySplits, config: CEConfig, context: RunContext
) -> Mapping[str, float]:
    """Train the generator's model in place; returns the selected epoch's row of the log.

    Raises:
        ValueError: no training study.
    """
    model, index, train = generator.model, generator.index, studies.train
    if not train:
        raise ValueError("cross-entropy training found no readable training study; check --root or --images")
    processes, device = context.processes, context.device
    moving = config.backbone_lr > 0
    module = FrozenPartsModule(model, moving)
    processes.synchronise_features(module)
    optimizer = build_optimizer(
        model, backbone_lr=config.backbone_lr, head_lr=config.transformer_lr, weight_decay=config.weight_decay
    )

    names = [study.study_id for study in train]
    ids = encode_reports(train, generator.tokenizer, model.config.max_length)
    targets = mask_suppressed_targets(ids, generator.decoding, generator.tokenizer)
    labels = label_vectors(train)
    report_vectors = None if index is None else torch.from_numpy(index.vectors(_rows_of(index, names)))

    def train_step(batch: Rows, random: torch.Generator) -> dict[str, Tensor]:
        local = processes.rows(len(batch))
        local_ids = batch[local]
        patches = generator.patches.patches([train[i] for i in batch], random, part=local)
        cases, case_mask = retrieve(model, index, patches, [names[i] for i in local_ids])
        if case_mask is not None:
            dropped = torch.rand(len(batch), 1, generator=random)[local] < config.case_dropout
            case_mask = case_mask & ~dropped.to(device)
        encoded = model.encode(patches, cases, case_mask)
        nll = teacher_forced(model, encoded, ids[local_ids], targets[local_ids], words=count_targets(targets[batch]),
                             label_smoothing=config.label_smoothing)  # fmt: skip
        losses = {"loss": nll, "nll": nll}
        if moving and report_vectors is not None and config.contrastive_weight:
            embedded = processes.gather(model.embed_study(patches), len(batch))
            similarity = embedded @ report_vectors[batch].to(device).t()
            agreement = label_overlap(labels[batch].to(device))
            contrast = contrastive_loss(similarity, agreement, _CONTRASTIVE_SCALE, _CONTRASTIVE_LABEL_WEIGHT)
            contrast = contrast / processes.count
            losses |= {"contrastive": contrast, "loss": nll + config.contrastive_weight * contrast}
        return losses

    chosen = studies.val[: config.validate_limit]
    train_reports = [study.report for study in train]

    def validate() -> Mapping[str, float]:
        return validate_generation(generator, chosen, train_reports, context)[0]

    steps = -(-len(train) // config.batch_size)
    loop = Loop(
        LoopConfig("ce", select="selection" if chosen else None, patience=config.patience if chosen else None),
        context, module, optimizer,
    )  # fmt: skip
    history = loop.fit(shuffled_batches(len(train), steps, context.seed, 29), epochs=config.epochs, steps=steps,
                       train_step=train_step, validate=validate if chosen else None)  # fmt: skip
    return history.selected_row()


def _rows_of(index: ReportIndex, names: Sequence[str]) -> Rows:
    rows = {index.case(row).case_id: row for row in range(len(index))}
    return np.array([rows[name] for name in names], np.int64)
