"""Every image of a data set decoded once, with the serving decoder, into one memory-mapped array.

Full-size radiographs take about 100 ms each to decode; a cache of squashed 8-bit squares makes an epoch cost only
arithmetic. Broken and missing images are counted, named and skipped here, so no epoch meets one.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from tqdm import tqdm

from model.files import write_atomic
from model.images import ImageError, read_image
from model.types import Pixels, Resample, View
from training.data.studies import ImageRef, Source, Study

log = logging.getLogger(__name__)

_FLUSH_EVERY = 250


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
        """The study with only its readable images, views filled from DICOM; None where no image is left."""
        images = tuple(
            ImageRef(ref.key, ref.view or self.views.get(ref.key)) for ref in study.images if ref.key in self.rows
        )
        return replace(study, images=images) if images else None


def build_pixel_cache(
    source: Source, studies: Sequence[Study], size: int, directory: Path, *, resample: Resample = "bicubic"
) -> PixelCache:
    """Decode all images of ``studies`` at ``size`` pixels into ``directory``; reuse or resume what is there.

    Args:
        source: where the images come from.
        studies: the studies whose images are wanted.
        size: S, side of the squares in pixels.
        directory: holds ``pixels-S.npy`` and ``pixels-S.json``.
        resample: filter of the squash.

    Raises:
        ValueError: not a single image could be read.
    """
    keys = sorted({ref.key for study in studies for ref in study.images})
    drawn = str(size) if resample == "bicubic" else f"{size} {resample}"
    identity = hashlib.sha256("\n".join([source.images.description(), drawn, *keys]).encode()).hexdigest()
    directory.mkdir(parents=True, exist_ok=True)
    array_path, state_path = directory / f"pixels-{size}.npy", directory / f"pixels-{size}.json"
    state = read_state(state_path, identity)
    if state is None or not array_path.exists():
        state = {"identity": identity, "done": {}, "views": {}, "skipped": {}, "complete": False}
        state_path.unlink(missing_ok=True)
        allocate(array_path, np.uint8, (max(len(keys), 1), size, size))
    if not state["complete"]:
        _decode(source, keys, (size, resample), array_path, state_path, state)
    if not state["done"]:
        raise ValueError(
            f"none of {len(keys)} images could be read from {source.images.description()}; "
            "check --root or --images and that the files carry their image ids"
        )
    if state["skipped"]:
        shown = ", ".join(f"{key} ({why})" for key, why in list(state["skipped"].items())[:5])
        log.warning("%d of %d images skipped: %s%s", len(state["skipped"]), len(keys), shown,
                    " …" if len(state["skipped"]) > 5 else "")  # fmt: skip
    return PixelCache(
        array=np.load(array_path, mmap_mode="r"),
        rows=state["done"],
        views={key: View(view) for key, view in state["views"].items()},
        skipped=state["skipped"],
    )


def _decode(
    source: Source, keys: Sequence[str], square: tuple[int, Resample], array_path: Path, state_path: Path,
    state: dict[str, Any],
) -> None:  # fmt: skip
    size, resample = square
    array = np.lib.format.open_memmap(array_path, mode="r+")
    todo = [key for key in keys if key not in state["done"]]
    row_of = {key: row for row, key in enumerate(keys)}
    state["skipped"] = {}
    bar = tqdm(source.images.iter(todo), total=len(todo), desc=f"decode {size}px", unit="img", mininterval=1)
    for count, (key, data) in enumerate(bar, 1):
        if data is None:
            state["skipped"][key] = "missing"
            continue
        try:
            image = read_image(data, size, resample=resample)
        except ImageError as error:
            state["skipped"][key] = error.code
            continue
        array[row_of[key]] = image.pixels
        state["done"][key] = row_of[key]
        if image.view is not None:
            state["views"][key] = image.view.value
        if count % _FLUSH_EVERY == 0:
            array.flush()
            _write_state(state_path, state)
    array.flush()
    state["complete"] = True
    _write_state(state_path, state)


def allocate(path: Path, dtype: npt.DTypeLike, shape: tuple[int, ...]) -> None:
    """Create a ``.npy`` file of zeros to be memory-mapped, all of its room on the disk taken.

    A file with holes would end the process without a word (SIGBUS) where the disk fills up while it is written.

    Raises:
        OSError: there is no room for it.
    """
    path.unlink(missing_ok=True)
    try:
        np.lib.format.open_memmap(path, mode="w+", dtype=dtype, shape=shape).flush()
        if hasattr(os, "posix_fallocate") and path.stat().st_size:
            with path.open("r+b") as file:
                os.posix_fallocate(file.fileno(), 0, path.stat().st_size)
    except OSError as error:
        path.unlink(missing_ok=True)
        error.filename = error.filename or str(path)
        raise


def read_state(path: Path, identity: str) -> dict[str, Any] | None:
    """What a cache's state file says; None where there is none, it cannot be read, or it is of another cache."""
    try:
        state: dict[str, Any] = json.loads(path.read_text())
    except FileNotFoundError:
        return None
    except ValueError:
        log.warning("%s cannot be read; what it counts is computed anew", path)
        return None
    return state if state.get("identity") == identity else None


def _write_state(path: Path, state: dict) -> None:  # type: ignore[type-arg]
    write_atomic(path, json.dumps(state).encode())
