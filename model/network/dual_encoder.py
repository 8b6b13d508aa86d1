"""Two towers into one space: studies and reports as unit vectors whose inner product is their similarity.

``StudyHead`` maps a study's pooled image features, ``TextTower`` a report's tokens. They are
trained together by a symmetric contrastive loss (``training/stages/retriever.py``); the index holds
the vectors of the text tower.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from model.config import ModelConfig
from model.network.cpu_kernels import Dropout, Linear
from model.network.transformer import Encoder, sinusoidal_positions
from model.text.tokenizer import Tokenizer

_EMBEDDED_AT_ONCE = 256


class FeatureNorm(nn.BatchNorm1d):
    """Standardise each channel of backbone features over the real views of a batch; running statistics in eval mode.

    Differences between patients are small in the raw features; standardised channels emphasise
    them.

    ``total``, if set, sums a tensor with its gradient over the processes of one batch, for
    statistics of the whole batch.
    """

    def __init__(self, width: int) -> None:
        super().__init__(width, affine=False)
        self.total: Callable[[Tensor], Tensor] | None = None

    def of_views(self, features: Tensor, view_mask: Tensor) -> Tensor:
        """(B, V, ..., D) features with mask (B, V); missing views become 0 and are ignored."""
        normed = torch.zeros_like(features)
        real = features[view_mask]  # (N, ..., D)
        rows = real.reshape(-1, real.shape[-1])
        values = self._over_all(rows, self.total) if self.training and self.total is not None else self(rows)
        normed[view_mask] = values.reshape(real.shape).to(features.dtype)
        return normed

    def _over_all(self, rows: Tensor, total: Callable[[Tensor], Tensor]) -> Tensor:
        """(N, D) rows standardised over the rows of all processes."""
        assert self.running_mean is not None
        assert self.running_var is not None
        assert self.momentum is not None
        rows = rows.float()
        count = total(rows.new_tensor([float(len(rows))]))
        mean = total(rows.sum(0)) / count
        centred = rows - mean
        variance = total(centred.square().sum(0)) / count
        with torch.no_grad():
            self.running_mean.lerp_(mean, self.momentum)
            self.running_var.lerp_(variance * count / (count - 1).clamp(min=1), self.momentum)
            if self.num_batches_tracked is not None:
                self.num_batches_tracked += 1
        return centred * (variance + self.eps).rsqrt()


class StudyHead(nn.Module):
    """Pooled features of a study's views to one unit vector: (B, V, D) -> (B, E)."""

    def __init__(self, width: int, embedding_dim: int, dropout: float) -> None:
        super().__init__()
        self.view = nn.Embedding(2, 2 * embedding_dim)
        self.norm = FeatureNorm(width)
        self.hidden = Linear(width, 2 * embedding_dim)
        self.drop = Dropout(dropout)
        self.out = Linear(2 * embedding_dim, embedding_dim)

    def forward(self, pooled: Tensor, views: Tensor, view_mask: Tensor) -> Tensor:
        """Embed studies.

        Args:
            pooled: (B, V, D) pooled backbone features.
            views: (B, V) int64, 0 frontal, 1 lateral.
            view_mask: (B, V) bool, False where a view is missing.

        Returns:
            (B, E), L2-normalised.
        """
        hidden = F.gelu(self.hidden(self.norm.of_views(pooled, view_mask)) + self.view(views))  # (B, V, 2E)
        weight = view_mask.to(hidden.dtype).unsqueeze(-1)
        mean = (hidden * weight).sum(1) / weight.sum(1).clamp(min=1)
        return F.normalize(self.out(self.drop(mean)).float(), dim=-1)


class TextTower(nn.Module):
    """Report tokens to one unit vector: (B, T) ids -> (B, E). Mean-pooled Transformer encoder."""

    def __init__(
        self, vocab_size: int, d_model: int, d_ff: int, heads: int, layers: int, embedding_dim: int, dropout: float,
        max_length: int,
    ) -> None:  # fmt: skip
        super().__init__()
        self.embed = nn.Embedding(vocab_size, d_model, padding_idx=0)
        nn.init.normal_(self.embed.weight, std=d_model**-0.5)
        self.register_buffer("positions", sinusoidal_positions(max_length, d_model), persistent=False)
        self.drop = Dropout(dropout)
        self.encoder = Encoder(layers, d_model, d_ff, heads, dropout)
        self.out = Linear(d_model, embedding_dim)
        self.scale = d_model**0.5

    positions: Tensor

    def forward(self, ids: Tensor) -> Tensor:
        """Embed reports; ids (B, T) padded with 0 -> (B, E), L2-normalised."""
        mask = ids != 0
        x = self.drop(self.embed(ids) * self.scale + self.positions[: ids.shape[1]])
        hidden = self.encoder(x, mask)
        weight = mask.to(hidden.dtype).unsqueeze(-1)
        pooled = (hidden * weight).sum(1) / weight.sum(1).clamp(min=1)
        return F.normalize(self.out(pooled).float(), dim=-1)


def dual_encoder(config: ModelConfig, width: int) -> tuple[StudyHead, TextTower]:
    """The untrained encoders of a model with retrieval; ``width`` is D of its backbone."""
    c = config
    head = StudyHead(width, c.embedding_dim, c.dropout)
    return head, TextTower(
        c.vocab_size, c.d_model, c.d_ff, c.heads, c.text_layers, c.embedding_dim, c.dropout, c.max_length
    )


@torch.inference_mode()
def embed_reports(tower: TextTower, tokenizer: Tokenizer, reports: Sequence[str]) -> npt.NDArray[np.float32]:
    """Embed report texts for the index: (N, E) float32, L2-normalised; each cut to the tower's longest sequence.

    Args:
        tower: in eval mode, on any device.
        tokenizer: of the same model.
        reports: N texts.
    """
    longest, device = tower.positions.shape[0], tower.positions.device
    rows = [np.zeros((0, tower.out.out_features), np.float32)]
    for start in range(0, len(reports), _EMBEDDED_AT_ONCE):
        ids = pad_ids([tokenizer.encode(report, longest) for report in reports[start : start + _EMBEDDED_AT_ONCE]])
        rows.append(tower(ids.to(device)).float().cpu().numpy())
    return np.concatenate(rows)


def pad_ids(sequences: list[list[int]], length: int | None = None) -> Tensor:
    """Ragged id lists to (B, T) int64, padded with 0 to the longest or to ``length``."""
    width = length or max((len(ids) for ids in sequences), default=1)
    padded = torch.zeros(len(sequences), width, dtype=torch.int64)
    for row, ids in enumerate(sequences):
        padded[row, : len(ids)] = torch.tensor(ids[:width], dtype=torch.int64)
    return padded
