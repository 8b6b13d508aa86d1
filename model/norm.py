"""Normalisation of token rows: PyTorch's LayerNorm, or the one that published R2Gen checkpoints were trained with."""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor, nn

Norm = Literal["layer", "r2gen"]


class R2GenNorm(nn.Module):
    """``weight * (x - mean) / (std + 1e-6) + bias`` with the unbiased standard deviation, over the last dimension.

    The norm of the published R2Gen and R2GenCMN code. It differs from ``nn.LayerNorm`` by a factor of
    ``sqrt((d - 1) / d)``, and in where epsilon stands: on near-constant rows that decides the result, which is why it
    is computed as published and not folded into a LayerNorm (whose own mean is rounded otherwise).
    """

    eps = 1e-6

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.bias = nn.Parameter(torch.zeros(width))

    def forward(self, x: Tensor) -> Tensor:
        """(..., d) -> (..., d)."""
        centred = x - x.mean(dim=-1, keepdim=True)
        deviation = torch.linalg.vector_norm(centred, dim=-1, keepdim=True) / math.sqrt(x.shape[-1] - 1)
        return torch.addcmul(self.bias, centred / (deviation + self.eps), self.weight)


def norm(kind: Norm, width: int) -> nn.Module:
    """The normalisation called ``kind`` for rows of ``width``."""
    return R2GenNorm(width) if kind == "r2gen" else nn.LayerNorm(width)
