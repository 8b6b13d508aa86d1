"""The training loop of all stages: seeded steps, checkpoints, selection of the best epoch.

Each step draws its randomness from (seed, stage, step), and a checkpoint holds weights, optimizer,
averaged weights and history. A run that is killed at any point and resumed therefore takes the same
steps as an uninterrupted one.
"""

from __future__ import annotations

import logging
import math
import os
import time
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from tqdm import tqdm

from model.spinning import SPINNING
from training.trainer.checkpoints import first_line, read_newest, save_atomically
from training.trainer.context import RunContext
from training.trainer.distributed import Step
from training.trainer.history import History, HistoryWriter

log = logging.getLogger(__name__)

Weights = dict[str, Tensor]
Batches = Callable[[int], Sequence[Any]]  # epoch -> its batches
Validate = Callable[[], Mapping[str, float]]


@dataclass(frozen=True)
class LoopConfig:
    """How a stage trains; ``select`` and ``eligible`` are metrics of ``validate``."""

    stage: str  # part of every seed, and of the directory
    warmup: float = 0.05  # share of all steps in which the learning rate rises from 0, before it falls as a cosine
    floor: float = 0.05  # learning rate at the end, relative to the peak
    step_decay: tuple[int, float] | None = None  # instead: every so many epochs the learning rate is multiplied by this
    clip: float = 1.0  # largest gradient norm; infinity for no limit
    ema: float = 0.0  # decay of the averaged weights; 0 keeps none
    select: str | None = None  # its best epoch is kept; None keeps the last
    latest: bool = False  # of equally good epochs the last is kept, not the first
    eligible: str | None = None  # 0 where an epoch must not be kept
    patience: int | None = None  # epochs without a better ``select`` after which the stage ends


def step_seed(seed: int, stage: str, step: int) -> int:
    """The seed of one step."""
    return zlib.crc32(f"{seed}/{stage}/{step}".encode()) + (seed << 32)


