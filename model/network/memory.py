"""Cross-modal memory: one matrix of slots that patch tokens and report tokens both read.

Chen et al. 2021, "Cross-modal Memory Networks for Radiology Report Generation", equations 5 to 11: a token queries
all slots, keeps the top k of each head, and receives the softmax-weighted sum of their values.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import FunctionCtx, once_differentiable

from model.network.linear import Linear, product, runs_on_onednn

_GROUPS = 256  # a row of scores is cut into so many groups, of which the top k hold the top k scores
_FEW = 128  # up to so many tokens one batched product for all heads beats a product a head


class MemoryBank(NamedTuple):
    """Keys and values of all slots, projected once for a whole forward pass or decode: (H, M, d_h) each."""

    keys: Tensor
    values: Tensor


class CrossModalMemory(nn.Module):
    """Shared memory of ``slots`` rows, read by multi-head top-k addressing.

    Args:
        d_model: width of the tokens.
        memory_dim: width of a slot.
        slots: M, rows of the memory.
        heads: H.
        top_k: slots each head keeps for a token.
    """

    def __init__(self, d_model: int, memory_dim: int, slots: int, heads: int, top_k: int) -> None:
        super().__init__()
        self.heads, self.top_k, self.width = heads, top_k, d_model // heads
        self.matrix = nn.Parameter(torch.randn(slots, memory_dim) / memory_dim)
        self.query = Linear(d_model, d_model)
        self.key = Linear(memory_dim, d_model)
        self.value = Linear(memory_dim, d_model)
        self.out = Linear(d_model, d_model)

    def bank(self) -> MemoryBank:
        """Project the slots to keys and values, (H, M, d_h) each. Once a pass serves every token in it."""
        return MemoryBank(self._heads_first(self.key(self.matrix)), self._heads_first(self.value(self.matrix)))

    def forward(self, tokens: Tensor, bank: MemoryBank) -> Tensor:
        """Memory responses of tokens: (B, T, d_model) -> (B, T, d_model), to be added to them."""
        queries = self._heads_first(self.query(tokens).flatten(0, 1)) / math.sqrt(self.width)  # (H, B*T, d_h)
        if torch.is_grad_enabled():
            read: Tensor = _Read.apply(queries, bank.keys, bank.values, self.top_k)
        else:
            read = _read(queries, bank.keys, bank.values, self.top_k)[0]
        response: Tensor = self.out(read.to(tokens.dtype).transpose(0, 1).reshape(tokens.shape))
        return response

    def _heads_first(self, rows: Tensor) -> Tensor:
        """(N, d_model) -> (H, N, d_h), contiguous."""
        return rows.view(-1, self.heads, self.width).transpose(0, 1).contiguous()


def top_slots(scores: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The k largest of each row, in no order: scores (..., M) -> values and indices (..., k), as ``Tensor.topk``.

    Group j of a long row holds columns j, j + G, j + 2G, …. A group with one of the k largest values has a maximum that
    is among the k largest maxima, so only k groups need to be searched: two selections among few in place of one
    among many.
    """
    size = scores.shape[-1]
    groups = max(_GROUPS, k)
    if size % groups or k * (size // groups) + groups >= size:
        return scores.topk(k, dim=-1, sorted=False)
    columns = torch.arange(0, size, groups, device=scores.device).unsqueeze(1)  # (M/G, 1), first of each slice
    maxima = scores.view(*scores.shape[:-1], -1, groups).amax(dim=-2)  # (..., G)
    places = (maxima.topk(k, dim=-1, sorted=False).indices.unsqueeze(-2) + columns).flatten(-2)  # (..., k*M/G)
    best, found = scores.gather(-1, places).topk(k, dim=-1, sorted=False)
    return best, places.gather(-1, found)


class _Read(torch.autograd.Function):
    """Top-k addressing with a gradient that touches the chosen slots only.

    Queries (H, N, d_h), already scaled, keys and values (H, M, d_h) -> (H, N, d_h). Kept for the gradient are k slots
    and weights a token, not its M scores; the backward pass works head by head on one (M, N) table that stays in cache.
    Values are read by ``embedding_bag``: a weighted sum of rows without a copy of them.
    """

    @staticmethod
    def forward(ctx: FunctionCtx, queries: Tensor, keys: Tensor, values: Tensor, k: int) -> Tensor:
        read, weights, chosen = _read(queries, keys, values, k)
        ctx.save_for_backward(queries, keys, values, weights, chosen)
        return read

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, Tensor, None]:
        queries, keys, values, weights, chosen = ctx.saved_tensors
        grad = grad.to(queries.dtype).contiguous()
        grad_keys, grad_values, grad_scores = [], [], torch.empty_like(weights)
        tokens = torch.arange(queries.shape[1], device=grad.device).unsqueeze(1)  # (N, 1)
        table = grad.new_zeros(keys.shape[1], queries.shape[1])  # (M, N), all zero between its uses
        for head, slots in enumerate(chosen):
            of_weights = _dot(grad[head], values[head]).gather(1, slots).float()  # (N, k)
            inner = (of_weights * weights[head]).sum(dim=-1, keepdim=True)
            grad_scores[head] = weights[head] * (of_weights - inner)
            cells = slots * queries.shape[1] + tokens
            table.put_(cells, weights[head].to(table.dtype))
            grad_values.append(_dot(grad[head].t(), table).t())
            table.put_(cells, grad_scores[head].to(table.dtype))
            grad_keys.append(_dot(queries[head].t(), table).t())
            table.put_(cells, table.new_zeros(cells.shape))
        return _weighted_rows(keys, chosen, grad_scores), torch.stack(grad_keys), torch.stack(grad_values), None


def _read(queries: Tensor, keys: Tensor, values: Tensor, k: int) -> tuple[Tensor, Tensor, Tensor]:
    """What is read, (H, N, d_h), with the weights and slots that it was read with, (H, N, k) each."""
    best, slots = zip(*(top_slots(scores, k) for scores in _scores(queries, keys)), strict=True)
    weights, chosen = torch.cat(best).float().softmax(dim=-1), torch.cat(slots)
    return _weighted_rows(values, chosen, weights), weights, chosen


def _scores(queries: Tensor, keys: Tensor) -> Iterator[Tensor]:
    """Scores of all slots, (1, N, M) a head so that a head's scores stay in cache, or (H, N, M) for few tokens."""
    if queries.shape[1] <= _FEW or not runs_on_onednn(queries, keys):
        yield queries @ keys.transpose(1, 2)
    else:
        for query, key in zip(queries, keys, strict=True):
            yield product(query, key).unsqueeze(0)


def _weighted_rows(rows: Tensor, chosen: Tensor, weights: Tensor) -> Tensor:
    """Sum of chosen rows by weight: rows (H, M, d), chosen and weights (H, N, k) -> (H, N, d)."""
    heads, slots, width = rows.shape
    first = torch.arange(heads, device=rows.device)[:, None, None] * slots
    bags = (chosen + first).flatten(0, 1)
    summed = F.embedding_bag(
        bags, rows.reshape(-1, width), per_sample_weights=weights.flatten(0, 1).to(rows.dtype), mode="sum"
    )
    return summed.view(heads, -1, width)


def _dot(left: Tensor, right: Tensor) -> Tensor:
    """``left @ right.T``, on oneDNN where it can."""
    return product(left, right) if runs_on_onednn(left, right) else left @ right.t()
