"""Transformer encoder and decoder with cached keys and values (Vaswani et al. 2017, pre-norm).

A decoding step works on all beams of a study at once: the beams are folded into the query length of the
cross-attention, so encoded images are never copied per beam.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def sinusoidal_positions(length: int, width: int) -> Tensor:
    """(length, width) sine and cosine table."""
    position = torch.arange(length).unsqueeze(1)
    rate = torch.exp(torch.arange(0, width, 2) * (-math.log(10_000.0) / width))
    table = torch.zeros(length, width)
    table[:, 0::2] = torch.sin(position * rate)
    table[:, 1::2] = torch.cos(position * rate)[:, : width // 2]
    return table


class Attention(nn.Module):
    """Multi-head scaled dot-product attention with separate projection of queries and of keys/values."""

    def __init__(self, d_model: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.heads, self.dropout = heads, dropout
        self.query = nn.Linear(d_model, d_model)
        self.key = nn.Linear(d_model, d_model)
        self.value = nn.Linear(d_model, d_model)
        self.out = nn.Linear(d_model, d_model)

    def split(self, x: Tensor) -> Tensor:
        """(B, T, d_model) -> (B, H, T, d_h)."""
        return x.view(*x.shape[:2], self.heads, -1).transpose(1, 2)

    def keys_values(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Project a source (B, S, d_model) to keys and values (B, H, S, d_h)."""
        return self.split(self.key(x)), self.split(self.value(x))

    def attend(self, x: Tensor, keys: Tensor, values: Tensor, mask: Tensor | None, causal: bool = False) -> Tensor:
        """Queries from x (B, T, d_model) over keys and values (B, H, S, d_h); mask True where attention is allowed."""
        dropout = self.dropout if self.training else 0.0
        read = F.scaled_dot_product_attention(
            self.split(self.query(x)), keys, values, attn_mask=mask, dropout_p=dropout, is_causal=causal
        )
        joined: Tensor = self.out(read.transpose(1, 2).reshape(x.shape))
        return joined


class FeedForward(nn.Sequential):
    """Two linear layers around a ReLU."""

    def __init__(self, d_model: int, d_ff: int, dropout: float) -> None:
        super().__init__(nn.Linear(d_model, d_ff), nn.ReLU(), nn.Dropout(dropout), nn.Linear(d_ff, d_model))


