"""Configuration of a training run: frozen, validated, stored in ``run.json``, compared on resume."""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, Field, model_validator

from model.config import (
    Cases,
    Count,
    DecodingConfig,
    Frozen,
    ImageSize,
    Layers,
    Norm,
    ProtocolName,
    Share,
    Tokens,
    check_dimensions,
)
from model.registry import WRITERS
from model.text.tokenizer import EOS
from model.types import Resample
from training.protocols import PROTOCOLS
from training.registries import LOSSES

Rate = Annotated[float, Field(ge=0, le=1)]
LearningRate = Annotated[float, Field(gt=0, le=1)]
Weight = Annotated[float, Field(ge=0)]
Epochs = Annotated[int, Field(ge=0)]  # at one image size
Patience = Annotated[int, Field(ge=1)] | None  # epochs without a better selection metric after which the stage ends


class TargetWeights(Frozen):
    """Weights in the loss of the groups of targets (``training.data.targets``)."""

    soft: Weight = 1.0
    report: Weight = 1.0
    mesh: Weight = 1.0
    text: Weight = 2.0
    external: Weight = 1.0

    @model_validator(mode="after")
    def _has_a_weight(self) -> Self:
        if not any(dict(self).values()):
            raise ValueError("every weight is 0, so there is nothing to learn; give one above 0")
        return self


class PretrainConfig(Frozen):
    """Stage ``pretrain``: the backbone on finding targets."""

    epochs_by_size: tuple[tuple[ImageSize, Epochs], ...] = ((112, 6), (224, 1))  # (pixels, epochs) in order
    batch_size: Count = 32
    lr: LearningRate = 3e-4
    weight_decay: Rate = 1e-4
    ema: Share = 0.995  # decay of the averaged weights
    weights: TargetWeights = TargetWeights()
    positive_power: Annotated[float, Field(ge=0, le=1)] = 0.0  # of the weight of rare findings; 0 weights all alike
    focus: Annotated[float, Field(ge=0, le=8)] = 0.0  # asymmetric loss: the higher, the less easy negatives count

    @model_validator(mode="after")
    def _has_work(self) -> Self:
        if not sum(epochs for _, epochs in self.epochs_by_size):
            raise ValueError("epochs_by_size has no epoch; give one, such as [[224, 1]], or leave the stage out: "
                             "pretrain=null")  # fmt: skip
        if self.batch_size == 1 and any(size < 64 for size, _ in self.epochs_by_size):
            raise ValueError("batch_size=1 gives batch normalisation a single value at sizes below 64 pixels; use 2 "
                             "or more")  # fmt: skip
        return self


class RetrieverConfig(Frozen):
    """Stage ``retriever``: study head and text tower, contrastive."""

    epochs: Count = 14
    batch_size: Count = 256
    lr: LearningRate = 1e-3
    weight_decay: Rate = 1e-2
    temperature: Annotated[float, Field(gt=0, le=1)] = 0.07
    label_weight: Share = 0.6  # share of the target that is spread over reports with the same findings or phrases
    phrase_weight: Share = 0.5  # of the phrases in that share
    dropout: Share = 0.3  # of the study head
    folds: Annotated[int, Field(ge=0, le=20)] = 0  # of ``training.stages.out_of_fold``; 0 trains without

    @model_validator(mode="after")
    def _has_others(self) -> Self:
        if self.batch_size == 1:
            raise ValueError("batch_size=1 has no other report to compare with; use 2 or more")
        if self.folds == 1:
            raise ValueError("folds=1 leaves no study to train on; use 2 or more, or 0 for none")
        return self


class StepDecay(Frozen):
    """A learning rate that is multiplied by ``factor`` every so many epochs."""

    every: Count
    factor: Annotated[float, Field(gt=0, le=1)]


class CEConfig(Frozen):
    """Stage ``ce``: cross-entropy."""

    epochs: Count = 30
    batch_size: Count = 16
    backbone_lr: Rate = 2.5e-5  # 0 freezes the backbone, and its features are cached
    transformer_lr: LearningRate = 5e-4
    weight_decay: Rate = 5e-5
    loss: Annotated[str, AfterValidator(LOSSES.check)] = "cross_entropy"
    label_smoothing: Share = 0.0
    tag_weight: Weight = 1.0  # of the loss of the tags, for writers that predict them
    view_dropout: Share = 0.15  # share of training studies that lose a view
    case_dropout: Share = 0.1  # share of training studies that lose their retrieved cases
    contrastive_weight: Weight = 0.1  # where the backbone moves
    patience: Patience = 10
    validate_limit: Count | None = None  # val studies that validation uses; None: all
    step_decay: StepDecay | None = None  # of the learning rates; None: a short rise, then a cosine
    clip_norm: Annotated[float, Field(gt=0)] | None = 1.0  # largest gradient norm; None: no limit
    adam_eps: Annotated[float, Field(gt=0, le=1)] = 1e-8
    full_batches: bool = False  # all but the last have ``batch_size`` studies; else their sizes are nearly equal
    batch_statistics: bool = False  # a trained backbone normalises by the batch while training, else as in serving
    # BLEU_4: as published, of drafts as they are served, and the last of equal epochs. Else: see
    # ``training.stages.validation``
    select: Literal["selection", "BLEU_4"] = "selection"

    @model_validator(mode="before")
    @classmethod
    def _read_old_names(cls, values: Any) -> Any:
        """``visual_lr`` is the name of ``backbone_lr`` in configurations of 0.1."""
        if isinstance(values, dict) and "visual_lr" in values:
            return {"backbone_lr" if name == "visual_lr" else name: value for name, value in values.items()}
        return values


