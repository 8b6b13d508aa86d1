"""Resident memory of a process over time, and whether it grows."""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import psutil
from scipy.stats import theilslopes

Sample = tuple[float, int]  # seconds, or inputs sent; resident bytes


def resident_bytes(pid: int) -> int:
    """Resident set of a process; raises ``psutil.NoSuchProcess``."""
    return int(psutil.Process(pid).memory_info().rss)


class MemoryWatch:
    """Samples the resident set of a process twice a second inside ``with``; samples nothing where ``pid`` is None."""

    def __init__(self, pid: int | None, *, every_s: float = 0.5) -> None:
        self.samples: list[Sample] = []
        self._pid, self._every_s, self._stop = pid, every_s, threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> MemoryWatch:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def _watch(self) -> None:
        began = time.monotonic()
        while self._pid is not None and not self._stop.wait(self._every_s):
            try:
                self.samples.append((time.monotonic() - began, resident_bytes(self._pid)))
            except psutil.NoSuchProcess:
                return


def slope(samples: Sequence[Sample]) -> float | None:
    """Bytes per unit of the first column over its second half; None with too few samples.

    The median of the slopes between all pairs (Theil 1950, Sen 1968): a leak raises it, one step of an allocator does
    not; ``rise`` bounds the steps.
    """
    late = _second_half(samples)
    if len(late) < 10 or np.ptp(late[:, 0]) == 0:
        return None
    return float(theilslopes(late[:, 1], late[:, 0]).slope)


def rise(samples: Sequence[Sample]) -> float:
    """Bytes from the first sample of the second half to its last."""
    late = _second_half(samples)
    return float(late[-1, 1] - late[0, 1]) if len(late) else 0.0


def _second_half(samples: Sequence[Sample]) -> npt.NDArray[np.float64]:
    """Rows of samples, (N, 2)."""
    rows = np.array(samples, dtype=np.float64).reshape(-1, 2)
    return rows[rows[:, 0] >= (rows[0, 0] + rows[-1, 0]) / 2] if len(rows) else rows
