"""Transformer encoder and decoder with cached keys and values (Vaswani et al. 2017, pre-norm).

A decoding step processes all beams of a study at once, as queries of one attention. Encoded images
are therefore not copied per beam, and cached keys and values are not copied when beams branch: a
mask selects the tokens that a beam descends from. One product computes queries, keys and values of
a step.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from model.config import Norm
from model.network.cpu_kernels import Dropout, Linear, PackedLinearGroup
from model.network.hypotheses import rows_of_studies
from model.network.norm import freeze_norm, norm


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
        self.heads = heads
        self.query = Linear(d_model, d_model)
        self.key = Linear(d_model, d_model)
        self.value = Linear(d_model, d_model)
        self.out = Linear(d_model, d_model)
        self.drop = Dropout(dropout)
        self._qkv, self._of_source = PackedLinearGroup(), PackedLinearGroup()

    def split(self, x: Tensor) -> Tensor:
        """(B, T, d_model) -> (B, H, T, d_h)."""
        return x.view(*x.shape[:2], self.heads, -1).transpose(1, 2)

    def keys_values(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Project a source (B, S, d_model) to keys and values (B, H, S, d_h)."""
        keys, values = self._of_source(x, [self.key, self.value])
        return self.split(keys), self.split(values)

    def qkv(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Queries, keys and values of x (B, T, d_model), (B, H, T, d_h) each."""
        queries, keys, values = self._qkv(x, [self.query, self.key, self.value])
        return self.split(queries), self.split(keys), self.split(values)

    def freeze(self) -> Callable[[Tensor], Tensor]:
        """A fast call without a gradient: x (N, d_model) -> queries, keys and values, (N, 3 * d_model)."""
        return self._qkv.freeze([self.query, self.key, self.value])

    def attend(
        self, queries: Tensor, keys: Tensor, values: Tensor, mask: Tensor | None, causal: bool = False
    ) -> Tensor:
        """Queries (B, H, T, d_h) over keys and values (B, H, S, d_h) -> (B, T, d_model).

        ``mask`` is True where attention is allowed; it broadcasts to (B, H, T, S).
        """
        if self.training and self.drop.p and queries.device.type == "cpu":
            # PyTorch's CPU attention with dropout, with a mask that is drawn faster
            weights: Tensor = self.drop(self.weights(queries, keys, mask, causal))
            read = weights.to(values.dtype) @ values
        else:
            dropout = self.drop.p if self.training else 0.0
            read = F.scaled_dot_product_attention(
                queries, keys, values, attn_mask=mask, dropout_p=dropout, is_causal=causal
            )
        joined: Tensor = self.out(read.transpose(1, 2).flatten(2))
        return joined

    def weights(self, queries: Tensor, keys: Tensor, mask: Tensor | None, causal: bool = False) -> Tensor:
        """Attention weights, arguments as for ``attend``: (B, H, T, S), rows sum to 1."""
        scores = (queries / math.sqrt(queries.shape[-1])) @ keys.transpose(2, 3)  # (B, H, T, S)
        if causal:
            mask = torch.ones(scores.shape[2:], dtype=torch.bool, device=scores.device).tril()
        if mask is not None:
            scores = scores.masked_fill(~mask, float("-inf"))
        return scores.softmax(-1)

    def train(self, mode: bool = True) -> Attention:
        """Also drops packed weights."""
        self._qkv.clear()
        self._of_source.clear()
        return super().train(mode)


class FeedForward(nn.Sequential):
    """Two linear layers around a ReLU."""

    def __init__(self, d_model: int, d_ff: int, dropout: float) -> None:
        super().__init__(Linear(d_model, d_ff), nn.ReLU(), Dropout(dropout), Linear(d_ff, d_model))

    def forward(self, x: Tensor) -> Tensor:
        """(..., d_model) -> (..., d_model)."""
        first, _, drop, last = self
        assert isinstance(first, Linear)
        out: Tensor = last(drop(first.activated(x, "relu")))
        return out


class EncoderLayer(nn.Module):
    """Self-attention and feed-forward, each behind a LayerNorm."""

    def __init__(self, d_model: int, d_ff: int, heads: int, dropout: float, kind: Norm = "layer") -> None:
        super().__init__()
        self.norm1, self.norm2 = norm(kind, d_model), norm(kind, d_model)
        self.attention = Attention(d_model, heads, dropout)
        self.feed_forward = FeedForward(d_model, d_ff, dropout)
        self.drop = Dropout(dropout)

    def forward(self, x: Tensor, mask: Tensor | None) -> Tensor:
        """(B, S, d_model) with mask (B, 1, 1, S), True where a token is real."""
        x = x + self.drop(self.attention.attend(*self.attention.qkv(self.norm1(x)), mask))
        out: Tensor = x + self.drop(self.feed_forward(self.norm2(x)))
        return out


class Encoder(nn.Module):
    """A stack of encoder layers and a last normalisation."""

    def __init__(self, layers: int, d_model: int, d_ff: int, heads: int, dropout: float, kind: Norm = "layer") -> None:
        super().__init__()
        self.layers = nn.ModuleList(EncoderLayer(d_model, d_ff, heads, dropout, kind) for _ in range(layers))
        self.norm = norm(kind, d_model)

    def forward(self, x: Tensor, mask: Tensor | None) -> Tensor:
        """(B, S, d_model) with a token mask (B, S), True where real -> (B, S, d_model)."""
        attention_mask = None if mask is None else mask[:, None, None, :]
        for layer in self.layers:
            x = layer(x, attention_mask)
        out: Tensor = self.norm(x)
        return out


@dataclass
class DecoderCache:
    """Keys and values of all decoder layers (L) for the N hypotheses of B studies, allocated once per decode.

    Hypotheses that may branch from each other form a group: G groups of k, N = G * k. ``steps`` are
    the layers with their weights at the start of the decode.

    ``past`` (L, 2, G, H, T*k, d_h) holds keys and values of the self-attention; step t fills
    positions t*k to t*k + k - 1, one for each hypothesis. ``seen`` (G, k, T*k) is 0 where a
    hypothesis descends from the token at that position and -inf elsewhere; None for groups of one.
    ``source`` holds keys and values of the cross-attention, (B, H, S, d_h) each, shared by a
    study's hypotheses.
    """

    steps: list[_Step]
    past: Tensor
    seen: Tensor | None
    source: list[tuple[Tensor, Tensor]]

    def branch(self, parents: Tensor) -> None:
        """Continue hypothesis j of each group from its hypothesis ``parents[:, j]`` (G, k), without copying."""
        assert self.seen is not None
        self.seen = self.seen.gather(1, parents.unsqueeze(2).expand_as(self.seen))

    def visible(self, position: int) -> Tensor | None:
        """The mask of a step, (G, 1, k, positions so far), the tokens of this step included."""
        if self.seen is None:
            return None
        k = self.seen.shape[1]
        self.seen[..., position * k : (position + 1) * k].diagonal(dim1=1, dim2=2).zero_()
        return self.seen[:, None, :, : (position + 1) * k]

    def of(self, studies: Tensor, position: int) -> DecoderCache:
        """The cache of some studies (B',), filled before ``position``."""
        k = 1 if self.seen is None else self.seen.shape[1]
        groups = rows_of_studies(studies, self.past.shape[2] // len(self.source[0][0]))
        filled = self.past[..., : position * k, :]
        past = self.past.new_empty((*self.past.shape[:2], len(groups), *self.past.shape[3:]))
        past[..., : position * k, :] = filled.index_select(2, groups)
        source = [(keys.index_select(0, studies), values.index_select(0, studies)) for keys, values in self.source]
        return DecoderCache(self.steps, past, None if self.seen is None else self.seen.index_select(0, groups), source)


class DecoderLayer(nn.Module):
    """Causal self-attention, cross-attention and feed-forward, each behind a normalisation.

    ``make_norm`` makes the three normalisations. What follows the mask in a call goes to each of them: nothing, or a
    tensor (B, T, …) on which they depend.
    """

    def __init__(self, d_model: int, d_ff: int, heads: int, dropout: float, make_norm: Callable[[], nn.Module]) -> None:
        super().__init__()
        self.norm1, self.norm2, self.norm3 = (make_norm() for _ in range(3))
        self.self_attention = Attention(d_model, heads, dropout)
        self.cross_attention = Attention(d_model, heads, dropout)
        self.feed_forward = FeedForward(d_model, d_ff, dropout)
        self.drop = Dropout(dropout)

    def forward(self, x: Tensor, source: Tensor, source_mask: Tensor | None, *condition: Tensor) -> Tensor:
        """All positions at once (teacher forcing): x (B, T, d_model), source (B, S, d_model)."""
        cross = self.cross_attention
        x, queries = self.self_attend_and_query(x, *condition)
        x = x + self.drop(cross.attend(queries, *cross.keys_values(source), source_mask))
        out: Tensor = x + self.drop(self.feed_forward(self.norm3(x, *condition)))
        return out

    def self_attend_and_query(self, x: Tensor, *condition: Tensor) -> tuple[Tensor, Tensor]:
        """Self-attention of x (B, T, d_model), and cross-attention queries (B, H, T, d_h)."""
        attention, cross = self.self_attention, self.cross_attention
        x = x + self.drop(attention.attend(*attention.qkv(self.norm1(x, *condition)), None, causal=True))
        return x, cross.split(cross.query(self.norm2(x, *condition)))


class _Step:
    """A decoder layer for decoding: packed once, with its current weights, then called at every position."""

    def __init__(self, layer: DecoderLayer) -> None:
        attention, cross, (first, _, _, last) = layer.self_attention, layer.cross_attention, layer.feed_forward
        assert isinstance(first, Linear)
        assert isinstance(last, Linear)
        self.norm1, self.norm2, self.norm3 = map(freeze_norm, (layer.norm1, layer.norm2, layer.norm3))
        self.qkv, self.out1 = attention.freeze(), attention.out.freeze()
        self.query, self.out2 = cross.query.freeze(), cross.out.freeze()
        self.hidden, self.last = first.freeze("relu"), last.freeze()
        self.heads = attention.heads

    def __call__(
        self, x: Tensor, past: Tensor, seen: Tensor | None, source: tuple[Tensor, Tensor], start: int,
        source_mask: Tensor | None, *condition: Tensor,
    ) -> Tensor:  # fmt: skip
        """One position of every hypothesis: x (N, d_model); fills ``past`` (2, G, H, T*k, d_h) from ``start``."""
        groups = past.shape[1]
        qkv = self.qkv(self.norm1(x, *condition)).view(groups, -1, 3, self.heads, past.shape[-1]).permute(2, 0, 3, 1, 4)
        end = start + qkv.shape[3]
        past[:, :, :, start:end] = qkv[1:]
        x = x + self.out1(_read(qkv[0], past[0, :, :, :end], past[1, :, :, :end], seen))
        queries = (
            self.query(self.norm2(x, *condition)).view(len(source[0]), -1, self.heads, past.shape[-1]).transpose(1, 2)
        )
        x = x + self.out2(_read(queries, *source, source_mask))
        return x + self.last(self.hidden(self.norm3(x, *condition)))


def _read(queries: Tensor, keys: Tensor, values: Tensor, mask: Tensor | None) -> Tensor:
    """Attention of few queries (B, H, q, d_h) over keys and values (B, H, S, d_h) -> (B*q, d_model).

    ``mask`` broadcasts to (B, 1, q, S): numbers are added to the scores; a boolean mask is True
    where attended.
    """
    batch, heads, count, width = queries.shape
    if batch == 1 or queries.device.type != "cpu":
        read = F.scaled_dot_product_attention(queries, keys, values, attn_mask=mask)
    else:  # PyTorch's fused CPU kernel is slower for few queries
        flat = (queries / math.sqrt(width)).reshape(-1, count, width)
        scores = torch.bmm(flat, keys.flatten(0, 1).transpose(1, 2)).view(batch, heads, count, -1)
        if mask is not None:
            scores = scores.masked_fill_(~mask, float("-inf")) if mask.dtype == torch.bool else scores.add_(mask)
        weights = scores.softmax(-1).to(values.dtype)
        read = torch.bmm(weights.flatten(0, 1), values.flatten(0, 1)).view(batch, heads, count, width)
    return read.transpose(1, 2).reshape(-1, heads * width)


class Decoder(nn.Module):
    """A stack of decoder layers and a last normalisation.

    ``make_norm`` makes the normalisations within the layers; they are those of ``kind`` without it. Their
    ``condition`` is that of ``DecoderLayer``.
    """

    def __init__(
        self, layers: int, d_model: int, d_ff: int, heads: int, dropout: float, kind: Norm = "layer",
        make_norm: Callable[[], nn.Module] | None = None,
    ) -> None:  # fmt: skip
        super().__init__()
        inner = make_norm or partial(norm, kind, d_model)
        self.layers = nn.ModuleList(DecoderLayer(d_model, d_ff, heads, dropout, inner) for _ in range(layers))
        self.norm = norm(kind, d_model)

    def forward(self, x: Tensor, source: Tensor, source_mask: Tensor | None, *condition: Tensor) -> Tensor:
        """x (B, T, d_model), source (B, S, d_model), source_mask (B, S) -> (B, T, d_model)."""
        mask = None if source_mask is None else source_mask[:, None, None, :]
        for layer in self.layers:
            x = layer(x, source, mask, *condition)
        out: Tensor = self.norm(x)
        return out

    def attention(self, x: Tensor, source: Tensor, source_mask: Tensor | None, *condition: Tensor) -> Tensor:
        """The last layer's cross-attention, mean over its heads: arguments as for ``forward`` -> (B, T, S) float32."""
        mask = None if source_mask is None else source_mask[:, None, None, :]
        *before, last = self.layers
        assert isinstance(last, DecoderLayer)
        for layer in before:
            x = layer(x, source, mask, *condition)
        _, queries = last.self_attend_and_query(x, *condition)
        keys, _ = last.cross_attention.keys_values(source)
        return last.cross_attention.weights(queries.float(), keys.float(), mask).mean(dim=1)

    def cache(self, source: Tensor, hypotheses: int, max_length: int, *, branching: bool) -> DecoderCache:
        """A cache for ``hypotheses`` per study, with the projected keys and values of the source."""
        steps, pairs = [], []
        for layer in self.layers:
            assert isinstance(layer, DecoderLayer)
            steps.append(_Step(layer))
            keys, values = layer.cross_attention.keys_values(source)
            pairs.append((keys.contiguous(), values.contiguous()))
        keys = pairs[0][0]
        k = hypotheses if branching else 1
        groups, positions = len(source) * hypotheses // k, max_length * k
        past = keys.new_empty((len(pairs), 2, groups, keys.shape[1], positions, keys.shape[3]))
        seen = keys.new_full((groups, k, positions), float("-inf")) if branching else None
        return DecoderCache(steps, past, seen, pairs)

    def step(
        self, x: Tensor, cache: DecoderCache, position: int, source_mask: Tensor | None, *condition: Tensor
    ) -> Tensor:
        """One position of every hypothesis: x (N, d_model) -> (N, d_model); source_mask (B, S). No gradient."""
        mask = None if source_mask is None else source_mask[:, None, None, :]
        seen = cache.visible(position)
        start = position * (1 if cache.seen is None else cache.seen.shape[1])
        for step, past, source in zip(cache.steps, cache.past, cache.source, strict=True):
            x = step(x, past, seen, source, start, mask, *condition)
        out: Tensor = self.norm(x)
        return out
