"""Batches of studies as backbone output, for the stages that train what comes after the backbone.

``CachedFeatures`` reads a cache of features (backbone frozen, several augmented variants an image); ``OnlineFeatures``
runs the backbone on augmented pixels, so that it can learn. Both drop a view at random in training, so one image
alone works, and give frontals first.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Container, Sequence
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from tqdm import tqdm

from model.files import write_atomic
from model.network.backbone import Backbone
from model.network.report_model import Patches, ReportModel
from model.types import View
from training.config import RunContext
from training.data.augment import Augmentation, augment, augmentation_draws, changed, to_float
from training.data.device_array import DeviceRows, Placement
from training.data.pixel_cache import PixelCache, allocate, read_state
from training.data.studies import Study
from training.trainer.loop import autocast, step_seed

log = logging.getLogger(__name__)

_BATCH = 32
WHOLE = slice(None)


class PatchSource(Protocol):
    """Backbone output for studies."""

    def patches(
        self, studies: Sequence[Study], generator: torch.Generator | None, *, tokens: bool = True, part: slice = WHOLE
    ) -> Patches:
        """Patches of a batch, or of a part of it.

        Args:
            studies: each with at least one readable image.
            generator: draws augmentation and dropped views; None: as in serving, nothing random.
            tokens: False where only the pooled features are wanted; the patch tokens may then be left out.
            part: the studies to give. Randomness is drawn for the whole batch, so that a study's patches do not depend
                on how the batch is shared out.
        """


def _select_views(
    study: Study, known: Container[str], drop: float, generator: torch.Generator | None
) -> list[tuple[str, int]]:
    """(key, view index) of a study's images in the model's order, maybe with one view dropped.

    An image of unknown view counts as frontal where it comes first and as lateral behind another.
    """
    images = [
        (ref.key, ref.view.row if ref.view is not None else min(place, View.LATERAL.row))
        for place, ref in enumerate(study.ordered())
        if ref.key in known
    ]
    if generator is not None and len(images) > 1:
        lose, which = (
            torch.rand(1, generator=generator).item(),
            int(torch.randint(len(images), (1,), generator=generator)),
        )
        if lose < drop:
            del images[which]
    return images


class CachedFeatures:
    """Features of a frozen backbone, computed once: tokens (N, variants, 49, D) float16 on disk, memory-mapped."""

    def __init__(
        self, tokens: np.ndarray, rows: dict[str, int], device: torch.device, view_dropout: float,
        on_device: Placement = "auto",
    ) -> None:  # fmt: skip
        self._rows, self._device, self._drop = rows, device, view_dropout
        count, self._variants, self._grid, self._width = tokens.shape
        pooled = np.stack([row.astype(np.float32).mean(axis=1) for row in tokens])  # (N, variants, D)
        self._tokens = DeviceRows(tokens.reshape(count * self._variants, self._grid, self._width), device, on_device)
        self._pooled = DeviceRows(pooled.reshape(count * self._variants, self._width), device, on_device)

    def patches(
        self, studies: Sequence[Study], generator: torch.Generator | None, *, tokens: bool = True, part: slice = WHOLE
    ) -> Patches:
        """(B, V, 49, D) tokens of the studies, (B, V, 0, D) without; V is the most views among them."""
        chosen = [_select_views(study, self._rows, self._drop, generator) for study in studies]
        shape = (len(studies), max(len(images) for images in chosen))
        stored = np.zeros(shape, np.int64)  # rows of the cache
        views = torch.zeros(shape, dtype=torch.int64)
        mask = torch.zeros(shape, dtype=torch.bool)
        for b, images in enumerate(chosen):
            for v, (key, view) in enumerate(images):
                variant = 0 if generator is None else int(torch.randint(self._variants, (1,), generator=generator))
                stored[b, v] = self._rows[key] * self._variants + variant
                views[b, v], mask[b, v] = view, True
        views, mask, stored = views[part].to(self._device), mask[part].to(self._device), stored[part]
        pooled = self._pooled.take(stored.ravel()).view(*stored.shape, self._width)
        features = pooled.new_zeros(*stored.shape, 0, self._width)
        if tokens:
            features = self._tokens.take(stored.ravel()).float().view(*stored.shape, self._grid, self._width)
        lost = ~mask.unsqueeze(-1)
        return Patches(features.masked_fill(lost.unsqueeze(-1), 0), pooled.masked_fill(lost, 0), views, mask)


class OnlineFeatures:
    """The backbone itself, on augmented pixels in training and plain ones otherwise."""

    def __init__(
        self, model: ReportModel, cache: PixelCache, device: torch.device, view_dropout: float,
        on_device: Placement = "auto",
    ) -> None:  # fmt: skip
        self._model, self._cache, self._device, self._drop = model, cache, device, view_dropout
        self._pixels = DeviceRows(cache.array, device, on_device)
        self._amount = Augmentation()

    def patches(
        self, studies: Sequence[Study], generator: torch.Generator | None, *, tokens: bool = True, part: slice = WHOLE
    ) -> Patches:
        """Encode the studies' images: (B, V, 49, D); V is the most views among them."""
        chosen = [_select_views(study, self._cache.rows, self._drop, generator) for study in studies]
        shape = (len(studies), max(len(images) for images in chosen))
        stored = np.zeros(shape, np.int64)  # rows of the cache
        views = torch.zeros(shape, dtype=torch.int64)
        mask = torch.zeros(shape, dtype=torch.bool)
        for b, images in enumerate(chosen):
            for v, (key, view) in enumerate(images):
                stored[b, v], views[b, v], mask[b, v] = self._cache.rows[key], view, True
        draws = None if generator is None else augmentation_draws(mask.numel(), generator).view(*shape, -1)[part]
        views, mask, stored = views[part].to(self._device), mask[part].to(self._device), stored[part]
        pixels = self._pixels.take(stored.ravel()).masked_fill(~mask.flatten()[:, None, None], 0)
        images_ = to_float(pixels)  # (B*V, 1, S, S)
        if draws is not None:
            images_ = changed(images_, self._amount, draws.flatten(0, 1))
        return self._model.encode_images(images_.view(*stored.shape, *images_.shape[1:]), views, mask)


