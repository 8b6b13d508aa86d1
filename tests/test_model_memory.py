"""The memory's slot selection, response and gradients equal the dense computation."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from torch import Tensor

from model.network.cpu_kernels import _FEW, top_slots
from model.network.memory import CrossModalMemory

SHAPES = [  # of the scores, and k; a row of 512 slots and more is searched in groups where k is small
    ((1,), 1), ((5,), 5), ((7, 50), 4), ((2, 3, 40), 8), ((3, 255), 16), ((3, 256), 16), ((3, 257), 16),
    ((3, 512), 1), ((3, 512), 8), ((3, 512), 127), ((3, 512), 128), ((3, 768), 32), ((3, 1000), 32), ((2, 1024), 200),
    ((4, 2, 2048), 1), ((4, 9, 2048), 32), ((2, 2048), 255), ((2, 2048), 300), ((2, 3000), 300), ((1, 4096), 32),
    ((2, 600), 300), ((2, 2048), 2048),
]  # fmt: skip


def assert_is_top(scores: Tensor, k: int) -> Tensor:
    """Check the selection as a set; returns the indices, sorted."""
    values, indices = top_slots(scores, k)
    assert values.shape == indices.shape == (*scores.shape[:-1], k)
    assert torch.equal(values, scores.gather(-1, indices))
    assert torch.equal(values.sort(dim=-1, descending=True).values, scores.topk(k, dim=-1).values)
    chosen = indices.sort(dim=-1).values
    assert bool((chosen.diff(dim=-1) > 0).all())  # no slot twice
    return chosen


@pytest.mark.parametrize(("shape", "k"), SHAPES)
def test_top_slots_equal_topk(shape: tuple[int, ...], k: int) -> None:
    generator = torch.Generator().manual_seed(0)
    count = math.prod(shape)
    scores = torch.randperm(count, generator=generator).view(shape).float() - count / 2  # all different
    assert torch.equal(assert_is_top(scores, k), scores.topk(k, dim=-1).indices.sort(dim=-1).values)


@pytest.mark.parametrize(("shape", "k"), SHAPES)
def test_top_slots_equal_topk_with_ties(shape: tuple[int, ...], k: int) -> None:
    generator = torch.Generator().manual_seed(0)
    assert_is_top(torch.randint(-2, 3, shape, generator=generator).float(), k)
    assert_is_top(torch.zeros(shape), k)


@pytest.mark.parametrize("first", [0, 3])
def test_top_slots_finds_the_best_in_one_group_or_in_neighbouring_columns(first: int) -> None:
    for columns in (torch.arange(first, 2048, 256), torch.arange(first, first + 32), torch.arange(2016, 2048)):
        scores = torch.zeros(1, 2048)
        scores[0, columns] = torch.arange(1.0, len(columns) + 1)
        assert set(columns.tolist()) <= set(assert_is_top(scores, 32)[0].tolist())


# --- reading ----------------------------------------------------------------------------------------------------------


def build(heads: int, d_model: int, memory_dim: int, slots: int, top_k: int, seed: int = 0) -> CrossModalMemory:
    """A memory whose scores are spread enough for its softmax to prefer some slots."""
    torch.manual_seed(seed)
    memory = CrossModalMemory(d_model, memory_dim, slots, heads, top_k)
    with torch.no_grad():
        memory.matrix.normal_(std=1.5)
    return memory


def dense(memory: CrossModalMemory, tokens: Tensor) -> Tensor:
    """The response by a softmax over all slots with all but the best masked out, in the type of ``memory``."""
    rows = tokens.flatten(0, 1)

    def project(layer: torch.nn.Linear, x: Tensor) -> Tensor:  # (N, D) -> (H, N, d_h)
        out = x @ layer.weight.t() + layer.bias
        return out.view(len(x), memory.heads, -1).transpose(0, 1)

    queries, keys, values = (
        project(layer, x)
        for layer, x in ((memory.query, rows), (memory.key, memory.matrix), (memory.value, memory.matrix))
    )
    scores = queries @ keys.transpose(1, 2) / math.sqrt(queries.shape[-1])  # (H, N, M)
    kept = torch.zeros_like(scores, dtype=torch.bool).scatter(-1, scores.topk(memory.top_k).indices, True)
    read = scores.masked_fill(~kept, -math.inf).softmax(-1) @ values
    joined = read.transpose(0, 1).reshape(len(rows), -1)
    return (joined @ memory.out.weight.t() + memory.out.bias).view(tokens.shape)


CASES = [  # heads, d_model, memory_dim, slots, top_k, tokens
    (1, 8, 8, 20, 1, (1, 1)),
    (3, 24, 10, 50, 4, (2, 7)),
    (4, 32, 48, 64, 64, (3, 5)),
    (2, 16, 16, 512, 8, (1, _FEW)),  # the last of few tokens
    (2, 16, 16, 512, 8, (1, _FEW + 1)),  # the first of many
    (4, 32, 24, 100, 8, (4, 50)),
    (8, 64, 64, 2048, 32, (2, 98)),
]
IDS = [f"{slots} slots, {tokens[0]}x{tokens[1]} tokens" for *_, slots, _, tokens in CASES]


@pytest.mark.parametrize(("heads", "d_model", "memory_dim", "slots", "top_k", "shape"), CASES, ids=IDS)
def test_response_and_gradients_equal_the_dense_computation(
    heads: int, d_model: int, memory_dim: int, slots: int, top_k: int, shape: tuple[int, int]
) -> None:
    memory = build(heads, d_model, memory_dim, slots, top_k)
    tokens = torch.randn(*shape, d_model).requires_grad_()
    direction = torch.randn(*shape, d_model) / shape[0] / shape[1]

    response = memory(tokens, memory.bank())
    gradients = torch.autograd.grad((response * direction).sum(), [tokens, *memory.parameters()])

    exact = copy.deepcopy(memory).double()
    leaf = tokens.detach().double().requires_grad_()
    expected = dense(exact, leaf)
    wanted = torch.autograd.grad((expected * direction.double()).sum(), [leaf, *exact.parameters()])

    torch.testing.assert_close(response.double(), expected, atol=1e-5, rtol=1e-5)
    names = ["tokens", *(name for name, _ in memory.named_parameters())]
    found = {name: value.double() for name, value in zip(names, gradients, strict=True)}
    torch.testing.assert_close(found, dict(zip(names, wanted, strict=True)), atol=1e-5, rtol=1e-4)
    with torch.no_grad():
        torch.testing.assert_close(memory(tokens, memory.bank()).double(), expected, atol=1e-5, rtol=1e-5)


def test_only_selected_slots_get_gradients() -> None:
    memory = build(2, 16, 12, 64, 4)
    tokens = torch.randn(1, 3, 16)
    bank = memory.bank()
    keys, values = (part.detach().requires_grad_() for part in bank)
    memory(tokens, type(bank)(keys, values)).square().sum().backward()
    queries = memory.query(tokens).view(3, 2, 8).transpose(0, 1) / math.sqrt(8)
    for head in range(2):
        chosen = set((queries[head] @ keys[head].t()).topk(4).indices.flatten().tolist())
        for gradient in (keys.grad, values.grad):
            assert gradient is not None
            assert set(gradient[head].abs().sum(-1).nonzero().flatten().tolist()) == chosen


def test_response_does_not_depend_on_the_batching_of_tokens() -> None:
    memory, tokens = build(4, 32, 24, 512, 8), torch.randn(3, 60, 32)
    with torch.no_grad():
        bank = memory.bank()
        whole = memory(tokens, bank)
        parts = torch.cat([memory(tokens[:, :1], bank), memory(tokens[:, 1:], bank)], dim=1)
        rows = torch.cat([memory(row.unsqueeze(0), bank) for row in tokens])
    torch.testing.assert_close(parts, whole, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(rows, whole, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("length", [4, 200])
def test_response_and_gradients_are_equal_without_onednn(length: int) -> None:
    memory, tokens = build(4, 32, 24, 512, 8), torch.randn(1, length, 32)
    leaves = [memory.matrix, memory.query.weight, memory.value.weight]
    expected = memory(tokens, memory.bank())
    wanted = torch.autograd.grad(expected.square().mean(), leaves)
    with torch.backends.mkldnn.flags(enabled=False):
        response = memory(tokens, memory.bank())
        gradients = torch.autograd.grad(response.square().mean(), leaves)
    torch.testing.assert_close([response, *gradients], [expected, *wanted], atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("length", [4, 200])
def test_autocast_response_and_gradients_are_close_to_float32(length: int) -> None:
    memory, tokens = build(4, 32, 24, 512, 8), torch.randn(1, length, 32)
    expected = memory(tokens, memory.bank())
    (wanted,) = torch.autograd.grad(expected.square().mean(), memory.matrix)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        response = memory(tokens, memory.bank())
        loss = response.float().square().mean()
    (gradient,) = torch.autograd.grad(loss, memory.matrix)
    assert response.dtype == torch.bfloat16
    similarity = torch.cosine_similarity(response.detach().float().flatten(), expected.detach().flatten(), dim=0)
    assert float(similarity) > 0.99
    assert float(torch.cosine_similarity(gradient.flatten(), wanted.flatten(), dim=0)) > 0.95
