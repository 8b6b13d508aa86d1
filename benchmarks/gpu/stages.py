"""Steps a second of the training stages, by the stages themselves, on drawn studies and untrained weights.

The studies are as many as IU X-Ray has for training, and share the images of a few phantoms.
"""

from __future__ import annotations

import math
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim.optimizer import register_optimizer_step_post_hook

from benchmarks.gpu.part import Job, Outcome
from benchmarks.measure import show
from benchmarks.server import BUNDLE
from model.config import DecodingConfig
from model.network.backbone import Backbone
from model.text.tokenizer import Tokenizer
from model.types import View
from training.config import PretrainConfig, RunConfig, ScstConfig
from training.data.augment import to_float
from training.data.image_store import LooseImages
from training.data.pixel_cache import PixelCache
from training.data.studies import ImageRef, Source, Study
from training.phantoms import make_phantom
from training.phantoms.dataset import sample_findings
from training.prepared_run import PreparedRun
from training.presets import preset
from training.stages.common import RunInputs, StudySplits
from training.stages.cross_entropy import train_cross_entropy
from training.stages.index import build_index
from training.stages.pretrain import pretrain
from training.stages.scst import train_scst
from training.trainer.context import RunContext

STUDIES = 2069  # training studies of IU X-Ray in the R2Gen split, with two views each
PHANTOMS = 48
WARM_UP, STEPS = 6, 40
EPOCHS = 100
HEAD = ("stage", "steps/s", "studies/s", "an epoch of 2,069 studies", "100 epochs", "as configured")


@dataclass(frozen=True)
class _Scale:
    """How much is drawn and measured."""

    studies: int = STUDIES
    phantoms: int = PHANTOMS
    warm_up: int = WARM_UP
    steps: int = STEPS


DRY = _Scale(studies=36, phantoms=3, warm_up=1, steps=1)


class _EnoughError(Exception):
    """The steps that were asked for are done."""


def run(job: Job, name: str, stage: str) -> Outcome:
    """Measure one stage of a preset; a stage that the preset lacks has its default settings."""
    scale = DRY if job.dry_run else _Scale()
    # Without validation nothing is decoded; no retriever is trained.
    config = preset(name)
    retriever = None if config.retriever is None else config.retriever.model_copy(update={"folds": 0})
    config = config.model_copy(update={"decoding": DecodingConfig(), "retriever": retriever})
    rows, values = [], []
    with tempfile.TemporaryDirectory() as folder:
        prepared = drawn_run(config, job.torch_device, Path(folder), scale)
        for what, train, batches, epochs in _trainings(prepared, stage):
            rate, steps = steps_per_second(train, warm_up=scale.warm_up, steps=scale.steps, deadline=job.deadline - 5)
            epoch = batches / rate
            values.append({"stage": what, "steps_per_second": rate, "steps_measured": steps, "steps_an_epoch": batches,
                           "seconds_an_epoch": epoch, "epochs_configured": epochs})  # fmt: skip
            rows.append((what, f"{rate:.2f}", f"{scale.studies / epoch:.1f}", show(epoch, "s"),
                         _long(EPOCHS * epoch), f"{epochs} epochs: {_long(epochs * epoch)}"))  # fmt: skip
    counted = ", ".join(str(value["steps_measured"]) for value in values)
    notes = [f"{counted} steps measured, the first {scale.warm_up} left out; without validation and checkpoints."]
    if stage == "scst":
        notes.append("Untrained weights write reports of the greatest length: this is the slowest case.")
    return Outcome(HEAD, rows, notes, {"preset": name, "stages": values})


