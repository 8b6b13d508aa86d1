"""Where and how a run computes."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch

from training.trainer.distributed import SINGLE_PROCESS, ProcessGroup
from training.trainer.loggers import ExperimentLogger

Placement = Literal["auto", "yes", "no"]


@dataclass(frozen=True)
class RunContext:
    """Device, seed, precision, work directory and processes of a run."""

    device: torch.device  # of this process
    seed: int
    precision: Literal["bf16", "fp32"]  # bf16: autocast
    work: Path  # caches and checkpoints, shared by all processes
    processes: ProcessGroup = SINGLE_PROCESS
    on_device: Placement = "auto"  # whether decoded images and cached features are copied to the device as a whole
    checkpoint_seconds: float = 120.0  # longest time between two checkpoints within an epoch
    logger: ExperimentLogger | None = None  # of process 0, besides TensorBoard

    @contextmanager
    def autocast(self) -> Iterator[None]:
        """bf16 autocast where ``precision`` is ``bf16``."""
        with torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=self.precision == "bf16"):
            yield
