"""Resident memory of a process over time, and whether it grows."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress

import numpy as np
import numpy.typing as npt
import psutil

Sample = tuple[float, int]  # seconds, or inputs sent; resident bytes


def resident_bytes(pid: int) -> int:
    """Resident set of a process; raises ``psutil.NoSuchProcess``."""
    return int(psutil.Process(pid).memory_info().rss)


def resident_bytes_of_children(pid: int) -> int:
    """Sum of the resident sets of all descendants, which counts shared pages more than once."""
    total = 0
    for child in psutil.Process(pid).children(recursive=True):
        with suppress(psutil.NoSuchProcess):
            total += int(child.memory_info().rss)
    return total


@contextmanager
def memory_of(
    pid: int | None, *, every_s: float = 0.5, measure: Callable[[int], int] = resident_bytes
) -> Iterator[list[Sample]]:
    """A list that grows by a sample twice a second inside ``with``; it stays empty where ``pid`` is None."""
    samples: list[Sample] = []
    stop, began = threading.Event(), time.monotonic()

    def watch() -> None:
        while pid is not None:
            try:
                samples.append((time.monotonic() - began, measure(pid)))
            except psutil.NoSuchProcess:
                return
            if stop.wait(every_s):
                return

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield samples
    finally:
        stop.set()
        thread.join()


def slope(samples: Sequence[Sample]) -> float | None:
    """Bytes per unit of the first column over its second half; None with too few samples.

    The median of the slopes between all pairs (Theil 1950, Sen 1968): a leak raises it, one step of an allocator does
    not; ``rise`` bounds the steps.
    """
    late = _second_half(samples)
    if len(late) < 10 or np.ptp(late[:, 0]) == 0:
        return None
    from scipy.stats import theilslopes  # takes most of a second to import

    return float(theilslopes(late[:, 1], late[:, 0]).slope)


def rise(samples: Sequence[Sample]) -> float:
    """Bytes from the first sample of the second half to its last."""
    late = _second_half(samples)
    return float(late[-1, 1] - late[0, 1]) if len(late) else 0.0


def _second_half(samples: Sequence[Sample]) -> npt.NDArray[np.float64]:
    rows = np.array(samples, dtype=np.float64).reshape(-1, 2)
    return rows[rows[:, 0] >= (rows[0, 0] + rows[-1, 0]) / 2] if len(rows) else rows
