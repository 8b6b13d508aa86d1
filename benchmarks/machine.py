"""This machine and its matrix-product speed, by which times of another machine are scaled."""

from __future__ import annotations

import os
import platform
from dataclasses import dataclass

import torch

from benchmarks.table import seconds

SIDE = 4096
NEAR = 0.2  # the plain implementation is the peer where its time is this close to the scaled reference


@dataclass(frozen=True)
class Reference:
    """Times of the published code, measured elsewhere on two CPU cores, and the reading of that machine.

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
    """Where a table was made. ``fp32`` and ``bf16`` are GFLOP/s of the product of two 4096² matrices."""

    processor: str
    cores: int
    threads: int
    torch: str
    device: str
    fp32: float
    bf16: float

    def scaled(self, reference_seconds: float) -> float:
        """The reference's time on this machine, if float32 products bound it."""
        return reference_seconds * REFERENCE.gflops / self.fp32

    def peer(self, plain: float, reference: float) -> tuple[str, float, str]:
        """Name and time of the peer, and a note: the plain implementation, or the scaled reference if it is faster.

        Args:
            plain: time of the plain implementation on this machine.
            reference: time of the published code on its machine.
        """
        scaled = self.scaled(reference)
        if abs(plain / scaled - 1) > NEAR:
            return "reference, scaled", scaled, f"plainly here: {plain:.2f} s"
        return "published equations, plainly", plain, f"reference scaled: {scaled:.2f} s"

    def describe(self) -> str:
        """One line."""
        return (
            f"{self.processor}, {self.cores} cores, {self.threads} threads, PyTorch {self.torch} on {self.device}; "
            f"{SIDE}³ matmul: {self.fp32:.0f} GFLOP/s float32, {self.bf16:.0f} GFLOP/s bfloat16"
        )


def read(device: torch.device) -> Machine:
    """Measure this machine; takes about five seconds on two cores."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu"
    return Machine(
        _processor(), os.cpu_count() or 1, torch.get_num_threads(), torch.__version__, name,
        gflops(device, torch.float32), gflops(device, torch.bfloat16),
    )  # fmt: skip


def gflops(device: torch.device, dtype: torch.dtype) -> float:
    """GFLOP/s of ``a @ b`` for two matrices of 4096 x 4096."""
    left, right = (torch.randn(SIDE, SIDE, device=device).to(dtype) for _ in range(2))
    return float(2 * SIDE**3 / seconds(lambda: left @ right, repeats=4) / 1e9)


def _processor() -> str:
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as file:
            names = [line.split(":", 1)[1].strip() for line in file if line.startswith("model name")]
    except OSError:
        names = []
    return names[0] if names else platform.processor() or platform.machine()
