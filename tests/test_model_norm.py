"""The normalisation of published R2Gen checkpoints: their formula, on rows where its details decide the result too."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from model.network.norm import R2GenNorm, norm

WIDTHS = (8, 17, 64, 512)


def published(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """As the published code has it; the standard deviation of ``Tensor.std`` is the unbiased one."""
    return weight * (x - x.mean(-1, keepdim=True)) / (x.std(-1, keepdim=True) + 1e-6) + bias


def trained(width: int, seed: int = 0) -> R2GenNorm:
    """With weights and biases that are not the initial ones."""
    torch.manual_seed(seed)
    module = R2GenNorm(width)
    nn.init.normal_(module.weight, mean=1.0, std=0.3)
    nn.init.normal_(module.bias, std=0.3)
    return module


def near_constant(width: int) -> Tensor:
    """(48, width): rows around a few values, whose spread runs from 1e-7 to 1e-3, none at all included."""
    generator = torch.Generator().manual_seed(1)
    centres = torch.tensor([3.7, -2.3, 0.1, 1 / 3, 40.0, 0.0]).view(-1, 1, 1, 1)
    spreads = torch.tensor([0.0, 1e-7, 1e-6, 1e-5, 1e-4, 1e-3]).view(1, -1, 1, 1)
    return (centres + spreads * torch.randn(6, 6, 2, width, generator=generator)).flatten(0, 2)


@pytest.mark.parametrize("width", WIDTHS)
def test_ordinary_rows_follow_the_published_formula(width: int) -> None:
    module = trained(width)
    x = torch.randn(4, 9, width) * torch.logspace(-1, 2, 9).unsqueeze(1) + torch.randn(4, 9, 1)
    with torch.no_grad():
        torch.testing.assert_close(module(x), published(x, module.weight, module.bias), atol=1e-6, rtol=1e-5)


def test_normalises_a_row_as_computed_by_hand() -> None:
    module = R2GenNorm(3)
    with torch.no_grad():
        module.weight.copy_(torch.tensor([1.0, 2.0, -1.0]))
        module.bias.copy_(torch.tensor([0.5, 0.0, 0.0]))
    # 2, 4, 6 has the mean 4 and the unbiased deviation 2 (the biased one is 1.63)
    torch.testing.assert_close(module(torch.tensor([2.0, 4.0, 6.0])), torch.tensor([-0.5, 0.0, -1.0]))


@pytest.mark.parametrize("width", WIDTHS)
def test_near_constant_and_constant_rows_follow_the_published_formula(width: int) -> None:
    module, x = trained(width), near_constant(width)
    with torch.no_grad():
        torch.testing.assert_close(module(x), published(x, module.weight, module.bias), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("width", WIDTHS)
def test_the_gradient_is_that_of_the_formula(width: int) -> None:
    module = trained(width)
    x, direction = torch.randn(5, 3, width), torch.randn(5, 3, width)
    inputs = (x.requires_grad_(), module.weight, module.bias)
    ours = torch.autograd.grad((module(x) * direction).sum(), inputs)
    theirs = torch.autograd.grad((published(*inputs) * direction).sum(), inputs)
    for mine, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(mine, other, atol=1e-5, rtol=1e-4)


def test_constant_rows_have_a_finite_result() -> None:
    module = trained(32)
    with torch.no_grad():
        assert bool(module(torch.full((4, 32), 3.7)).isfinite().all())
        torch.testing.assert_close(module(torch.zeros(2, 32)), module.bias.expand(2, -1))


def test_differs_from_a_layer_norm() -> None:
    """Folded into ``nn.LayerNorm`` it holds on ordinary rows; on near-constant ones no epsilon makes it hold."""
    width, module = 64, trained(64)
    ordinary, flat = torch.randn(50, width), near_constant(width)
    far = []
    with torch.no_grad():
        for eps in (0.0, 1e-12, 1e-9, 1e-6, 1e-5):
            folded = nn.LayerNorm(width, eps=eps)
            folded.weight.copy_(module.weight * math.sqrt((width - 1) / width))
            folded.bias.copy_(module.bias)
            if eps <= 1e-9:
                expected = published(ordinary, module.weight, module.bias)
                torch.testing.assert_close(folded(ordinary), expected, atol=2e-5, rtol=1e-4)
            gap = (folded(flat) - published(flat, module.weight, module.bias)).abs()
            far.append(float(gap.nan_to_num(nan=math.inf).max()))
    assert min(far) > 0.1


def test_norm_returns_the_named_kind() -> None:
    assert type(norm("r2gen", 8)) is R2GenNorm
    assert type(norm("layer", 8)) is nn.LayerNorm
    assert list(norm("r2gen", 8).state_dict()) == list(norm("layer", 8).state_dict()) == ["weight", "bias"]
