"""Times, this machine's speed, and one table row per measurement."""

from __future__ import annotations

import gc
import platform
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Literal

import torch

from model.processors import usable_processors
from training.evaluation.tables import Table

Unit = Literal["s", "bytes"]
HEADER = ("measured", "ours", "peer", "peer takes", "ratio", "goal", "met")
SIDE = 4096  # of the matrices whose product measures the machine
NEAR = 0.2  # the plain implementation is the peer where its time is this close to the scaled reference


@dataclass(frozen=True)
class Row:
    """One measurement of this project and of its peer in the same run; ``met`` is None without a goal."""

    name: str
    value: float
    unit: Unit = "s"
    peer: str = ""
    peer_value: float | None = None
    goal: str = ""
    met: bool | None = None
    note: str = ""

    def cells(self) -> tuple[str, ...]:
        """The row as text, in the order of ``HEADER``."""
        peer = ("", "") if self.peer_value is None else (
            show(self.peer_value, self.unit), f"{self.peer_value / self.value:.1f} ×",
        )  # fmt: skip
        name = self.name + (f" ({self.note})" if self.note else "")
        met = {None: "", True: "yes", False: "no"}[self.met]
        return name, show(self.value, self.unit), self.peer, *peer, self.goal, met


def at_least(times: float, row: Row) -> Row:
    """The row with the goal of taking ``times`` less than its peer."""
    assert row.peer_value is not None
    return replace(row, goal=f"{times:g} ×", met=row.peer_value / row.value >= times)


def below(limit: float, row: Row) -> Row:
    """The row with the goal of staying below ``limit``."""
    return replace(row, goal=f"< {show(limit, row.unit)}", met=row.value < limit)


def show(value: float, unit: Unit) -> str:
    """A value with a readable unit."""
    if unit == "bytes":
        return f"{value / 2**30:.2f} GiB" if value >= 2**30 else f"{value / 2**20:.1f} MiB"
    if value >= 1:
        return f"{value:.2f} s"
    return f"{value * 1e3:.2f} ms" if abs(value) >= 1e-3 else f"{value * 1e6:.1f} µs"


def markdown(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    return Table(header, list(rows), left=len(header)).markdown()


def in_turn(
    calls: Sequence[Callable[[], object]], *, rounds: int, warm_up: int = 1, rest_s: float = 0.0,
    clock: Callable[[], float] = time.perf_counter,
) -> list[list[float]]:  # fmt: skip
    """Seconds of each call in each round, without garbage collection; other load affects all calls alike.

    ``warm_up`` rounds are not measured. ``rest_s`` is the pause before each call, until the threads of the last one
    have stopped spinning. ``clock`` measures wall-clock time, or is ``time.process_time``.
    """
    taken: list[list[float]] = [[] for _ in calls]
    gc.collect()
    gc.disable()
    try:
        for _ in range(warm_up + rounds):
            for call, seconds_of_call in zip(calls, taken, strict=True):
                time.sleep(rest_s)
                _synchronize()
                began = clock()
                call()
                _synchronize()
                seconds_of_call.append(clock() - began)
    finally:
        gc.enable()
    return [each[warm_up:] for each in taken]


def seconds(call: Callable[[], object], *, repeats: int = 3, warm_up: int = 1) -> float:
    """The least time of ``repeats`` runs, the one with the least disturbance."""
    return min(in_turn([call], rounds=repeats, warm_up=warm_up)[0])


def _synchronize() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


# --- the machine ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Reference:
    """Times of the published code, measured elsewhere on two CPU cores, and the speed of that machine.

    float32, d_model 512, 2,048 slots, 98 patch tokens, 60 words. Seconds per report, or per training step of 16
    without the CNN; ``step_bytes`` is that step's peak; ``gflops`` the speed of a 4096³ matrix product in float32.
    """

    beam3_batch1: float = 6.39
    beam3_batch16: float = 6.09
    greedy_batch16: float = 1.72
    step: float = 11.6
    step_bytes: float = 8.4e9
    gflops: float = 131.0


REFERENCE = Reference()


@dataclass(frozen=True)
class Machine:
    """``fp32`` and ``bf16`` are GFLOP/s of the product of two matrices of ``side``² elements."""

    device: str
    fp32: float
    bf16: float
    side: int = SIDE

    def scaled(self, reference_seconds: float) -> float:
        """The reference's time on this machine, if float32 products bound it."""
        return reference_seconds * REFERENCE.gflops / self.fp32

    def peer(self, plain: float, reference: float) -> tuple[str, float, str]:
        """Name and time of the peer, and a note: the plain implementation, or the scaled reference if it is faster.

        ``plain`` is the time of the plain implementation here, ``reference`` that of the published code on its machine.
        """
        scaled = self.scaled(reference)
        if abs(plain / scaled - 1) > NEAR:
            return "reference, scaled", scaled, f"unoptimised here: {plain:.2f} s"
        return "published equations, unoptimised", plain, f"reference scaled: {scaled:.2f} s"

    def describe(self) -> str:
        info = Path("/proc/cpuinfo")
        lines = info.read_text(encoding="utf-8").splitlines() if info.exists() else []
        names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
        return (
            f"{(names or [platform.processor() or platform.machine()])[0]}, {usable_processors()} cores, "
            f"{torch.get_num_threads()} threads, PyTorch {torch.__version__} on {self.device}; "
            f"{self.side}³ matmul: {self.fp32:.0f} GFLOP/s float32, {self.bf16:.0f} GFLOP/s bfloat16"
        )


def read_machine(device: torch.device, side: int = SIDE) -> Machine:
    """Measure this machine; takes about five seconds on two cores."""
    speeds = []
    for dtype in (torch.float32, torch.bfloat16):
        left, right = (torch.randn(side, side, device=device).to(dtype) for _ in range(2))
        speeds.append(2 * side**3 / seconds(partial(torch.matmul, left, right), repeats=4) / 1e9)
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu"
    fp32, bf16 = speeds
    return Machine(name, fp32, bf16, side)
