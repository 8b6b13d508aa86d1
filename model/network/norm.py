"""Normalisation of token rows: PyTorch's LayerNorm, or the one that published R2Gen checkpoints were trained with."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import FunctionCtx, once_differentiable

from model.config import Norm

_TINY = 1e-30  # stands for the deviation of a constant row, whose gradient is 0
_PLAIN = 4  # means of up to so many deviations, in whose rows the rounding of a mean is that of the result


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
        if torch.is_grad_enabled():
            out: Tensor = _Normalise.apply(x.float(), self.weight, self.bias, self.eps)
            return out
        return _without_gradient(x.float(), self.weight, self.bias, self.eps)

    def freeze(self) -> Callable[[Tensor], Tensor]:
        """For many calls without a gradient."""
        weight, bias, eps = self.weight.detach(), self.bias.detach(), self.eps
        return lambda x: _without_gradient(x.float(), weight, bias, eps)


class _Normalise(torch.autograd.Function):
    """The same with its gradient in a few passes over the rows."""

    @staticmethod
    def forward(ctx: FunctionCtx, x: Tensor, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
        normed, deviation = _normed(x, eps)
        ctx.save_for_backward(normed, deviation, weight)
        ctx.eps = eps  # type: ignore[attr-defined]
        return torch.addcmul(bias, normed, weight)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, Tensor, None]:
        normed, deviation, weight = ctx.saved_tensors
        width = weight.shape[0]
        product = grad * normed
        through_deviation = (product @ weight).unsqueeze(-1) / ((width - 1) * deviation.clamp_min(_TINY))
        through_mean = (grad @ weight).unsqueeze(-1) / width
        grad_x = (grad * weight).sub_(through_mean).div_(deviation + ctx.eps)
        grad_x.addcmul_(normed, through_deviation, value=-1)
        return grad_x, product.flatten(0, -2).sum(0), grad.flatten(0, -2).sum(0), None


def _without_gradient(x: Tensor, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
    fused = _fused(x, eps)
    normed = _exactly(x, eps)[0] if fused is None else fused[0]
    return normed.mul_(weight).add_(bias)


def _normed(x: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """Rows (..., d) less their mean, over their unbiased deviation + eps; and that deviation (..., 1)."""
    fused = _fused(x, eps)
    if fused is None:
        return _exactly(x, eps)
    return fused[0], fused[1].reciprocal_().mul_(_ratio(x.shape[-1]))


def _fused(x: Tensor, eps: float) -> tuple[Tensor, Tensor] | None:
    """Normalised rows and the inverse of their biased deviation by PyTorch's kernel, on a CPU and where no mean is so
    large that the kernel would round otherwise."""
    if x.device.type != "cpu":  # there the comparison would wait for the device
        return None
    normed, mean, inverse = torch.native_layer_norm(x, (x.shape[-1],), None, None, _TINY)
    if not torch.linalg.vector_norm(mean * inverse, float("inf")).item() < _PLAIN:
        return None
    # it divided by the biased deviation: exchange that for the published one
    return normed.div_((inverse * eps).add_(_ratio(x.shape[-1]))), inverse


def _ratio(width: int) -> float:
    """Of the unbiased deviation to the biased one."""
    return math.sqrt(width / (width - 1))


def _exactly(x: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """The same where rows are near-constant.

    The mean is rounded, which is then most of what is left: the deviation is corrected for it, as ``Tensor.std`` has
    none of it (Chan et al. 1983, "Algorithms for computing the sample variance", equation 1.7).
    """
    width = x.shape[-1]
    centred = x - x.mean(dim=-1, keepdim=True)
    length = torch.linalg.vector_norm(centred, dim=-1, keepdim=True)
    rounded = centred.sum(dim=-1, keepdim=True).square_().div_(width)
    deviation = length.square_().sub_(rounded).clamp_min_(0.0).div_(width - 1).sqrt_()
    return centred.div_(deviation + eps), deviation


def freeze(module: nn.Module) -> Callable[[Tensor], Tensor]:
    """``module``, a norm, for many calls without a gradient."""
    return module.freeze() if isinstance(module, R2GenNorm) else module.forward


def norm(kind: Norm, width: int) -> nn.Module:
    """The normalisation called ``kind`` for rows of ``width``."""
    return R2GenNorm(width) if kind == "r2gen" else nn.LayerNorm(width)
