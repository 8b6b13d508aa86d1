"""Draws the frontal (postero-anterior) and the lateral view of a chest phantom.

A radiograph shows the logarithm of what the tissue along each ray let through, so shadows add up.
The drawing follows that: a body, minus the air of the lungs, plus bone, plus metal. Whatever
replaces air (heart, fluid, consolidation, a nodule) takes air away, so overlapping shadows never
grow brighter than solid tissue.
"""

from __future__ import annotations

import numpy as np

from training.phantoms.chest import SIDES, SIGN, Chest, Side
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
    vessels,
)


def draw_frontal(chest: Chest, size: int, seed: int) -> Pixels:
    """(size, size) uint8. ``seed`` draws what ``chest`` has no numbers for: vessels, lumps, grain."""
    lumps, twigs, film = (np.random.default_rng([seed, 0, part]) for part in range(3))
    x, y = grid(size)
    width = chest.heart_ratio * 2 * chest.half_width
    left, right = 0.68 * width, -0.32 * width  # a third of the heart lies right of the midline
    heart_y = chest.dome_left - 0.16
    centre, half = (left + right) / 2, (left - right) / 2
    heart = soft(1 - ((x - centre) / half) ** 2 - ((y - heart_y - 0.22 * (x - centre)) / 0.33) ** 2, 0.07)
    great_vessels = union(
        soft(0.15 + 0.03 * soft(-0.45 - y, 0.1) - np.abs(x), 0.012) * soft(chest.dome_right - y, 0.05),
        disc(x, y, 0.115, -0.40, 0.105),  # aortic knob
        disc(x, y, 0.12, -0.20, 0.12),  # pulmonary trunk
    )
    mediastinum = union(heart, great_vessels)

    lungs, air, abdomen = np.zeros_like(x), np.zeros_like(x), np.zeros_like(x)
    aerated = np.zeros_like(x)
    for side in SIDES:
        lung, wall, floor = _lung(chest, side, x, y)
        outward = SIGN[side] * x
        solid = union(mediastinum * 0.96, *_spots(chest, side, x, y, lumps))
        if level := chest.effusion(side):
            angle = chest.dome(side) + 0.95 * (chest.half_width - 0.33) ** 2  # y of the costophrenic angle
            surface = angle - level - 0.16 * np.exp(-np.maximum(wall - outward, 0) / 0.09)
            solid = union(solid, 0.96 * soft(y - surface, 0.012 + 0.03 * min(level, 0.3)))
        lungs = np.maximum(lungs, lung)
        aerated += lung * (1 - 0.9 * solid)
        air += lung * (1 - solid) * (0.74 + 0.26 * np.clip((wall - outward) / 0.4, 0, 1))
        abdomen += soft(y - floor, 0.02) * soft(outward, 0.02)
    stomach = disc(x, (y - chest.dome_left - 0.14) * 1.5, 0.36, 0.0, 0.11) * abdomen

    markings = vessels(size, twigs, [(-0.17, -0.07), (0.2, -0.1)], 1.0, chest.edema)
    hila = disc(x, y, -0.19, -0.05, 0.09, 0.16) + disc(x, y, 0.23, -0.1, 0.08, 0.16)
    haze = chest.edema * 0.55 * np.exp(-(((np.abs(x) - 0.30) / 0.26) ** 2) - ((y - 0.02) / 0.36) ** 2)
    free = np.ones_like(x)
    if chest.pneumothorax:
        free, pleura = _pneumothorax(chest, chest.pneumothorax, x, y)
        air = air * (1 + 0.18 * (1 - free)) - 0.22 * pleura * lungs
    air *= 1 - haze * free
    air -= free * aerated * (0.36 * (1 + 0.6 * chest.edema) * markings + 0.26 * np.minimum(hila, 1.0))
    if chest.bands:
        air -= aerated * 0.42 * _bands(size, chest, chest.bands)

    trachea = soft(0.045 - np.abs(x + 0.012), 0.012) * soft(-0.34 - y, 0.03)
    picture = 0.86 * _body(x, y) + 0.16 * abdomen - 0.14 * stomach - 0.66 * air - 0.12 * trachea
    picture += 0.12 * heart + _frontal_bones(chest, size, x, y, lungs)
    if chest.breast:
        for sign in (-1, 1):
            picture += 0.09 * chest.breast * disc(x, y, sign * 0.42, 0.25, 0.34, 0.08)
    metal = _frontal_devices(chest, size)
    return develop(picture, metal, chest.tilt_degrees, film, marker="L")


