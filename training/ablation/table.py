"""From finished cells to the table: means over seeds, intervals, differences from row to row."""

from __future__ import annotations

import io
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import numpy as np

from model.files import write_atomic
from training.evaluation.scoring import TRIVIAL
from training.scoring.bootstrap import LEVEL, Bootstrap, Resampled
from training.scoring.metrics import METRICS, Pair
from training.scoring.ngrams import Floats
from training.scoring.permutation_across_studies import MEASURES

Interval = list[float]


@dataclass(frozen=True)
class Cell:
    """A finished cell as the table needs it. ``content``: of its ``result.json``; ``outside``: of ``external.json``."""

    row: str
    seed: int
    val: Resampled  # ``whole`` has all metrics, ``drawn`` those of them that the bootstrap draws
    external: Resampled | None
    content: Mapping[str, Any]
    outside: Mapping[str, Any] | None


def read_cell(folder: Path, row: str, seed: int, external: Mapping[str, Any] | None = None) -> Cell:
    """A finished cell from its folder; ``external`` is the set whose scores are wanted, others are left aside."""
    content = json.loads((folder / "result.json").read_text())
    val = Resampled(_known(content["metrics"]["val"]["system"]), read_draws(folder / "draws.npz"))
    path = folder / "external.json"
    outside = json.loads(path.read_text()) if external is not None and path.exists() else None
    if outside is None or outside["set"] != external:
        return Cell(row, seed, val, None, content, None)
    found = Resampled(_known(outside["figures"]), read_draws(folder / "external.npz"))
    return Cell(row, seed, val, found, content, outside)


def _known(metrics: Mapping[str, float | None]) -> dict[str, float]:
    return {name: value for name, value in metrics.items() if value is not None}


# --- draws of a cell, kept as a file ----------------------------------------------------------------------------------


def draw_predictions(predictions: Path) -> Resampled:
    """The comparable row of a predictions file on each draw; files of the same studies share their draws."""
    lines = [json.loads(line) for line in predictions.read_text(encoding="utf-8").splitlines()]
    pairs: list[Pair] = [(line["reference"], line["prediction"]) for line in lines]
    return Bootstrap(len(pairs)).of(pairs)


def save_draws(path: Path, resampled: Resampled) -> None:
    """Write the draws to ``path`` as arrays, atomically. The table needs no text then."""
    arrays: dict[str, Any] = {f"drawn/{name}": values for name, values in resampled.drawn.items()}
    file = io.BytesIO()
    np.savez_compressed(file, **arrays)
    write_atomic(path, file.getvalue())


def read_draws(path: Path) -> dict[str, Floats]:
    """Read the file of ``save_draws``: metric -> values."""
    with np.load(path) as arrays:
        return {key.removeprefix("drawn/"): arrays[key] for key in arrays.files if key.startswith("drawn/")}


# --- over seeds -------------------------------------------------------------------------------------------------------


def summary(scored: Mapping[int, Resampled]) -> dict[str, dict[str, Any]]:
    """Each metric over the seeds of a row.

    ``mean`` and the single ``values``; ``seeds_95``: Student's t on the values, None for one seed; ``studies_95``:
    percentiles of the mean over draws of the studies, None for a metric that is not drawn.
    """
    drawn = average(list(scored.values())).intervals()
    result = {}
    for name in METRICS:
        values = {seed: one.whole[name] for seed, one in scored.items() if name in one.whole}
        if len(values) == len(scored):
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
    from scipy.stats import t  # takes most of a second to import

    half = float(t.ppf(0.5 + LEVEL / 2, len(values) - 1)) * stdev(values) / math.sqrt(len(values))
    return [mean(values) - half, mean(values) + half]


def average(rows: Sequence[Resampled]) -> Resampled:
    """The mean over seeds, draw by draw: seeds are scored on the same studies and the same draws."""
    names = [name for name in rows[0].drawn if all(name in row.drawn for row in rows)]
    return Resampled(
        {name: mean(row.whole[name] for row in rows) for name in names},
        {name: np.mean([row.drawn[name] for row in rows], axis=0) for name in names},
    )


def step(before: Mapping[int, Resampled], now: Mapping[int, Resampled]) -> dict[str, Any] | None:
    """Difference of a row to the one before, on the seeds that both have; None without a common seed.

    By metric the difference of means, its interval and p over draws of the studies, and the interval over seeds.
    """
    seeds = [seed for seed in now if seed in before]
    if not seeds:
        return None
    drawn = average([now[s] for s in seeds]).minus(average([before[s] for s in seeds]))
    metrics: dict[str, Any] = {}
    for name in METRICS:
        if all(name in one[s].whole for s in seeds for one in (before, now)):
            values = [now[s].whole[name] - before[s].whole[name] for s in seeds]
            one = drawn.get(name, {"confidence_95": None, "p": None})
            metrics[name] = {"difference": mean(values), "studies_95": one["confidence_95"], "p": one["p"],
                             "seeds_95": seed_interval(values)}  # fmt: skip
    return {"seeds": seeds, "figures": metrics}


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
            "looks": _looks(found),
            "images_exchanged": _means([_known(c.content["metrics"]["val"]["system_images_exchanged"]) for c in found]),
            "external": summary(outside[row]) if outside[row] else None,
            "minus_constant": _minus_constant(found),
        }
    for before, now in pairwise(rows):
        if before in by_row and now in by_row:
            change = step(val[before], val[now])
            if change is not None:
                table["steps"][now] = {"before": before, **change, "external": step(outside[before], outside[now])}
    return table


def _trivial(by_row: Mapping[str, Sequence[Cell]]) -> dict[str, Any]:
    """Trivial rows of the first cell that has them. They depend on the data alone, ``nearest`` on the retriever."""
    result: dict[str, Any] = {}
    for name in TRIVIAL:
        for row, cells in by_row.items():
            val = cells[0].content["metrics"]["val"]
            if val["baselines"].get(name) is not None:
                intervals = val["confidence_95"].get("baselines", {}).get(name, {})
                of = f"{row}, seed {cells[0].seed}" if name == "nearest" else None
                result[name] = {"figures": _known(val["baselines"][name]), "studies_95": intervals, "of": of}
                break
    return result


def _looks(cells: Sequence[Cell]) -> dict[str, list[dict[str, Any]]]:
    """Paired differences of each seed: right images minus those of another study; empty without draws."""
    found = [cell.content["metrics"]["val"]["system_minus"].get("system_images_exchanged", {}) for cell in cells]
    return {name: [one[name] for one in found] for name in MEASURES} if all(found) else {}


def _minus_constant(cells: Sequence[Cell]) -> dict[str, list[float]]:
    found = [cell.content["metrics"]["val"]["system_minus"].get("constant", {}) for cell in cells]
    return {name: [one[name]["p"] for one in found] for name in found[0]} if all(found) else {}


def _means(rows: Sequence[Mapping[str, float]]) -> dict[str, float]:
    return {name: mean(row[name] for row in rows) for name in rows[0] if all(name in row for row in rows)}
