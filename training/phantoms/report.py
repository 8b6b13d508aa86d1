"""Composes the report of a chest phantom from its numbers, with the findings that it states.

The sentences were written for this project. Each carries its labels for the 14 CheXpert findings,
so a composed report comes with its reference labels.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

import numpy as np

from training.phantoms.chest import Chest, Spot

State = Literal["present", "absent"]

CARDIOMEGALY = (
    "There is {degree} cardiomegaly, the heart spanning more than half of the chest.",
    "The heart is enlarged to a {degree} degree and reaches towards the left chest wall.",
    "A broad heart shadow shows {degree} cardiomegaly.",
)
NORMAL_HEART = (
    "The heart takes up less than half of the chest and is normal in size.",
    "The heart is normal in size, its left border well away from the chest wall.",
    "The outline of the heart is smooth and its size is normal.",
)
PACEMAKER = (
    "A pacemaker lies over the {side} upper chest, its lead ending in the right ventricle.",
    "A {side} chest wall pacemaker sends one lead to the right ventricle.",
)
CENTRAL_LINE = (
    "A central venous catheter from the right neck ends over the superior vena cava.",
    "A right neck central venous catheter runs down to the superior vena cava.",
)
CONSOLIDATION = (
    "There is consolidation in the {zone} zone of the {side} lung.",
    "A patchy consolidation fills part of the {side} {zone} zone.",
    "The {zone} zone of the {side} lung shows a hazy consolidation.",
)
NODULE = (
    "A {size} round nodule lies in the {zone} zone of the {side} lung.",
    "There is a {size} solitary nodule, {side} lung, {zone} zone.",
)
ATELECTASIS = (
    "Thin bands of atelectasis cross the {side} lung base.",
    "There is linear atelectasis just above the {side} hemidiaphragm.",
)
EDEMA = (
    "Widened vessels and haze around both hila show {degree} pulmonary edema.",
    "There is {degree} pulmonary edema with thick vessels near the hila.",
)
CLEAR_LUNGS = (
    "Both lungs are fully expanded and drawn without any shadow.",
    "The lungs are evenly dark and clear from apex to base.",
    "The lungs are clear, with nothing but vessels drawn in them.",
)
NO_CONSOLIDATION = (
    "No consolidation is drawn on either side.",
    "This chest is drawn without consolidation.",
)
EFFUSION = (
    "A {size} {side} pleural effusion hides the costophrenic angle.",
    "There is a {size} pleural effusion on the {side} with a curved upper edge.",
    "Fluid rises along the {side} chest wall, a {size} pleural effusion.",
)
NO_EFFUSION = (
    "The costophrenic angles are drawn sharp, without pleural effusion.",
    "No pleural effusion blunts the costophrenic angles of this chest.",
)
PNEUMOTHORAX = (
    "There is a {side} pneumothorax, the edge of the lung standing off the chest wall.",
    "A thin pleural line marks a {side} pneumothorax at the apex.",
)
NO_PNEUMOTHORAX = (
    "No pneumothorax is drawn, the lungs reach the chest wall all around.",
    "The lungs touch the chest wall on both sides, so there is no pneumothorax.",
)
ELEVATED = (
    "The {side} hemidiaphragm is elevated well above the other.",
    "The dome of the {side} hemidiaphragm stands too high and is elevated.",
)
BONES = (
    "Ribs, collar bones and spine are drawn intact.",
    "The drawn ribs and vertebrae keep their shape.",
    "The skeleton of this chest is unremarkable.",
)


@dataclass
class _Writer:
    """Collects sentences and the findings that they state."""

    rng: np.random.Generator
    sentences: list[str] = field(default_factory=list)
    labels: dict[str, State] = field(default_factory=dict)

    def add(self, templates: tuple[str, ...], labels: Mapping[str, State], **words: str) -> None:
        """Add one of ``templates``; all of them state ``labels``."""
        self.sentences.append(templates[int(self.rng.integers(len(templates)))].format(**words))
        self.labels.update(labels)


def compose_report(chest: Chest, rng: np.random.Generator) -> tuple[str, dict[str, State]]:
    """Write the findings of ``chest``.

    Args:
        chest: the numbers that are drawn as well.
        rng: chooses among sentences of the same meaning.

    Returns:
        The report, and every CheXpert finding that it states as present or absent. "No Finding" is
        present where nothing but support devices is.
    """
    writer = _Writer(rng)
    if chest.pacemaker:
        writer.add(PACEMAKER, {"Support Devices": "present"}, side=chest.pacemaker)
    if chest.central_line:
        writer.add(CENTRAL_LINE, {"Support Devices": "present"})
    if chest.heart_ratio > 0.5:
        degree = _grade(chest.heart_ratio, 0.58, 0.64, ("mild", "moderate", "marked"))
        writer.add(CARDIOMEGALY, {"Cardiomegaly": "present"}, degree=degree)
    else:
        writer.add(NORMAL_HEART, {"Cardiomegaly": "absent"})
    _lungs(chest, writer)
    _pleura(chest, writer)
    elevated = _elevated_side(chest)
    if elevated:
        writer.add(ELEVATED, {}, side=elevated)
    writer.add(BONES, {})
    ill = {name for name, state in writer.labels.items() if state == "present"} - {"Support Devices"}
    if not ill and not elevated:
        writer.labels["No Finding"] = "present"
    return " ".join(writer.sentences), writer.labels


def _lungs(chest: Chest, writer: _Writer) -> None:
    if chest.edema:
        degree = _grade(chest.edema, 0.6, 0.8, ("mild", "moderate", "marked"))
        writer.add(EDEMA, {"Edema": "present"}, degree=degree)
    for spot in chest.consolidations:
        writer.add(CONSOLIDATION, {"Consolidation": "present"}, side=spot.side, zone=_zone(spot))
    for spot in chest.nodules:
        size = _grade(spot.radius, 0.05, 0.06, ("small", "medium", "large"))
        writer.add(NODULE, {"Lung Lesion": "present"}, side=spot.side, zone=_zone(spot), size=size)
    if chest.bands:
        writer.add(ATELECTASIS, {"Atelectasis": "present"}, side=chest.bands)
    if not (chest.edema or chest.consolidations or chest.nodules or chest.bands or chest.pneumothorax):
        writer.add(CLEAR_LUNGS, {})
        if writer.rng.random() < 0.6:
            writer.add(NO_CONSOLIDATION, {"Consolidation": "absent"})


def _pleura(chest: Chest, writer: _Writer) -> None:
    for side, level in (("right", chest.effusion_right), ("left", chest.effusion_left)):
        if level:
            size = _grade(level, 0.15, 0.33, ("small", "moderate", "large"))
            writer.add(EFFUSION, {"Pleural Effusion": "present"}, side=side, size=size)
    if not chest.effusion_right and not chest.effusion_left:
        writer.add(NO_EFFUSION, {"Pleural Effusion": "absent"})
    if chest.pneumothorax:
        writer.add(PNEUMOTHORAX, {"Pneumothorax": "present"}, side=chest.pneumothorax)
    elif writer.rng.random() < 0.6:
        writer.add(NO_PNEUMOTHORAX, {"Pneumothorax": "absent"})


def _elevated_side(chest: Chest) -> str | None:
    """The left dome stands 0.03–0.08 lower than the right in a normal chest."""
    difference = chest.dome_left - chest.dome_right
    return "right" if difference > 0.15 else "left" if difference < -0.03 else None


def _zone(spot: Spot) -> str:
    return _grade(spot.height, 0.36, 0.68, ("upper", "middle", "lower"))


def _grade(value: float, low: float, high: float, words: tuple[str, str, str]) -> str:
    return words[(value >= low) + (value >= high)]
