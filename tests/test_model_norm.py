"""The normalisation layer of published R2Gen checkpoints equals its formula, on near-constant rows too."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from model.network.norm import R2GenNorm, norm

WIDTHS = (8, 17, 64, 512)


def published(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """The formula of the published code; ``Tensor.std`` is the unbiased standard deviation."""
    return weight * (x - x.mean(-1, keepdim=True)) / (x.std(-1, keepdim=True) + 1e-6) + bias


def trained(width: int, seed: int = 0) -> R2GenNorm:
    """A layer with random weights and biases."""
    torch.manual_seed(seed)
    module = R2GenNorm(width)
    nn.init.normal_(module.weight, mean=1.0, std=0.3)
    nn.init.normal_(module.bias, std=0.3)
    return module


def near_constant(width: int) -> Tensor:
    """(72, width): rows around six values with a spread of 0 or of 1e-7 to 1e-3."""
    generator = torch.Generator().manual_seed(1)
    centres = torch.tensor([3.7, -2.3, 0.1, 1 / 3, 40.0, 0.0]).view(-1, 1, 1, 1)
    spreads = torch.tensor([0.0, 1e-7, 1e-6, 1e-5, 1e-4, 1e-3]).view(1, -1, 1, 1)
    return (centres + spreads * torch.randn(6, 6, 2, width, generator=generator)).flatten(0, 2)


@pytest.mark.parametrize("width", WIDTHS)
def test_equals_the_published_formula_on_ordinary_and_near_constant_rows(width: int) -> None:
    module = trained(width)
    ordinary = torch.randn(4, 9, width) * torch.logspace(-1, 2, 9).unsqueeze(1) + torch.randn(4, 9, 1)
    with torch.no_grad():
        for x, atol, rtol in ((ordinary, 1e-6, 1e-5), (near_constant(width), 1e-4, 1e-4)):
            torch.testing.assert_close(module(x), published(x, module.weight, module.bias), atol=atol, rtol=rtol)


def test_normalises_a_row_as_computed_by_hand() -> None:
    module = R2GenNorm(3)
    with torch.no_grad():
        module.weight.copy_(torch.tensor([1.0, 2.0, -1.0]))
        module.bias.copy_(torch.tensor([0.5, 0.0, 0.0]))
    # 2, 4, 6 has the mean 4 and the unbiased deviation 2 (the biased one is 1.63)
    torch.testing.assert_close(module(torch.tensor([2.0, 4.0, 6.0])), torch.tensor([-0.5, 0.0, -1.0]))


@pytest.mark.parametrize("width", WIDTHS)
def test_gradients_equal_those_of_the_formula(width: int) -> None:
    module = trained(width)
    x, direction = torch.randn(5, 3, width), torch.randn(5, 3, width)
    inputs = (x.requires_grad_(), module.weight, module.bias)
    found = torch.autograd.grad((module(x) * direction).sum(), inputs)
    expected = torch.autograd.grad((published(*inputs) * direction).sum(), inputs)
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-4)


def test_differs_from_a_layer_norm() -> None:
    """``nn.LayerNorm`` with rescaled weights equals it on ordinary rows; no epsilon does on near-constant rows."""
    width, module = 64, trained(64)
    ordinary, flat = torch.randn(50, width), near_constant(width)
    gaps = []
    with torch.no_grad():
        for eps in (0.0, 1e-12, 1e-9, 1e-6, 1e-5):
            folded = nn.LayerNorm(width, eps=eps)
            folded.weight.copy_(module.weight * math.sqrt((width - 1) / width))
            folded.bias.copy_(module.bias)
            if eps <= 1e-9:
                expected = published(ordinary, module.weight, module.bias)
                torch.testing.assert_close(folded(ordinary), expected, atol=2e-5, rtol=1e-4)
            gap = (folded(flat) - published(flat, module.weight, module.bias)).abs()
            gaps.append(float(gap.nan_to_num(nan=math.inf).max()))
    assert min(gaps) > 0.1


def test_norm_returns_the_configured_layer() -> None:
    assert type(norm("r2gen", 8)) is R2GenNorm
    assert type(norm("layer", 8)) is nn.LayerNorm
    assert list(norm("r2gen", 8).state_dict()) == list(norm("layer", 8).state_dict()) == ["weight", "bias"]
