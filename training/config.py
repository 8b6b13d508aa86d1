"""Configuration of a training run: frozen, validated, stored beside its checkpoints, compared on ``--resume``."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import torch
from pydantic import Field

from model.config import Count, DecodingConfig, Frozen, Share

Rate = Annotated[float, Field(ge=0, le=1)]
Epochs = Annotated[int, Field(ge=0)]


class PretrainConfig(Frozen):
    """Backbone on finding targets. ``epochs_by_size``: (pixels, epochs) in order; ``soft_weight``: of soft scores."""

    epochs_by_size: tuple[tuple[Count, Epochs], ...] = ((112, 6), (224, 1))
    batch_size: Count = 32
    lr: Rate = 3e-4
    weight_decay: Rate = 1e-4
    ema: Share = 0.995
    soft_weight: Annotated[float, Field(ge=0)] = 1.0


class RetrieverConfig(Frozen):
    """Image head and text tower, contrastive. ``label_weight``: share of the target spread over reports that name the
    same findings; ``dropout``: of the study head."""

    epochs: Epochs = 14
    batch_size: Count = 256
    lr: Rate = 1e-3
    weight_decay: Rate = 1e-2
    temperature: Annotated[float, Field(gt=0, le=1)] = 0.07
    label_weight: Share = 0.6
    dropout: Share = 0.3


class CEConfig(Frozen):
    """Cross-entropy. ``visual_lr`` 0 freezes the backbone (its features are cached); ``view_dropout``: share of
    training studies that lose a view; ``case_dropout``: share that lose their retrieved cases."""

    epochs: Epochs = 30
    batch_size: Count = 16
    visual_lr: Rate = 2.5e-5
    transformer_lr: Rate = 5e-4
    weight_decay: Rate = 5e-5
    label_smoothing: Share = 0.0
    view_dropout: Share = 0.15
    case_dropout: Share = 0.1
    contrastive_weight: Annotated[float, Field(ge=0)] = 0.1
    patience: Annotated[int, Field(ge=1)] | None = 10
    validate_limit: Count | None = None


class ScstConfig(Frozen):
    """Self-critical sequence training; its stage arrives with its own issue, its place is kept here."""

    epochs: Epochs = 0


class ModelShape(Frozen):
    """Dimensions a preset chooses; vocabulary size is known only after reading the reports."""

    backbone: str = "densenet121"
    d_model: Count = 512
    d_ff: Count = 512
    heads: Count = 8
    layers: Count = 3
    memory_slots: Count = 2048
    memory_dim: Count = 512
    memory_heads: Count = 8
    memory_top_k: Count = 32
    dropout: Share = 0.1
    max_length: Annotated[int, Field(ge=2)] = 60
    embedding_dim: Count = 256
    text_layers: Count = 2


class RunConfig(Frozen):
    """Everything that decides the weights of a run, except the data.

    ``retrieval_k`` 0 trains without retrieved cases. ``feature_variants``: augmented copies in the feature cache of a
    frozen backbone; copy 0 is unaugmented.
    """

    preset: str
    seed: int = 1
    image_size: Count = 224
    shape: ModelShape = ModelShape()
    backbone_weights: str = "none"
    retrieval_k: Annotated[int, Field(ge=0)] = 5
    feature_variants: Count = 4
    pretrain: PretrainConfig | None = PretrainConfig()
    retriever: RetrieverConfig | None = RetrieverConfig()
    ce: CEConfig = CEConfig()
    scst: ScstConfig | None = None
    decoding: DecodingConfig = DecodingConfig()
    weights_dtype: Literal["fp16", "fp32"] = "fp32"


@dataclass(frozen=True)
class Runtime:
    """Where and how exactly a run computes. ``work`` holds caches and checkpoints."""

    device: torch.device
    seed: int
    precision: Literal["bf16", "fp32"]
    work: Path
