"""Composes the report of a chest phantom from its numbers, with the findings that it states.

The sentences were written for this project. Each carries its labels for the 14 CheXpert findings,
so a composed report comes with its reference labels.
"""

from __future__ import annotations

from typing import Literal

import numpy as np

from training.phantoms.chest import SIDES, Chest, Spot

State = Literal["present", "absent"]
_DEGREES = ("mild", "moderate", "marked")

CARDIOMEGALY = ("There is {degree} cardiomegaly, the heart spanning more than half of the chest.",
                "The heart is enlarged to a {degree} degree and reaches towards the left chest wall.",
                "A broad heart shadow shows {degree} cardiomegaly.")  # fmt: skip
NORMAL_HEART = ("The heart takes up less than half of the chest and is normal in size.",
                "The heart is normal in size, its left border well away from the chest wall.",
                "The outline of the heart is smooth and its size is normal.")  # fmt: skip
PACEMAKER = ("A pacemaker lies over the {side} upper chest, its lead ending in the right ventricle.",
             "A {side} chest wall pacemaker sends one lead to the right ventricle.")  # fmt: skip
CENTRAL_LINE = ("A central venous catheter from the right neck ends over the superior vena cava.",
                "A right neck central venous catheter runs down to the superior vena cava.")  # fmt: skip
CONSOLIDATION = ("There is consolidation in the {zone} zone of the {side} lung.",
                 "A patchy consolidation fills part of the {side} {zone} zone.",
                 "The {zone} zone of the {side} lung shows a hazy consolidation.")  # fmt: skip
NODULE = ("A {size} round nodule lies in the {zone} zone of the {side} lung.",
          "There is a {size} solitary nodule, {side} lung, {zone} zone.")  # fmt: skip
ATELECTASIS = ("Thin bands of atelectasis cross the {side} lung base.",
               "There is linear atelectasis just above the {side} hemidiaphragm.")  # fmt: skip
EDEMA = ("Widened vessels and haze around both hila show {degree} pulmonary edema.",
         "There is {degree} pulmonary edema with thick vessels near the hila.")  # fmt: skip
CLEAR_LUNGS = ("Both lungs are fully expanded and drawn without any shadow.",
               "The lungs are evenly dark and clear from apex to base.",
               "The lungs are clear, with nothing but vessels drawn in them.")  # fmt: skip
NO_CONSOLIDATION = ("No consolidation is drawn on either side.",
                    "This chest is drawn without consolidation.")  # fmt: skip
EFFUSION = ("A {size} {side} pleural effusion hides the costophrenic angle.",
            "There is a {size} pleural effusion on the {side} with a curved upper edge.",
            "Fluid rises along the {side} chest wall, a {size} pleural effusion.")  # fmt: skip
NO_EFFUSION = ("The costophrenic angles are drawn sharp, without pleural effusion.",
               "No pleural effusion blunts the costophrenic angles of this chest.")  # fmt: skip
PNEUMOTHORAX = ("There is a {side} pneumothorax, the edge of the lung standing off the chest wall.",
                "A thin pleural line marks a {side} pneumothorax at the apex.")  # fmt: skip
NO_PNEUMOTHORAX = ("No pneumothorax is drawn, the lungs reach the chest wall all around.",
                   "The lungs touch the chest wall on both sides, so there is no pneumothorax.")  # fmt: skip
ELEVATED = ("The {side} hemidiaphragm is elevated well above the other.",
            "The dome of the {side} hemidiaphragm stands too high and is elevated.")  # fmt: skip
BONES = ("Ribs, collar bones and spine are drawn intact.",
         "The drawn ribs and vertebrae keep their shape.",
         "The skeleton of this chest is unremarkable.")  # fmt: skip


def compose_report(chest: Chest, rng: np.random.Generator) -> tuple[str, dict[str, State]]:
    """Write the findings of ``chest``; ``rng`` chooses among sentences of the same meaning.

    Returns:
        The report, and every CheXpert finding that it states as present or absent. "No Finding" is
        present where nothing but support devices is.
    """
    sentences: list[str] = []
    labels: dict[str, State] = {}

    def add(templates: tuple[str, ...], label: str = "", state: State = "present", **words: str) -> None:
        sentences.append(templates[int(rng.integers(len(templates)))].format(**words))
        if label:
            labels[label] = state

    if chest.pacemaker:
        add(PACEMAKER, "Support Devices", side=chest.pacemaker)
    if chest.central_line:
        add(CENTRAL_LINE, "Support Devices")
    if chest.heart_ratio > 0.5:
        add(CARDIOMEGALY, "Cardiomegaly", degree=_grade(chest.heart_ratio, 0.58, 0.64, _DEGREES))
    else:
        add(NORMAL_HEART, "Cardiomegaly", "absent")
    if chest.edema:
        add(EDEMA, "Edema", degree=_grade(chest.edema, 0.6, 0.8, _DEGREES))
    for spot in chest.consolidations:
        add(CONSOLIDATION, "Consolidation", side=spot.side, zone=_zone(spot))
    for spot in chest.nodules:
        size = _grade(spot.radius, 0.05, 0.06, ("small", "medium", "large"))
        add(NODULE, "Lung Lesion", side=spot.side, zone=_zone(spot), size=size)
    if chest.bands:
        add(ATELECTASIS, "Atelectasis", side=chest.bands)
    if not (chest.edema or chest.consolidations or chest.nodules or chest.bands or chest.pneumothorax):
        add(CLEAR_LUNGS)
        if rng.random() < 0.6:
            add(NO_CONSOLIDATION, "Consolidation", "absent")
    for side in SIDES:
        if level := chest.effusion(side):
            add(EFFUSION, "Pleural Effusion", side=side, size=_grade(level, 0.15, 0.33, ("small", "moderate", "large")))
    if not chest.effusion_right and not chest.effusion_left:
        add(NO_EFFUSION, "Pleural Effusion", "absent")
    if chest.pneumothorax:
        add(PNEUMOTHORAX, "Pneumothorax", side=chest.pneumothorax)
    elif rng.random() < 0.6:
        add(NO_PNEUMOTHORAX, "Pneumothorax", "absent")
    difference = chest.dome_left - chest.dome_right  # 0.03 to 0.08 in a normal chest
    elevated = "right" if difference > 0.15 else "left" if difference < -0.03 else None
    if elevated:
        add(ELEVATED, side=elevated)
    add(BONES)
    ill = {name for name, state in labels.items() if state == "present"} - {"Support Devices"}
    if not ill and not elevated:
        labels["No Finding"] = "present"
    return " ".join(sentences), labels


def _zone(spot: Spot) -> str:
    return _grade(spot.height, 0.36, 0.68, ("upper", "middle", "lower"))


def _grade(value: float, low: float, high: float, words: tuple[str, str, str]) -> str:
    return words[(value >= low) + (value >= high)]
