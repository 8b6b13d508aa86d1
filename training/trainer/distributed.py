"""The processes that train together: one, or those that ``torchrun`` started on any machines.

Lightning Fabric joins them and averages their gradients. A stage draws randomness for the whole
batch, computes the rows of ``ProcessGroup.rows``, and returns losses whose sum over the processes
is the loss of the batch. So the number of processes does not change a batch.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from torch import Tensor, nn

from model.devices import choose_device
from model.network.dual_encoder import FeatureNorm

if TYPE_CHECKING:
    from lightning_fabric import Fabric

T = TypeVar("T")
Step = Callable[[Any, torch.Generator], dict[str, Tensor]]

_PATIENCE = timedelta(hours=24)  # others wait while process 0 decodes or validates


class ProcessGroup:
    """This process among those that train together. Process 0 alone writes files."""

    def __init__(self, fabric: Fabric | None = None) -> None:
        self._fabric: Any = fabric
        self.rank: int = fabric.global_rank if fabric else 0
        self.count: int = fabric.world_size if fabric else 1

    @property
    def main(self) -> bool:
        """Whether this is the process that writes, validates and builds caches."""
        return self.rank == 0

    def rows(self, batch: int) -> slice:
        """This process's rows of a batch of ``batch``, one or more; the parts differ by one row at most."""
        if batch < self.count:
            raise ValueError(f"a batch of {batch} cannot be shared by {self.count} processes; start fewer (torchrun "
                             "--nproc-per-node), or train on more studies")  # fmt: skip
        return slice(batch * self.rank // self.count, batch * (self.rank + 1) // self.count)

    def total(self, values: Tensor) -> Tensor:
        """The sum over the processes, without gradient."""
        if self._fabric is None:
            return values.detach()
        summed: Tensor = self._fabric.all_reduce(values.detach().clone(), reduce_op="sum")
        return summed

    def gather(self, part: Tensor, batch: int) -> Tensor:
        """The rows of all processes in the batch's order, with gradient: (rows, D) -> (batch, D)."""
        if self._fabric is None:
            return part
        most = -(-batch // self.count)
        padded = torch.cat([part, part.new_zeros(most - len(part), *part.shape[1:])])
        parts = self._fabric.all_gather(padded, sync_grads=True)  # (count, most, D)
        sizes = [batch * (rank + 1) // self.count - batch * rank // self.count for rank in range(self.count)]
        return torch.cat([rows[:size] for rows, size in zip(parts, sizes, strict=True)])

    def with_gradient_averaging(self, module: nn.Module, step: Step) -> Step:
        """``step``, whose ``backward`` averages the gradients of ``module`` over the processes.

        The others first receive the weights and buffers of process 0, and its buffers at each step.
        """
        if self._fabric is None:
            return step
        shared = self._fabric.setup_module(_Step(module, step), move_to_device=False)
        return lambda batch, generator: shared(batch, generator)

    def from_main(self, compute: Callable[[], T]) -> T:
        """The result of ``compute``, which process 0 alone calls, for all processes."""
        if self._fabric is None:
            return compute()
        result: T = self._fabric.broadcast(compute() if self.main else None)
        return result

    @contextmanager
    def main_process_first(self) -> Iterator[None]:
        """Process 0 runs the block before the others begin it."""
        if not self.main:
            self.wait()
        yield
        if self.main:
            self.wait()

    def wait(self) -> None:
        """Wait until all processes reach this call."""
        if self._fabric is not None:
            self._fabric.barrier()

    def synchronise_features(self, module: nn.Module) -> None:
        """Make the feature norms in ``module`` take their statistics over the whole batch."""
        fabric = self._fabric
        if fabric is not None:
            for part in module.modules():
                if isinstance(part, FeatureNorm):
                    part.total = lambda values: fabric.all_gather(values, sync_grads=True).sum(0)

    def synchronise_backbone(self, module: nn.Module) -> None:
        """Make batch normalisation in ``module`` use the whole batch on CUDA.

        On CPUs each process normalises its own rows, and process 0's running statistics are kept.
        """
        if self._fabric is not None and self._fabric.device.type == "cuda":
            nn.SyncBatchNorm.convert_sync_batchnorm(module)  # type: ignore[no-untyped-call]  # in place

    def leave(self) -> None:
        """Leave the group after all processes are done."""
        if self._fabric is not None:
            self.wait()
            torch.distributed.destroy_process_group()


SINGLE_PROCESS = ProcessGroup()


class _Step(nn.Module):
    """A step as the forward pass of its module, where Lightning Fabric adds its hooks."""

    def __init__(self, module: nn.Module, step: Step) -> None:
        super().__init__()
        self.module = module
        self._step = step

    def forward(self, batch: Any, generator: torch.Generator) -> dict[str, Tensor]:
        return self._step(batch, generator)


def is_peer_failure(error: RuntimeError) -> bool:
    """Whether an error is only the consequence of another process that failed and logged why."""
    several = int(os.environ.get("WORLD_SIZE", "1")) > 1
    return several and (isinstance(error, torch.distributed.DistError) or "gloo" in str(error).lower())


def process_rank() -> int:
    """The rank that ``torchrun`` gave this process; 0 without it."""
    return int(os.environ.get("RANK", "0"))


def join(device: str) -> tuple[ProcessGroup, torch.device]:
    """Join the processes of ``torchrun``, if there are any, and choose this one's device: ``auto``,
    ``cpu`` or ``cuda``; for one process also ``cuda:N``.

    Raises:
        ValueError: the device is not available, or Lightning Fabric is not installed.
    """
    count = int(os.environ.get("WORLD_SIZE", "1"))
    if count == 1:
        return SINGLE_PROCESS, choose_device(device)
    if ":" in device:
        raise ValueError(f"--device {device} names one GPU; several processes take one each: use cuda or auto")
    kind = "cuda" if choose_device(device).type == "cuda" else "cpu"
    here, gpus = int(os.environ.get("LOCAL_WORLD_SIZE", count)), torch.cuda.device_count()
    if kind == "cuda" and gpus < here:
        raise ValueError(f"{here} processes share {gpus} GPUs; start one a GPU (torchrun --nproc-per-node)")
    try:
        from lightning_fabric import Fabric
        from lightning_fabric.plugins.environments.torchelastic import TorchElasticEnvironment
        from lightning_fabric.strategies.ddp import DDPStrategy
    except ImportError as error:
        raise ValueError(
            "several processes need Lightning Fabric: pip install '.[train]' in the source tree"
        ) from error
    fabric = Fabric(
        accelerator=kind, devices=here, num_nodes=count // here, plugins=[TorchElasticEnvironment()],
        strategy=DDPStrategy(timeout=_PATIENCE, find_unused_parameters=True),
    )  # fmt: skip
    fabric.launch()
    return ProcessGroup(fabric), fabric.device
