"""Draws the lateral view of a chest phantom, shadows adding up as in the frontal view."""

from __future__ import annotations

import numpy as np

from training.phantoms.chest import SIDES, Chest, vessels
from training.phantoms.shapes import (
    Field,
    Pixels,
    Point,
    blur,
    develop,
    disc,
    grid,
    noise,
    smooth_curve,
    soft,
    strokes,
    tubes,
    union,
)


def draw_lateral(chest: Chest, size: int, seed: int) -> Pixels:
    """The lateral view, (size, size) uint8; ``seed`` as for the frontal."""
    lumps, twigs, film = (np.random.default_rng([seed, 1, part]) for part in range(3))
    x, y = grid(size)
    depth = 0.60 + 0.2 * (chest.half_width - 0.76)  # half the antero-posterior diameter
    back = depth * (0.86 - 0.30 * np.clip(-0.1 - y, 0, 1) ** 1.5) - 0.06 * np.clip(y - 0.3, 0, 1)
    front = -depth * (1.04 - 0.60 * np.clip((0.10 - y) / 0.9, 0, 1) ** 1.5 - 0.10 * np.clip(y - 0.10, 0, 1))
    along = np.clip((x - front) / (back - front), 0, 1)  # 0 sternum to 1 spine
    lung = soft(x - front, 0.014) * soft(back + 0.05 - x, 0.014) * soft(y - chest.apex - 0.04, 0.04)
    floors = {side: chest.dome(side) + 0.02 + 0.62 * np.clip(along - 0.42, -0.3, 1) ** 2 for side in SIDES}
    sides = {side: lung * soft(floors[side] - y, 0.014) for side in SIDES}

    growth = chest.heart_ratio / 0.45
    heart_y = chest.dome_left - 0.21
    heart_x = -depth * 0.56 + 0.16 * (growth - 1)
    shear = y - heart_y + 0.25 * (x - heart_x)
    heart = soft(1 - ((x - heart_x) / (0.29 * growth)) ** 2 - (shear / (0.32 * growth**0.5)) ** 2, 0.14)
    root = disc(x, y, -0.06, -0.16, 0.16, 0.04) + disc(x, y, -0.02, -0.40, 0.13, 0.05)

    air = np.zeros_like(x)
    for side in SIDES:
        solid = 0.80 * heart
        for spot in chest.consolidations + chest.nodules:
            if spot.side == side:
                at = (-depth + spot.depth * 1.75 * depth, chest.level(spot))
                sharp = 0.02 if spot in chest.nodules else 0.06
                density = 0.9 if spot in chest.nodules else 0.68 + 0.22 * noise(size, lumps, 0.05)
                solid = union(solid, density * disc(x, y, *at, spot.radius, sharp))
        if level := chest.effusion(side):
            surface = chest.dome(side) + 0.26 - level - 0.16 * np.exp(-np.maximum(back - x, 0) / 0.10)
            solid = union(solid, 0.96 * soft(y - surface, 0.02))
        air += 0.5 * sides[side] * (1 - solid) * (0.80 + 0.35 * np.clip(y, -0.5, 0.6))
    lungs = np.maximum(sides["right"], sides["left"])
    abdomen = soft(y - np.minimum(floors["right"], floors["left"]), 0.03)
    markings = vessels(size, twigs, [(0.02, -0.12)], 0.8, chest.edema)
    air *= 1 - chest.edema * 0.45 * np.exp(-((x / 0.35) ** 2) - ((y + 0.02) / 0.36) ** 2)
    air -= lungs * (1 - 0.7 * heart) * (0.26 * (1 + 0.5 * chest.edema) * markings + 0.18 * np.minimum(root, 1))
    if chest.bands:
        base = chest.dome(chest.bands)
        air -= lungs * 0.35 * strokes(size, [[(-0.1, base - 0.02), (0.3, base - 0.10)]], 0.018)

    body = np.clip((x - front + 0.13) / 0.10, 0, 1) ** 0.5 * np.clip((back + 0.32 - x) / 0.14, 0, 1) ** 0.5
    arms = soft(-0.60 - y - 0.42 * np.abs(x + 0.05), 0.14)
    shade = 0.12 * arms + 0.16 * abdomen + 0.06 * np.clip(-y, -0.35, 1)
    picture = np.maximum(body, arms * soft(0.75 - np.abs(x + 0.05), 0.05)) * (0.84 + shade)
    picture -= 0.66 * air + 0.09 * blur(strokes(size, [[(0.0, -1.0), (0.05, -0.5), (0.05, -0.2)]], 0.07), 0.01)
    picture += _bones(chest, size, front, back, x, y)
    return develop(picture, _devices(chest, size, depth), chest.tilt_degrees * 0.7, film, marker="")


def _bones(chest: Chest, size: int, front: Field, back: Field, x: Field, y: Field) -> Field:
    behind = x - back - 0.05  # 0 at the front of the vertebral bodies
    pitch = 0.165
    bodies = np.clip(3 * np.cos(2 * np.pi * (y + 0.12 * behind) / pitch) + 1.7, 0, 1)
    column = soft(behind, 0.012) * soft(0.17 - behind, 0.015)
    edges = np.exp(-((behind / 0.02) ** 2)) + np.exp(-(((behind - 0.17) / 0.02) ** 2))
    spine = column * (0.35 + 0.65 * bodies) * (1 + 0.25 * edges) * (1 - 0.30 * np.clip(y, -0.3, 1))
    arches = soft(behind - 0.15, 0.02) * soft(0.30 - behind, 0.04)
    arches = arches * np.exp(-((((y / pitch + 0.3) % 1 - 0.5) / 0.2) ** 2))
    sternum = np.exp(-(((x - front + 0.035) / 0.022) ** 2)) * soft(0.16 - y, 0.03) * soft(y + 0.62, 0.03)
    ribs: list[list[Point]] = []
    for number in range(9):
        top = chest.apex + 0.02 + number * chest.rib_pitch
        for shift in (0.0, 0.05):
            t = np.linspace(0, 0.9, 20)
            down = top + shift - 0.10 * np.sin(3 * t) + 0.62 * t
            ribs.append(list(zip((0.62 - shift - 1.05 * t).tolist(), down.tolist(), strict=True)))
    inside = soft(x - front, 0.02) * soft(back + 0.25 - x, 0.03)
    return 0.20 * spine + 0.06 * arches + 0.12 * sternum + 0.085 * inside * tubes(size, ribs, 0.040)


def _devices(chest: Chest, size: int, depth: float) -> Field:
    metal = np.zeros((size, size))
    if chest.pacemaker:
        x, y = grid(size)
        can = 1 - np.abs((x + 0.46 * depth + 0.20) / 0.045) ** 3 - np.abs((y + 0.48) / 0.10) ** 3
        lead = [
            (-0.40, -0.56),
            (-0.18, -0.60),
            (-0.02, -0.30),
            (-0.10, 0.05),
            (-0.34, chest.dome_left - 0.08),
        ]
        metal = np.maximum(soft(can, 0.08) * 0.9, 0.75 * strokes(size, [smooth_curve(lead)], 0.012))
    if chest.central_line:
        course = [(0.06, -1.0), (0.0, -0.6), (-0.05, -0.3), (-0.08, -0.05)]
        metal = np.maximum(metal, 0.5 * strokes(size, [smooth_curve(course)], 0.014))
    return metal