class Loop:
    """Trains one module in one stage, resumably, in the folder ``context.work / config.stage``."""

    def __init__(
        self, config: LoopConfig, context: RunContext, module: nn.Module, optimizer: torch.optim.Optimizer
    ) -> None:
        self.config, self.context, self.module, self.optimizer = config, context, module, optimizer
        self.history = History()
        self.step = 0
        self._peaks = [float(group["lr"]) for group in optimizer.param_groups]
        self._average = _copy(module) if config.ema else None
        self._best: Weights | None = None
        self._sums: dict[str, float] = {}  # of the losses of the current epoch
        self._loaded = False
        self.directory = context.work / config.stage  # of checkpoints, log and curves
        self.directory.mkdir(parents=True, exist_ok=True)
        self.checkpoint = self.directory / "checkpoint.pt"
        self.previous = self.directory / "checkpoint.previous.pt"

    def evaluate_initial(self, validate: Validate) -> dict[str, float]:
        """Make the current weights candidate 0 of the selection; returns their row."""
        self.load()
        if not self.history.start:
            row = {"epoch": 0.0, **self._validated(validate)}
            self.history.start, self.history.best_value = row, row[f"val_{self.config.select}"]
            self._best = _copy(self.module)
            self.save()
            self._loaded = True
        return self.history.start

    def fit(
        self, batches: Batches, *, epochs: int, steps: int, train_step: Step, validate: Validate | None = None
    ) -> History:
        """Run the epochs that are not done yet; the module ends with its selected weights, in eval mode.

        Args:
            batches: epoch -> its ``steps`` batches; depends on the epoch alone.
            train_step: batch, random generator -> losses of this process's rows of the batch. Their sums over
                the processes are the losses of the batch. ``loss`` is differentiated, the others are logged.
            validate: called after each epoch with the averaged weights in place, in eval mode.
        """
        self.load()
        processes = self.context.processes
        train_step = processes.with_gradient_averaging(self.module, train_step)
        done = len(self.history.rows)
        writer = None
        if processes.main:
            writer = HistoryWriter(self.config.stage, self.directory, done, self.context.logger)
        began = time.monotonic()
        for epoch in range(done, epochs):
            if self._out_of_patience():
                log.info("%s: no better %s for %s epochs, stopping at epoch %d", self.config.stage,
                         self.config.select, self.config.patience, epoch)  # fmt: skip
                break
            self._train_epoch(epoch, epochs, steps, batches(epoch), train_step)
            self._finish_epoch(epoch, steps, validate, time.monotonic() - began)
            began = time.monotonic()
            if writer is not None:
                writer.write(self.history)
        if writer is not None:
            writer.close(self.history)
        if (selected := self._best or self._average) is not None:
            self.module.load_state_dict(selected)
        self.module.eval()  # also where no epoch was left: the measurements that follow would move its statistics
        return self.history

    def _train_epoch(self, epoch: int, epochs: int, steps: int, batches: Sequence[Any], train_step: Step) -> None:
        self.module.train()
        done = self.step - epoch * steps
        saved = time.monotonic()
        bar = tqdm(total=steps, initial=done, desc=f"{self.config.stage} {epoch + 1}/{epochs}", unit="step",
                   mininterval=2, disable=not self.context.processes.main)  # fmt: skip
        for batch in batches[done:]:
            factor = self._rate_factor(epoch, self.step / max(epochs * steps, 1))
            for group, peak in zip(self.optimizer.param_groups, self._peaks, strict=True):
                group["lr"] = peak * factor
            seed = step_seed(self.context.seed, self.config.stage, self.step)
            torch.manual_seed(seed + self.context.processes.rank)  # of dropout
            with SPINNING.watch():
                with self.context.autocast():
                    losses = train_step(batch, torch.Generator().manual_seed(seed))
                self._update(losses)
            self.step += 1
            bar.update()
            bar.set_postfix(loss=f"{self._sums['loss'] / (self.step - epoch * steps):.3f}")
            if time.monotonic() - saved > self.context.checkpoint_seconds:
                self.save()
                saved = time.monotonic()
        bar.close()

    def _rate_factor(self, epoch: int, progress: float) -> float:
        """Learning rate relative to its peak."""
        if self.config.step_decay is not None:
            every, factor = self.config.step_decay
            return factor ** (epoch // every)
        return learning_rate_factor(progress, self.config.warmup, self.config.floor)

    def _update(self, losses: Mapping[str, Tensor]) -> None:
        """One optimizer step; raises before values that are not finite reach the weights."""
        processes = self.context.processes
        values = torch.stack([value.detach().double().to(self.context.device) for value in losses.values()])
        totals = dict(zip(losses, processes.total(values).tolist(), strict=True))
        self._check_finite("loss", totals["loss"])
        self.optimizer.zero_grad(set_to_none=True)
        (losses["loss"] * processes.count).backward()  # type: ignore[no-untyped-call]  # gradients are averaged
        weights = [p for group in self.optimizer.param_groups for p in group["params"]]
        self._check_finite("gradient", float(nn.utils.clip_grad_norm_(weights, self.config.clip)))
        self.optimizer.step()
        if self._average is not None:
            _update_average(self._average, self.module, min(self.config.ema, (1 + self.step) / (10 + self.step)))
        for name, total in totals.items():
            self._sums[name] = self._sums.get(name, 0.0) + total

    def _check_finite(self, what: str, value: float) -> None:
        if not math.isfinite(value):
            raise FloatingPointError(
                f"{self.config.stage}: the {what} is {value} at step {self.step}. The last good checkpoint is kept in "
                f"{self.directory}. Continue with --resume and --precision fp32; if that does not help, look for "
                "values that are not finite in the data and its caches, or lower the learning rate.")  # fmt: skip

    def _finish_epoch(self, epoch: int, steps: int, validate: Validate | None, seconds: float) -> None:
        row = {"epoch": float(epoch + 1), "lr": float(self.optimizer.param_groups[-1]["lr"])}
        row |= {name: total / steps for name, total in self._sums.items()}
        self._sums = {}
        if validate is not None:
            with self._averaged_weights():
                row |= self._validated(validate)
                self._keep_best(epoch, row)
        row["seconds"] = seconds
        self.history.rows.append(row)
        self.save()
        log.info("%s epoch %d: %s", self.config.stage, epoch + 1,
                 ", ".join(f"{k} {v:.4g}" for k, v in row.items() if k != "epoch"))  # fmt: skip

    def _validated(self, validate: Validate) -> dict[str, float]:
        self.module.eval()
        with torch.inference_mode():
            metrics = self.context.processes.from_main(lambda: dict(validate()))
        return {f"val_{name}": float(value) for name, value in metrics.items()}

    def _keep_best(self, epoch: int, row: Mapping[str, float]) -> None:
        if self.config.select is None or (self.config.eligible and not row[f"val_{self.config.eligible}"]):
            return
        value = row[f"val_{self.config.select}"]
        best = self.history.best_value
        if value > best or (self.config.latest and value == best):
            self.history.best_value, self.history.best_epoch = value, epoch
            self._best = _copy(self.module)

    def _out_of_patience(self) -> bool:
        patience = self.config.patience
        return patience is not None and len(self.history.rows) - 1 - self.history.best_epoch >= patience > 0

    @contextmanager
    def _averaged_weights(self) -> Iterator[None]:
        """The averaged weights in place of the raw ones within the context."""
        if self._average is None:
            yield
            return
        raw = _copy(self.module)
        self.module.load_state_dict(self._average)
        try:
            yield
        finally:
            self.module.load_state_dict(raw)

    def save(self) -> None:
        """Write the checkpoint on process 0; the one before is kept as ``previous``."""
        if not self.context.processes.main:
            return
        content = {
            "module": self.module.state_dict(), "optimizer": self.optimizer.state_dict(), "average": self._average,
            "best": self._best, "step": self.step, "sums": self._sums, **vars(self.history),
        }  # fmt: skip
        save_atomically(content, self.checkpoint, previous=self.previous)

    def load(self) -> None:
        """Continue from the checkpoint, or from the one before where it is damaged, if there is one.

        Raises:
            ValueError: both are damaged, or the checkpoint belongs to a different model.
        """
        if self._loaded or not (self.checkpoint.exists() or self.previous.exists()):
            return
        content, path = read_newest((self.checkpoint, self.previous), self.context.device)
        try:
            self.module.load_state_dict(content["module"])
            self.optimizer.load_state_dict(content["optimizer"])
        except Exception as error:
            raise ValueError(
                f"checkpoint {path} cannot be resumed: it belongs to a different model ({first_line(error)}). Restore "
                f"the configuration it was made with, or remove {self.directory} to start this stage again."
            ) from error
        self._average, self._best = content["average"], content["best"]
        self.step, self._sums = content["step"], content["sums"]
        self.history = History(content["rows"], content["best_epoch"], content["best_value"], content.get("start", {}))
        self._loaded = True
        log.info("%s: resumed at step %d", self.config.stage, self.step)
        self.context.processes.wait()  # all must read before one writes
        if path == self.previous and self.context.processes.main:
            os.replace(path, self.checkpoint)  # else the next save would replace the good file by the damaged one


def learning_rate_factor(progress: float, warmup: float, floor: float) -> float:
    """Learning rate relative to its peak: a linear rise (``warmup``), then a cosine."""
    if progress < warmup:
        return (progress + 1e-3) / (warmup + 1e-3)
    rest = (progress - warmup) / max(1 - warmup, 1e-9)
    return floor + (1 - floor) * 0.5 * (1 + math.cos(math.pi * min(rest, 1.0)))


def _copy(module: nn.Module) -> Weights:
    return {key: value.detach().clone() for key, value in module.state_dict().items()}


@torch.no_grad()
def _update_average(average: Weights, module: nn.Module, decay: float) -> None:
    for key, value in module.state_dict().items():
        if value.is_floating_point():
            average[key].lerp_(value, 1 - decay)
        else:
            average[key].copy_(value)
