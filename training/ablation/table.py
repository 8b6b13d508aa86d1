"""From finished cells to the table: means over seeds, intervals, differences from row to row."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import numpy as np
from scipy.stats import t

from training.scoring.bootstrap import LEVEL, Bootstrap, Resampled
from training.scoring.metrics import METRICS, Pair

Interval = list[float]
TRIVIAL_ROWS = ("constant", "most_frequent", "random", "nearest")


@dataclass(frozen=True)
class ScoreSummary:
    """Figures of one cell on one set: as they are, and on each draw where they can be drawn."""

    figures: Mapping[str, float]
    drawn: Resampled


@dataclass(frozen=True)
class Cell:
    """A finished cell as the table needs it. ``content``: of its ``result.json``; ``outside``: of ``external.json``."""

    row: str
    seed: int
    val: ScoreSummary
    external: ScoreSummary | None
    content: Mapping[str, Any]
    outside: Mapping[str, Any] | None


def read_cell(folder: Path, row: str, seed: int, external: Mapping[str, Any] | None = None) -> Cell:
    """A finished cell from its folder; ``external`` is the set whose scores are wanted, others are left aside."""
    content = json.loads((folder / "result.json").read_text())
    val = ScoreSummary(_known(content["metrics"]["val"]["system"]), read_draws(folder / "draws.npz"))
    path = folder / "external.json"
    outside = json.loads(path.read_text()) if external is not None and path.exists() else None
    if outside is None or outside["set"] != external:
        return Cell(row, seed, val, None, content, None)
    found = ScoreSummary(_known(outside["figures"]), read_draws(folder / "external.npz"))
    return Cell(row, seed, val, found, content, outside)


def _known(figures: Mapping[str, float | None]) -> dict[str, float]:
    return {name: value for name, value in figures.items() if value is not None}


# --- draws of a cell, kept as a file ----------------------------------------------------------------------------------


def draw_predictions(predictions: Path) -> Resampled:
    """The comparable row of a predictions file on each draw; files of the same studies share their draws."""
    lines = [json.loads(line) for line in predictions.read_text(encoding="utf-8").splitlines()]
    pairs: list[Pair] = [(line["reference"], line["prediction"]) for line in lines]
    return Bootstrap(len(pairs)).of(pairs)


def save_draws(path: Path, resampled: Resampled) -> None:
    """Write scores and draws to ``path`` atomically, as arrays: the table can then be made without any text."""
    parts = (("whole", resampled.whole), ("drawn", resampled.drawn))
    arrays: dict[str, Any] = {
        f"{kind}/{name}": np.asarray(value, np.float64) for kind, part in parts for name, value in part.items()
    }
    partial = path.with_name(f".{path.stem}.tmp.npz")
    np.savez_compressed(partial, **arrays)
    os.replace(partial, path)


def read_draws(path: Path) -> Resampled:
    """Read the file of ``save_draws``."""
    whole, drawn = {}, {}
    with np.load(path) as arrays:
        for key in arrays.files:
            kind, name = key.split("/", 1)
            if kind == "whole":
                whole[name] = float(arrays[key])
            else:
                drawn[name] = arrays[key]
    return Resampled(whole, drawn)


# --- over seeds -------------------------------------------------------------------------------------------------------


def summary(scored: Mapping[int, ScoreSummary]) -> dict[str, dict[str, Any]]:
    """Each figure over the seeds of a row.

    ``mean`` and the single ``values``; ``seeds_95``: Student's t on the values, how far another training would move the
    mean, None for one seed; ``studies_95``: percentiles of the mean over draws of the studies, the same for all seeds,
    how far other patients would move it, None for a figure that is not drawn.
    """
    names = [name for name in METRICS if all(name in one.figures for one in scored.values())]
    drawn = average([one.drawn for one in scored.values()]).intervals()
    result = {}
    for name in names:
        values = {seed: one.figures[name] for seed, one in scored.items()}
        result[name] = {
            "mean": mean(values.values()),
            "values": values,
            "seeds_95": seed_interval(list(values.values())),
            "studies_95": drawn.get(name),
        }
    return result


def seed_interval(values: Sequence[float]) -> Interval | None:
    """95 % interval of the mean of independent trainings, by Student's t; None for fewer than two."""
    if len(values) < 2:
        return None
    half = float(t.ppf(0.5 + LEVEL / 2, len(values) - 1)) * stdev(values) / math.sqrt(len(values))
    return [mean(values) - half, mean(values) + half]


