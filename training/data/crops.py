"""Random crops of radiographs in their aspect ratio, with flips: the augmentation of published R2Gen code.

R2Gen, ``modules/dataloaders.py:20``: the shorter side is resized to 256, then a random crop of 224
and a horizontal flip of half of the images, each image by itself. The flip swaps left and right, and
the crop differs from the squashed images of validation and serving; so only a preset "as published"
has them.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from model.images import read_image
from model.types import Pixels, Resample
from training.data.pixel_cache import decode_images
from training.data.resumable_array import ResumableArray
from training.data.studies import Source, Study

_LARGEST_RATIO = 1.75  # of the sides; the middle of a longer image is kept


def shorter_side(size: int) -> int:
    """Pixels of the shorter side before the crop, 256 for 224."""
    return round(size * 256 / 224)


@dataclass(frozen=True)
class CropCache:
    """Decoded images by key. ``array`` is (N, L, s) uint8, memory-mapped, with the shorter side s last.

    ``stored`` has, by key, the row, the pixels of the longer side, and whether the image is wider than high.
    """

    array: Pixels
    stored: dict[str, tuple[int, int, bool]]
    size: int  # of the crops

    def crop(self, keys: Sequence[str], draws: Tensor) -> Tensor:
        """Crops by random numbers ``draws`` (n, 3 or more) in -1..1: (n, S, S) uint8."""
        shares = draws.double().add(1).div(2).clamp(0, 1 - 1e-9).tolist()
        crops = [self._crop(key, share) for key, share in zip(keys, shares, strict=True)]
        return torch.from_numpy(np.stack(crops))

    def _crop(self, key: str, shares: Sequence[float]) -> Pixels:
        row, longer, is_wide = self.stored[key]
        along, across = (int(share * (side - self.size + 1))
                         for share, side in zip(shares, (longer, self.array.shape[2]), strict=False))  # fmt: skip
        crop: Pixels = self.array[row, along : along + self.size, across : across + self.size]
        crop = crop.T if is_wide else crop
        return crop[:, ::-1] if shares[2] < 0.5 else crop


def build_crop_cache(
    source: Source, studies: Sequence[Study], size: int, directory: Path, *, resample: Resample
) -> CropCache:
    """Decode all images of ``studies`` for crops of ``size`` pixels, or reuse ``crops-SIZE.npy`` in ``directory``.

    Raises:
        ValueError: no image could be read.
    """
    keys = sorted({ref.key for study in studies for ref in study.images})
    short = shorter_side(size)
    parts = [source.images.description(), f"crops {size} {resample}", *keys]
    identity = hashlib.sha256("\n".join(parts).encode()).hexdigest()
    shape = (max(len(keys), 1), int(short * _LARGEST_RATIO), short)
    store = ResumableArray(directory / f"crops-{size}-{resample}.npy", identity, np.uint8, shape)

    if not store.progress.get("complete"):
        with store.writing() as array:

            def put(row: int, pixels: Pixels) -> tuple[int, int, bool]:
                is_wide = pixels.shape[1] > pixels.shape[0]
                upright = pixels.T if is_wide else pixels
                cut = max(len(upright) - shape[1], 0) // 2
                upright = upright[cut : cut + shape[1]]
                array[row, : len(upright)] = upright
                return row, len(upright), is_wide

            decode_images(source, keys, lambda data: read_image(data, short, resample=resample, keep_aspect=True),
                          put, store, array, f"decode {short}px")  # fmt: skip
    stored = {key: (row, longer, wide) for key, (row, longer, wide) in store.progress["done"].items()}
    if not stored:
        raise ValueError(f"none of {len(keys)} images could be read from {source.images.description()}; check --root "
                         "or --images and that the files carry their image ids")  # fmt: skip
    return CropCache(store.read(), stored, size)