class RewardConfig(Frozen):
    """Weights of the parts of the SCST reward."""

    cider: Weight = 1.0  # of CIDEr-D, 0 to 10
    bleu4: Weight = 0.0  # of sentence BLEU-4, 0 to 1
    label_f1: Weight = 0.0  # of what the findings add to micro-F1, -0.2 to 0.8 a finding
    annotations: Weight = 0.0  # of sides, regions and degrees that agree minus those that contradict, -3 to 3

    @model_validator(mode="after")
    def _has_a_weight(self) -> Self:
        if not any(dict(self).values()):
            names = ", ".join(type(self).model_fields)
            raise ValueError(f"every weight of the reward is 0; give one of {names} above 0")
        return self


class SelectionConstraints(Frozen):
    """What an epoch's validation drafts must meet to be selected, relative to the initial weights."""

    distinct: Share = 0.8  # smallest share of the initial share of distinct drafts
    least_distinct: Share = 0.02  # of all drafts: a model that writes one report for all has no variety to lose
    label_f1: Share = 0.9  # smallest share of the initial label F1
    length: Annotated[float, Field(gt=0)] = 0.4  # largest relative change of the mean length
    redacted: Share = 0.01  # largest rise of the share of drafts with the redaction mark, which decoding may suppress


class ScstConfig(Frozen):
    """Stage ``scst``: self-critical sequence training on a frozen backbone."""

    epochs: Count = 10
    batch_size: Count = 16
    samples: Count = 5  # drafts sampled for each study
    lr: LearningRate = 2e-5
    temperature: Annotated[float, Field(gt=0, le=2)] = 1.0
    baseline: Literal["leave_one_out", "greedy", "best_other"] = "leave_one_out"  # see ``training.stages.scst``
    nll_weight: Share = 0.1  # share of cross-entropy in the loss
    reward: RewardConfig = RewardConfig()
    guards: SelectionConstraints = SelectionConstraints()
    patience: Patience = 3
    validate_limit: Count | None = None

    @model_validator(mode="after")
    def _has_other_samples(self) -> Self:
        if self.baseline != "greedy" and self.samples < 2:
            raise ValueError("samples=1 has no other sample as a baseline; use 2 or more, or baseline 'greedy'")
        return self


class ModelShape(Frozen):
    """Dimensions that a preset chooses; the vocabulary size follows from the reports."""

    writer: Annotated[str, AfterValidator(WRITERS.check)] = "cmn"
    backbone: str = "densenet121"
    d_model: Count = 512
    d_ff: Count = 512
    heads: Count = 8
    layers: Layers = 3
    memory_slots: Count = 2048
    memory_dim: Count = 512
    memory_heads: Count = 8
    memory_top_k: Count = 32
    relational_slots: Count = 3
    relational_heads: Count = 8
    dropout: Share = 0.1
    feature_dropout: Share | None = None
    memory_dropout: Share = 0.0
    max_length: Tokens = 60
    embedding_dim: Count = 256
    text_layers: Layers = 2
    norm: Norm = "layer"
    patch_positions: Literal["view", "sequence"] = "view"
    view_embeddings: bool = True
    feature_norm: bool = True
    case_norm: bool = True

    @model_validator(mode="after")
    def _dimensions_fit(self) -> Self:
        check_dimensions(self)
        return self


