"""Stage ``retriever``: study head and text tower learn one embedding space.

The loss is contrastive (``training.stages.contrastive``). The backbone is frozen, so the vectors in
the index stay valid while later stages train.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from model.network.dual_encoder import StudyHead, TextTower
from model.text.tokenizer import Tokenizer
from training.config import RetrieverConfig
from training.data.features import PatchSource
from training.stages.common import Rows, StudySplits, encode_reports, shuffled_batches
from training.stages.contrastive import contrastive_loss, label_overlap, label_vectors, report_agreement
from training.stages.index import embed_studies, recall, report_similarity
from training.stages.mbr_table import analyse, report_tokens
from training.trainer.context import RunContext
from training.trainer.loop import Loop, LoopConfig

_DIRECTIONS = 256  # of the phrase vectors by which reports are compared


class DualEncoderTrainingModule(nn.Module):
    """The two encoders that this stage trains, and the temperature of their similarities."""

    def __init__(self, study_head: StudyHead, text_tower: TextTower, temperature: float) -> None:
        super().__init__()
        self.study_head = study_head
        self.text_tower = text_tower
        self.log_scale = nn.Parameter(torch.tensor(math.log(1 / temperature)))


def train_retriever(
    encoders: tuple[StudyHead, TextTower], tokenizer: Tokenizer, features: PatchSource, studies: StudySplits,
    config: RetrieverConfig, context: RunContext, stage: str = "retriever",
) -> Mapping[str, float]:  # fmt: skip
    """Train ``encoders`` in place; returns the selected row of the log.

    The epoch with the best mean reciprocal rank on val is kept, not the one of the lowest loss, which
    rises with the model's confidence long before the ranking stops improving.
    """
    train, val, processes, device = studies.train, studies.val, context.processes, context.device
    head, tower = encoders
    module = DualEncoderTrainingModule(head, tower, config.temperature).to(device)
    head.drop.p = config.dropout
    processes.synchronise_features(module)
    optimizer = torch.optim.AdamW(module.parameters(), lr=config.lr, weight_decay=config.weight_decay)

    length = tower.positions.shape[0]
    ids = encode_reports([study.report for study in train], tokenizer, length)
    labels = label_vectors([*train, *val])
    phrases = torch.from_numpy(analyse(report_tokens(train, tokenizer, length), _DIRECTIONS, context.seed).coordinates)

    def train_step(batch: Rows, random: torch.Generator) -> dict[str, Tensor]:
        local = processes.rows(len(batch))
        patches = features.patches([train[i] for i in batch], random, tokens=False, part=local)
        embedded = head(patches.pooled, patches.views, patches.view_mask)
        # every report of the whole batch is a negative of every study
        study_vectors = processes.gather(embedded, len(batch))
        report_vectors = processes.gather(tower(_trimmed(ids[batch[local]]).to(device)), len(batch))
        agreement = report_agreement(labels[batch].to(device), phrases[batch].to(device), config.phrase_weight)
        scale = module.log_scale.clamp(max=math.log(100.0)).exp()
        similarity = (study_vectors @ report_vectors.t()).float()
        return {"loss": contrastive_loss(similarity, agreement, scale, config.label_weight) / processes.count}

    def validate() -> dict[str, float]:
        similarity = report_similarity(tower, embed_studies(head, features, val), val, tokenizer)
        agreement = label_overlap(labels[len(train) :])
        loss = contrastive_loss(similarity, agreement, float(module.log_scale.exp()), config.label_weight)
        return {"loss": float(loss), **recall(similarity)}

    steps = max(1, len(train) // config.batch_size)
    loop = Loop(LoopConfig(stage, select="mrr" if val else None, warmup=0.1), context, module, optimizer)
    history = loop.fit(shuffled_batches(len(train), steps, context.seed, 17), epochs=config.epochs, steps=steps,
                       train_step=train_step, validate=validate if val else None)  # fmt: skip
    return history.selected_row()


def _trimmed(ids: Tensor) -> Tensor:
    """Without the padding beyond the longest report of the batch."""
    return ids[:, : max(1, int((ids != 0).sum(1).max()))]
