"""Normalisation of token rows: LayerNorm, or the normalisation of published R2Gen checkpoints."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from model.config import Norm

_TINY = 1e-30  # least variance: the gradient of a constant row is finite


class R2GenNorm(nn.Module):
    """``weight * (x - mean) / (std + 1e-6) + bias`` with the unbiased standard deviation, over the last dimension.

    From the published R2Gen and R2GenCMN code. It differs from ``nn.LayerNorm`` by a factor of
    ``sqrt((d - 1) / d)`` and in the position of epsilon, which decides the result on near-constant
    rows.
    """

    eps = 1e-6

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.bias = nn.Parameter(torch.zeros(width))

    def forward(self, x: Tensor) -> Tensor:
        """(..., d) -> (..., d) float32."""
        x = x.float()
        deviation = x.var(dim=-1, keepdim=True).clamp_min(_TINY).sqrt()
        normed = (x - x.mean(dim=-1, keepdim=True)) / (deviation + self.eps)
        return torch.addcmul(self.bias, normed, self.weight)


def norm(kind: Norm, width: int) -> nn.Module:
    """The normalisation called ``kind`` for rows of ``width``."""
    return R2GenNorm(width) if kind == "r2gen" else nn.LayerNorm(width)
