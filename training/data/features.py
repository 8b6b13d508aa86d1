"""Batches of studies as backbone output, for the stages that train what follows the backbone.

Both sources put frontal views first, and drop a view at random in training, so that the model also
learns from one image.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from model.network.backbone import Backbone
from model.network.report_model import Patches, ReportModel
from model.types import View
from training.data.augment import Augmentation, augment, augmentation_draws, changed, to_float
from training.data.crops import CropCache
from training.data.device_array import DeviceRows
from training.data.pixel_cache import PixelCache
from training.data.resumable_array import ResumableArray
from training.data.studies import Study
from training.trainer.context import Placement, RunContext
from training.trainer.loop import step_seed

_BATCH, _SAVE_EVERY = 32, 10
WHOLE = slice(None)


class PatchSource(Protocol):
    """Backbone output for studies."""

    def patches(
        self, studies: Sequence[Study], generator: torch.Generator | None, *, tokens: bool = True, part: slice = WHOLE
    ) -> Patches:
        """Backbone output of a batch, or of a part of it.

        Args:
            studies: each with at least one readable image.
            generator: of augmentation and dropped views; None: nothing random, as in serving.
            tokens: False where only the pooled features are needed; the patch tokens may then be left out.
            part: the studies to return. Randomness is drawn for the whole batch, so the result for a study does not
                depend on how processes share the batch.
        """


class CachedFeatures:
    """Precomputed features of a frozen backbone: ``tokens`` (N, variants, 49, D) float16."""

    def __init__(
        self, tokens: npt.NDArray[np.float16], rows: Mapping[str, int], device: torch.device, view_dropout: float,
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
        """(B, V, 49, D) tokens, (B, V, 0, D) without; V is the most views of a study."""
        rows, views, mask = _batch_of_views(studies, self._rows, self._drop, generator)
        rows = rows * self._variants
        if generator is not None:
            for position in np.argwhere(mask.numpy()):
                rows[tuple(position)] += int(torch.randint(self._variants, (1,), generator=generator))
        rows, views, mask = rows[part], views[part].to(self._device), mask[part].to(self._device)
        pooled = self._pooled.take(rows.ravel()).view(*rows.shape, self._width)
        features = pooled.new_zeros(*rows.shape, 0, self._width)
        if tokens:
            features = self._tokens.take(rows.ravel()).float().view(*rows.shape, self._grid, self._width)
        absent = ~mask.unsqueeze(-1)
        return Patches(features.masked_fill(absent.unsqueeze(-1), 0), pooled.masked_fill(absent, 0), views, mask)


class OnlineFeatures:
    """The backbone itself, on augmented pixels in training (or on ``crops``) and on unchanged ones otherwise."""

    def __init__(
        self, model: ReportModel, cache: PixelCache, device: torch.device, view_dropout: float,
        on_device: Placement = "auto", crops: CropCache | None = None,
    ) -> None:  # fmt: skip
        self._model, self._rows, self._device, self._drop = model, cache.rows, device, view_dropout
        self._crops, self._keys = crops, {row: key for key, row in cache.rows.items()}
        self._pixels = DeviceRows(cache.array, device, on_device)

    def patches(
        self, studies: Sequence[Study], generator: torch.Generator | None, *, tokens: bool = True, part: slice = WHOLE
    ) -> Patches:
        """(B, V, 49, D) tokens; V is the most views of a study."""
        return self._model.encode_images(*self.images(studies, generator, part=part))

    def images(
        self, studies: Sequence[Study], generator: torch.Generator | None, *, part: slice = WHOLE
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Images (B, V, 1, S, S), their views and mask (B, V): the arguments of ``ReportModel.encode_images``."""
        rows, views, mask = _batch_of_views(studies, self._rows, self._drop, generator)
        draws = None if generator is None else augmentation_draws(mask.numel(), generator).view(*mask.shape, -1)[part]
        rows, views, mask = rows[part], views[part].to(self._device), mask[part].to(self._device)
        if draws is not None and self._crops is not None:
            there = mask.flatten().cpu()
            keys = [self._keys[row] for row in rows.ravel()[there.numpy()].tolist()]
            crops = self._crops.crop(keys, draws.flatten(0, 1)[there])
            pixels = crops.new_zeros(len(there), *crops.shape[1:])
            pixels[there] = crops
            images = to_float(pixels.to(self._device))
        else:
            pixels = self._pixels.take(rows.ravel()).masked_fill(~mask.flatten()[:, None, None], 0)
            images = to_float(pixels)  # (B*V, 1, S, S)
            if draws is not None:
                images = changed(images, Augmentation(), draws.flatten(0, 1))
        return images.view(*rows.shape, *images.shape[1:]), views, mask


