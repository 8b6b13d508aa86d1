"""Cross-modal memory network: tokens of images and words read one memory (Chen et al. 2021, ACL, R2GenCMN).

sequence (B, S, D) -> d_model -> + memory response (eq. 5 to 11) -> encoder -> source (B, S, d_model)
words -> embedding + position -> + memory response -> decoder over the source -> logits
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from model.config import ModelConfig
from model.network.cpu_kernels import Dropout, Linear, weight_version_key
from model.network.memory import CrossModalMemory, MemoryBank
from model.network.report_model import MAX_PATCHES, DecoderState, Encoded, Patches, ReportModel
from model.network.transformer import Decoder, DecoderCache, Encoder, sinusoidal_positions

_FIRST_CASE = 512  # position of the first retrieved case
LARGEST_WORD_TABLE = 256 * 2**20  # bytes; 760 words at d_model 512 take 93 MiB


@dataclass(frozen=True)
class CmnEncoded(Encoded):
    """Encoder output (B, S, d_model) with the memory bank of the pass."""

    bank: MemoryBank


@dataclass
class CmnState(DecoderState):
    """Cached keys and values of a decode. ``mask`` is ``Encoded.masked``."""

    model: CrossModalMemoryNetwork
    bank: MemoryBank
    mask: Tensor | None
    cache: DecoderCache
    to_words: Callable[[Tensor], Tensor]
    position: int = 0

    def step(self, ids: Tensor) -> Tensor:
        """Feed one token of each hypothesis: ids (N,) -> logits (N, vocabulary) of the next."""
        x = self.model.words(ids.unsqueeze(1), self.position, self.bank).squeeze(1)  # (N, d_model)
        hidden = self.model.decoder.step(x, self.cache, self.position, self.mask)
        self.position += 1
        return self.to_words(hidden)

    def branch(self, parents: Tensor) -> None:
        """Continue hypothesis j of each study from its hypothesis ``parents[:, j]`` (B, k)."""
        self.cache.branch(parents)

    def keep(self, studies: Tensor) -> None:
        """Keep only some studies (B',), with all their hypotheses."""
        self.cache = self.cache.of(studies, self.position)
        self.mask = None if self.mask is None else self.mask[studies]


class CrossModalMemoryNetwork(ReportModel):
    """Writer ``cmn``: a Transformer whose tokens, of images and words, read one cross-modal memory."""

    patch_positions: Tensor
    word_positions: Tensor
    word_table: Tensor | None
    memory_bank_table: Tensor | None
    title = "cross-modal memory network (Chen et al. 2021)"

    @classmethod
    def least_weights(cls, config: ModelConfig) -> int:
        """A lower bound of the number of weights behind the backbone, without building the model."""
        c = config
        layers = (c.encoder_layers + c.decoder_layers) * (4 * c.d_model**2 + 2 * c.d_model * c.d_ff)
        words, memory = 2 * c.vocab_size * c.d_model, (c.memory_slots + c.d_model) * c.memory_dim
        return super().least_weights(c) + layers + words + memory

    @classmethod
    def dimensions(cls, config: ModelConfig) -> str:
        """The dimensions of this writer in words, for the model card."""
        layers = f"{config.encoder_layers} + {config.decoder_layers} layers"
        return f"{super().dimensions(config)}, {layers}, {config.memory_slots} memory slots"

    def build_writer(self, config: ModelConfig, width: int) -> None:
        """Make projection, memory, encoder, decoder and embeddings."""
        c = config
        feature_dropout = c.dropout if c.feature_dropout is None else c.feature_dropout
        self.to_model = nn.Sequential(Linear(width, c.d_model), nn.ReLU(), Dropout(feature_dropout))
        self.memory = CrossModalMemory(
            c.d_model, c.memory_dim, c.memory_slots, c.memory_heads, c.memory_top_k, c.memory_dropout
        )
        self.encoder = Encoder(c.encoder_layers, c.d_model, c.d_ff, c.heads, c.dropout, c.norm)
        self.decoder = Decoder(c.decoder_layers, c.d_model, c.d_ff, c.heads, c.dropout, c.norm)
        self.word_embedding = nn.Embedding(c.vocab_size, c.d_model, padding_idx=0)
        self.to_words = Linear(c.d_model, c.vocab_size)
        self.drop = Dropout(c.dropout)
        self.register_buffer("patch_positions", sinusoidal_positions(MAX_PATCHES, c.d_model), persistent=False)
        self.register_buffer("word_positions", sinusoidal_positions(c.max_length, c.d_model), persistent=False)
        self.register_buffer("word_table", None, persistent=False)
        self.register_buffer("memory_bank_table", None, persistent=False)
        self._tables_made_from: tuple[object, ...] = ()
        for module in (self.to_model, self.encoder, self.decoder, self.to_words):
            for parameter in module.parameters():
                if parameter.dim() > 1:
                    nn.init.xavier_uniform_(parameter)
        nn.init.normal_(self.word_embedding.weight, std=c.d_model**-0.5)

    def encode(self, patches: Patches, cases: Tensor | None = None, case_mask: Tensor | None = None) -> CmnEncoded:
        """Project, add memory responses and positions, run the encoder."""
        sequence, mask = self.sequence(patches, cases, case_mask)
        self._drop_stale_tables()
        prepared = None if torch.is_grad_enabled() else self.memory_bank_table
        bank = self.memory.bank() if prepared is None else MemoryBank(*prepared)
        x = self.to_model(sequence)  # (B, S, d_model)
        x = x + self.memory(x, bank)
        grid, views = patches.tokens.shape[2], patches.tokens.shape[1]
        patch_positions = torch.arange(views * grid, device=x.device)
        if self.config.patch_positions == "view":
            patch_positions = patch_positions % grid  # each view counts from 0
        case_positions = torch.arange(x.shape[1] - views * grid, device=x.device) + _FIRST_CASE  # by rank
        positions = torch.cat([patch_positions, case_positions])
        x = self.drop(x + self.patch_positions[positions])
        return CmnEncoded(self.encoder(x, None if bool(mask.all()) else mask), mask, bank)

    def forward(self, encoded: Encoded, ids: Tensor) -> Tensor:
        """Teacher-forced logits: ids (B, T), bos first -> (B, T, vocabulary)."""
        x = self.words(ids, 0, _bank_of(encoded))
        logits: Tensor = self.to_words(self.decoder(x, encoded.source, encoded.masked))
        return logits

    def attention(self, encoded: Encoded, ids: Tensor) -> Tensor:
        """Cross-attention of each position: arguments as of ``forward`` -> (B, T, S) float32, rows sum to 1."""
        return self.decoder.attention(self.words(ids, 0, _bank_of(encoded)), encoded.source, encoded.masked)

    def start(self, encoded: Encoded, hypotheses: int, *, branching: bool = False) -> CmnState:
        """An empty cache for ``hypotheses`` per study; with ``branching`` they may continue from each other."""
        self._drop_stale_tables()
        cache = self.decoder.cache(encoded.source, hypotheses, self.config.max_length, branching=branching)
        return CmnState(self, _bank_of(encoded), encoded.masked, cache, self.to_words.freeze())

    def words(self, ids: Tensor, position: int, bank: MemoryBank) -> Tensor:
        """Input of the decoder: ids (N, T), the first at ``position`` -> (N, T, d_model) with memory responses."""
        positions = slice(position, position + ids.shape[1])
        if self.word_table is not None and not torch.is_grad_enabled():
            rows = torch.arange(position, positions.stop, device=ids.device)
            return self.word_table[rows, ids]
        x = self.drop(self.word_embedding(ids) * math.sqrt(self.config.d_model) + self.word_positions[positions])
        words: Tensor = x + self.memory(x, bank)
        return words

    @torch.inference_mode()
    def precompute_inference_tables(self) -> None:
        """Compute keys and values of the memory, and each word at each position with its memory response.

        Decoding steps then do not read the memory. The word table (T, vocabulary, d_model) is not
        made if it would exceed ``LARGEST_WORD_TABLE``. Both tables are dropped when the model
        enters training mode or loads weights, and at the next call after the memory or the word
        embeddings changed or moved (``weight_version_key``).
        """
        self.eval()
        length, vocabulary, width = self.config.max_length, self.config.vocab_size, self.config.d_model
        bank = self.memory.bank()
        self.memory_bank_table = torch.stack(bank)
        self._tables_made_from = self._tables_key()
        if 4 * length * vocabulary * width > LARGEST_WORD_TABLE:
            return
        ids = torch.arange(vocabulary, device=self.word_positions.device).unsqueeze(1)
        table = self.word_positions.new_empty(length, vocabulary, width)
        for position in range(length):
            table[position] = self.words(ids, position, bank)[:, 0]
        self.word_table = table

    def _tables_key(self) -> tuple[object, ...]:
        return weight_version_key((*self.memory.parameters(), self.word_embedding.weight))

    def _drop_stale_tables(self) -> None:
        if self.memory_bank_table is not None and self._tables_made_from != self._tables_key():
            self.clear_inference_tables()

    def clear_inference_tables(self) -> None:
        """Drop the tables of ``precompute_inference_tables``."""
        self.word_table = self.memory_bank_table = None


def _bank_of(encoded: Encoded) -> MemoryBank:
    assert isinstance(encoded, CmnEncoded)
    return encoded.bank
