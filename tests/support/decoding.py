"""Untrained models whose reports end at many lengths, and studies for them."""

from __future__ import annotations

from functools import cache

import torch
from torch import nn

from model.config import DecodingConfig
from model.decoding.search import Constraints, Generated
from model.network.report_model import Encoded, Patches, ReportModel, build_model
from model.network.writers.cmn import CrossModalMemoryNetwork
from tests.support.tiny import tiny_config, tiny_tokenizer

TOKENIZER = tiny_tokenizer()
BOS, EOS = TOKENIZER.bos_id, TOKENIZER.eos_id
WIDTH, LIMIT, STUDIES = 24, 24, 10
MODELS = ((2, 2.0), (5, 2.0), (7, 3.0))  # seed and bias of the end token: reports end early, late and not at all
PENALTY = 2 * 0.693


class Features(nn.Module):
    """Replaces a backbone; the tests start from features."""

    width = WIDTH


@cache
def model_of(seed: int, ends: float, norm: str = "layer", writer: str = "cmn") -> ReportModel:
    """An untrained model whose reports depend on the images and end at many lengths; tests must not change it."""
    torch.manual_seed(seed)
    config = tiny_config(len(TOKENIZER), retrieval_k=0, max_length=LIMIT, feature_norm=False, norm=norm, writer=writer)
    model = build_model(config, backbone=Features()).eval().requires_grad_(False)  # type: ignore[arg-type]
    model.to_words.weight.mul_(2)
    model.to_words.bias[EOS] += ends
    if isinstance(model, CrossModalMemoryNetwork):
        model.memory.matrix.normal_()
        for layer in model.decoder.layers:
            layer.cross_attention.out.weight.mul_(4)
    return model


@torch.no_grad()
def encoded_by(model: ReportModel, studies: int = STUDIES) -> Encoded:
    """Random studies, the last one without its second view."""
    tokens = 2 * torch.randn(studies, 2, 4, WIDTH, generator=torch.Generator().manual_seed(7))
    mask = torch.ones(studies, 2, dtype=torch.bool)
    mask[-1, 1] = False
    views = torch.tensor([[0, 1]]).expand(studies, 2)
    return model.encode(Patches(tokens, tokens.mean(2), views, mask))


def constraints_of(**changes: object) -> Constraints:
    return Constraints.of(DecodingConfig.model_validate({"min_length": 3, **changes}), TOKENIZER)


def lengths(result: Generated) -> list[int]:
    return (result.ids != 0).sum(1).tolist()