def _lung(chest: Chest, side: Side, x: Field, y: Field) -> tuple[Field, Field, Field]:
    """Mask of one lung, the outward x of its chest wall and the y of its floor, at every pixel."""
    outward = SIGN[side] * x
    widest = 0.28
    up = np.clip((widest - y) / (widest - chest.apex + 0.09), 0, 1)
    wall = chest.half_width * ((1 - up**2.7) ** 0.6 - 0.06 * np.clip(y - widest, 0, 1))
    floor = chest.dome(side) + 0.95 * np.clip(outward - 0.33, -0.28, 1) ** 2
    medial = 0.125 + 0.03 * np.cos(5 * y) * np.clip(-y, 0, 1) + 0.05 * np.clip(y - 0.1, 0, 1)
    roof = chest.apex + 2.2 * (outward - 0.34) ** 2
    mask = soft(wall - outward, 0.010) * soft(outward - medial, 0.012) * soft(floor - y, 0.009)
    return mask * soft(y - roof, 0.014), wall, floor


def _spots(chest: Chest, side: Side, x: Field, y: Field, rng: np.random.Generator) -> list[Field]:
    sign = SIGN[side]
    shadows = []
    for spot in chest.consolidations:
        if spot.side == side:
            lumps = 0.70 + 0.30 * noise(x.shape[0], rng, 0.045)
            warp = 0.05 * noise(x.shape[0], rng, 0.10)
            blob = disc(x + warp, y + warp, sign * 0.46, chest.level(spot), spot.radius, 0.055)
            shadows.append(0.78 * lumps * blob)
    for spot in chest.nodules:
        if spot.side == side:
            shadows.append(0.62 * disc(x, y, sign * 0.48, chest.level(spot), spot.radius, 0.010))
    return shadows


def _pneumothorax(chest: Chest, side: Side, x: Field, y: Field) -> tuple[Field, Field]:
    """Where lung tissue is left (1) and the thin line of the visceral pleura."""
    outward = SIGN[side] * x
    _, wall, _ = _lung(chest, side, x, y)
    gap = 0.10 + 0.16 * np.clip((0.25 - y) / 1.0, 0, 1)
    top = chest.apex + 0.22
    inside = np.minimum(wall - gap - outward, (y - top) + 0.35 * (0.3 - np.abs(outward - 0.3)))
    inside = np.where(outward < 0, 1.0, inside)
    return soft(inside, 0.006), np.exp(-((inside / 0.008) ** 2))


def _bands(size: int, chest: Chest, side: Side) -> Field:
    sign = SIGN[side]
    base = chest.dome(side)
    lines = [
        [(sign * 0.30, base - 0.07), (sign * 0.62, base - 0.02)],
        [(sign * 0.38, base - 0.15), (sign * 0.66, base - 0.13)],
    ]
    return strokes(size, lines, 0.020)


def _body(x: Field, y: Field) -> Field:
    shoulders = 0.24 + 0.80 * np.clip((y + 0.98) / 0.30, 0, 1) ** 0.55
    flank = shoulders - 0.10 * np.clip((y + 0.35) / 0.5, 0, 1)
    thick = np.clip(1 - (np.abs(x) / (flank + 0.02)) ** 5, 0, 1) ** 0.6
    return blur(thick, 0.012) * (0.92 + 0.08 * np.clip(-y, 0, 1))


