"""Lets the threads of OpenMP sleep sooner while other processes take the processors.

Threads that spin while they wait for each other make an idle machine faster and a loaded one far slower
(`model.processors`). libgomp itself spins only briefly while it manages more threads than the process has
processors. While the calling thread waits for a processor, this module keeps idle threads in reserve, so
that libgomp is in that state. The number of threads that compute, and so every result, stays the same.
"""

from __future__ import annotations

import ctypes
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path

BEGIN, END = 0.10, 0.03  # shares of its time that a thread waits for a processor: reserve threads above, none below
MOST_PROCESSORS = 64  # with more, the threads could exceed a limit of the container, at which libgomp ends the process


class SpinControl:
    """Keeps threads in reserve while the work that it watches waits for processors; without libgomp it does nothing."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._end: threading.Event | None = None

    @property
    def shortened(self) -> bool:
        """Whether threads spin only briefly now."""
        return self._end is not None

    @contextmanager
    def watch(self) -> Iterator[None]:
        """Measure how long the calling thread waits for a processor in this block, and adapt to it for the next."""
        before = _times()
        yield
        if before is not None and (after := _times()) is not None:
            ran, waited = (now - then for now, then in zip(after, before, strict=True))
            self.adapt(waited / max(1, ran + waited))

    def adapt(self, waiting: float) -> None:
        """Keep threads in reserve, or release them, for a share of time that was spent waiting."""
        with self._lock:
            if self._end is None and waiting > BEGIN:
                self._end = _reserve()
            elif self._end is not None and waiting < END:
                self._end.set()
                self._end = None


SPINNING = SpinControl()


def _times() -> tuple[int, int] | None:
    """Nanoseconds that the calling thread ran, and waited for a processor; None without these statistics of Linux."""
    try:
        ran, waited, _ = Path("/proc/thread-self/schedstat").read_text(encoding="ascii").split()
    except (OSError, ValueError):
        return None
    return int(ran), int(waited)


def _reserve() -> threading.Event | None:
    """Start idle threads of libgomp, one more than the process has processors, until the event is set."""
    if (library := _libgomp()) is None or (processors := len(os.sched_getaffinity(0))) > MOST_PROCESSORS:
        return None
    nothing = ctypes.cast(ctypes.CDLL(None).free, ctypes.c_void_p)  # free(NULL)
    started, end = threading.Event(), threading.Event()

    def hold() -> None:
        library.GOMP_parallel(nothing, None, processors + 1, 0)
        started.set()
        end.wait()  # libgomp ends the threads with the thread that started them

    threading.Thread(target=hold, name="openmp-reserve", daemon=True).start()
    started.wait()
    return end


@cache
def _libgomp() -> ctypes.CDLL | None:
    """The libgomp that PyTorch loaded; None for another OpenMP or another system."""
    with suppress(OSError, AttributeError):
        lines = Path("/proc/self/maps").read_text(encoding="utf-8", errors="replace").splitlines()
        paths = {line.split(maxsplit=5)[5] for line in lines if "/libgomp" in line}
        for path in sorted(paths, key=lambda path: "torch" not in path):
            library = ctypes.CDLL(path)
            library.GOMP_parallel.argtypes = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_uint, ctypes.c_uint]
            library.GOMP_parallel.restype = None
            return library
    return None
