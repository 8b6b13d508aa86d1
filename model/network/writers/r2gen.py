"""R2Gen: a Transformer whose decoder is driven by a relational memory of its words (Chen et al. 2020, EMNLP).

"Generating Radiology Reports via Memory-driven Transformer". Equations are those of the paper::

    sequence (B, S, D) -> d_model -> encoder -> source (B, S, d_model)                       (1, 2)
    words so far -> relational memory M_t, rows joined to m_t (B, T, slots * d_model)        (6 to 10)
    words -> decoder over the source, its norms scaled and shifted by m_t -> logits          (3, 11 to 15)

Where the published code (github.com/cuhksz-nlp/R2Gen, ``modules/encoder_decoder.py``) differs from the paper, this
follows the code: norms are in front of attention and feed-forward, each layer of the memory's MLP ends in a ReLU,
the memory is not empty at the start but the first rows of an identity matrix, and patch tokens have no positions.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn

from model.config import ModelConfig, Norm
from model.network.cpu_kernels import Dropout, Linear, PackedLinearGroup
from model.network.hypotheses import rows_of_parents, rows_of_studies
from model.network.norm import standardise
from model.network.report_model import DecoderState, Encoded, Patches, ReportModel
from model.network.transformer import Attention, Decoder, DecoderCache, Encoder, sinusoidal_positions

_CHANGE_BIAS = 0.1  # initial biases of the MLPs of a norm, as published


class RelationalMemory(nn.Module):
    """A matrix of slots that attends to itself and to the last word at each step: M_t (N, slots, d_model)."""

    def __init__(self, slots: int, d_model: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.slots, self.width = slots, d_model
        self.attention = Attention(d_model, heads, dropout)
        self.mlp = nn.Sequential(Linear(d_model, d_model), nn.ReLU(), Linear(d_model, d_model), nn.ReLU())
        self.gates_of_word = Linear(d_model, 2 * d_model)  # W^i, W^f
        self.gates_of_memory = Linear(d_model, 2 * d_model)  # U^i, U^f

    def start(self, words: Tensor) -> Tensor:
        """M_0 of N reports: (N, slots, d_model), for words (N, ..., d_model)."""
        identity = torch.eye(self.slots, self.width, device=words.device, dtype=words.dtype)
        return identity.expand(len(words), -1, -1)

    def forward(self, words: Tensor, memory: Tensor) -> tuple[Tensor, Tensor]:
        """Update M_t by embedded words one after another.

        words (N, T, d_model), memory (N, slots, d_model) -> m_t after each word, (N, T, slots * d_model), and the
        last M_t.
        """
        keys, values = self.attention.keys_values(words)  # (N, H, T, d_h)
        gates = self.gates_of_word(words)  # (N, T, 2 * d_model)
        states = []
        for t in range(words.shape[1]):
            word = slice(t, t + 1)
            memory = self._update(memory, keys[:, :, word], values[:, :, word], gates[:, word])
            states.append(memory.flatten(1))
        return torch.stack(states, dim=1), memory

    def _update(self, memory: Tensor, word_keys: Tensor, word_values: Tensor, word_gates: Tensor) -> Tensor:
        """M_(t-1) and projections of y_(t-1) -> M_t."""
        queries, keys, values = self.attention.qkv(memory)
        keys, values = torch.cat([keys, word_keys], dim=2), torch.cat([values, word_values], dim=2)
        new = memory + self.attention.attend(queries, keys, values, None)  # Z + M, eq. 6
        new = new + self.mlp(new)  # eq. 7
        write, keep = (word_gates + self.gates_of_memory(memory.tanh())).sigmoid().chunk(2, dim=-1)  # eq. 8, 9
        updated: Tensor = keep * memory + write * new.tanh()  # eq. 10
        return updated


class ConditionalNorm(nn.Module):
    """Memory-driven conditional layer normalisation (MCLN): weight and bias change with m_t."""

    def __init__(self, kind: Norm, d_model: int, slots: int) -> None:
        super().__init__()
        self.kind = kind
        self.weight = nn.Parameter(torch.ones(d_model))
        self.bias = nn.Parameter(torch.zeros(d_model))
        self.weight_hidden, self.bias_hidden = (Linear(slots * d_model, d_model) for _ in range(2))
        self.weight_change, self.bias_change = (Linear(d_model, d_model) for _ in range(2))
        for layer in (self.weight_hidden, self.bias_hidden, self.weight_change, self.bias_change):
            nn.init.constant_(layer.bias, _CHANGE_BIAS)

    def forward(self, x: Tensor, memory: Tensor) -> Tensor:
        """x (..., d_model), memory (..., slots * d_model) -> (..., d_model)."""
        weight_change = self.weight_change(self.weight_hidden.activated(memory, "relu"))  # eq. 11
        bias_change = self.bias_change(self.bias_hidden.activated(memory, "relu"))  # eq. 13
        return self._conditioned(x, weight_change, bias_change)

    def _conditioned(self, x: Tensor, weight_change: Tensor, bias_change: Tensor) -> Tensor:
        out: Tensor = (self.weight + weight_change) * standardise(self.kind, x) + (self.bias + bias_change)
        return out  # eq. 12, 14, 15

    def freeze(self) -> Callable[[Tensor, Tensor], Tensor]:
        """``forward`` for many calls without a gradient, with the current weights."""
        hidden = PackedLinearGroup().freeze([self.weight_hidden, self.bias_hidden], "relu")
        weight_change, bias_change = self.weight_change.freeze(), self.bias_change.freeze()

        def frozen(x: Tensor, memory: Tensor) -> Tensor:
            for_weight, for_bias = hidden(memory).chunk(2, dim=-1)
            return self._conditioned(x, weight_change(for_weight), bias_change(for_bias))

        return frozen


@dataclass
class R2GenState(DecoderState):
    """Cached keys and values of a decode, and M_t of each hypothesis. ``mask`` is ``Encoded.masked``."""

    model: R2Gen
    mask: Tensor | None
    cache: DecoderCache
    memory: Tensor
    to_words: Callable[[Tensor], Tensor]
    hypotheses: int
    position: int = 0

    def step(self, ids: Tensor) -> Tensor:
        """Feed one token of each hypothesis: ids (N,) -> logits (N, vocabulary) of the next."""
        words = self.model.words(ids.unsqueeze(1), self.position)  # (N, 1, d_model)
        state, self.memory = self.model.memory(words, self.memory)
        hidden = self.model.decoder.step(words.squeeze(1), self.cache, self.position, self.mask, state.squeeze(1))
        self.position += 1
        return self.to_words(hidden)

    def branch(self, parents: Tensor) -> None:
        """Continue hypothesis j of each study from its hypothesis ``parents[:, j]`` (B, k)."""
        self.cache.branch(parents)
        self.memory = self.memory[rows_of_parents(parents)]

    def keep(self, studies: Tensor) -> None:
        """Keep only some studies (B',), with all their hypotheses."""
        self.cache = self.cache.of(studies, self.position)
        self.memory = self.memory[rows_of_studies(studies, self.hypotheses)]
        self.mask = None if self.mask is None else self.mask[studies]


class R2Gen(ReportModel):
    """Writer ``r2gen``: a Transformer with a relational memory and memory-driven norms in the decoder."""

    word_positions: Tensor
    title = "R2Gen, a memory-driven Transformer (Chen et al. 2020)"

    @classmethod
    def least_weights(cls, config: ModelConfig) -> int:
        """A lower bound of the number of weights behind the backbone, without building the model."""
        c, square = config, config.d_model**2
        layers = (c.encoder_layers + c.decoder_layers) * (4 * square + 2 * c.d_model * c.d_ff)
        norms = c.decoder_layers * 6 * (c.relational_slots + 1) * square
        return super().least_weights(c) + layers + norms + 10 * square + 2 * c.vocab_size * c.d_model

    @classmethod
    def dimensions(cls, config: ModelConfig) -> str:
        """The dimensions of this writer in words, for the model card."""
        layers = f"{config.encoder_layers} + {config.decoder_layers} layers"
        return f"{super().dimensions(config)}, {layers}, {config.relational_slots} relational slots"

    def build_writer(self, config: ModelConfig, width: int) -> None:
        """Make projection, encoder, memory, decoder and embeddings."""
        c = config
        feature_dropout = c.dropout if c.feature_dropout is None else c.feature_dropout
        self.to_model = nn.Sequential(Linear(width, c.d_model), nn.ReLU(), Dropout(feature_dropout))
        self.encoder = Encoder(c.encoder_layers, c.d_model, c.d_ff, c.heads, c.dropout, c.norm)
        self.memory = RelationalMemory(c.relational_slots, c.d_model, c.relational_heads, c.dropout)
        make_norm = partial(ConditionalNorm, c.norm, c.d_model, c.relational_slots)
        self.decoder = Decoder(c.decoder_layers, c.d_model, c.d_ff, c.heads, c.dropout, c.norm, make_norm)
        self.word_embedding = nn.Embedding(c.vocab_size, c.d_model, padding_idx=0)
        self.to_words = Linear(c.d_model, c.vocab_size)
        self.drop = Dropout(c.dropout)
        self.register_buffer("word_positions", sinusoidal_positions(c.max_length, c.d_model), persistent=False)
        for module in (self.encoder, self.memory, self.decoder, self.word_embedding):  # as published
            for parameter in module.parameters():
                if parameter.dim() > 1:
                    nn.init.xavier_uniform_(parameter)

    def encode(self, patches: Patches, cases: Tensor | None = None, case_mask: Tensor | None = None) -> Encoded:
        """Project and run the encoder (eq. 2)."""
        sequence, mask = self.sequence(patches, cases, case_mask)
        source = self.encoder(self.to_model(sequence), None if bool(mask.all()) else mask)  # (B, S, d_model)
        return Encoded(source, mask)

    def forward(self, encoded: Encoded, ids: Tensor) -> Tensor:
        """Teacher-forced logits: ids (B, T), bos first -> (B, T, vocabulary). The memory takes T steps."""
        logits: Tensor = self.to_words(self.decoder(*self._decoder_inputs(encoded, ids)))  # eq. 3
        return logits

    def attention(self, encoded: Encoded, ids: Tensor) -> Tensor:
        """Cross-attention of each position: arguments as of ``forward`` -> (B, T, S) float32, rows sum to 1."""
        return self.decoder.attention(*self._decoder_inputs(encoded, ids))

    def _decoder_inputs(self, encoded: Encoded, ids: Tensor) -> tuple[Tensor, Tensor, Tensor | None, Tensor]:
        words = self.words(ids, 0)
        state, _ = self.memory(words, self.memory.start(words))  # (B, T, slots * d_model)
        return self.words(ids, 0), encoded.source, encoded.masked, state  # dropped out apart, as published

    def start(self, encoded: Encoded, hypotheses: int, *, branching: bool = False) -> R2GenState:
        """An empty cache for ``hypotheses`` per study; with ``branching`` they may continue from each other."""
        cache = self.decoder.cache(encoded.source, hypotheses, self.config.max_length, branching=branching)
        memory = self.memory.start(encoded.source).repeat_interleave(hypotheses, 0)
        return R2GenState(self, encoded.masked, cache, memory, self.to_words.freeze(), hypotheses)

    def words(self, ids: Tensor, position: int) -> Tensor:
        """Embedded words: ids (N, T), the first at ``position`` -> (N, T, d_model)."""
        positions = self.word_positions[position : position + ids.shape[1]]
        words: Tensor = self.drop(self.word_embedding(ids) * math.sqrt(self.config.d_model) + positions)
        return words
