"""All images of a data set, decoded once by the service's decoder into a memory-mapped array.

Broken and missing images are skipped and named here.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from model.images import ImageError, Radiograph, read_image
from model.types import Pixels, Resample, View
from training.data.resumable_array import ResumableArray
from training.data.studies import ImageRef, Source, Study

log = logging.getLogger(__name__)

_SAVE_EVERY = 250


@dataclass(frozen=True)
class PixelCache:
    """Decoded images by key. ``array`` is (N, S, S) uint8, memory-mapped."""

    array: Pixels
    rows: dict[str, int]
    views: dict[str, View]
    skipped: dict[str, str]

    @property
    def size(self) -> int:
        """S, side of the squares in pixels."""
        return int(self.array.shape[1])

    def __contains__(self, key: object) -> bool:
        return key in self.rows

    def usable(self, study: Study) -> Study | None:
        """The study with its readable images, views filled from DICOM; None without such images."""
        images = tuple(ImageRef(ref.key, ref.view or self.views.get(ref.key))
                       for ref in study.images if ref.key in self.rows)  # fmt: skip
        return replace(study, images=images) if images else None

    def readable(self, studies: Sequence[Study]) -> list[Study]:
        """The studies with at least one readable image, without their unreadable ones."""
        kept = [usable for study in studies if (usable := self.usable(study)) is not None]
        if missing := len(studies) - len(kept):
            log.warning("%d of %d studies have no readable image and are skipped", missing, len(studies))
        return kept


def build_pixel_cache(
    source: Source, studies: Sequence[Study], size: int, directory: Path, *, resample: Resample = "bicubic"
) -> PixelCache:
    """Decode all images of ``studies`` to squares of ``size`` pixels into ``directory``, or reuse and
    continue its ``pixels-SIZE.npy`` and ``pixels-SIZE.json`` (``pixels-SIZE-bilinear`` where ``resample`` is bilinear).

    Raises:
        ValueError: no image could be read.
    """
    keys = sorted({ref.key for study in studies for ref in study.images})
    drawn = str(size) if resample == "bicubic" else f"{size} {resample}"
    identity = hashlib.sha256("\n".join([source.images.description(), drawn, *keys]).encode()).hexdigest()
    name = f"pixels-{drawn.replace(' ', '-')}.npy"  # rows of an ablation share the directory
    store = ResumableArray(directory / name, identity, np.uint8, (max(len(keys), 1), size, size))
    if not store.progress.get("complete"):
        with store.writing() as array:

            def put(row: int, pixels: Pixels) -> int:
                array[row] = pixels
                return row

            decode_images(source, keys, lambda data: read_image(data, size, resample=resample), put, store, array,
                          f"decode {size}px")  # fmt: skip
    rows, skipped = store.progress["done"], store.progress["skipped"]
    if not rows:
        raise ValueError(f"none of {len(keys)} images could be read from {source.images.description()}; check --root "
                         "or --images and that the files carry their image ids")  # fmt: skip
    if skipped:
        shown = ", ".join(f"{key} ({why})" for key, why in list(skipped.items())[:5])
        log.warning("%d of %d images skipped: %s%s", len(skipped), len(keys), shown, " …" if len(skipped) > 5 else "")
    views = {key: View(view) for key, view in store.progress["views"].items()}
    return PixelCache(store.read(), rows, views, skipped)


def decode_images(
    source: Source, keys: Sequence[str], read: Callable[[bytes], Radiograph], put: Callable[[int, Pixels], object],
    store: ResumableArray, array: np.memmap[Any, Any], what: str,
) -> None:  # fmt: skip
    """Decode the images that ``store`` lacks.

    ``put`` writes pixels into a row of ``array``. The progress has, by key, ``done``: what ``put``
    returned; ``views`` of DICOM files; and ``skipped``: the reasons.
    """
    row_of = {key: row for row, key in enumerate(keys)}
    done: dict[str, object] = store.progress.get("done", {})
    views: dict[str, str] = store.progress.get("views", {})
    skipped: dict[str, str] = {}
    todo = [key for key in keys if key not in done]
    bar = tqdm(source.images.iter(todo), total=len(todo), desc=what, unit="img", mininterval=1)
    for count, (key, data) in enumerate(bar, 1):
        if data is None:
            skipped[key] = "missing"
            continue
        try:
            image = read(data)
        except ImageError as error:
            skipped[key] = error.code
            continue
        done[key] = put(row_of[key], image.pixels)
        if image.view is not None:
            views[key] = image.view.value
        if count % _SAVE_EVERY == 0:
            store.save(array, done=done, views=views, skipped=skipped, complete=False)
    store.save(array, done=done, views=views, skipped=skipped, complete=True)