def _frontal_bones(chest: Chest, size: int, x: Field, y: Field, lungs: Field) -> Field:
    posterior: list[list[Point]] = []
    anterior: list[list[Point]] = []
    turn = np.linspace(0, np.pi / 2, 24)
    for number in range(10):
        top = chest.apex - 0.03 + number * chest.rib_pitch
        reach = chest.half_width * (0.46 + 0.56 * (1 - (1 - min(number / 5, 1)) ** 2))
        drop = chest.rib_slope * (0.6 + 0.07 * number)
        for sign in (-1, 1):
            out = sign * (0.06 + (reach - 0.06) * np.sin(turn))
            down = top - 0.05 * np.sin(2 * turn) + drop * (1 - np.cos(turn))
            posterior.append(list(zip(out.tolist(), down.tolist(), strict=True)))
            if number < 7:
                out = sign * (0.30 + (reach - 0.30) * np.cos(turn))
                forward = down[-1] + 1.15 * drop * np.sin(turn)
                anterior.append(list(zip(out.tolist(), forward.tolist(), strict=True)))
    ribs = 0.150 * tubes(size, posterior, 0.050) + 0.075 * tubes(size, anterior, 0.058)
    collar = [
        [(s * 0.09, -0.60), (s * 0.28, -0.645), (s * 0.50, -0.69), (s * 0.74, -0.755), (s * 0.9, -0.77)]
        for s in (-1, 1)
    ]
    blade_x = np.abs(np.abs(x) - 0.80 + 0.12 * (y + 0.35))
    blades = soft(0.13 - blade_x, 0.01) * soft(0.33 - np.abs(y + 0.42), 0.03)
    pitch = 0.150
    vertebrae = 0.75 + 0.25 * np.clip(3 * np.cos(2 * np.pi * (y + 0.03) / pitch) + 1.6, 0, 1)
    spine = soft(0.085 + 0.02 * np.clip(y, -0.5, 1) - np.abs(x), 0.010) * vertebrae
    processes = soft(0.14 - np.abs(x), 0.02) * np.exp(-((((y / pitch) % 1 - 0.5) / 0.16) ** 2))
    bones = ribs + 0.12 * tubes(size, collar, 0.062) + 0.05 * blades + 0.16 * spine + 0.03 * processes
    return bones * (0.75 + 0.25 * lungs)


def _frontal_devices(chest: Chest, size: int) -> Field:
    metal = np.zeros((size, size))
    if chest.pacemaker:
        sign = SIGN[chest.pacemaker]
        x, y = grid(size)
        can = 1 - np.abs((x - sign * 0.55) / 0.115) ** 3.5 - np.abs((y + 0.50) / 0.10) ** 3.5
        tip = (0.22, chest.dome_left - 0.06)
        lead = [(sign * 0.50, -0.58), (sign * 0.30, -0.66), (-0.06, -0.52), (-0.12, -0.10), (-0.08, 0.18), tip]
        wires = strokes(size, [smooth_curve(lead)], 0.012)
        dot = disc(x, y, *tip, 0.016, 0.006)
        metal = np.maximum.reduce([metal, soft(can, 0.05) * 0.9, wires * 0.75, dot])
    if chest.central_line:
        course = [(-0.24, -1.0), (-0.20, -0.72), (-0.13, -0.50), (-0.115, -0.25), (-0.12, -0.02)]
        metal = np.maximum(metal, 0.55 * strokes(size, [smooth_curve(course)], 0.014))
    return metal


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
    picture += _lateral_bones(chest, size, front, back, x, y)
    return develop(picture, _lateral_devices(chest, size, depth), chest.tilt_degrees * 0.7, film, marker="")


def _lateral_bones(chest: Chest, size: int, front: Field, back: Field, x: Field, y: Field) -> Field:
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


def _lateral_devices(chest: Chest, size: int, depth: float) -> Field:
    metal = np.zeros((size, size))
    if chest.pacemaker:
        x, y = grid(size)
        can = 1 - np.abs((x + 0.46 * depth + 0.20) / 0.045) ** 3 - np.abs((y + 0.48) / 0.10) ** 3
        lead = [(-0.40, -0.56), (-0.18, -0.60), (-0.02, -0.30), (-0.10, 0.05), (-0.34, chest.dome_left - 0.08)]
        metal = np.maximum(soft(can, 0.08) * 0.9, 0.75 * strokes(size, [smooth_curve(lead)], 0.012))
    if chest.central_line:
        course = [(0.06, -1.0), (0.0, -0.6), (-0.05, -0.3), (-0.08, -0.05)]
        metal = np.maximum(metal, 0.5 * strokes(size, [smooth_curve(course)], 0.014))
    return metal
