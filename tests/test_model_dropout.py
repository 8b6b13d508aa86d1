"""Dropout with 16 random bits an element: dropped share, scale, independence and gradient."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from model.network.cpu_kernels import Dropout

STEP = 1 / 65_536


@pytest.mark.parametrize("p", [0.001, 0.1, 0.25, 0.5, 0.9])
def test_drops_the_configured_share_and_scales_the_rest(p: float) -> None:
    torch.manual_seed(0)
    x = torch.full((400, 1000), 3.0)
    out = Dropout(p).train()(x)
    kept = out != 0
    dropped = 1 - kept.double().mean().item()
    assert dropped == pytest.approx(p, abs=STEP + 5 * math.sqrt(p * (1 - p) / x.numel()))
    assert out[kept].unique().numel() == 1
    assert float(out[kept][0]) == pytest.approx(3.0 / (1 - p), rel=STEP / (1 - p))
    assert float(out.double().mean()) == pytest.approx(3.0, rel=0.02)


def test_drops_neighbours_independently() -> None:
    """Four neighbours share one random word."""
    torch.manual_seed(1)
    p, count = 0.3, 100_000
    dropped = (Dropout(p).train()(torch.ones(count, 8)) == 0).double()
    together = dropped.t() @ dropped / count  # (8, 8)
    expected = torch.full((8, 8), p * p, dtype=torch.float64).fill_diagonal_(p)
    torch.testing.assert_close(together, expected, atol=0.006, rtol=0)
    rows = dropped[:-1] * dropped[1:]
    torch.testing.assert_close(rows.mean(0), torch.full((8,), p * p, dtype=torch.float64), atol=0.006, rtol=0)


def test_mask_depends_on_the_seed_and_changes_with_each_call() -> None:
    drop, x = Dropout(0.4).train(), torch.randn(33, 7)
    results = []
    for seed in (3, 3, 4):
        torch.manual_seed(seed)
        results.append(torch.stack([drop(x), drop(x)]))
    assert torch.equal(results[0], results[1])
    assert not torch.equal(results[0], results[2])
    assert not torch.equal(results[0][0], results[0][1])  # two calls, two masks


def test_is_the_identity_in_eval_mode_and_at_rate_0() -> None:
    x = torch.randn(5, 3)
    state = torch.get_rng_state()
    assert torch.equal(Dropout(0.5).eval()(x), x)
    assert torch.equal(Dropout(0.0).train()(x), x)
    assert torch.equal(torch.get_rng_state(), state)  # and draws nothing


@pytest.mark.parametrize(
    "x",
    [
        *(torch.ones(shape) for shape in [(), (1,), (3,), (5,), (4, 7), (2, 3, 5), (1, 1, 1, 9), (0,), (3, 0)]),
        torch.arange(1.0, 61.0).view(6, 10).t()[::2],  # with strides
        *(torch.arange(1, 65).to(dtype) for dtype in (torch.bfloat16, torch.float16, torch.float64)),
    ],
    ids=lambda x: f"{list(x.shape)} {x.dtype}",
)
def test_keeps_shape_and_dtype_and_drops_or_doubles_every_element(x: Tensor) -> None:
    torch.manual_seed(0)
    drop = Dropout(0.5).train()
    results = torch.stack([drop(x) for _ in range(40)])
    assert results.shape == (40, *x.shape)
    assert results.dtype == x.dtype
    kept = results != 0
    assert torch.equal(results[kept], (2 * x).expand_as(results)[kept])
    assert bool(kept.any(0).all())
    assert bool((~kept).any(0).all())


def test_gradient_is_zero_where_elements_were_dropped() -> None:
    torch.manual_seed(0)
    x = torch.rand(50, 11).add(0.5).requires_grad_()
    out = Dropout(0.25).train()(x)
    weights = torch.rand(50, 11) + 0.5
    (gradient,) = torch.autograd.grad((out * weights).sum(), x)
    assert torch.equal(gradient == 0, out == 0)
    torch.testing.assert_close(gradient, torch.where(out == 0, 0.0, weights / 0.75), atol=1e-4, rtol=1e-4)


def test_is_an_nn_dropout_without_state_and_refuses_rates_above_1() -> None:
    assert isinstance(Dropout(0.1), nn.Dropout)
    assert not Dropout(0.1).state_dict()
    with pytest.raises(ValueError, match="between 0 and 1"):
        Dropout(1.5)


@pytest.mark.parametrize("p", [1.0, 0.999999])
def test_drops_everything_at_rate_1(p: float) -> None:
    torch.manual_seed(0)
    assert torch.equal(Dropout(p).train()(torch.ones(4, 5)), torch.zeros(4, 5))
