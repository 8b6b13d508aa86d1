"""Cross-attention of the decoder, by one teacher-forced pass over a finished report.

The weights are those of the last layer, whose output becomes the word, mean over the heads. They
are over encoded tokens, each of which has attended to all others in the encoder: a weight shows
which token was read, not which pixels decided the word. Decoding does not store weights; the extra
pass runs on request only.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from model.network.report_model import Encoded, Patches, ReportModel, inputs_of
from model.types import Grid, SentenceAttention


@dataclass(frozen=True)
class WordAttention:
    """Attention of every word of a batch of reports.

    Attributes:
        weights: (B, T, V*P + K) float32 over patch tokens, view by view, and cases; 0 where there
            is no token.
        patches: V * P.
        grid: rows, and columns, of a view's patches: P = grid**2.
        cases: (B,) number of cases of each study.
    """

    weights: Tensor
    patches: int
    grid: int
    cases: tuple[int, ...]

    def of_sentence(self, study: int, start: int, end: int, views: Sequence[str]) -> SentenceAttention:
        """Mean attention of the words ``start`` (included) to ``end`` (excluded) of a study.

        ``views`` is the order of the study's images.
        """
        weights = self.weights[study, start:end].mean(dim=0)
        cases = weights[self.patches : self.patches + self.cases[study]]
        return SentenceAttention(grids_by_view(weights, self.grid, views), tuple(cases.tolist()))


def image_names(views: Sequence[str]) -> list[str]:
    """A name for each image of a study: a second image of the same view is ``frontal-2``, and so on."""
    before = [list(views[:position]).count(view) for position, view in enumerate(views)]
    return [f"{view}-{count + 1}" if count else str(view) for view, count in zip(views, before, strict=True)]


def grids_by_view(values: Tensor, grid: int, views: Sequence[str]) -> dict[str, Grid]:
    """Values of patches, view by view, as a grid for each image: (>= V*P,), V views -> ``image_names`` -> rows."""
    patches: dict[str, Grid] = {}
    for position, name in enumerate(image_names(views)):
        rows = values[position * grid**2 : (position + 1) * grid**2].view(grid, grid)
        patches[name] = tuple(tuple(row) for row in rows.tolist())
    return patches


@torch.no_grad()
def attention_of(
    model: ReportModel, encoded: Encoded, patches: Patches, ids: Tensor, bos_id: int
) -> WordAttention | None:
    """Attention of each word of finished reports ``ids`` (B, T), without bos; None for a writer without attention.

    Args:
        model: in eval mode.
        encoded: B studies.
        patches: the input of ``encode`` for these studies.
        ids: as generated.
        bos_id: of the tokenizer.
    """
    views, size = patches.tokens.shape[1:3]
    attention = model.attention(encoded, inputs_of(ids, bos_id))
    if attention is None:
        return None
    weights = attention.cpu()
    tokens = weights[..., : views * size].reshape(*weights.shape[:2], views, size)
    weights[..., : views * size] = model.backbone.onto_patches(tokens).flatten(-2)
    cases = encoded.mask[:, views * size :].sum(dim=1)
    return WordAttention(weights, views * size, math.isqrt(size), tuple(cases.tolist()))
