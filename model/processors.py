"""Sets the threads of OpenMP for a shared machine; must run before PyTorch is imported.

PyTorch on CPUs computes in OpenMP threads, as many as the host has cores, which spin while they wait
for each other. Where other processes or a CPU quota take the cores, spinning takes the time that the
other threads need. `python -m benchmarks --only shared` measures the default that is set here.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterable, MutableMapping
from pathlib import Path

THREADS = "OMP_NUM_THREADS"
SPINS = "GOMP_SPINCOUNT"
_SPIN_COUNT = 10_000  # about 0.3 ms; 300,000 if unset. Fewer slow down an idle machine, more a loaded one
_WAITING = (SPINS, "OMP_WAIT_POLICY")  # a user who has set one of them chose how threads wait


def configure_openmp(environment: MutableMapping[str, str] = os.environ, root: Path = Path("/")) -> None:
    """Set the number of threads and how long they spin, unless the environment has them already.

    Has an effect only before the first import of PyTorch.
    """
    environment.setdefault(THREADS, str(usable_processors(root)))
    if not any(name in environment for name in _WAITING):
        environment[SPINS] = str(_SPIN_COUNT)


def usable_processors(root: Path = Path("/")) -> int:
    """Cores that this process may use: physical cores of its CPU affinity, at most its CPU quota (rounded down)."""
    cores = _cores(_affinity(), root / "sys/devices/system/cpu")
    return max(1, math.floor(min(cores, cpu_quota(root))))


def cpu_quota(root: Path = Path("/")) -> float:
    """CPU quota of this process's control group (v1 or v2) and its parents, in processors; infinite without one."""
    quota = math.inf
    for line in _text(root / "proc/self/cgroup").splitlines():
        _, controllers, path = line.split(":", 2)
        if controllers and "cpu" not in controllers.split(","):
            continue
        # In a container the path may be the host's, and the group itself is mounted at the top.
        folder = root / "sys/fs/cgroup" / ("cpu" if controllers else "")
        for part in ("", *Path(path).parts[1:]):
            folder /= part
            in_v2 = _text(folder / "cpu.max")
            in_v1 = _text(folder / "cpu.cfs_quota_us") + " " + _text(folder / "cpu.cfs_period_us")
            quota = min(quota, *map(_processors, (in_v2, in_v1)))
    return quota


def _processors(quota_and_period: str) -> float:
    """Processors of a quota and its period in microseconds; "max" or -1 means no quota."""
    try:
        quota, period = map(int, quota_and_period.split())
    except ValueError:
        return math.inf
    return quota / period if quota > 0 and period > 0 else math.inf


def _affinity() -> Iterable[int]:
    try:
        return os.sched_getaffinity(0)
    except AttributeError:  # macOS, Windows
        return range(os.cpu_count() or 1)


def _cores(processors: Iterable[int], folder: Path) -> int:
    """Number of cores behind logical processors; two hyper-threads of one core count once."""
    siblings = {_text(folder / f"cpu{number}/topology/thread_siblings_list") or str(number) for number in processors}
    return len(siblings)


def _text(file: Path) -> str:
    """Content of a file of the kernel; empty if there is none."""
    try:
        return file.read_text(encoding="utf-8")
    except OSError:
        return ""
