"""Stage ``retriever``: study head and text tower learn one space, so that images find reports.

Loss: symmetric cross-entropy over in-batch similarities (InfoNCE, van den Oord et al. 2018; CLIP, Radford et al. 2021)
with softened targets. On this corpus many reports say the same thing in other words ("normal heart, clear lungs"), so
a one-hot target would push a study away from reports that describe it well. A share ``label_weight`` of each target
row is therefore spread over the batch by how far the findings of the reports agree (as in MedCLIP, Wang et al. 2022);
the rest stays on the study's own report. The backbone is frozen: what the index holds stays where
it is while later stages train.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from model.network.dual_encoder import embed_reports, pad_ids
from model.network.report_model import ReportModel
from model.text.labeler import FINDINGS
from model.text.tokenizer import Tokenizer
from training.config import RetrieverConfig, RunContext
from training.data.features import PatchSource
from training.data.studies import Study
from training.data.targets import label_vector
from training.stages.mbr_table import analyse, report_tokens
from training.trainer.loop import Loop, LoopConfig

log = logging.getLogger(__name__)


_DIRECTIONS = 256  # of the phrase vectors that reports are compared by


class DualEncoderTrainingModule(nn.Module):
    """The two heads that this stage trains, and the temperature of their similarities."""

    def __init__(self, model: ReportModel, temperature: float) -> None:
        super().__init__()
        self.study_head = model.study_head
        self.text_tower = model.text_tower
        self.log_scale = nn.Parameter(torch.tensor(math.log(1 / temperature)))


def contrastive_loss(similarity: Tensor, agreement: Tensor, scale: Tensor | float, label_weight: float) -> Tensor:
    """Symmetric cross-entropy with softened targets.

    Args:
        similarity: (B, B) inner products, study i against report j, the diagonal being the true pairs.
        agreement: (B, B), 0 or more, how far reports i and j say the same.
        scale: inverse temperature.
        label_weight: share of the target spread by agreement (the pair itself included).
    """
    spread = agreement / agreement.sum(1, keepdim=True)
    target = label_weight * spread + (1 - label_weight) * torch.eye(len(agreement), device=agreement.device)
    logits = similarity * scale
    rows = -(target * logits.log_softmax(1)).sum(1).mean()
    columns = -(target.t() * logits.log_softmax(0)).sum(0).mean()
    return (rows + columns) / 2


def label_vectors(studies: Sequence[Study]) -> Tensor:
    """(N, 14) float, 1 where a study's report presents a finding (No Finding among them), rows of unit length."""
    labels = torch.from_numpy(np.stack([label_vector(study.report)[0] for study in studies]))
    return F.normalize(labels, dim=1)


def label_overlap(labels: Tensor) -> Tensor:
    """(B, 14) rows of ``label_vectors`` -> (B, B) agreement: the fourth power of the cosine, and 1 on the diagonal.

    The power keeps reports apart that share one finding of many.
    """
    overlap = (labels @ labels.t()).clamp(0, 1).pow(4)
    return overlap.fill_diagonal_(1.0)


def phrase_overlap(vectors: Tensor) -> Tensor:
    """(B, R) phrase vectors of reports -> (B, B) agreement: the square of the cosine, and 1 on the diagonal."""
    unit = F.normalize(vectors, dim=1)
    return (unit @ unit.t()).clamp(0, 1).square().fill_diagonal_(1.0)


def report_agreement(labels: Tensor, vectors: Tensor, phrase_weight: float) -> Tensor:
    """(B, B) agreement of reports with rows that sum to 1: in findings, (B, 14), and in phrases, (B, R)."""
    findings, phrases = label_overlap(labels), phrase_overlap(vectors)
    return torch.lerp(findings / findings.sum(1, keepdim=True), phrases / phrases.sum(1, keepdim=True), phrase_weight)


