"""Threads of OpenMP: the number follows affinity and CPU quota, and is set before PyTorch is imported."""

from __future__ import annotations

import math
import os
import subprocess
import sys
from pathlib import Path

import pytest

from model.processors import configure_openmp, cpu_quota, usable_processors
from tests.support.paths import REPOSITORY

V2 = "0::/pods/one\n"
V1 = "5:memory:/docker/f00\n4:cpu,cpuacct:/docker/f00\n"


def kernel(root: Path, **files: str) -> Path:
    """A tree of kernel files; ``__`` in a name stands for a slash."""
    for name, text in files.items():
        file = root / name.replace("__", "/")
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
    return root


def group(root: Path, path: str, name: str, text: str) -> None:
    folder = root / "sys/fs/cgroup" / path
    folder.mkdir(parents=True, exist_ok=True)
    (folder / name).write_text(text + "\n")


@pytest.mark.parametrize(
    ("membership", "files", "quota"),
    [
        (V2, {("pods/one", "cpu.max"): "150000 100000"}, 1.5),
        (V2, {("pods", "cpu.max"): "50000 100000", ("pods/one", "cpu.max"): "max 100000"}, 0.5),  # of a parent
        (V2, {("", "cpu.max"): "400000 100000"}, 4.0),  # in a container the group is mounted at the top
        (V2, {("pods/one", "cpu.max"): "max 100000"}, math.inf),
        (V2, {("pods/one", "cpu.max"): "rubbish"}, math.inf),
        (V1, {("cpu/docker/f00", "cpu.cfs_quota_us"): "250000",
              ("cpu/docker/f00", "cpu.cfs_period_us"): "100000"}, 2.5),
        (V1, {("cpu", "cpu.cfs_quota_us"): "-1", ("cpu", "cpu.cfs_period_us"): "100000"}, math.inf),
        ("", {}, math.inf),
    ],
)  # fmt: skip
def test_reads_the_cpu_quota_of_control_groups(
    membership: str, files: dict[tuple[str, str], str], quota: float, tmp_path: Path
) -> None:
    kernel(tmp_path, proc__self__cgroup=membership)
    for (path, name), text in files.items():
        group(tmp_path, path, name, text)
    assert cpu_quota(tmp_path) == quota


@pytest.mark.parametrize(("quota", "threads"), [("10000 100000", 1), ("199999 100000", 1), ("max 100000", None)])
def test_threads_do_not_exceed_the_quota(quota: str, threads: int | None, tmp_path: Path) -> None:
    kernel(tmp_path, proc__self__cgroup="0::/\n")
    group(tmp_path, "", "cpu.max", quota)
    everything = len(os.sched_getaffinity(0))
    assert usable_processors(tmp_path) == (threads or everything)


def test_two_hyper_threads_count_as_one_core(tmp_path: Path) -> None:
    processors = sorted(os.sched_getaffinity(0))
    for number in processors:  # all in one core
        folder = tmp_path / f"sys/devices/system/cpu/cpu{number}/topology"
        folder.mkdir(parents=True)
        (folder / "thread_siblings_list").write_text("0-99\n")
    assert usable_processors(tmp_path) == 1


def test_threads_follow_the_affinity() -> None:
    one = "import os; os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})"
    assert run(f"{one}; import service; print(os.environ['OMP_NUM_THREADS'])") == "1"


@pytest.mark.parametrize("package", ["service", "training", "benchmarks"])
def test_packages_set_openmp_before_they_import_torch(package: str) -> None:
    code = (
        f"import sys, os, {package}; early = 'torch' not in sys.modules; import torch;"
        "print(early, os.environ['GOMP_SPINCOUNT'], torch.get_num_threads() == int(os.environ['OMP_NUM_THREADS']))"
    )
    assert run(code) == "True 10000 True"


def test_settings_of_the_user_win() -> None:
    environment = {"OMP_NUM_THREADS": "7", "OMP_WAIT_POLICY": "ACTIVE"}
    configure_openmp(environment)
    assert environment == {"OMP_NUM_THREADS": "7", "OMP_WAIT_POLICY": "ACTIVE"}
    environment = {"GOMP_SPINCOUNT": "5"}
    configure_openmp(environment)
    assert environment["GOMP_SPINCOUNT"] == "5"


def run(code: str) -> str:
    """Output of a new interpreter without settings of OpenMP."""
    environment = {name: value for name, value in os.environ.items() if "OMP_" not in name}
    environment.pop("GOMP_SPINCOUNT", None)
    return subprocess.run(
        [sys.executable, "-c", code], cwd=REPOSITORY, env=environment, check=True, capture_output=True, text=True
    ).stdout.strip()
