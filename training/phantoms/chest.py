"""A phantom in numbers: one thorax, its anatomy and its findings, from which both views are drawn.

Coordinates: x and y from -1 to 1, y downwards. In the frontal view the patient's left is at x > 0,
as radiographs are hung. In the lateral view the patient looks to x < 0, the spine is at x > 0.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from PIL import Image, ImageDraw

from training.phantoms.shapes import Field, Point, blur, shrink

Side = Literal["right", "left"]  # the patient's
SIDES: tuple[Side, Side] = ("right", "left")


@dataclass(frozen=True)
class Spot:
    """A rounded shadow in one lung. ``height`` 0 apex to 1 base, ``depth`` 0 sternum to 1 spine."""

    side: Side
    height: float
    depth: float
    radius: float


@dataclass(frozen=True)
class Chest:
    """All numbers of one phantom: anatomy first, then findings (absent by default)."""

    half_width: float = 0.76  # of the thorax
    apex: float = -0.80  # top of the lungs, y
    dome_right: float = 0.42  # top of each hemidiaphragm, y
    dome_left: float = 0.49
    heart_ratio: float = 0.45  # width of the heart : width of the thorax
    rib_pitch: float = 0.148  # distance between ribs
    rib_slope: float = 0.20
    breast: float = 0.0  # 0 none to 1
    tilt_degrees: float = 0.0
    effusion_right: float = 0.0  # height of the fluid above the costophrenic angle
    effusion_left: float = 0.0
    consolidations: tuple[Spot, ...] = ()
    nodules: tuple[Spot, ...] = ()
    bands: Side | None = None  # linear atelectasis at one base
    pneumothorax: Side | None = None
    edema: float = 0.0  # 0 none to 1
    pacemaker: Side | None = None
    central_line: bool = False

    def dome(self, side: Side) -> float:
        return self.dome_right if side == "right" else self.dome_left

    def effusion(self, side: Side) -> float:
        return self.effusion_right if side == "right" else self.effusion_left

    def level(self, spot: Spot) -> float:
        """y of a spot."""
        return self.apex + 0.12 + spot.height * (self.dome(spot.side) - self.apex - 0.16)


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
