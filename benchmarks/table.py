"""One row a figure: what this project takes, what its peer takes in the same run, and whether the goal is met."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

import torch

Unit = Literal["s", "bytes"]


@dataclass(frozen=True)
class Row:
    """One figure.

    Attributes:
        figure: what was measured, with its size.
        value: ours, in ``unit``.
        unit: of both values.
        peer: what stands beside it; empty where nothing does.
        peer_value: the peer's figure, measured in the same run.
        goal: in words, as the project set it: ``30 x``, ``< 10 ms``.
        met: whether ``value`` (or the ratio) meets it; None where no goal was set.
        note: what a reader must know.
    """

    figure: str
    value: float
    unit: Unit = "s"
    peer: str = ""
    peer_value: float | None = None
    goal: str = ""
    met: bool | None = None
    note: str = ""

    @property
    def ratio(self) -> float | None:
        """Peer over ours: how many times less it takes."""
        return None if self.peer_value is None else self.peer_value / self.value


def at_least(
    times: float, *, figure: str, value: float, peer: str, peer_value: float, unit: Unit = "s", note: str = ""
) -> Row:
    """A row whose goal is to take ``times`` less than its peer."""
    return Row(figure, value, unit, peer, peer_value, f"{times:g} ×", peer_value / value >= times, note)


def below(limit: float, *, figure: str, value: float, unit: Unit = "s", note: str = "") -> Row:
    """A row whose goal is to stay below ``limit``."""
    return Row(figure, value, unit, goal=f"< {show(limit, unit)}", met=value < limit, note=note)


def seconds(call: Callable[[], object], *, repeats: int = 3, warm_up: int = 1) -> float:
    """The least time that ``call`` took in ``repeats`` runs: what it costs where nothing else gets in its way."""
    return min(times(call, repeats=repeats, warm_up=warm_up))


def times(call: Callable[[], object], *, repeats: int, warm_up: int) -> list[float]:
    """Time of each of ``repeats`` runs after ``warm_up`` unmeasured ones, in seconds; the collector is held off."""
    for _ in range(warm_up):
        call()
    gc.collect()
    gc.disable()
    try:
        taken = []
        for _ in range(repeats):
            wait()
            began = time.perf_counter()
            call()
            wait()
            taken.append(time.perf_counter() - began)
    finally:
        gc.enable()
    return taken


def wait() -> None:
    """Let a GPU finish what it was given."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def show(value: float, unit: Unit) -> str:
    """A figure for people."""
    if unit == "bytes":
        return f"{value / 2**30:.2f} GiB" if value >= 2**30 else f"{value / 2**20:.1f} MiB"
    if value >= 1:
        return f"{value:.2f} s"
    return f"{value * 1e3:.2f} ms" if abs(value) >= 1e-3 else f"{value * 1e6:.1f} µs"


HEADER = ("figure", "ours", "peer", "peer takes", "ratio", "goal", "met")


def cells(row: Row) -> tuple[str, ...]:
    """The row as text, in the order of ``HEADER``."""
    ratio = row.ratio
    return (
        row.figure + (f" ({row.note})" if row.note else ""),
        show(row.value, row.unit),
        row.peer,
        "" if row.peer_value is None else show(row.peer_value, row.unit),
        "" if ratio is None else f"{ratio:.1f} ×",
        row.goal,
        "" if row.met is None else ("yes" if row.met else "no"),
    )


def as_markdown(rows: Iterable[Row]) -> str:
    """All rows as a Markdown table."""
    lines = ["| " + " | ".join(HEADER) + " |", "|" + "---|" * len(HEADER)]
    return "\n".join([*lines, *("| " + " | ".join(cells(row)) + " |" for row in rows)])


def as_text(rows: Sequence[Row]) -> str:
    """All rows in aligned columns, for a terminal."""
    table = [HEADER, *(cells(row) for row in rows)]
    widths = [max(len(line[column]) for line in table) for column in range(len(HEADER))]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() for line in table
    )
