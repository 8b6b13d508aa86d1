"""Pooled backbone features of many images, kept on the disk so that a later run goes on where one stopped."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

from model.calibration.schema import Floats
from model.files import write_atomic
from model.network.backbone import Backbone
from model.types import Pixels
from training.data.pixel_cache import allocate, read_state

_BATCH = 8  # larger ones leave a core's cache and take longer
_FLUSH_EVERY = 8


@torch.inference_mode()
def pooled_features(
    backbone: Backbone, images: Pixels, name: str, directory: Path, *, weights: str, device: torch.device
) -> Floats:
    """Features of each image.

    Args:
        backbone: in eval mode.
        images: (N, S, S) uint8, 0 black to 255 white.
        name: of the group of images, for its files in ``directory`` and the bar.
        directory: holds ``<name>.npy`` and ``<name>.json``.
        weights: digest of the backbone's weights; with the images' it names the features.
        device: where the backbone is.

    Returns:
        (N, D) float32.
    """
    content = hashlib.sha256(np.ascontiguousarray(images).data)
    identity = hashlib.sha256(weights.encode() + content.digest()).hexdigest()
    directory.mkdir(parents=True, exist_ok=True)
    stem = name.replace(" ", "-")
    path, state_path = directory / f"{stem}.npy", directory / f"{stem}.json"
    state = read_state(state_path, identity) if path.exists() else None
    done = 0 if state is None else int(state["done"])
    if state is None:
        allocate(path, np.float32, (len(images), backbone.width))
    store = np.lib.format.open_memmap(path, mode="r+")
    with tqdm(
        total=len(images), initial=done, desc=name, unit="img", mininterval=1, disable=done == len(images)
    ) as bar:
        for count, start in enumerate(range(done, len(images), _BATCH), 1):
            part = torch.from_numpy(np.array(images[start : start + _BATCH])).unsqueeze(1).to(device)
            store[start : start + len(part)] = backbone(part.float() / 255.0)[1].float().cpu().numpy()
            reached = start + len(part)
            if count % _FLUSH_EVERY == 0 or reached == len(images):
                store.flush()
                write_atomic(state_path, json.dumps({"identity": identity, "done": reached}).encode())
            bar.update(len(part))
    return np.array(store)
