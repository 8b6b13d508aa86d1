"""One phantom study: which findings it has, in numbers, in two pictures and in words."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np

from training.phantoms.chest import SIDES, Chest, Side, Spot
from training.phantoms.draw import draw_frontal, draw_lateral
from training.phantoms.report import State, compose_report
from training.phantoms.shapes import Pixels

MESH = {  # finding -> MeSH heading, as the collection indexes it
    "cardiomegaly": "Cardiomegaly",
    "right effusion": "Pleural Effusion/right",
    "left effusion": "Pleural Effusion/left",
    "right consolidation": "Consolidation/lung/right",
    "left consolidation": "Consolidation/lung/left",
    "nodule": "Nodule/lung",
    "atelectasis": "Pulmonary Atelectasis/base",
    "pneumothorax": "Pneumothorax",
    "edema": "Pulmonary Edema",
    "pacemaker": "Implanted Medical Device",
    "central line": "Catheters, Indwelling",
    "elevated diaphragm": "Diaphragm/elevated",
}
PHANTOM_FINDINGS = tuple(MESH)


@dataclass(frozen=True)
class PhantomStudy:
    """Two views and their report; ``labels`` are the CheXpert findings that the report states."""

    findings: frozenset[str]  # of PHANTOM_FINDINGS
    chest: Chest
    frontal: Pixels  # (H, W) uint8
    lateral: Pixels  # (H, W) uint8
    report: str
    labels: Mapping[str, State]


def make_phantom(seed: int, findings: frozenset[str], *, size: int = 256) -> PhantomStudy:
    """Draw a phantom with some of ``PHANTOM_FINDINGS`` on pictures of ``size`` x ``size`` pixels, and write its report.

    ``seed`` decides anatomy, exposure, position and degree of each finding, and the choice of sentences. One seed with
    other findings is the same person.

    Raises:
        ValueError: an unknown finding.
    """
    chest = chest_of(seed, findings)
    report, labels = compose_report(chest, np.random.default_rng([seed, 101]))
    frontal, lateral = draw_frontal(chest, size, seed), draw_lateral(chest, size, seed)
    return PhantomStudy(findings, chest, frontal, lateral, report, labels)


def chest_of(seed: int, findings: frozenset[str]) -> Chest:
    if unknown := sorted(findings - set(PHANTOM_FINDINGS)):
        raise ValueError(f"unknown phantom findings {unknown}; known are {', '.join(PHANTOM_FINDINGS)}")
    rng = np.random.default_rng([seed, 102])
    dome_right = float(rng.uniform(0.36, 0.46))
    chest = Chest(
        half_width=float(rng.uniform(0.70, 0.79)),
        apex=float(rng.uniform(-0.84, -0.77)),
        dome_right=dome_right,
        dome_left=dome_right + float(rng.uniform(0.03, 0.08)),
        heart_ratio=float(rng.uniform(0.40, 0.47)),
        rib_pitch=float(rng.uniform(0.138, 0.156)),
        rib_slope=float(rng.uniform(0.16, 0.25)),
        breast=float(rng.choice([0.0, 0.0, 0.5, 0.9])),
        tilt_degrees=float(rng.normal(0, 1.0)),
    )
    for number, name in enumerate(PHANTOM_FINDINGS):
        if name in findings:
            chest = _add(chest, name, np.random.default_rng([seed, 103, number]))
    return chest


def _add(chest: Chest, name: str, rng: np.random.Generator) -> Chest:
    """``chest`` with one more finding, after those that stand before it in ``PHANTOM_FINDINGS``."""
    match name:
        case "cardiomegaly":
            return replace(chest, heart_ratio=float(rng.uniform(0.55, 0.68)))
        case "right effusion":
            return replace(chest, effusion_right=float(rng.uniform(0.06, 0.48)))
        case "left effusion":
            return replace(chest, effusion_left=float(rng.uniform(0.06, 0.48)))
        case "right consolidation" | "left consolidation":
            spot = _spot(chest, SIDES[name == "left consolidation"], rng, depth=(0.25, 0.8), radius=(0.15, 0.23))
            return replace(chest, consolidations=(*chest.consolidations, spot))
        case "nodule":
            spot = _spot(chest, _calmer_side(chest, rng), rng, depth=(0.3, 0.7), radius=(0.04, 0.07))
            return replace(chest, nodules=(*chest.nodules, spot))
        case "atelectasis":
            return replace(chest, bands=_calmer_side(chest, rng))
        case "pneumothorax":
            return replace(chest, pneumothorax=_calmer_side(chest, rng))
        case "edema":
            return replace(chest, edema=float(rng.uniform(0.45, 1.0)))
        case "pacemaker":
            return replace(chest, pacemaker=SIDES[int(rng.random() < 0.8)])
        case "central line":
            return replace(chest, central_line=True)
        case _:  # elevated diaphragm
            rise = float(rng.uniform(0.16, 0.24))
            if rng.random() < 0.5:
                return replace(chest, dome_right=chest.dome_right - rise)
            return replace(chest, dome_left=chest.dome_left - rise)


def _calmer_side(chest: Chest, rng: np.random.Generator) -> Side:
    """A side for a finding that another on the same side would hide."""
    busy = {side for side in SIDES if chest.effusion(side)} | {spot.side for spot in chest.consolidations}
    if len(busy) == 1:
        return "left" if "right" in busy else "right"
    return SIDES[int(rng.integers(2))]


def _spot(
    chest: Chest, side: Side, rng: np.random.Generator, *, depth: tuple[float, float], radius: tuple[float, float]
) -> Spot:
    """A shadow somewhere above the fluid of its side."""
    height = rng.uniform(0.15, 0.9 - 0.9 * chest.effusion(side))
    return Spot(side, float(height), float(rng.uniform(*depth)), float(rng.uniform(*radius)))
