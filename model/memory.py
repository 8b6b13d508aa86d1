"""Cross-modal memory: one matrix of slots that patch tokens and report tokens both read.

Chen et al. 2021, "Cross-modal Memory Networks for Radiology Report Generation", equations 5 to 11: a token queries
all slots, keeps the top k of each head, and receives the softmax-weighted sum of their values.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor, nn


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
        self.query = nn.Linear(d_model, d_model)
        self.key = nn.Linear(memory_dim, d_model)
        self.value = nn.Linear(memory_dim, d_model)
        self.out = nn.Linear(d_model, d_model)

    def bank(self) -> MemoryBank:
        """Project the slots to keys and values, (H, M, d_h) each. Once a pass serves every token in it."""
        keys = self.key(self.matrix).view(-1, self.heads, self.width).transpose(0, 1)
        values = self.value(self.matrix).view(-1, self.heads, self.width).transpose(0, 1)
        return MemoryBank(keys, values)

    def forward(self, tokens: Tensor, bank: MemoryBank) -> Tensor:
        """Memory responses of tokens: (B, T, d_model) -> (B, T, d_model), to be added to them."""
        batch, length, _ = tokens.shape
        queries = self.query(tokens).view(batch * length, self.heads, self.width).transpose(0, 1)  # (H, B*T, d_h)
        scores = (queries / math.sqrt(self.width)) @ bank.keys.transpose(1, 2)  # (H, B*T, M)
        best, slots = scores.topk(self.top_k, dim=-1)  # (H, B*T, k)
        weights = best.float().softmax(dim=-1).to(scores.dtype)
        if batch * length * self.top_k <= bank.values.shape[1]:  # few tokens (a decoding step): gather k values
            heads = torch.arange(self.heads, device=slots.device)[:, None, None]
            read = (weights.unsqueeze(-2) @ bank.values[heads, slots]).squeeze(-2)  # (H, B*T, d_h)
        else:  # many tokens: a sparse row times all values costs less than gathering (B*T, k, d_h)
            read = torch.zeros_like(scores).scatter(-1, slots, weights) @ bank.values
        response: Tensor = self.out(read.transpose(0, 1).reshape(batch, length, -1))
        return response
