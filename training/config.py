"""Configuration of a training run: frozen, validated, stored in ``run.json``, compared on resume."""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self

from pydantic import Field, model_validator

from model.config import Count, DecodingConfig, Frozen, Share

Rate = Annotated[float, Field(ge=0, le=1)]
Epochs = Annotated[int, Field(ge=0)]


class TargetWeights(Frozen):
    """Weights of the groups of pretraining targets."""

    soft: Annotated[float, Field(ge=0)] = 1.0
    report: Annotated[float, Field(ge=0)] = 1.0
    mesh: Annotated[float, Field(ge=0)] = 1.0
    text: Annotated[float, Field(ge=0)] = 2.0
    external: Annotated[float, Field(ge=0)] = 1.0


class PretrainConfig(Frozen):
    """Stage ``pretrain``: the backbone on finding targets.

    Attributes:
        epochs_by_size: (pixels, epochs) in order.
        ema: decay of the averaged weights.
        weights: of the groups of targets (``training.data.targets``) in the loss, each the mean
            over its columns.
    """

    epochs_by_size: tuple[tuple[Count, Epochs], ...] = ((112, 6), (224, 1))
    batch_size: Count = 32
    lr: Rate = 3e-4
    weight_decay: Rate = 1e-4
    ema: Share = 0.995
    weights: TargetWeights = TargetWeights()


class RetrieverConfig(Frozen):
    """Stage ``retriever``: study head and text tower, contrastive.

    Attributes:
        label_weight: share of the target spread over reports with the same findings or phrases.
        phrase_weight: of the phrases in that share.
        dropout: of the study head.
    """

    epochs: Epochs = 14
    batch_size: Count = 256
    lr: Rate = 1e-3
    weight_decay: Rate = 1e-2
    temperature: Annotated[float, Field(gt=0, le=1)] = 0.07
    label_weight: Share = 0.6
    phrase_weight: Share = 0.5
    dropout: Share = 0.3


class CEConfig(Frozen):
    """Stage ``ce``: cross-entropy.

    Attributes:
        backbone_lr: 0 freezes the backbone, and its features are cached.
        view_dropout: share of training studies that lose a view.
        case_dropout: share of training studies that lose their retrieved cases.
        contrastive_weight: of the contrastive loss where the backbone moves.
        patience: epochs without a better selection metric after which the stage ends.
        validate_limit: number of val studies that validation uses; None: all.
    """

    epochs: Epochs = 30
    batch_size: Count = 16
    backbone_lr: Rate = 2.5e-5
    transformer_lr: Rate = 5e-4
    weight_decay: Rate = 5e-5
    label_smoothing: Share = 0.0
    view_dropout: Share = 0.15
    case_dropout: Share = 0.1
    contrastive_weight: Annotated[float, Field(ge=0)] = 0.1
    patience: Annotated[int, Field(ge=1)] | None = 10
    validate_limit: Count | None = None

    @model_validator(mode="before")
    @classmethod
    def _read_old_names(cls, values: Any) -> Any:
        """``visual_lr`` is the name of ``backbone_lr`` in configurations of 0.1."""
        if isinstance(values, dict) and "visual_lr" in values:
            return {"backbone_lr" if name == "visual_lr" else name: value for name, value in values.items()}
        return values


class RewardConfig(Frozen):
    """Weights of the parts of the SCST reward.

    Attributes:
        cider: of CIDEr-D, 0 to 10.
        bleu4: of sentence BLEU-4, 0 to 1.
        label_f1: of what the findings add to micro-F1, -0.2 to 0.8 a finding.
    """

    cider: Annotated[float, Field(ge=0)] = 1.0
    bleu4: Annotated[float, Field(ge=0)] = 0.0
    label_f1: Annotated[float, Field(ge=0)] = 0.0

    @model_validator(mode="after")
    def _has_a_weight(self) -> Self:
        if not self.cider + self.bleu4 + self.label_f1:
            raise ValueError("every weight of the reward is 0; give one of cider, bleu4 and label_f1 above 0")
        return self


class SelectionConstraints(Frozen):
    """What an epoch's validation drafts must meet to be selected, relative to the initial weights.

    Attributes:
        distinct: smallest share of the initial share of distinct drafts.
        least_distinct: smallest share of distinct drafts, whatever the initial one: a model that
            writes one report for all studies has no variety to lose.
        label_f1: smallest share of the initial label F1.
        length: largest relative change of the mean length.
        redacted: largest rise of the share of drafts with the redaction mark, which is 0 where
            decoding suppresses that mark (``DecodingConfig.suppress``, the default).
    """

    distinct: Share = 0.8
    least_distinct: Share = 0.02
    label_f1: Share = 0.9
    length: Annotated[float, Field(gt=0)] = 0.4
    redacted: Share = 0.01


class ScstConfig(Frozen):
    """Stage ``scst``: self-critical sequence training on a frozen backbone.

    Attributes:
        samples: drafts sampled for each study.
        baseline: the reward of the greedy report, the mean of the study's other samples, or the
            best of them.
        nll_weight: share of cross-entropy in the loss.
        guards: the selection constraints.
    """

    epochs: Epochs = 10
    batch_size: Count = 16
    samples: Count = 5
    lr: Rate = 2e-5
    temperature: Annotated[float, Field(gt=0, le=2)] = 1.0
    baseline: Literal["leave_one_out", "greedy", "best_other"] = "leave_one_out"
    nll_weight: Share = 0.1
    reward: RewardConfig = RewardConfig()
    guards: SelectionConstraints = SelectionConstraints()
    patience: Annotated[int, Field(ge=1)] | None = 3
    validate_limit: Count | None = None

    @model_validator(mode="after")
    def _has_other_samples(self) -> Self:
        if self.baseline != "greedy" and self.samples < 2:
            raise ValueError("samples=1 has no other sample as a baseline; use 2 or more, or baseline 'greedy'")
        return self


class ModelShape(Frozen):
    """Dimensions that a preset chooses; the vocabulary size follows from the reports."""

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
    case_norm: bool = True


class RunConfig(Frozen):
    """Everything that decides the weights of a run, except the data.

    Attributes:
        backbone_weights: ``imagenet``, ``none`` or a file.
        retrieval_k: retrieved cases a study; 0 trains without retrieval.
        feature_variants: copies of each image in the feature cache of a frozen backbone; copy 0 is
            unchanged, the others are augmented.
        consensus_directions: R of ``model.decoding.mbr``, for ``consensus`` decoding.
    """

    preset: str
    seed: int = 1
    image_size: Count = 224
    shape: ModelShape = ModelShape()
    backbone_weights: str = "none"
    retrieval_k: Annotated[int, Field(ge=0)] = 5
    feature_variants: Count = 4
    consensus_directions: Count = 256
    pretrain: PretrainConfig | None = PretrainConfig()
    retriever: RetrieverConfig | None = RetrieverConfig()
    ce: CEConfig = CEConfig()
    scst: ScstConfig | None = None
    decoding: DecodingConfig = DecodingConfig()
    weights_dtype: Literal["fp16", "fp32"] = "fp32"
