"""The report model: backbone once, patch tokens and retrieved cases in one sequence, cross-modal memory, decoder.

Shapes in one pass (B studies, V views, K cases, D backbone width, E embedding width):

    images (B, V, 1, S, S) -> patch tokens (B, V, 49, D), pooled (B, V, D)
    pooled -> study embedding (B, E) -> FAISS -> case vectors (B, K, E)
    patch tokens, projected case vectors -> sequence (B, V*49 + K, D) -> d_model -> + memory response -> encoder
    encoder output (B, V*49 + K, d_model) -> decoder -> logits (B, T, vocabulary)

The model keeps no state between calls, except for the input-independent tables of
``precompute_inference_tables``.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from model.config import ModelConfig
from model.network.backbone import Backbone
from model.network.cpu_kernels import Dropout, Linear, weight_version_key
from model.network.dual_encoder import FeatureNorm, dual_encoder
from model.network.memory import CrossModalMemory, MemoryBank
from model.network.transformer import Decoder, DecoderCache, Encoder, sinusoidal_positions
from model.text.labeler import FINDINGS
from model.types import View

MAX_PATCHES = 5000  # as published; 102 images in one sequence
_FIRST_CASE = 512  # position of the first retrieved case
LARGEST_WORD_TABLE = 256 * 2**20  # bytes; 760 words at d_model 512 take 93 MiB


class Patches(NamedTuple):
    """Backbone output of a batch: ``tokens`` (B, V, P, D), ``pooled`` (B, V, D), ``views`` and ``view_mask`` (B, V)."""

    tokens: Tensor
    pooled: Tensor
    views: Tensor
    view_mask: Tensor

    def with_views(self, views: Sequence[Sequence[View]]) -> Patches:
        """The same images with other views, given per study and image, reordered with the frontals first."""
        rows = self.views.clone()
        indices = torch.arange(rows.shape[1]).repeat(len(views), 1)  # (B, V)
        for study, read in enumerate(views):
            order = sorted(range(len(read)), key=lambda index: read[index].row)
            indices[study, : len(order)] = torch.tensor(order)
            rows[study, : len(order)] = torch.tensor([read[index].row for index in order])
        each, indices = torch.arange(len(views)).unsqueeze(1).to(rows.device), indices.to(rows.device)
        return Patches(self.tokens[each, indices], self.pooled[each, indices], rows, self.view_mask)


class Encoded(NamedTuple):
    """Input of the decoder: ``source`` (B, S, d_model), ``mask`` (B, S) True where real, and the memory bank."""

    source: Tensor
    mask: Tensor
    bank: MemoryBank

    @property
    def masked(self) -> Tensor | None:
        """``mask``, or None if all tokens are real: attention is cheaper without a mask."""
        return None if bool(self.mask.all()) else self.mask

    def select(self, rows: Tensor) -> Encoded:
        """The encoding of some of the studies."""
        return Encoded(self.source[rows], self.mask[rows], self.bank)


@dataclass
class DecoderState:
    """A decode in progress, with N = B * hypotheses, ordered by study. ``mask`` is ``Encoded.masked``."""

    bank: MemoryBank
    mask: Tensor | None
    cache: DecoderCache
    to_words: Callable[[Tensor], Tensor]
    position: int = 0

    def branch(self, parents: Tensor) -> None:
        """Continue hypothesis j of each study from its hypothesis ``parents[:, j]`` (B, k)."""
        self.cache.branch(parents)

    def keep(self, studies: Tensor, hypotheses: Tensor) -> None:
        """Keep only some studies (B',) and their hypotheses (N',)."""
        groups = hypotheses if self.cache.seen is None else studies
        self.cache = self.cache.of(groups, studies, self.position)
        self.mask = None if self.mask is None else self.mask[studies]


class ReportModel(nn.Module):
    """Cross-modal memory network with retrieved cases, built from a ``ModelConfig``."""

    patch_positions: Tensor
    word_positions: Tensor
    word_table: Tensor | None
    memory_bank_table: Tensor | None

    def __init__(self, config: ModelConfig, *, backbone: Backbone | None = None) -> None:
        super().__init__()
        self.config = config
        c = config
        self.backbone = backbone if backbone is not None else Backbone(c.backbone)
        width = self.backbone.width
        self.feature_norm = FeatureNorm(width) if c.feature_norm else None
        self.finding_head = nn.Linear(width, len(FINDINGS)) if c.finding_head else None
        self.view_embedding = nn.Embedding(2, width) if c.view_embeddings else None
        if self.view_embedding is not None:
            nn.init.zeros_(self.view_embedding.weight)
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
        if c.retrieval_k:
            self.case_projection = Linear(c.embedding_dim, width)
            self.study_head, self.text_tower = dual_encoder(c, width)
        self.register_load_state_dict_post_hook(_clear)  # type: ignore[no-untyped-call]

    # -- encoding --------------------------------------------------------------------------------------------------

    def encode_images(self, images: Tensor, views: Tensor, view_mask: Tensor) -> Patches:
        """Run the backbone once on every view.

        Batch statistics of a backbone in training mode are those of one position at a time (all
        first images, then all second ones), as published R2Gen code computes them.

        Args:
            images: (B, V, 1, S, S) float in 0..1; missing views are ignored.
            views: (B, V) int64, 0 frontal, 1 lateral.
            view_mask: (B, V) bool, False where a view is missing; each study has at least one view.
        """
        batch, count = view_mask.shape
        real = view_mask.flatten()
        if self.backbone.training:
            parts = [self.backbone(images[kept, v]) for v, kept in enumerate(view_mask.t()) if bool(kept.any())]
            by_view = torch.arange(batch * count, device=real.device).view(batch, count).t()[view_mask.t()]
            order = by_view.argsort()
            tokens, pooled = (torch.cat(part)[order] for part in zip(*parts, strict=True))
        else:
            tokens, pooled = self.backbone(images.flatten(0, 1)[real])
        if not bool(real.all()):
            tokens, pooled = _spread(tokens, real), _spread(pooled, real)
        tokens, pooled = (part.reshape(batch, count, *part.shape[1:]) for part in (tokens, pooled))
        return Patches(tokens, pooled, views, view_mask)

    def embed_study(self, patches: Patches) -> Tensor:
        """Study embedding for the index: (B, E), L2-normalised."""
        embedding: Tensor = self.study_head(patches.pooled, patches.views, patches.view_mask)
        return embedding

    def findings(self, patches: Patches) -> Tensor | None:
        """Probabilities of the labeler's 14 findings by the finding classifier, mean logit of the views: (B, 14).

        None for a model without the classifier.
        """
        if self.finding_head is None:
            return None
        logits = self.finding_head(patches.pooled).masked_fill(~patches.view_mask.unsqueeze(2), 0.0)  # (B, V, 14)
        probabilities: Tensor = (logits.sum(1) / patches.view_mask.sum(1, keepdim=True)).sigmoid()
        return probabilities

    def sequence(self, patches: Patches, cases: Tensor | None, case_mask: Tensor | None) -> tuple[Tensor, Tensor]:
        """Patch tokens and projected cases, concatenated along the sequence.

        Args:
            patches: the backbone's output.
            cases: (B, K, E) report embeddings of the retrieved cases, or None.
            case_mask: (B, K) bool, False for padding if fewer than K cases were found; None: all
                are real.

        Returns:
            (B, V*P + K, D) and its mask (B, V*P + K), True where a token is real.
        """
        tokens = patches.tokens
        if self.feature_norm is not None:
            tokens = self.feature_norm.of_views(tokens, patches.view_mask)
        if self.view_embedding is not None:
            tokens = tokens + self.view_embedding(patches.views).unsqueeze(2)  # (B, V, P, D)
        batch, count, grid, _ = tokens.shape
        sequence = tokens.flatten(1, 2)  # (B, V*P, D)
        mask = patches.view_mask.unsqueeze(2).expand(batch, count, grid).flatten(1, 2)
        if cases is not None:
            found = (
                torch.ones(cases.shape[:2], dtype=torch.bool, device=mask.device) if case_mask is None else case_mask
            )
            projected = self.case_projection(cases.to(sequence.dtype))
            if self.config.case_norm:
                projected = F.layer_norm(projected, projected.shape[-1:])  # to the length of a standardised patch token
            sequence = torch.cat([sequence, projected], dim=1)  # (B, V*P + K, D)
            mask = torch.cat([mask, found], dim=1)
        return sequence, mask

    def encode(self, patches: Patches, cases: Tensor | None = None, case_mask: Tensor | None = None) -> Encoded:
        """Run everything before the decoder."""
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
        return Encoded(self.encoder(x, None if bool(mask.all()) else mask), mask, bank)

    # -- decoding -------------------------------------------------------------------------------------------------

    def forward(self, encoded: Encoded, ids: Tensor) -> Tensor:
        """Teacher-forced logits: ids (B, T), bos first -> (B, T, vocabulary)."""
        x = self._words(ids, 0, encoded.bank)
        logits: Tensor = self.to_words(self.decoder(x, encoded.source, encoded.masked))
        return logits

    def attention(self, encoded: Encoded, ids: Tensor) -> Tensor:
        """Cross-attention of each position: arguments as of ``forward`` -> (B, T, S) float32, rows sum to 1."""
        return self.decoder.attention(self._words(ids, 0, encoded.bank), encoded.source, encoded.masked)

    def start(self, encoded: Encoded, hypotheses: int, *, branching: bool = False) -> DecoderState:
        """An empty cache for ``hypotheses`` per study; with ``branching`` they may continue from each other."""
        self._drop_stale_tables()
        cache = self.decoder.cache(encoded.source, hypotheses, self.config.max_length, branching=branching)
        return DecoderState(encoded.bank, encoded.masked, cache, self.to_words.freeze())

    def step(self, state: DecoderState, ids: Tensor) -> Tensor:
        """Feed one token of each hypothesis: ids (N,) -> logits (N, vocabulary) of the next, without a gradient."""
        x = self._words(ids.unsqueeze(1), state.position, state.bank).squeeze(1)  # (N, d_model)
        hidden = self.decoder.step(x, state.cache, state.position, state.mask)
        state.position += 1
        return state.to_words(hidden)

    def _words(self, ids: Tensor, position: int, bank: MemoryBank) -> Tensor:
        positions = slice(position, position + ids.shape[1])
        if self.word_table is not None and not torch.is_grad_enabled():
            rows = torch.arange(position, positions.stop, device=ids.device)
            return self.word_table[rows, ids]
        x = self.drop(self.word_embedding(ids) * math.sqrt(self.config.d_model) + self.word_positions[positions])
        words: Tensor = x + self.memory(x, bank)
        return words

    # -- serving ---------------------------------------------------------------------------------------------------

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
            table[position] = self._words(ids, position, bank)[:, 0]
        self.word_table = table

    def _tables_key(self) -> tuple[object, ...]:
        return weight_version_key((*self.memory.parameters(), self.word_embedding.weight))

    def _drop_stale_tables(self) -> None:
        if self.memory_bank_table is not None and self._tables_made_from != self._tables_key():
            self.clear_inference_tables()

    def clear_inference_tables(self) -> None:
        """Drop the tables of ``precompute_inference_tables``."""
        self.word_table = self.memory_bank_table = None

    def train(self, mode: bool = True) -> Self:
        """Also drops the tables of ``precompute_inference_tables``."""
        self.clear_inference_tables()
        return super().train(mode)


def inputs_of(ids: Tensor, bos_id: int) -> Tensor:
    """Teacher-forcing inputs of reports: ids (..., T) without bos -> (..., T), bos first."""
    return torch.cat([torch.full_like(ids[..., :1], bos_id), ids[..., :-1]], dim=-1)


def _clear(model: nn.Module, _: object) -> None:
    assert isinstance(model, ReportModel)
    model.clear_inference_tables()


def _spread(values: Tensor, real: Tensor) -> Tensor:
    """Rows of real views, at their indices among all views; zeros elsewhere."""
    spread = values.new_zeros((real.shape[0], *values.shape[1:]))
    spread[real] = values
    return spread
