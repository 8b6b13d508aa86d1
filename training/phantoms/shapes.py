"""The drawing tools of the chest phantoms: soft shapes, strokes, blur, and the film they end on.

Shapes are fields (S, S) between 0 and 1 over coordinates x, y from -1 to 1, y downwards; widths,
radii and blurs are in the same units.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

Field = NDArray[np.float64]  # (S, S)
Pixels = NDArray[np.uint8]  # (S, S), 0 black (air) to 255 white (bone, metal)
Point = tuple[float, float]  # x, y


def grid(size: int) -> tuple[Field, Field]:
    axis = (np.arange(size) + 0.5) / size * 2 - 1
    x, y = np.meshgrid(axis, axis)
    return x, y


def soft(distance: Field, width: float) -> Field:
    """1 where ``distance`` is well above 0, 0 well below, smooth over ``width``."""
    return 1 / (1 + np.exp(-np.clip(distance / (0.5 * width), -40, 40)))


def disc(x: Field, y: Field, cx: float, cy: float, radius: float, edge: float = 0.02) -> Field:
    return soft(radius - np.hypot(x - cx, y - cy), edge)


def union(*parts: Field) -> Field:
    """Union of soft masks: what one leaves of the air, the next takes its share of."""
    left = np.ones_like(parts[0])
    for part in parts:
        left = left * (1 - part)
    return 1 - left


def noise(size: int, rng: np.random.Generator, grain: float) -> Field:
    """Smooth noise in [0, 1]; ``grain`` is the size of its lumps."""
    field = blur(rng.standard_normal((size, size)), grain)
    return np.clip(0.5 + 0.25 * field / max(float(field.std()), 1e-9), 0, 1)


def blur(field: Field, sigma: float) -> Field:
    """Gaussian blur; ``sigma`` in coordinates (the image is 2 wide). Edges are mirrored."""
    size = field.shape[0]
    pixels = sigma * size / 2
    pad = min(size - 1, int(4 * pixels) + 1)
    padded = np.pad(field, pad, mode="reflect")
    n = padded.shape[0]
    decay = np.exp(-2 * (np.pi * np.fft.fftfreq(n) * pixels) ** 2)
    blurred = np.fft.irfft2(np.fft.rfft2(padded) * decay[:, None] * decay[: n // 2 + 1], s=padded.shape)
    return blurred[pad : pad + size, pad : pad + size]


def strokes(size: int, lines: Sequence[Sequence[Point]], width: float) -> Field:
    """Polylines of ``width``, antialiased, 0 to 1."""
    image = Image.new("L", (2 * size, 2 * size))
    draw = ImageDraw.Draw(image)
    for line in lines:
        points = [c for px, py in line for c in ((px + 1) * size, (py + 1) * size)]
        draw.line(points, fill=255, width=max(1, round(width * size)), joint="curve")
    return shrink(image, size)


def tubes(size: int, lines: Sequence[Sequence[Point]], width: float) -> Field:
    """Bones: a shaft with a denser cortex along its edges."""
    outer, inner = strokes(size, lines, width), strokes(size, lines, width * 0.62)
    return blur(outer - 0.38 * inner, 0.005)


def smooth_curve(points: Sequence[Point]) -> list[Point]:
    """A curve through ``points`` (Catmull-Rom), for wires and catheters."""
    p = np.array([points[0], *points, points[-1]])
    curve: list[Point] = []
    for a, b, c, d in zip(p, p[1:], p[2:], p[3:], strict=False):
        for t in np.linspace(0, 1, 12):
            q = 0.5 * (2 * b + (c - a) * t + (2 * a - 5 * b + 4 * c - d) * t**2 + (3 * b - a - 3 * c + d) * t**3)
            curve.append((float(q[0]), float(q[1])))
    return curve


def vessels(size: int, rng: np.random.Generator, roots: Sequence[Point], reach: float, edema: float) -> Field:
    """Branching bronchovascular markings that thin out towards the periphery."""
    image = Image.new("L", (2 * size, 2 * size))
    draw = ImageDraw.Draw(image)

    def grow(at: Point, angle: float, length: float, width: float, level: int) -> None:
        if level == 0:
            return
        bend = rng.normal(0, 0.25)
        to = (at[0] + length * np.cos(angle + bend), at[1] + length * np.sin(angle + bend))
        shade = int(255 * (0.45 + 0.55 * level / 5))
        ends = [((px + 1) * size, (py + 1) * size) for px, py in (at, to)]
        draw.line([c for end in ends for c in end], fill=shade, width=max(1, round(width * size)))
        for spread in (-0.42, 0.36):
            grow(to, angle + bend + spread * rng.uniform(0.6, 1.3), length * 0.78, width * 0.66, level - 1)

    for root in roots:
        outward = 0.0 if root[0] > 0 else np.pi
        spokes = 6 if len(roots) > 1 else 9
        fan = 2.3 if len(roots) > 1 else 5.0
        for i in range(spokes):
            angle = outward + fan * (i / (spokes - 1) - 0.5) + rng.normal(0, 0.1)
            grow(root, angle, 0.21 * reach, 0.022 * (1 + 0.6 * edema), 5)
    return blur(shrink(image, size), 0.006 * (1 + edema))


def shrink(image: Image.Image, size: int) -> Field:
    return np.asarray(image.resize((size, size), Image.Resampling.BOX), dtype=np.float64) / 255


def develop(picture: Field, metal: Field, degrees: float, rng: np.random.Generator, *, marker: str) -> Pixels:
    """Scatter, exposure, quantum noise, rotation and the lead marker: from shadows to 8-bit grey."""
    size = picture.shape[0]
    shadow = np.maximum(blur(picture, 0.004), 0)
    shadow = 0.93 * shadow + 0.07 * blur(shadow, 0.12)
    shadow = shadow + metal * (1.35 - np.minimum(shadow, 1.35))
    exposure = rng.uniform(0.92, 1.08)

    def film(value: Field) -> Field:  # steep where lungs are seen, flat in air and in bone
        return 1 / (1 + np.exp(-3.7 * (value - 0.60)))

    black, white = film(np.array([0.02, 1.32]))
    grey = (film(shadow * exposure) - black) / (white - black)
    grain = blur(rng.standard_normal((size, size)), 0.0025)
    grey = grey + rng.uniform(0.006, 0.014) * grain / max(float(grain.std()), 1e-9) * (1.2 - grey)
    image = Image.fromarray(np.clip(np.rint(grey * 245), 0, 255).astype(np.uint8))
    image = image.rotate(degrees, Image.Resampling.BICUBIC, fillcolor=4)
    draw = ImageDraw.Draw(image)
    if marker:
        draw.text((0.92 * size, 0.03 * size), marker, fill=225, font=ImageFont.load_default(size * 0.055))
    label = ImageFont.load_default(size * 0.026)
    draw.text((0.02 * size, 0.95 * size), "PHANTOM", fill=190, font=label, stroke_width=1, stroke_fill=50)
    return np.asarray(image, dtype=np.uint8)
