"""What a run is refused for before it writes anything, beyond the rules of ``training.config``."""

from __future__ import annotations

import os
import re
import warnings
from pathlib import Path

import torch

from model.config import BUNDLE_NAME, ModelConfig
from model.network.backbone import Backbone
from model.network.report_model import MAX_PATCHES, build_model
from model.registry import DECODERS
from model.text.labeler import FINDINGS
from training.config import RunConfig
from training.data.studies import Source
from training.prepared_run import model_config
from training.protocols import PROTOCOLS
from training.r2gencmn import reset_as_published
from training.registries import LOSSES
from training.stage_results import STAGES

_VOCABULARY = 5  # words of the trial model; the reports decide it


def check_model(config: RunConfig, *, weights: bool = True) -> None:
    """Build the model without memory for its weights, and with ``weights`` read or download those of its backbone.

    Raises:
        ValueError: the backbone is unknown, gives no map of features, or its weights cannot be used; the initial
            weights are those of another writer; or a loss, a decoding method or a writer of a package cannot be
            imported.
    """
    LOSSES.get(config.ce.loss)
    DECODERS.get(config.decoding.method)
    backbone = _trial_backbone(config, "none", "shape.backbone")
    if weights and config.backbone_weights != "none":
        _trial_backbone(config, config.backbone_weights, "backbone_weights")
    patches = 2 * (config.image_size // 32) ** 2
    if config.shape.patch_positions == "sequence" and patches > MAX_PATCHES:
        raise ValueError(f"image_size={config.image_size}: two images have {patches} patches, and "
                         f"shape.patch_positions=sequence takes {MAX_PATCHES}; use smaller images or view")  # fmt: skip
    with torch.device("meta"):
        model = build_model(trial_shape(config), backbone=backbone)
        if config.initial_weights == "r2gencmn":
            reset_as_published(model)


def trial_shape(config: RunConfig) -> ModelConfig:
    """The dimensions of the model, except those that the reports decide (vocabulary, tags)."""
    return model_config(config, _VOCABULARY, sentence_end=_VOCABULARY - 1, tags=FINDINGS)


def _trial_backbone(config: RunConfig, weights: str, field: str) -> Backbone:
    name = config.shape.backbone
    try:
        try:
            with torch.device("meta"), warnings.catch_warnings():
                warnings.simplefilter("ignore")  # weights are compared, not copied
                return Backbone(name, weights=weights)
        except NotImplementedError:  # its constructor computes with tensors
            return Backbone(name, weights=weights)
    except ValueError as error:
        raise ValueError(f"{field}: {error}") from error


def check_targets(config: RunConfig, source: Source, *, soft: bool, external: bool) -> None:
    """Raise ValueError where the groups of targets that the data has weigh nothing in pretraining."""
    if config.pretrain is None:
        return
    has_terms = any(study.mesh for study in source.split("train"))
    present = {"report": True, "text": True, "mesh": has_terms, "soft": soft, "external": external}
    if not any(weight for name, weight in config.pretrain.weights if present[name]):
        weighted = ", ".join(f"pretrain.weights.{name}" for name, weight in config.pretrain.weights if weight)
        raise ValueError(f"only {weighted} is above 0, and the data has no such targets; raise another weight, or give "
                         "--soft-scores or --external-labels")  # fmt: skip


def doubtful(config: RunConfig) -> list[str]:
    """Settings that work, but hardly as intended."""
    found = []
    sizes = [size for size, _ in config.pretrain.epochs_by_size] if config.pretrain else []
    if sizes and max(sizes) > config.image_size:
        found.append(f"pretrain.epochs_by_size has {max(sizes)} pixels, above image_size={config.image_size}: enlarged "
                     "images show no more")  # fmt: skip
    published = PROTOCOLS[config.protocol].max_ids
    if config.shape.max_length < published:
        found.append(f"shape.max_length={config.shape.max_length} cuts reports and drafts that protocol "
                     f"{config.protocol} scores up to {published - 1} words; use {published} or more")  # fmt: skip
    if config.retrieval_k and config.retriever is None:
        found.append(f"retrieval_k={config.retrieval_k} and retriever=null: an untrained retriever chooses the cases")
    if not config.retrieval_k and config.retriever is not None:
        found.append("stage retriever is left out, because retrieval_k is 0")
    return found


def check_batches(config: RunConfig, processes: int) -> None:
    """Raise ValueError where a batch has fewer rows than there are processes."""
    retriever = config.retriever if config.retrieval_k else None
    stages = (("pretrain", config.pretrain), ("retriever", retriever), ("ce", config.ce), ("scst", config.scst))
    for name, stage in stages:
        if stage is not None and stage.batch_size < processes:
            raise ValueError(f"{name}.batch_size={stage.batch_size} cannot be shared by {processes} processes; use a "
                             "larger batch or fewer processes (torchrun --nproc-per-node)")  # fmt: skip


def check_paths(out: Path, work: Path) -> None:
    """Raise ValueError where a bundle cannot be written to ``out``, or would replace files of ``work``."""
    if not re.fullmatch(BUNDLE_NAME, out.name):
        raise ValueError(f"--out {out}: the name of a bundle is 1 to 64 letters, digits, dots, hyphens and "
                         "underscores, and begins with a letter or a digit")  # fmt: skip
    bundle, folder = out.resolve(), work.resolve()
    reserved = {*STAGES, "cache", "index-without-texts", "run.json"}
    if bundle == folder or bundle in folder.parents or (bundle.parent == folder and bundle.name in reserved):
        raise ValueError(f"--out {out} and --work {work}: the bundle would replace files of the work directory; choose "
                         "another --work")  # fmt: skip
    for option, path in (("--out", bundle), ("--work", folder)):
        existing = next(one for one in (path, *path.parents) if one.exists())
        if not existing.is_dir() or not os.access(existing, os.W_OK):
            raise ValueError(f"{option} {path}: {existing} is no folder, or cannot be written to; choose another")
