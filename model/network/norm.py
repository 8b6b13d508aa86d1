"""Normalisation of token rows: PyTorch's LayerNorm, or the one of published R2Gen checkpoints."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from model.config import Norm
from model.network.cpu_kernels import normalise


class R2GenNorm(nn.Module):
    """``weight * (x - mean) / (std + 1e-6) + bias`` with the unbiased standard deviation, over the last dimension.

    The norm of the published R2Gen and R2GenCMN code. It differs from ``nn.LayerNorm`` by a factor of
    ``sqrt((d - 1) / d)`` and in the position of epsilon, which decides the result on near-constant rows.
    """

    eps = 1e-6

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.bias = nn.Parameter(torch.zeros(width))

    def forward(self, x: Tensor) -> Tensor:
        """(..., d) -> (..., d) float32."""
        return normalise(x.float(), self.weight, self.bias, self.eps)

    def freeze(self) -> Callable[[Tensor], Tensor]:
        """``forward`` for many calls without a gradient, with the current weights."""
        weight, bias, eps = self.weight.detach(), self.bias.detach(), self.eps
        return lambda x: normalise(x.float(), weight, bias, eps)


def norm(kind: Norm, width: int) -> nn.Module:
    """The normalisation called ``kind`` for rows of ``width``."""
    return R2GenNorm(width) if kind == "r2gen" else nn.LayerNorm(width)


def standardise(kind: Norm, x: Tensor) -> Tensor:
    """The normalisation called ``kind`` without weight and bias: (..., d) -> (..., d)."""
    width = x.shape[-1:]
    if kind == "layer":
        return F.layer_norm(x, width)
    return normalise(x.float(), x.new_ones(width).float(), x.new_zeros(width).float(), R2GenNorm.eps)


def freeze_norm(module: nn.Module) -> Callable[..., Tensor]:
    """A norm for many calls without a gradient, with its current weights."""
    freeze: Callable[[], Callable[..., Tensor]] | None = getattr(module, "freeze", None)
    return module.forward if freeze is None else freeze()
