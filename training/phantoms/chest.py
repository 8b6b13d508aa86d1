"""A phantom in numbers: one thorax, its anatomy and its findings, from which both views are drawn.

Coordinates: x and y from -1 to 1, y downwards. In the frontal view the patient's left is at x > 0,
as radiographs are hung. In the lateral view the patient looks to x < 0, the spine is at x > 0.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Side = Literal["right", "left"]  # the patient's
SIDES: tuple[Side, Side] = ("right", "left")
SIGN = {"right": -1, "left": 1}  # of x in the frontal view


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