class RunConfig(Frozen):
    """Everything that decides the weights of a run, except the data."""

    preset: str
    seed: Annotated[int, Field(ge=0, lt=2**31)] = 1
    image_size: ImageSize = 224
    resample: Resample = "bicubic"
    view_order: Literal["frontal_first", "as_given"] = "frontal_first"  # of a study's images
    augmentation: Literal["changes", "crops"] = "changes"  # ``training.data.augment``, or ``crops`` next to it
    shape: ModelShape = ModelShape()
    backbone_weights: str = "none"  # imagenet, none or a file
    initial_weights: Literal["default", "r2gencmn"] = "default"  # of the rest (``training.r2gencmn``)
    protocol: ProtocolName = "iu-xray"
    published_text: bool = False  # the model learns reports as the protocol cleans, counts and cuts them
    target_text: Literal["report", "headings"] = "report"  # what the model learns (``training.data.headings``)
    commas: bool = False  # are words of the vocabulary
    without_comparisons: bool = False  # training text without comparisons (``training.data.comparisons``)
    retrieval_k: Cases = 5  # retrieved cases a study; 0 trains without retrieval
    feature_variants: Count = 4  # copies of each image in the feature cache; all but copy 0 are augmented
    consensus_directions: Count = 256  # R of ``model.decoding.mbr_table``, for ``consensus`` decoding
    pretrain: PretrainConfig | None = PretrainConfig()
    retriever: RetrieverConfig | None = RetrieverConfig()
    ce: CEConfig = CEConfig()
    scst: ScstConfig | None = None
    decoding: DecodingConfig = DecodingConfig()
    validate_on: Literal["all", "choose"] = "all"  # val studies that choose epochs; ``choose``: half of them, the
    # final evaluation then scores the other half (``training.data.selection``)
    weights_dtype: Literal["fp16", "fp32"] = "fp32"

    @model_validator(mode="after")
    def _crops_need_pixels(self) -> Self:
        if self.augmentation == "crops" and self.ce.backbone_lr == 0:
            raise ValueError("augmentation='crops' needs pixels in each step, but ce.backbone_lr=0 caches features; "
                             "use 'changes', or a rate above 0")  # fmt: skip
        return self

    @model_validator(mode="after")
    def _one_cleaning(self) -> Self:
        if self.published_text and self.commas:
            raise ValueError("published_text=True and commas=True exclude each other: the published cleaning drops "
                             "commas; set one of them to False")  # fmt: skip
        return self

    @model_validator(mode="after")
    def _headings_fit(self) -> Self:
        if self.target_text != "headings":
            return self
        decoding, needed = self.decoding, []
        if decoding.method not in ("beam", "greedy"):
            needed.append(f"decoding.method beam or greedy, not {decoding.method}: the cases are reports")
        if decoding.min_length > 2:
            needed.append(f"decoding.min_length 2 or less, not {decoding.min_length}: a normal study has the text "
                          "'normal .'")  # fmt: skip
        if self.without_comparisons:
            needed.append("without_comparisons=false: headings compare with no earlier study")
        if needed:
            raise ValueError(f"target_text=headings needs {'; and '.join(needed)}")
        return self

    @model_validator(mode="after")
    def _can_work(self) -> Self:
        """Refuse combinations with which a stage would fail, or learn nothing."""
        decoding, method, cases = self.decoding, self.decoding.method, self.retrieval_k
        if method in ("rerank", "consensus") and not cases:
            raise ValueError(f"decoding.method={method} needs retrieved cases, and retrieval_k is 0; use beam, greedy, "
                             "or a retrieval_k above 0")  # fmt: skip
        if decoding.language.attested and method != "consensus":
            raise ValueError("decoding.language.attested=true needs the sentences of decoding.method=consensus, and "
                             f"the method is {method}; set it false")  # fmt: skip
        reward = decoding.consensus
        if method == "consensus" and not (reward.cider + reward.bleu4 + reward.rouge + reward.finding):
            raise ValueError("every weight of decoding.consensus is 0; give one of cider, bleu4, rouge and finding")
        if method == "consensus" and reward.classifier_weight and self.pretrain is None:
            raise ValueError("decoding.consensus.classifier_weight is the weight of the classifier that stage pretrain "
                             "trains, and pretrain is null; set it 0")  # fmt: skip
        if decoding.min_length >= self.shape.max_length:
            raise ValueError(f"decoding.min_length={decoding.min_length} must be below shape.max_length="
                             f"{self.shape.max_length}; no report could end")  # fmt: skip
        if EOS in decoding.suppress:
            raise ValueError(f"decoding.suppress has {EOS}; no report could end")
        if self.pretrain is None and self.backbone_weights == "none" and self.ce.backbone_lr == 0:
            raise ValueError("the backbone would keep its random weights: pretrain is null, backbone_weights is none "
                             "and ce.backbone_lr is 0; change one of them")  # fmt: skip
        return self

    def with_protocol(self, name: ProtocolName) -> RunConfig:
        """The same for another protocol; the longest report changes by the difference of the protocols."""
        longer = PROTOCOLS[name].max_ids - PROTOCOLS[self.protocol].max_ids
        shape = self.shape.model_copy(update={"max_length": self.shape.max_length + longer})
        return self.model_copy(update={"protocol": name, "shape": shape})