class EncoderLayer(nn.Module):
    """Self-attention and feed-forward, each behind a LayerNorm."""

    def __init__(self, d_model: int, d_ff: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(d_model), nn.LayerNorm(d_model)
        self.attention = Attention(d_model, heads, dropout)
        self.feed_forward = FeedForward(d_model, d_ff, dropout)
        self.drop = nn.Dropout(dropout)

    def forward(self, x: Tensor, mask: Tensor | None) -> Tensor:
        """(B, S, d_model) with mask (B, 1, 1, S), True where a token is real."""
        y = self.norm1(x)
        x = x + self.drop(self.attention.attend(y, *self.attention.keys_values(y), mask))
        out: Tensor = x + self.drop(self.feed_forward(self.norm2(x)))
        return out


class Encoder(nn.Module):
    """A stack of encoder layers and a last LayerNorm."""

    def __init__(self, layers: int, d_model: int, d_ff: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.layers = nn.ModuleList(EncoderLayer(d_model, d_ff, heads, dropout) for _ in range(layers))
        self.norm = nn.LayerNorm(d_model)

    def forward(self, x: Tensor, mask: Tensor | None) -> Tensor:
        """(B, S, d_model) with a token mask (B, S), True where real -> (B, S, d_model)."""
        attention_mask = None if mask is None else mask[:, None, None, :]
        for layer in self.layers:
            x = layer(x, attention_mask)
        out: Tensor = self.norm(x)
        return out


@dataclass
class LayerCache:
    """One decoder layer's keys and values.

    ``self_keys``/``self_values`` are (N, H, T_max, d_h) buffers filled up to the current step, N hypotheses;
    ``cross_keys``/``cross_values`` are (B, H, S, d_h), B studies, shared by a study's hypotheses.
    """

    self_keys: Tensor
    self_values: Tensor
    cross_keys: Tensor
    cross_values: Tensor


class DecoderLayer(nn.Module):
    """Causal self-attention, cross-attention and feed-forward, each behind a LayerNorm."""

    def __init__(self, d_model: int, d_ff: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.norm1, self.norm2, self.norm3 = (nn.LayerNorm(d_model) for _ in range(3))
        self.self_attention = Attention(d_model, heads, dropout)
        self.cross_attention = Attention(d_model, heads, dropout)
        self.feed_forward = FeedForward(d_model, d_ff, dropout)
        self.drop = nn.Dropout(dropout)

    def forward(self, x: Tensor, source: Tensor, source_mask: Tensor | None) -> Tensor:
        """All positions at once (teacher forcing): x (B, T, d_model), source (B, S, d_model)."""
        y = self.norm1(x)
        x = x + self.drop(self.self_attention.attend(y, *self.self_attention.keys_values(y), None, causal=True))
        y = self.norm2(x)
        x = x + self.drop(self.cross_attention.attend(y, *self.cross_attention.keys_values(source), source_mask))
        out: Tensor = x + self.drop(self.feed_forward(self.norm3(x)))
        return out

    def step(self, x: Tensor, cache: LayerCache, position: int, source_mask: Tensor | None) -> Tensor:
        """One position of every hypothesis: x (N, 1, d_model); fills ``cache`` at ``position``."""
        y = self.norm1(x)
        keys, values = self.self_attention.keys_values(y)
        cache.self_keys[:, :, position] = keys[:, :, 0]
        cache.self_values[:, :, position] = values[:, :, 0]
        past = slice(0, position + 1)
        x = x + self.self_attention.attend(y, cache.self_keys[:, :, past], cache.self_values[:, :, past], None)
        folded = self.norm2(x).view(cache.cross_keys.shape[0], -1, x.shape[-1])  # (B, N/B, d_model)
        read = self.cross_attention.attend(folded, cache.cross_keys, cache.cross_values, source_mask)
        x = x + read.view(x.shape)
        out: Tensor = x + self.feed_forward(self.norm3(x))
        return out


class Decoder(nn.Module):
    """A stack of decoder layers and a last LayerNorm."""

    def __init__(self, layers: int, d_model: int, d_ff: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.layers = nn.ModuleList(DecoderLayer(d_model, d_ff, heads, dropout) for _ in range(layers))
        self.norm = nn.LayerNorm(d_model)

    def forward(self, x: Tensor, source: Tensor, source_mask: Tensor | None) -> Tensor:
        """x (B, T, d_model), source (B, S, d_model), source_mask (B, S) -> (B, T, d_model)."""
        mask = None if source_mask is None else source_mask[:, None, None, :]
        for layer in self.layers:
            x = layer(x, source, mask)
        out: Tensor = self.norm(x)
        return out

    def caches(self, source: Tensor, hypotheses: int, max_length: int) -> list[LayerCache]:
        """Empty caches for ``hypotheses`` per study; cross keys and values are projected here, once a decode."""
        caches = []
        for layer in self.layers:
            assert isinstance(layer, DecoderLayer)
            keys, values = layer.cross_attention.keys_values(source)
            shape = (source.shape[0] * hypotheses, keys.shape[1], max_length, keys.shape[3])
            caches.append(LayerCache(keys.new_zeros(shape), keys.new_zeros(shape), keys, values))
        return caches

    def step(self, x: Tensor, caches: list[LayerCache], position: int, source_mask: Tensor | None) -> Tensor:
        """One position of every hypothesis: x (N, 1, d_model) -> (N, 1, d_model); source_mask (B, S)."""
        mask = None if source_mask is None else source_mask[:, None, None, :]
        for layer, cache in zip(self.layers, caches, strict=True):
            assert isinstance(layer, DecoderLayer)
            x = layer.step(x, cache, position, mask)
        out: Tensor = self.norm(x)
        return out