def average(rows: Sequence[Resampled]) -> Resampled:
    """The mean over seeds, draw by draw; seeds are scored on the same studies, so on the same draws."""
    names = [name for name in rows[0].drawn if all(name in row.drawn for row in rows)]
    return Resampled(
        {name: mean(row.whole[name] for row in rows) for name in names},
        {name: np.mean([row.drawn[name] for row in rows], axis=0) for name in names},
    )


def step(before: Mapping[int, ScoreSummary], now: Mapping[int, ScoreSummary]) -> dict[str, Any] | None:
    """What a row adds to the one before it: per figure the difference of means, its interval and p over draws of the
    studies, and the interval over seeds of the differences; on the seeds that both have. None where there is none."""
    seeds = [seed for seed in now if seed in before]
    if not seeds:
        return None
    drawn = average([now[s].drawn for s in seeds]).minus(average([before[s].drawn for s in seeds]))
    figures: dict[str, Any] = {}
    for name in METRICS:
        pairs = [(before[s].figures.get(name), now[s].figures.get(name)) for s in seeds]
        values = [b - a for a, b in pairs if a is not None and b is not None]
        if len(values) == len(seeds):
            one = drawn.get(name, {"confidence_95": None, "p": None})
            figures[name] = {"difference": mean(values), "studies_95": one["confidence_95"], "p": one["p"],
                             "seeds_95": seed_interval(values)}  # fmt: skip
    return {"seeds": seeds, "figures": figures}


# --- all of it --------------------------------------------------------------------------------------------------------


def tabulate(rows: Sequence[str], cells: Sequence[Cell]) -> dict[str, Any]:
    """The table of the cells that are finished: ``rows``, ``steps`` between them, and the ``trivial`` rows once."""
    by_row = {row: sorted((cell for cell in cells if cell.row == row), key=lambda cell: cell.seed) for row in rows}
    by_row = {row: found for row, found in by_row.items() if found}
    table: dict[str, Any] = {"rows": {}, "steps": {}, "trivial": _trivial(by_row)}
    val = {row: {cell.seed: cell.val for cell in found} for row, found in by_row.items()}
    outside = {
        row: {cell.seed: cell.external for cell in found if cell.external is not None} for row, found in by_row.items()
    }
    for row, found in by_row.items():
        table["rows"][row] = {
            "seeds": [cell.seed for cell in found],
            "figures": summary(val[row]),
            "images_exchanged": _means([_known(c.content["metrics"]["val"]["system_images_exchanged"]) for c in found]),
            "external": summary(outside[row]) if outside[row] else None,
            "minus_constant": _minus_constant(found),
        }
    for before, now in pairwise(rows):
        if before in by_row and now in by_row:
            own = step(val[before], val[now])
            if own is not None:
                table["steps"][now] = {"before": before, **own, "external": step(outside[before], outside[now])}
    return table


def _trivial(by_row: Mapping[str, Sequence[Cell]]) -> dict[str, Any]:
    """Rows that write nothing, from the first cell that has them; they depend on the data alone, ``nearest`` on the
    row's retriever."""
    result: dict[str, Any] = {}
    for name in TRIVIAL_ROWS:
        for row, cells in by_row.items():
            val = cells[0].content["metrics"]["val"]
            if val["baselines"].get(name) is not None:
                intervals = val["confidence_95"].get("baselines", {}).get(name, {})
                of = f"{row}, seed {cells[0].seed}" if name == "nearest" else None
                result[name] = {"figures": _known(val["baselines"][name]), "studies_95": intervals, "of": of}
                break
    return result


def _minus_constant(cells: Sequence[Cell]) -> dict[str, list[float]]:
    """p of the difference to the constant row, seed by seed."""
    found = [cell.content["metrics"]["val"]["system_minus"].get("constant", {}) for cell in cells]
    return {name: [one[name]["p"] for one in found] for name in found[0]} if all(found) else {}


def _means(rows: Sequence[Mapping[str, float]]) -> dict[str, float]:
    return {name: mean(row[name] for row in rows) for name in rows[0] if all(name in row for row in rows)}
