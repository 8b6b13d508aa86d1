"""Figures of a cell on each bootstrap draw, kept as arrays, so that the table can be made without any text."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy as np

from training.scoring.bootstrap import Bootstrap, Resampled
from training.scoring.metrics import Pair


def draw_predictions(predictions: Path) -> Resampled:
    """The comparable row of a predictions file on each draw; files of the same studies are drawn alike."""
    lines = [json.loads(line) for line in predictions.read_text(encoding="utf-8").splitlines()]
    pairs: list[Pair] = [(line["reference"], line["prediction"]) for line in lines]
    return Bootstrap(len(pairs)).of(pairs)


def save_draws(path: Path, resampled: Resampled) -> None:
    """Write figures and draws beside ``path``, then rename."""
    parts = (("whole", resampled.whole), ("drawn", resampled.drawn))
    arrays: dict[str, Any] = {
        f"{kind}/{name}": np.asarray(value, np.float64) for kind, part in parts for name, value in part.items()
    }
    beside = path.with_name(f".{path.stem}.tmp.npz")
    np.savez_compressed(beside, **arrays)
    os.replace(beside, path)


def read_draws(path: Path) -> Resampled:
    """What ``save_draws`` wrote."""
    whole, drawn = {}, {}
    with np.load(path) as arrays:
        for key in arrays.files:
            kind, name = key.split("/", 1)
            if kind == "whole":
                whole[name] = float(arrays[key])
            else:
                drawn[name] = arrays[key]
    return Resampled(whole, drawn)
