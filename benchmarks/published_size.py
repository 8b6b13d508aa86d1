"""A model of the published size with the same random weights in both implementations."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from model.network.report_model import Patches, ReportModel
from model.text.tokenizer import UNK, Tokenizer
from tests.support.plain_cmn import PlainCMN, published_state
from training.import_r2gencmn import PUBLISHED_DECODING, Published, bundle_tokenizer, import_model

VIEWS, GRID, WIDTH = 2, 49, 2048  # 98 patch tokens of ResNet-101
VOCABULARY = 760  # words of the published IU X-Ray vocabulary
LENGTH, HEADS, TOP_K = 60, 8, 32
DECODING = PUBLISHED_DECODING.model_copy(update={"trigram_penalty": 0.0})  # as the fixtures were made


class _NoBackbone(nn.Module):
    """Replaces ResNet-101: features are drawn, no image is read."""

    width = WIDTH


@dataclass(frozen=True)
class Pair:
    """Both implementations with the same weights. Neither writes an end: each report has 60 words."""

    plain: PlainCMN
    ours: ReportModel
    tokenizer: Tokenizer
    device: torch.device

    def published_ids(self, ids: Tensor) -> Tensor:
        """This model's ids (B, T) as published ids."""
        words = sorted([UNK, *self.tokenizer.tokens[4:]])
        numbers = {word: number for number, word in enumerate(words, 1)}
        table = torch.tensor([numbers.get(token, 0) for token in self.tokenizer.tokens], device=ids.device)
        return table[ids]


def pair(device: torch.device, *, slots: int = 2048, dropout: bool = False, length: int = LENGTH) -> Pair:
    """Build both; ``dropout`` as the published model trains, 0.1 and 0.5 after the embedded features."""
    state = published_state(words=VOCABULARY, features=WIDTH, slots=slots)
    state["encoder_decoder.logit.bias"][0] = -1e4  # the end
    state = {key: value.to(device) for key, value in state.items()}
    words = tuple(sorted([UNK, *(f"w{number:04}" for number in range(VOCABULARY - 1))]))
    ours = import_model(state, words, Published(HEADS, TOP_K, length), backbone=_NoBackbone())
    ours.requires_grad_(False)
    plain = PlainCMN(
        state, heads=HEADS, top_k=TOP_K, max_length=length, dropout=0.1 if dropout else 0.0,
        feature_dropout=0.5 if dropout else 0.0,
    )  # fmt: skip
    return Pair(plain, ours.to(device), bundle_tokenizer(words), device)


def features(batch: int, device: torch.device, seed: int = 1) -> Tensor:
    """Patch features of ``batch`` studies, (B, 98, 2048), not negative, as those of a ResNet."""
    drawn = torch.randn(batch, VIEWS * GRID, WIDTH, generator=torch.Generator().manual_seed(seed))
    return drawn.relu().to(device)


def patches(drawn: Tensor) -> Patches:
    """Drawn features as the output of a backbone."""
    batch, device = len(drawn), drawn.device
    views = torch.tensor([[0, 1]] * batch, device=device)
    tokens = drawn.view(batch, VIEWS, GRID, WIDTH)
    return Patches(tokens, tokens.mean(2), views, torch.ones_like(views, dtype=torch.bool))


def draw_ids(batch: int, device: torch.device) -> Tensor:
    """Published ids of reports of 59 words, (B, 60), the first 0."""
    ids = torch.randint(1, VOCABULARY + 1, (batch, LENGTH), generator=torch.Generator().manual_seed(2))
    ids[:, 0] = 0
    return ids.to(device)