def train_retriever(
    model: ReportModel,
    patches: PatchSource,
    train: Sequence[Study],
    val: Sequence[Study],
    tokenizer: Tokenizer,
    config: RetrieverConfig,
    context: RunContext,
    directory: Path,
) -> Mapping[str, float]:
    """Train ``model.study_head`` and ``model.text_tower`` in place; returns the selected row of the log.

    Selection: the mean reciprocal rank of each val study's own report among all val reports. (The val loss is no guide:
    it rises with the model's growing certainty long before the ranking stops getting better.) No val study takes part
    in a gradient step.
    """
    encoders = DualEncoderTrainingModule(model, config.temperature).to(context.device)
    encoders.study_head.drop.p = config.dropout
    length = model.config.max_length
    ids = pad_ids([tokenizer.encode(study.report, length) for study in train], length)
    labels = label_vectors([*train, *val])
    phrases = torch.from_numpy(analyse(report_tokens(train, tokenizer, length), _DIRECTIONS, context.seed).coordinates)
    steps = max(1, len(train) // config.batch_size)
    processes = context.processes
    processes.synchronise_features(encoders)

    def batches(epoch: int) -> list[np.ndarray]:
        order = np.random.default_rng((context.seed, 17, epoch)).permutation(len(train))
        return np.array_split(order, steps)

    def train_step(batch: np.ndarray, generator: torch.Generator) -> dict[str, Tensor]:
        mine = processes.rows(len(batch))
        p = patches.patches([train[i] for i in batch], generator, tokens=False, part=mine)
        own = encoders.study_head(p.pooled, p.views, p.view_mask)
        studies = processes.gather(own, len(batch))  # every report of the batch is a negative of every study
        reports = processes.gather(encoders.text_tower(_trimmed(ids[batch[mine]]).to(context.device)), len(batch))
        agreement = report_agreement(
            labels[batch].to(context.device), phrases[batch].to(context.device), config.phrase_weight
        )
        scale = encoders.log_scale.clamp(max=math.log(100.0)).exp()
        loss = contrastive_loss((studies @ reports.t()).float(), agreement, scale, config.label_weight)
        return {"loss": loss / processes.count}

    def validate() -> dict[str, float]:
        similarity = val_similarity(model, patches, val, tokenizer)
        agreement = label_overlap(labels[len(train) :])
        loss = contrastive_loss(similarity, agreement, float(encoders.log_scale.exp()), config.label_weight)
        return {"loss": float(loss), **recall(similarity)}

    optimizer = torch.optim.AdamW(encoders.parameters(), lr=config.lr, weight_decay=config.weight_decay)
    loop = Loop(
        LoopConfig("retriever", context.seed, precision=context.precision, select="mrr" if val else None,
                   warmup=0.1, ema=0.0, checkpoint_seconds=context.checkpoint_seconds),
        directory, encoders, optimizer, device=context.device, processes=processes,
    )  # fmt: skip
    history = loop.fit(batches, [steps] * config.epochs, train_step, validate if val else None)
    return history.rows[history.best_epoch] if history.rows else {}


@torch.inference_mode()
def val_similarity(model: ReportModel, patches: PatchSource, studies: Sequence[Study], tokenizer: Tokenizer) -> Tensor:
    """(N, N) similarity on the CPU of each study's images (rows) to each study's report (columns)."""
    model.eval()
    queries = embed_studies(model, patches, studies)
    return (
        torch.from_numpy(queries)
        @ torch.from_numpy(embed_reports(model.text_tower, tokenizer, [s.report for s in studies])).t()
    )


@torch.inference_mode()
def embed_studies(model: ReportModel, patches: PatchSource, studies: Sequence[Study]) -> np.ndarray:
    """Embed studies by their images, as in serving: (N, E) float32, L2-normalised."""
    batches = (studies[i : i + 64] for i in range(0, len(studies), 64))
    return np.concatenate(
        [model.embed_study(patches.patches(batch, None, tokens=False)).float().cpu().numpy() for batch in batches]
    )


def recall(similarity: Tensor) -> dict[str, float]:
    """Share of studies whose own report is among the best 1, 5 and 10, and its mean reciprocal rank ``mrr``.

    ``similarity`` (N, N): study i against report j. Reports as similar as the own one do not count against it.
    """
    own = similarity.diagonal()[:, None]
    rank = (similarity > own).sum(1)
    figures = {f"recall_{k}": float((rank < k).float().mean()) for k in (1, 5, 10)}
    return {**figures, "mrr": float((1 / (rank + 1)).mean())}


def label_agreement(retrieved: Sequence[Sequence[str]], reports: Sequence[str]) -> float:
    """Mean Jaccard overlap of present findings (No Finding included) between reports and those retrieved for them."""
    names = len(FINDINGS)
    total = []
    for report, others in zip(reports, retrieved, strict=True):
        own = label_vector(report)[0][:names] > 0
        for other in others:
            theirs = label_vector(other)[0] > 0
            union = (own | theirs).sum()
            total.append(float((own & theirs).sum() / union) if union else 1.0)
    return float(np.mean(total)) if total else 0.0


def _trimmed(ids: Tensor) -> Tensor:
    """Padding beyond the longest report of the batch removed."""
    return ids[:, : max(1, int((ids != 0).sum(1).max()))]
