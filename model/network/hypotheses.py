"""Rows of hypotheses in a batch: N = B * k, the k hypotheses of a study one after another."""

from __future__ import annotations

import torch
from torch import Tensor


def rows_of_parents(parents: Tensor) -> Tensor:
    """The rows from which hypotheses continue: ``parents[:, j]`` (B, k), counted in their study -> (B * k,)."""
    studies, hypotheses = parents.shape
    return (parents + torch.arange(0, studies * hypotheses, hypotheses, device=parents.device).unsqueeze(1)).flatten()


def rows_of_studies(studies: Tensor, hypotheses: int) -> Tensor:
    """The rows of all hypotheses of some studies: (B',) -> (B' * hypotheses,)."""
    return (studies.unsqueeze(1) * hypotheses + torch.arange(hypotheses, device=studies.device)).flatten()
