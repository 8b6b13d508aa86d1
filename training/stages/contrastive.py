"""Contrastive loss between studies and reports, with targets softened by how far the reports agree.

InfoNCE (van den Oord et al. 2018; CLIP, Radford et al. 2021). In this corpus many reports describe
the same findings in different words, so a one-hot target would push a study away from reports that
describe it well. A share of each target row is therefore spread over the batch by agreement of the
reports (as in MedCLIP, Wang et al. 2022).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from training.data.studies import Study
from training.data.targets import label_vector


def contrastive_loss(similarity: Tensor, agreement: Tensor, scale: Tensor | float, label_weight: float) -> Tensor:
    """Symmetric cross-entropy with softened targets.

    Args:
        similarity: (B, B) inner products, study i against report j; true pairs on the diagonal.
        agreement: (B, B), 0 or more, of reports i and j.
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
    """(N, 14) float, 1 where a report presents a finding (or No Finding), rows of unit length."""
    labels = torch.from_numpy(np.stack([label_vector(study.report)[0] for study in studies]))
    return F.normalize(labels, dim=1)


def label_overlap(labels: Tensor) -> Tensor:
    """(B, 14) rows of ``label_vectors`` -> (B, B) agreement: the fourth power of the cosine, which
    separates reports that share one finding of many; 1 on the diagonal.
    """
    overlap = (labels @ labels.t()).clamp(0, 1).pow(4)
    return overlap.fill_diagonal_(1.0)


def phrase_overlap(vectors: Tensor) -> Tensor:
    """(B, R) phrase vectors -> (B, B) agreement: the square of the cosine, 1 on the diagonal."""
    unit = F.normalize(vectors, dim=1)
    return (unit @ unit.t()).clamp(0, 1).square().fill_diagonal_(1.0)


def report_agreement(labels: Tensor, vectors: Tensor, phrase_weight: float) -> Tensor:
    """(B, B) agreement with rows that sum to 1, in findings (B, 14) and in phrases (B, R)."""
    findings, phrases = label_overlap(labels), phrase_overlap(vectors)
    return torch.lerp(findings / findings.sum(1, keepdim=True), phrases / phrases.sum(1, keepdim=True), phrase_weight)
