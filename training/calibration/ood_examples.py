"""Images that are no upright chest radiographs: altered radiographs, drawings, pictures of a folder.

The fit uses only ``TURNED``. All other kinds serve the metrics alone, which thus measure unseen kinds.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from itertools import pairwise
from pathlib import Path
from typing import Final

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw, ImageFilter

from model.images import ImageError, load_pixels
from model.types import Pixels
from training.data.studies import evenly

Drawing = Callable[[np.random.Generator, int], Pixels]

TURNED: Final[Mapping[str, Callable[[Pixels], Pixels]]] = {
    "upside down": lambda image: image[::-1, ::-1],
    "on its left side": lambda image: np.rot90(image, 1),
    "on its right side": lambda image: np.rot90(image, 3),
    "negative": lambda image: 255 - image,
}
"""Effects of an export error on a radiograph; (S, S) uint8 in and out."""

ALTERED: Final[Mapping[str, Callable[[Pixels], Pixels]]] = {
    "mirrored": lambda image: image[:, ::-1],
    "flipped top to bottom": lambda image: image[::-1],
    "a quarter of it": lambda image: _zoomed(image),
    "very dark": lambda image: (image // 8).astype(np.uint8),
}
"""Other alterations of a radiograph, for the metrics alone."""


def turned(images: Pixels, how: Callable[[Pixels], Pixels]) -> Pixels:
    """Each of (N, S, S) images, altered."""
    return np.stack([np.ascontiguousarray(how(image)) for image in images])


def drawn(size: int, count: int, seed: int) -> dict[str, Pixels]:
    """Drawings by kind: (count, S, S) uint8 each."""
    found = {}
    for number, (kind, draw) in enumerate(_DRAWINGS.items()):
        rng = np.random.default_rng((seed, 71, number))
        found[kind] = np.stack([draw(rng, size) for _ in range(count)])
    return found


def pictures(folder: Path, size: int, *, most: int | None = None) -> Pixels:
    """Every PNG and JPEG below a folder, or ``most`` of them evenly spaced, resized like uploads: (N, S, S) uint8.

    Raises:
        ValueError: the folder has no readable image.
    """
    paths = sorted(path for path in folder.rglob("*") if path.suffix.lower() in (".png", ".jpg", ".jpeg"))
    found = []
    for path in evenly(paths, most):
        try:
            found.append(load_pixels(path.read_bytes(), size))
        except ImageError:
            continue  # an animation, an icon
    if not found:
        raise ValueError(f"{folder} holds no PNG or JPEG that can be read; name a folder of pictures")
    return np.stack(found)


# --- drawings ---------------------------------------------------------------------------------------------------------


def _gradient(rng: np.random.Generator, size: int) -> Pixels:
    y, x = np.mgrid[0:size, 0:size] / size - 0.5
    angle = rng.uniform(0, 2 * np.pi)
    return _grey(128 + rng.uniform(60, 240) * (np.cos(angle) * x + np.sin(angle) * y))


def _clouds(rng: np.random.Generator, size: int) -> Pixels:
    """Smooth noise: as little texture as a radiograph, but no anatomy."""
    coarse = int(rng.integers(3, 16))
    small = Image.fromarray(rng.integers(0, 256, (coarse, coarse), np.uint8))
    return np.asarray(small.resize((size, size), Image.Resampling.BICUBIC))


def _stripes(rng: np.random.Generator, size: int) -> Pixels:
    y, x = np.mgrid[0:size, 0:size]
    wave = np.sin(2 * np.pi * (x * rng.integers(2, 12) + y * rng.integers(0, 12)) / size)
    return _grey(128 + 110 * np.sign(wave) if rng.random() < 0.5 else 128 + 110 * wave)


def _page(rng: np.random.Generator, size: int) -> Pixels:
    """A page of text: dark words on white, or inverted."""
    image = Image.new("L", (size, size), 250)
    pen = ImageDraw.Draw(image)
    step = int(rng.integers(8, 14))
    for top in range(step, size - step, step):
        left = step
        while left < size - 2 * step:
            word = "".join(chr(rng.integers(97, 123)) for _ in range(rng.integers(2, 9)))
            pen.text((left, top), word, fill=20)
            left += 7 * len(word)
    page = np.asarray(image)
    return page if rng.random() < 0.7 else (255 - page).astype(np.uint8)


def _lines(rng: np.random.Generator, size: int) -> Pixels:
    """A line drawing: outlines of shapes on a plain ground."""
    ground = int(rng.integers(256))
    image = Image.new("L", (size, size), ground)
    pen = ImageDraw.Draw(image)
    ink = 255 if ground < 128 else 0
    for _ in range(int(rng.integers(4, 14))):
        x, y = sorted(rng.integers(0, size, 2).tolist()), sorted(rng.integers(0, size, 2).tolist())
        shape = (pen.ellipse, pen.rectangle)[rng.integers(2)]
        shape((x[0], y[0], x[1] + 1, y[1] + 1), outline=ink, width=int(rng.integers(1, 5)))
    return np.asarray(image)


def _hand(rng: np.random.Generator, size: int) -> Pixels:
    """A hand as a radiograph shows it: soft tissue, and bones in it."""
    image = Image.new("L", (size, size), int(rng.integers(5, 30)))
    pen = ImageDraw.Draw(image)
    unit, tissue, bone = size / 16, int(rng.integers(60, 100)), int(rng.integers(170, 230))
    pen.rounded_rectangle((5 * unit, 8 * unit, 11 * unit, 16 * unit), 2 * unit, fill=tissue)
    for finger, (x, top) in enumerate(((3.2, 8.5), (5.6, 3), (7.2, 1.5), (8.8, 2), (10.4, 4))):
        left, top = x * unit, top * unit + rng.uniform(-0.5, 0.5) * unit
        pen.rounded_rectangle((left, top, left + 1.4 * unit, 12 * unit), 0.7 * unit, fill=tissue)
        joints = np.linspace(top + 0.3 * unit, (12 if finger else 11) * unit, 5)
        for upper, lower in pairwise(joints):
            box = (left + 0.4 * unit, upper + 0.1 * unit, left + unit, lower - 0.1 * unit)
            pen.rounded_rectangle(box, 0.3 * unit, fill=bone)
    for _ in range(8):
        x, y = rng.uniform(5.5, 9.5) * unit, rng.uniform(12, 14) * unit
        pen.ellipse((x, y, x + 1.2 * unit, y + unit), fill=bone)
    hand = image.filter(ImageFilter.GaussianBlur(size / 150)).rotate(float(rng.uniform(-15, 15)))
    return _grey(np.asarray(hand) + rng.normal(0, 4, (size, size)))


def _slice(rng: np.random.Generator, size: int) -> Pixels:
    """An axial slice of a chest as CT shows it: a ring of wall, two dark lungs, vessels, a spine; black around."""
    y, x = (np.mgrid[0:size, 0:size] + 0.5) / size * 2 - 1
    width, height = rng.uniform(0.8, 0.92), rng.uniform(0.55, 0.7)

    def inside(cx: float, cy: float, rx: float, ry: float) -> npt.NDArray[np.bool_]:
        found: npt.NDArray[np.bool_] = ((x - cx) / rx) ** 2 + ((y - cy) / ry) ** 2 < 1
        return found

    values = np.where(inside(0, 0, width, height), rng.uniform(140, 180), 0.0)
    for side in (-1, 1):
        values[inside(side * 0.42, -0.02, 0.3, 0.42)] = rng.uniform(15, 40)
        for _ in range(25):
            centre = rng.normal((side * 0.38, 0), (0.12, 0.18))
            values[inside(*centre, *rng.uniform(0.006, 0.025, 2))] = 170
    values[inside(0, 0.45, 0.12, 0.1)] = 240
    image = Image.fromarray(_grey(values)).filter(ImageFilter.GaussianBlur(size / 200))
    return _grey(np.asarray(image) + rng.normal(0, 6, (size, size)))


def _zoomed(image: Pixels) -> Pixels:
    size = len(image)
    start = size // 2
    part = Image.fromarray(np.ascontiguousarray(image[start:, :start]))
    return np.asarray(part.resize((size, size), Image.Resampling.BICUBIC))


def _grey(values: npt.NDArray[np.floating]) -> Pixels:
    grey: Pixels = np.clip(values, 0, 255).astype(np.uint8)
    return grey


_DRAWINGS: Final[Mapping[str, Drawing]] = {
    "blank": lambda rng, size: np.full((size, size), rng.integers(256), np.uint8),
    "gradient": _gradient,
    "noise": lambda rng, size: rng.integers(0, 256, (size, size), np.uint8),
    "clouds": _clouds,
    "stripes": _stripes,
    "page of text": _page,
    "line drawing": _lines,
    "drawn hand radiograph": _hand,
    "drawn CT slice": _slice,
}