def cache_features(
    backbone: Backbone, cache: PixelCache, studies: Sequence[Study], variants: int, context: RunContext,
    directory: Path, *, view_dropout: float, name: str,
) -> CachedFeatures:  # fmt: skip
    """Compute, or reuse, the features of all images of ``studies``; resumes where it was killed.

    Args:
        backbone: frozen; its weights are part of the cache's identity.
        cache: the pixels.
        studies: whose images are wanted.
        variants: copies of each image; copy 0 is plain, the others augmented.
        context: device, seed and precision.
        directory: holds ``features-NAME.npy`` and its state.
        view_dropout: given to the result.
        name: distinguishes caches in one directory.
    """
    keys = sorted({ref.key for study in studies for ref in study.images if ref.key in cache})
    identity = _identity(backbone, keys, variants, cache.size, context)
    path, state_path = directory / f"features-{name}.npy", directory / f"features-{name}.json"
    directory.mkdir(parents=True, exist_ok=True)
    was_training = backbone.training
    backbone.eval()
    grid = (cache.size // 32) ** 2
    shape = (len(keys), variants, grid, backbone.width)
    state = read_state(state_path, identity) if path.exists() else None
    done: int = state["done"] if state is not None else 0
    if not done:
        state_path.unlink(missing_ok=True)
        allocate(path, np.float16, shape)
    result = np.load(path, mmap_mode="r+" if done < len(keys) else "r")
    if done < len(keys):
        _compute(backbone, cache, keys, result, state_path, identity, done, context, name)
    backbone.train(was_training)
    return CachedFeatures(result, {key: row for row, key in enumerate(keys)}, context.device, view_dropout,
                         context.on_device)  # fmt: skip


@torch.inference_mode()
def _compute(
    backbone: Backbone, cache: PixelCache, keys: Sequence[str], store: np.memmap, state_path: Path, identity: str,
    done: int, context: RunContext, name: str,
) -> None:  # fmt: skip
    """Fill ``store`` (N, variants, 49, D) from row ``done`` on, and keep count of it."""
    variants = store.shape[1]
    bar = tqdm(total=len(keys) * variants, initial=done * variants, desc=f"features {name}", unit="img", mininterval=2)
    for start in range(done, len(keys), _BATCH):
        rows = [cache.rows[key] for key in keys[start : start + _BATCH]]
        plain = to_float(torch.from_numpy(cache.array[rows]).to(context.device))
        for variant in range(variants):
            generator = torch.Generator().manual_seed(step_seed(context.seed, f"features-{name}-{variant}", start))
            images = plain if variant == 0 else augment(plain, Augmentation(), generator)
            with autocast(context.device, context.precision):
                tokens, _ = backbone(images)
            store[start : start + len(rows), variant] = tokens.float().cpu().numpy().astype(np.float16)
            bar.update(len(rows))
        if (start // _BATCH) % 10 == 9:
            _mark(state_path, identity, start + len(rows), store)
    _mark(state_path, identity, len(keys), store)
    bar.close()


def _mark(state_path: Path, identity: str, done: int, store: np.memmap) -> None:
    store.flush()
    text = json.dumps({"identity": identity, "done": done})
    write_atomic(state_path, text.encode())


def _identity(backbone: Backbone, keys: Sequence[str], variants: int, size: int, context: RunContext) -> str:
    digest = hashlib.sha256("\n".join([str(variants), str(size), str(context.seed), context.precision, *keys]).encode())
    for value in backbone.state_dict().values():
        digest.update(np.ascontiguousarray(value.detach().cpu().float().numpy()).tobytes())
    return digest.hexdigest()


def readable(studies: Sequence[Study], cache: PixelCache) -> list[Study]:
    """Studies with at least one readable image, unreadable ones removed from them."""
    kept = [usable for study in studies if (usable := cache.usable(study)) is not None]
    if len(kept) < len(studies):
        log.warning("%d of %d studies have no readable image and are skipped", len(studies) - len(kept), len(studies))
    return kept
