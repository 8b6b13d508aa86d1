"""Runs the unfinished cells, one process after another, and rewrites the table after each."""

from __future__ import annotations

import json
import logging
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from statistics import mean
from typing import Any

from model.files import try_lock, write_atomic
from training.ablation import published
from training.ablation.cell import write_failure
from training.ablation.plan import Plan, Planned, describe
from training.ablation.plot import plot_table
from training.ablation.report import comma_separated, markdown
from training.ablation.table import Cell, read_cell, tabulate
from training.cli import write_json

log = logging.getLogger("training")

_LOCK_TIMEOUT_S = 15.0  # the cells of a killed ablation end within this time


class BusyError(OSError):
    """Another ablation uses this folder."""


@contextmanager
def file_lock(out: Path) -> Iterator[None]:
    """Lock a folder for one ablation, or raise BusyError. Its cells inherit the lock and keep it until they end."""
    out.mkdir(parents=True, exist_ok=True)
    handle = os.open(out / ".lock", os.O_RDWR | os.O_CREAT, 0o644)
    os.set_inheritable(handle, True)
    try:
        deadline = time.monotonic() + _LOCK_TIMEOUT_S
        while not try_lock(handle):
            if time.monotonic() > deadline:
                raise BusyError(f"another ablation works in {out}; wait for it, or choose another --out")
            time.sleep(0.2)
        yield
    finally:
        os.close(handle)


def run_cell_process(folder: Path) -> int:
    """Run a cell in a separate process; returns the exit code, negative for a signal."""
    command = [sys.executable, "-m", "training.ablation.cell", str(folder)]
    return subprocess.run(command, check=False, close_fds=False).returncode


def run_plan(plan: Plan) -> list[dict[str, Any]]:
    """Run all cells that are not finished, and write the table after each; returns the ``failures``."""
    left = [cell for cell in plan.cells if not cell.finished]
    total, done = len(plan.cells), len(plan.cells) - len(left)
    log.info("ablation: %d cells, %d of them done before", total, done)
    write_table(plan)
    for number, cell in enumerate(left, 1):
        log.info("cell %d of %d: %s, seed %d", done + number, total, cell.row, cell.seed)
        began = time.monotonic()
        _run(cell)
        took, remain = timedelta(seconds=round(time.monotonic() - began)), remaining(plan, left[number:])
        log.info("%s, seed %d: %s after %s; %d cells left%s", cell.row, cell.seed,
                 "done" if cell.finished else f"failed ({_reason(cell)})", took, len(left) - number,
                 f", about {timedelta(seconds=round(remain))}" if remain else "")  # fmt: skip
        write_table(plan)
    failed = failures(plan)
    log.info("ablation: %d of %d cells have scores; %s", total - len(failed), total, plan.out / "ablation.md")
    return failed


def _run(cell: Planned) -> None:
    cell.folder.mkdir(parents=True, exist_ok=True)
    (cell.folder / "failed.json").unlink(missing_ok=True)
    write_atomic(cell.folder / "job.json", (cell.job.model_dump_json(indent=2) + "\n").encode())
    code = run_cell_process(cell.folder)
    if code in (130, -signal.SIGINT):
        raise KeyboardInterrupt
    if not cell.finished and not (cell.folder / "failed.json").exists():
        how = f"was ended by {signal.Signals(-code).name}" if code < 0 else f"ended with code {code}"
        hint = " (perhaps out of memory)" if code == -signal.SIGKILL else ""
        write_failure(cell.folder, f"its process {how}{hint}; see {cell.folder.name}/cell.log")


def _reason(cell: Planned) -> str:
    path = cell.folder / "failed.json"
    return str(json.loads(path.read_text())["reason"]) if path.exists() else "not run yet"


def failures(plan: Plan) -> list[dict[str, Any]]:
    """The cells that failed: row, seed, reason."""
    failed = [cell for cell in plan.cells if not cell.finished and (cell.folder / "failed.json").exists()]
    return [{"row": cell.row, "seed": cell.seed, "reason": _reason(cell)} for cell in failed]


def remaining(plan: Plan, left: Sequence[Planned]) -> float | None:
    """Estimated seconds of the remaining cells, from their rows at other seeds, or from the mean of all rows."""
    took: dict[str, list[float]] = {}
    for cell in plan.cells:
        if cell.trained:
            took.setdefault(cell.row, []).append(json.loads((cell.folder / "result.json").read_text())["seconds"])
    if not took or not left:
        return None
    overall = mean(mean(values) for values in took.values())
    return sum(mean(took[cell.row]) if cell.row in took else overall for cell in left)


# --- what is written --------------------------------------------------------------------------------------------------


def write_table(plan: Plan) -> None:
    """Write ``ablation.json``, ``.md``, ``.csv`` and ``.png`` of the trained cells, each atomically."""
    wanted = plan.external.identity() if plan.external else None
    cells = [read_cell(cell.folder, cell.row, cell.seed, wanted) for cell in plan.cells if cell.trained]
    result = collect(plan, cells)
    if not cells and not result["cells_failed"]:
        return
    write_json(plan.out / "ablation.json", result)
    write_atomic(plan.out / "ablation.md", markdown(result).encode())
    write_atomic(plan.out / "ablation.csv", comma_separated(result["table"]).encode())
    if cells:
        plot_table(result["table"], plan.rows, plan.out / "ablation.png")


def collect(plan: Plan, cells: Sequence[Cell]) -> dict[str, Any]:
    """The content of ``ablation.json``: no text of any report."""
    return {
        "schema_version": 1,
        "size": describe(plan),
        "scale": plan.scale.model_dump(mode="json"),
        "seeds": list(plan.seeds),
        "configs": {cell.row: cell.job.config.model_dump(mode="json") for cell in reversed(plan.cells)},
        "changes": plan.changes(),
        "cells_planned": len(plan.cells),
        "cells_done": [_brief(cell) for cell in cells],
        "cells_failed": failures(plan),
        "outside": _outside(cells),
        "table": tabulate(plan.rows, cells),
        "published": published.content(plan.table),
    }


def _brief(cell: Cell) -> dict[str, Any]:
    kept = ("device", "seconds", "reused", "weights_million", "skipped_images")
    metrics = {name: value for name, value in cell.content["metrics"].items() if name != "val"}
    return {
        "row": cell.row, "seed": cell.seed, **{name: cell.content[name] for name in kept}, **metrics,
        "figures": dict(cell.val.whole), "external": cell.outside,
    }  # fmt: skip


def _outside(cells: Sequence[Cell]) -> str | None:
    """A sentence about the external column; None where no cell has one."""
    found: Mapping[str, Any] | None = next((cell.outside for cell in cells if cell.outside is not None), None)
    if found is None:
        return None
    name, n = found["set"]["name"], found["n"]
    if found["set"]["kind"] == "annotation":
        return f"External: reports of {n} studies of {name}, {found['split']} split; all metrics are in ablation.csv."
    every = found["every_finding_named"]
    named = ", ".join(f"{one} → {finding}" for one, finding in found["map"].items())
    left = f" Without a counterpart: {', '.join(found['unmapped'])}." if found["unmapped"] else ""
    return (
        f"External: findings named by the drafts of {n} frontal images of {name}, compared with its table of "
        f"labels for {len(found['findings'])} findings ({named}).{left} Intervals by bootstrap of the images. "
        f"Naming all of them for every image would score {every['label_f1_micro']:.3f} micro, "
        f"{every['label_f1_macro']:.3f} macro."
    )
