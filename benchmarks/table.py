"""One row per measurement: this project, its peer in the same run, and whether the goal is met."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import torch

from training.evaluation.tables import Table

Unit = Literal["s", "bytes"]
HEADER = ("figure", "ours", "peer", "peer takes", "ratio", "goal", "met")


@dataclass(frozen=True)
class Row:
    """One measurement.

    Attributes:
        figure: what was measured, with its size.
        value: of this project, in ``unit``.
        unit: of both values.
        peer: what it is compared with; empty without one.
        peer_value: of the peer, measured in the same run.
        goal: ``30 ×``, ``< 10 ms``.
        met: whether the goal is met; None without one.
        note: shown after ``figure``.
    """

    figure: str
    value: float
    unit: Unit = "s"
    peer: str = ""
    peer_value: float | None = None
    goal: str = ""
    met: bool | None = None
    note: str = ""

    def cells(self) -> tuple[str, ...]:
        """The row as text, in the order of ``HEADER``."""
        return (
            self.figure + (f" ({self.note})" if self.note else ""),
            show(self.value, self.unit),
            self.peer,
            "" if self.peer_value is None else show(self.peer_value, self.unit),
            "" if self.peer_value is None else f"{self.peer_value / self.value:.1f} ×",
            self.goal,
            "" if self.met is None else ("yes" if self.met else "no"),
        )


def at_least(times: float, row: Row) -> Row:
    """The row with the goal of taking ``times`` less than its peer."""
    assert row.peer_value is not None
    return replace(row, goal=f"{times:g} ×", met=row.peer_value / row.value >= times)


def below(limit: float, row: Row) -> Row:
    """The row with the goal of staying below ``limit``."""
    return replace(row, goal=f"< {show(limit, row.unit)}", met=row.value < limit)


def seconds(call: Callable[[], object], *, repeats: int = 3, warm_up: int = 1) -> float:
    """The least time of ``repeats`` runs, the one with the least disturbance."""
    return min(times(call, repeats=repeats, warm_up=warm_up))


def times(call: Callable[[], object], *, repeats: int, warm_up: int) -> list[float]:
    """Seconds of each of ``repeats`` runs after ``warm_up`` unmeasured ones, without garbage collection."""
    for _ in range(warm_up):
        call()
    gc.collect()
    gc.disable()
    try:
        taken = []
        for _ in range(repeats):
            _synchronize()
            began = time.perf_counter()
            call()
            _synchronize()
            taken.append(time.perf_counter() - began)
    finally:
        gc.enable()
    return taken


def _synchronize() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def show(value: float, unit: Unit) -> str:
    """A value with a readable unit."""
    if unit == "bytes":
        return f"{value / 2**30:.2f} GiB" if value >= 2**30 else f"{value / 2**20:.1f} MiB"
    if value >= 1:
        return f"{value:.2f} s"
    return f"{value * 1e3:.2f} ms" if abs(value) >= 1e-3 else f"{value * 1e6:.1f} µs"


def markdown(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A Markdown table."""
    return Table(header, list(rows), left=len(header)).markdown()