def cache_features(
    backbone: Backbone, cache: PixelCache, studies: Sequence[Study], variants: int, context: RunContext,
    directory: Path, *, view_dropout: float, name: str,
) -> CachedFeatures:  # fmt: skip
    """Compute the features of all images of ``studies``, or reuse and continue those in ``directory``.

    Of the ``variants`` copies of each image copy 0 is unchanged, the others are augmented. The weights of ``backbone``,
    which is frozen, are part of the cache's identity; ``name`` is part of its file names.
    """
    keys = sorted({ref.key for study in studies for ref in study.images if ref.key in cache})
    shape = (len(keys), variants, (cache.size // 32) ** 2, backbone.width)
    identity = _identity(backbone, keys, variants, cache.size, context)
    store = ResumableArray(directory / f"features-{name}.npy", identity, np.float16, shape)

    @torch.inference_mode()
    def compute(rows: slice) -> npt.NDArray[np.float16]:
        pixels = torch.from_numpy(cache.array[[cache.rows[key] for key in keys[rows]]]).to(context.device)
        plain = to_float(pixels)
        values = np.empty((len(plain), *shape[1:]), np.float16)
        for variant in range(variants):
            generator = torch.Generator().manual_seed(step_seed(context.seed, f"features-{name}-{variant}", rows.start))
            images = plain if variant == 0 else augment(plain, Augmentation(), generator)
            with context.autocast():
                values[:, variant] = backbone(images)[0].float().cpu().numpy()
        return values

    was_training = backbone.training
    backbone.eval()
    tokens = store.fill(compute, batch=_BATCH, save_every=_SAVE_EVERY, description=f"features {name}")
    backbone.train(was_training)
    return CachedFeatures(tokens, {key: row for row, key in enumerate(keys)}, context.device, view_dropout,
                          context.on_device)  # fmt: skip


def select_views(
    study: Study, rows: Mapping[str, int], drop: float, generator: torch.Generator | None
) -> list[tuple[int, int]]:
    """(row, view index) of a study's readable images; one is dropped at rate ``drop``.

    An image of unknown view counts as frontal where it comes first and as lateral after another.
    """
    images = [
        (rows[ref.key], ref.view.row if ref.view is not None else min(position, View.LATERAL.row))
        for position, ref in enumerate(study.ordered())
        if ref.key in rows
    ]
    if generator is not None and len(images) > 1:
        draw = torch.rand(1, generator=generator).item()
        which = int(torch.randint(len(images), (1,), generator=generator))
        if draw < drop:
            del images[which]
    return images


def _batch_of_views(
    studies: Sequence[Study], rows: Mapping[str, int], drop: float, generator: torch.Generator | None
) -> tuple[npt.NDArray[np.int64], Tensor, Tensor]:
    """Rows of the images, their view indices, and the mask of those that exist, (B, V) each."""
    chosen = [select_views(study, rows, drop, generator) for study in studies]
    shape = (len(studies), max(len(images) for images in chosen))
    stored = np.zeros(shape, np.int64)
    views, mask = torch.zeros(shape, dtype=torch.int64), torch.zeros(shape, dtype=torch.bool)
    for b, images in enumerate(chosen):
        for v, (row, view) in enumerate(images):
            stored[b, v], views[b, v], mask[b, v] = row, view, True
    return stored, views, mask


def _identity(backbone: Backbone, keys: Sequence[str], variants: int, size: int, context: RunContext) -> str:
    digest = hashlib.sha256("\n".join([str(variants), str(size), str(context.seed), context.precision, *keys]).encode())
    for value in backbone.state_dict().values():
        digest.update(np.ascontiguousarray(value.detach().cpu().float().numpy()).tobytes())
    return digest.hexdigest()
