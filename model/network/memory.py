"""Cross-modal memory: one matrix of slots for both patch tokens and report tokens.

Chen et al. 2021, "Cross-modal Memory Networks for Radiology Report Generation", equations 5 to 11:
a token queries all slots, keeps the top k of each head, and receives the softmax-weighted sum of
their values.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from model.network.cpu_kernels import Dropout, Linear, read_slots


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
        top_k: slots that each head keeps for a token.
        dropout: share of the weights of these slots that is dropped in training.
    """

    def __init__(self, d_model: int, memory_dim: int, slots: int, heads: int, top_k: int, dropout: float = 0.0) -> None:
        super().__init__()
        self.heads, self.top_k, self.width = heads, top_k, d_model // heads
        self.matrix = nn.Parameter(torch.randn(slots, memory_dim) / memory_dim)
        self.query = Linear(d_model, d_model)
        self.key = Linear(memory_dim, d_model)
        self.value = Linear(memory_dim, d_model)
        self.out = Linear(d_model, d_model)
        self.drop = Dropout(dropout)

    def bank(self) -> MemoryBank:
        """Project the slots to keys and values, once per forward pass or decode."""
        return MemoryBank(self._heads_first(self.key(self.matrix)), self._heads_first(self.value(self.matrix)))

    def forward(self, tokens: Tensor, bank: MemoryBank) -> Tensor:
        """Memory responses of tokens: (B, T, d_model) -> (B, T, d_model), to be added to them."""
        queries = self._heads_first(self.query(tokens).flatten(0, 1)) / math.sqrt(self.width)  # (H, B*T, d_h)
        read = (self._read_with_dropout if self.training and self.drop.p else read_slots)(queries, *bank, self.top_k)
        response: Tensor = self.out(read.to(tokens.dtype).transpose(0, 1).reshape(tokens.shape))
        return response

    def _read_with_dropout(self, queries: Tensor, keys: Tensor, values: Tensor, k: int) -> Tensor:
        """``read_slots`` with some of the weights dropped."""
        best, slots = (queries @ keys.transpose(1, 2)).topk(k)  # (H, N, k)
        weights = self.drop(best.float().softmax(-1))
        heads = zip(slots, values.float(), weights, strict=True)
        return torch.stack([F.embedding_bag(s, v, mode="sum", per_sample_weights=w) for s, v, w in heads])

    def _heads_first(self, rows: Tensor) -> Tensor:
        """(N, d_model) -> (H, N, d_h), contiguous."""
        return rows.view(-1, self.heads, self.width).transpose(0, 1).contiguous()
