"""Named configurations. Each row of the study's table is one change from the row before."""

from __future__ import annotations

from collections.abc import Mapping

from model.config import ConsensusConfig, DecodingConfig, LanguageConfig
from training.config import (
    CEConfig,
    ModelShape,
    PretrainConfig,
    RetrieverConfig,
    RewardConfig,
    RunConfig,
    ScstConfig,
    StepDecay,
)
from training.protocols import IU_XRAY, MIMIC_CXR, Protocol
from training.r2gencmn import PUBLISHED_DECODING

_BASELINE = RunConfig(
    preset="baseline",
    shape=ModelShape(backbone="resnet101"),
    backbone_weights="imagenet",
    retrieval_k=0,
    pretrain=None,
    retriever=None,
    ce=CEConfig(epochs=100, backbone_lr=1e-4, transformer_lr=5e-4, case_dropout=0.0),
)
_DENSENET = _BASELINE.model_copy(update={"preset": "densenet", "shape": ModelShape(backbone="densenet121")})
_DENSENET_LR = _DENSENET.model_copy(
    update={"preset": "densenet-lr", "ce": _DENSENET.ce.model_copy(update={"backbone_lr": 2.5e-5})}
)
# Earlier systems in one recipe, that of ``densenet-lr``: they differ in the writer alone.
WRITER_PRESETS = ("cnn-rnn", "coattention", "r2gen", "cmn")
_WRITERS = [
    _DENSENET_LR.model_copy(
        update={"preset": writer, "shape": _DENSENET_LR.shape.model_copy(update={"writer": writer})}
    )
    for writer in WRITER_PRESETS
]
_RETRIEVAL = _DENSENET_LR.model_copy(update={"preset": "retrieval", "retrieval_k": 5, "retriever": RetrieverConfig()})
_RETRIEVAL_SCST = _RETRIEVAL.model_copy(update={"preset": "retrieval-scst", "scst": ScstConfig()})


def _as_published(name: str, protocol: Protocol, epochs: int, step: int) -> RunConfig:
    """R2GenCMN as its authors train it.

    Read from github.com/zhjohnchan/R2GenCMN, commit 15f28ae: ``main_train.py`` (defaults: line 17
    on) and ``train_iu_xray.sh``, ``train_mimic_cxr.sh``; network: ``modules/base_cmn.py``,
    ``modules/att_model.py``. R2Gen clips gradients by value, R2GenCMN does not clip them. The
    published training stops when 50 epochs *more* than the first without a better BLEU-4 have passed.
    """
    return RunConfig(
        preset=name, resample="bilinear", view_order="as_given", augmentation="crops", protocol=protocol.name,
        backbone_weights="imagenet", initial_weights="r2gencmn", published_text=True, retrieval_k=0, pretrain=None,
        retriever=None, decoding=PUBLISHED_DECODING,
        shape=ModelShape(
            backbone="resnet101", feature_dropout=0.5, memory_dropout=0.1, max_length=protocol.max_ids + 1,
            norm="r2gen", patch_positions="sequence", view_embeddings=False, feature_norm=False,
        ),
        ce=CEConfig(
            epochs=epochs, backbone_lr=1e-4, transformer_lr=5e-4, view_dropout=0.0, case_dropout=0.0, patience=51,
            step_decay=StepDecay(every=step, factor=0.8), clip_norm=None, adam_eps=1e-9, full_batches=True,
            batch_statistics=True, select="BLEU_4",
        ),
    )  # fmt: skip


_R2GENCMN = _as_published("r2gencmn", IU_XRAY, epochs=100, step=10)
_R2GENCMN_MIMIC = _as_published("r2gencmn-mimic", MIMIC_CXR, epochs=30, step=3)

_CLEAN = LanguageConfig(attested=True, no_priors=True, consistent=True, ordered=True)
_COMPACT = RunConfig(
    preset="compact",
    shape=ModelShape(
        backbone="efficientnet_lite0", d_model=256, d_ff=512, layers=2, memory_slots=512, memory_dim=256, text_layers=1,
        max_length=64,
    ),
    backbone_weights="imagenet",
    commas=True,
    without_comparisons=True,
    feature_variants=3,
    pretrain=PretrainConfig(epochs_by_size=((160, 4), (224, 4)), lr=6e-4),
    retriever=RetrieverConfig(folds=5),
    ce=CEConfig(epochs=8, backbone_lr=0.0, transformer_lr=1e-3, patience=None),
    scst=ScstConfig(
        epochs=2, lr=5e-5, nll_weight=0.2, baseline="best_other",
        reward=RewardConfig(cider=1.0, bleu4=0.5, label_f1=0.5),
    ),
    decoding=DecodingConfig(
        method="consensus", candidates=96, temperature=1.0,
        consensus=ConsensusConfig(
            temperature=0.1, finding=12.0, finding_threshold=0.2, classifier_weight=0.75, bleu4=4.0, rouge=1.0,
            sentences_per_finding=4,
        ),
        language=_CLEAN,
    ),
    weights_dtype="fp16",
)  # fmt: skip
_SMOKE = RunConfig(
    preset="smoke",
    shape=ModelShape(
        d_model=64, d_ff=128, heads=4, layers=1, memory_slots=256, memory_dim=64, memory_heads=4, memory_top_k=16,
        embedding_dim=64, text_layers=1,
    ),
    image_size=64,
    commas=True,
    without_comparisons=True,
    feature_variants=1,
    pretrain=PretrainConfig(epochs_by_size=((64, 1),), ema=0.9),
    retriever=RetrieverConfig(epochs=3, folds=2),
    ce=CEConfig(epochs=2, backbone_lr=0.0, transformer_lr=1e-3, validate_limit=64, patience=None),
    scst=ScstConfig(epochs=1, samples=3, validate_limit=64),
    consensus_directions=64,
    decoding=DecodingConfig(method="consensus", candidates=8, temperature=1.0, language=_CLEAN),
    weights_dtype="fp16",
)  # fmt: skip

PRESETS: Mapping[str, RunConfig] = {
    config.preset: config
    for config in (
        _R2GENCMN,
        _R2GENCMN_MIMIC,
        _BASELINE,
        _DENSENET,
        _DENSENET_LR,
        *_WRITERS,
        _RETRIEVAL,
        _RETRIEVAL_SCST,
        _COMPACT,
        _SMOKE,
    )
}


def preset(name: str) -> RunConfig:
    """The configuration called ``name``; raises ValueError for an unknown one."""
    if name not in PRESETS:
        raise ValueError(f"preset {name!r} is unknown; choose one of {', '.join(PRESETS)}")
    return PRESETS[name]
