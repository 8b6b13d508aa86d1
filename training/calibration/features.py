"""Pooled backbone features of many images, cached on disk."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import torch

from model.calibration.schema import Floats
from model.network.backbone import Backbone
from model.types import Pixels
from training.data.resumable_array import ResumableArray

_BATCH = 8  # larger batches leave a CPU core's cache and take longer
_SAVE_EVERY = 8


def pooled_features(
    backbone: Backbone, images: Pixels, name: str, directory: Path, *, weights: str, device: torch.device
) -> Floats:
    """Features of each image.

    Args:
        backbone: in eval mode.
        images: (N, S, S) uint8, 0 black to 255 white.
        name: of the group of images, for its files in ``directory`` and the progress bar.
        directory: of ``<name>.npy`` and ``<name>.json``.
        weights: digest of the backbone's weights; with that of the images it identifies the cache.
        device: of the backbone.

    Returns:
        (N, D) float32.
    """
    content = hashlib.sha256(np.ascontiguousarray(images).data)
    identity = hashlib.sha256(weights.encode() + content.digest()).hexdigest()
    path = directory / f"{name.replace(' ', '-')}.npy"
    store = ResumableArray(path, identity, np.float32, (len(images), backbone.width))

    @torch.inference_mode()
    def compute(rows: slice) -> Floats:
        part = torch.from_numpy(np.array(images[rows])).unsqueeze(1).to(device)
        values: Floats = backbone(part.float() / 255.0)[1].float().cpu().numpy()
        return values

    return np.array(store.fill(compute, batch=_BATCH, save_every=_SAVE_EVERY, description=name))