def _trainings(prepared: PreparedRun, stage: str) -> list[tuple[str, Callable[[], object], int, int]]:
    """Name, call, steps an epoch and configured epochs; pretraining once per resolution."""
    config, context, studies = prepared.config, prepared.context, len(prepared.studies.train)
    match stage:
        case "pretrain":
            configured = config.pretrain or PretrainConfig()
            epochs: dict[int, int] = {}
            for size, count in configured.epochs_by_size:
                epochs[size] = epochs.get(size, 0) + count
            batches = -(-2 * studies // configured.batch_size)  # of images
            return [
                (
                    f"pretrain at {size} px, batches of {configured.batch_size} images",
                    partial(_pretrain, prepared, configured.model_copy(update={"epochs_by_size": ((size, 1),)}), size),
                    batches, count,
                )
                for size, count in epochs.items()
            ]  # fmt: skip
        case "ce":
            generator, ce = prepared.generator(prepared.trained_features()), config.ce
            moving = "backbone trained" if ce.backbone_lr else "backbone frozen"
            return [(
                f"ce, batches of {ce.batch_size}, {moving}",
                lambda: train_cross_entropy(generator, prepared.studies, ce, context), -(-studies // ce.batch_size),
                ce.epochs,
            )]  # fmt: skip
        case _:
            generator, scst = prepared.generator(prepared.frozen_features()), config.scst or ScstConfig()
            return [(
                f"scst, batches of {scst.batch_size}, {scst.samples} samples each",
                lambda: train_scst(generator, prepared.studies, scst, context), -(-studies // scst.batch_size),
                scst.epochs,
            )]  # fmt: skip


def _pretrain(prepared: PreparedRun, config: PretrainConfig, size: int) -> None:
    # a folder for each resolution, or the second one would resume the first
    context = RunContext(prepared.context.device, 1, prepared.context.precision, prepared.context.work / str(size),
                         checkpoint_seconds=math.inf)  # fmt: skip
    pretrain(prepared.model.backbone, None, prepared.inputs, prepared.cache, config, context)


def steps_per_second(train: Callable[[], object], *, warm_up: int, steps: int, deadline: float) -> tuple[float, int]:
    """Optimizer steps a second of a training, and the number measured; it is ended after ``warm_up`` and ``steps``.

    ``deadline`` (``time.monotonic``) ends it earlier.

    Raises:
        RuntimeError: not one step was measured.
    """
    times: list[float] = []

    def stepped(*_: object) -> None:
        times.append(time.perf_counter())
        if len(times) > warm_up + steps or (len(times) > warm_up + 1 and time.monotonic() > deadline):
            raise _EnoughError

    hook = register_optimizer_step_post_hook(stepped)
    try:
        train()
    except _EnoughError:
        pass
    finally:
        hook.remove()
    measured = times[warm_up:]
    if len(measured) < 2:
        raise RuntimeError(f"the stage took {len(times)} steps, {warm_up} of them to warm up; nothing is measured")
    return (len(measured) - 1) / (measured[-1] - measured[0]), len(measured) - 1


def drawn_run(config: RunConfig, device: torch.device, work: Path, scale: _Scale) -> PreparedRun:
    """A run on drawn studies in memory, in bfloat16, with the vocabulary of the shipped bundle."""
    rng = np.random.default_rng(5)
    drawn = [make_phantom(seed, sample_findings(rng), size=config.image_size) for seed in range(scale.phantoms)]
    array = np.stack([pixels for phantom in drawn for pixels in (phantom.frontal, phantom.lateral)])
    keys = [f"{number}-{view.value}" for number in range(len(drawn)) for view in View]
    studies = []
    for number in range(scale.studies):
        of = number % len(drawn)
        images = tuple(ImageRef(key, view) for key, view in zip(keys[2 * of : 2 * of + 2], View, strict=True))
        studies.append(Study(f"drawn-{number}", f"drawn-{number}", "train", drawn[of].report, images))
    inputs = RunInputs(Source("drawn", tuple(studies), (), LooseImages({}, work), ()), out=work / "bundle")
    cache = PixelCache(array, {key: row for row, key in enumerate(keys)}, {}, {})
    tokenizer = Tokenizer.from_json((BUNDLE / "tokenizer.json").read_text(encoding="utf-8"))
    context = RunContext(device, 1, "bf16", work, checkpoint_seconds=math.inf)
    config = config.model_copy(update={"backbone_weights": "none"})
    run = PreparedRun.build(config, inputs, context, cache, StudySplits(studies, ()), tokenizer, work / "cache")
    _settle(run.model.backbone, torch.from_numpy(array[:32]).to(device))
    if config.retrieval_k:
        build_index(run.model, studies, tokenizer, run.index_dir, public=False)
    return run


@torch.no_grad()
def _settle(backbone: Backbone, pixels: Tensor) -> None:
    """Set the statistics of batch normalisation to those of ``pixels`` (N, S, S): features of an untrained ResNet-101
    overflow with the initial ones."""
    norms = [module for module in backbone.modules() if isinstance(module, nn.BatchNorm2d)]
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.momentum = None  # a plain average
    backbone.train()
    backbone(to_float(pixels))
    backbone.eval()
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum


def _long(seconds: float) -> str:
    """1.4 h, 12 min, 8 s."""
    if seconds >= 3600:
        return f"{seconds / 3600:.1f} h"
    return f"{seconds / 60:.1f} min" if seconds >= 60 else f"{seconds:.0f} s"
