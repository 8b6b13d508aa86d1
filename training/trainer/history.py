"""The log of a stage: one row an epoch, as CSV, TensorBoard events and curves."""

from __future__ import annotations

import csv
import io
import math
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from model.files import write_atomic
from training.trainer.loggers import ExperimentLogger

CURVES_SECONDS = 10.0  # shortest time between two drawings of the curves, which take about 1 s


@dataclass
class History:
    """One row an epoch, the best epoch (-1: none), the row of ``Loop.evaluate_initial``."""

    rows: list[dict[str, float]] = field(default_factory=list)
    best_epoch: int = -1
    best_value: float = -math.inf
    start: dict[str, float] = field(default_factory=dict)

    def selected_row(self) -> Mapping[str, float]:
        """The row of the best epoch, of the last one where none was selected; empty without epochs."""
        return self.rows[self.best_epoch] if self.rows else {}

    def all_rows(self) -> list[dict[str, float]]:
        """The rows from ``start`` on."""
        return [row for row in (self.start, *self.rows) if row]


class HistoryWriter:
    """Writes ``log.csv``, ``curves.png`` and ``tensorboard/`` of a stage, and to another ``logger`` if there is one."""

    def __init__(self, stage: str, directory: Path, epochs_done: int, logger: ExperimentLogger | None = None) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self._stage, self._directory, self._logger = stage, directory, logger
        self._events: Any = SummaryWriter(str(directory / "tensorboard"), purge_step=epochs_done)
        self._drawn = time.monotonic()

    def write(self, history: History) -> None:
        """Record the last epoch; curves are drawn every ``CURVES_SECONDS``."""
        epoch = len(history.rows) - 1
        row = {f"{self._stage}/{name}": value for name, value in history.rows[-1].items()}
        for name, value in row.items():
            self._events.add_scalar(name, value, epoch)
        self._events.flush()
        if self._logger is not None:
            self._logger.record(row, epoch)
        self._write_table(history)
        if time.monotonic() - self._drawn >= CURVES_SECONDS:
            self._draw(history)

    def close(self, history: History) -> None:
        """Write the table, which a kill may have left without its last row, and the curves."""
        self._events.close()
        if history.rows:
            self._write_table(history)
            self._draw(history)

    def _write_table(self, history: History) -> None:
        rows, text = history.all_rows(), io.StringIO()
        table = csv.DictWriter(text, list(dict.fromkeys(name for row in rows for name in row)))
        table.writeheader()
        table.writerows(rows)
        write_atomic(self._directory / "log.csv", text.getvalue().encode())

    def _draw(self, history: History) -> None:
        from training.trainer.plots import plot_history  # matplotlib takes a second to import

        plot_history(history.all_rows(), self._directory / "curves.png", title=self._stage)
        self._drawn = time.monotonic()
