"""The report model: backbone once, patch tokens and retrieved cases in one sequence, and a writer of words.

Shapes in one pass (B studies, V views, K cases, D backbone width, E embedding width):

    images (B, V, 1, S, S) -> patch tokens (B, V, 49, D), pooled (B, V, D)
    pooled -> study embedding (B, E) -> FAISS -> case vectors (B, K, E)
    patch tokens, projected case vectors -> sequence (B, V*49 + K, D) -> what the writer attends to
    encoding, words so far -> logits (B, T, vocabulary)

``ReportModel`` is what all writers share: everything up to the sequence. A writer is a subclass that turns the
sequence into words; ``build_model`` makes the one that the configuration names (``model.registry.WRITERS``).
The model keeps no state between calls, except for the tables of ``precompute_inference_tables``.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar, NamedTuple, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from model.config import ModelConfig
from model.network.backbone import Backbone
from model.network.cpu_kernels import Linear
from model.network.dual_encoder import FeatureNorm, dual_encoder
from model.registry import WRITERS
from model.text.labeler import FINDINGS
from model.types import View

MAX_PATCHES = 5000  # as published; 102 images in one sequence


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


@dataclass(frozen=True)
class Encoded:
    """What a writer attends to: ``source`` (B, S, width) and ``mask`` (B, S), True where a token is real."""

    source: Tensor
    mask: Tensor

    @property
    def masked(self) -> Tensor | None:
        """``mask``, or None if all tokens are real: attention is cheaper without a mask."""
        return None if bool(self.mask.all()) else self.mask

    def select(self, rows: Tensor) -> Self:
        """The encoding of some of the studies."""
        return replace(self, source=self.source[rows], mask=self.mask[rows])


class DecoderState(ABC):
    """A decode in progress, with N = B * hypotheses, ordered by study (``model.network.hypotheses``).

    Its steps compute no gradient.
    """

    @abstractmethod
    def step(self, ids: Tensor) -> Tensor:
        """Feed one token of each hypothesis: ids (N,) -> logits (N, vocabulary) of the next."""

    @abstractmethod
    def branch(self, parents: Tensor) -> None:
        """Continue hypothesis j of each study from its hypothesis ``parents[:, j]`` (B, k)."""

    @abstractmethod
    def keep(self, studies: Tensor) -> None:
        """Keep only some studies (B',), with all their hypotheses."""


class ReportModel(nn.Module, ABC):
    """What all writers share: backbone, retriever, classifier of findings, and the sequence of patch tokens and cases.

    A subclass makes its modules in ``build_writer`` and defines ``encode``, ``forward``, ``start`` and, where it
    attends to the tokens of the sequence, ``attention``. Cached steps must give the logits of ``forward``. One that
    learns the tags of its studies too sets ``uses_tags`` and defines ``auxiliary_losses``.
    """

    title: ClassVar[str] = ""  # of the method and its paper, for the model card
    uses_tags: ClassVar[bool] = False  # training sets ``ModelConfig.tags``

    @classmethod
    def least_weights(cls, config: ModelConfig) -> int:
        """A lower bound of the number of weights behind the backbone, without building the model."""
        if not config.retrieval_k:
            return 0
        return config.embedding_dim + config.text_layers * (4 * config.d_model**2 + 2 * config.d_model * config.d_ff)

    @classmethod
    def dimensions(cls, config: ModelConfig) -> str:
        """The dimensions of this writer in words, for the model card."""
        return f"d_model {config.d_model}"

    def __init__(self, config: ModelConfig, *, backbone: Backbone | None = None) -> None:
        super().__init__()
        self.config = config
        self.backbone = backbone if backbone is not None else Backbone(config.backbone)
        width = self.backbone.width
        self.feature_norm = FeatureNorm(width) if config.feature_norm else None
        self.finding_head = nn.Linear(width, len(FINDINGS)) if config.finding_head else None
        self.view_embedding = nn.Embedding(2, width) if config.view_embeddings else None
        if self.view_embedding is not None:
            nn.init.zeros_(self.view_embedding.weight)
        self.build_writer(config, width)
        if config.retrieval_k:
            self.case_projection = Linear(config.embedding_dim, width)
            self.study_head, self.text_tower = dual_encoder(config, width)
        self.register_load_state_dict_post_hook(_clear)  # type: ignore[no-untyped-call]

    # -- the writer ------------------------------------------------------------------------------------------------

    @abstractmethod
    def build_writer(self, config: ModelConfig, width: int) -> None:
        """Make the modules of the writer; ``width`` is D of the sequence."""

    @abstractmethod
    def encode(self, patches: Patches, cases: Tensor | None = None, case_mask: Tensor | None = None) -> Encoded:
        """Run everything before the first word; arguments as of ``sequence``."""

    @abstractmethod
    def forward(self, encoded: Encoded, ids: Tensor) -> Tensor:
        """Teacher-forced logits: ids (B, T), bos first -> (B, T, vocabulary)."""

    def attention(self, encoded: Encoded, ids: Tensor) -> Tensor | None:
        """Attention of each position to the sequence: arguments as of ``forward`` -> (B, T, S) float32, rows sum to 1.

        None for a writer without attention.
        """
        return None

    def auxiliary_losses(self, encoded: Encoded, tags: Tensor) -> dict[str, Tensor]:
        """Losses besides that of the words, by name, each summed over the studies: tags (B, tags), 1 where present."""
        return {}

    @abstractmethod
    def start(self, encoded: Encoded, hypotheses: int, *, branching: bool = False) -> DecoderState:
        """An empty decode of ``hypotheses`` per study; with ``branching`` they may continue from each other."""

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

    # -- serving ---------------------------------------------------------------------------------------------------

    def precompute_inference_tables(self) -> None:
        """Compute once what does not depend on the images, and enter eval mode.

        The tables are dropped when the model enters training mode or loads weights.
        """
        self.eval()

    def clear_inference_tables(self) -> None:
        """Drop the tables of ``precompute_inference_tables``."""

    def train(self, mode: bool = True) -> Self:
        """Also drops the tables of ``precompute_inference_tables``.

        Recurrent layers stay in training mode: cuDNN has no gradient in the other, which SCST uses, and they have no
        dropout.
        """
        self.clear_inference_tables()
        super().train(mode)
        for module in self.modules():
            if isinstance(module, nn.RNNBase):
                module.training = True
        return self


def build_model(config: ModelConfig, *, backbone: Backbone | None = None) -> ReportModel:
    """A new model with the writer that ``config`` names; raises ValueError if it cannot be imported."""
    return writer_class(config)(config, backbone=backbone)


def writer_class(config: ModelConfig) -> type[ReportModel]:
    """The writer that ``config`` names; raises ValueError if it cannot be imported."""
    writer: type[ReportModel] = WRITERS.get(config.writer)
    return writer


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
