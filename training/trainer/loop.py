"""The loop every stage runs in: seeded steps, checkpoints, logs, curves.

Each step draws its randomness from (seed, stage, step), and a checkpoint holds weights, optimizer, averaged weights
and history, so a run killed at any point and resumed takes the same steps as one that was never broken.
"""

from __future__ import annotations

import csv
import io
import logging
import math
import os
import time
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from tqdm import tqdm

from model.files import write_atomic
from training.trainer.checkpoints import in_short, read_newest, save_atomically
from training.trainer.distributed import SINGLE_PROCESS, ProcessGroup, Step

log = logging.getLogger(__name__)

CURVES_SECONDS = 10.0  # at least between two drawings of the curves, which take about one; the last one is always drawn


@dataclass(frozen=True)
class LoopConfig:
    """What the loop needs to know beside the modules.

    Attributes:
        stage: name of the stage; part of every seed.
        seed: the run's seed.
        warmup: share of all steps in which the learning rate rises from 0; it then falls as a cosine.
        floor: learning rate at the end, relative to the peak.
        clip: largest gradient norm.
        ema: decay of the averaged weights; 0 keeps none.
        checkpoint_seconds: longest time between two checkpoints within an epoch.
        precision: ``bf16`` (autocast) or ``fp32``.
        select: metric of ``validate`` whose best epoch is kept; None keeps the last.
        eligible: metric of ``validate`` that must not be 0 for an epoch to be kept; None: every epoch may be.
        patience: epochs without a better ``select`` after which the stage ends.
    """

    stage: str
    seed: int
    warmup: float = 0.05
    floor: float = 0.05
    clip: float = 1.0
    ema: float = 0.0
    checkpoint_seconds: float = 120.0
    precision: str = "bf16"
    select: str | None = None
    eligible: str | None = None
    patience: int | None = None


@dataclass
class History:
    """One row an epoch and the best epoch so far; ``start`` is the row of ``Loop.evaluate_initial``."""

    rows: list[dict[str, float]] = field(default_factory=list)
    best_epoch: int = -1
    best_value: float = -math.inf
    start: dict[str, float] = field(default_factory=dict)


def step_seed(seed: int, stage: str, step: int) -> int:
    """The seed of one step: the same whoever reaches it, and whenever."""
    return zlib.crc32(f"{seed}/{stage}/{step}".encode()) + (seed << 32)


@contextmanager
def autocast(device: torch.device, precision: str) -> Iterator[None]:
    """bf16 autocast where asked for."""
    with torch.autocast(device.type, dtype=torch.bfloat16, enabled=precision == "bf16"):
        yield


class Loop:
    """Trains one module in one stage, resumably."""

    def __init__(
        self,
        config: LoopConfig,
        directory: Path,
        module: nn.Module,
        optimizer: torch.optim.Optimizer,
        *,
        device: torch.device,
        processes: ProcessGroup = SINGLE_PROCESS,
    ) -> None:
        self.config, self.directory, self.module, self.optimizer, self.device, self.processes = (
            config, directory, module, optimizer, device, processes)  # fmt: skip
        self.history = History()
        self.step = 0
        self._peaks = [float(group["lr"]) for group in optimizer.param_groups]
        self._average: dict[str, Tensor] | None = (
            {key: value.detach().clone() for key, value in module.state_dict().items()} if config.ema else None
        )
        self._best: dict[str, Tensor] | None = None
        self._sums: dict[str, float] = {}
        self._loaded = False
        self._drawn = time.monotonic()
        directory.mkdir(parents=True, exist_ok=True)

    # -- running ---------------------------------------------------------------------------------------------------

    def evaluate_initial(self, validate: Callable[[], Mapping[str, float]]) -> dict[str, float]:
        """Let the weights as they are take part in the selection, as epoch 0; their row, also after a resume."""
        self.load()
        if not self.history.start:
            row = {"epoch": 0.0, **self._validated(validate)}
            self.history.start, self.history.best_value = row, row[f"val_{self.config.select}"]
            self._best = {key: tensor.detach().clone() for key, tensor in self.module.state_dict().items()}
            self.save()
            self._loaded = True
        return self.history.start

    def fit(
        self,
        epochs: Sequence[Sequence[Any]] | Callable[[int], Sequence[Any]],
        steps: Sequence[int],
        train_step: Step,
        validate: Callable[[], Mapping[str, float]] | None = None,
    ) -> History:
        """Run all epochs that are not done yet.

        Args:
            epochs: epoch -> its batches, in an order that depends on the epoch alone.
            steps: number of batches of each epoch.
            train_step: batch, generator -> losses of this process's rows of the batch, whose sums over the processes
                are those of the batch; ``loss`` is differentiated, the others are logged.
            validate: called after each epoch with the averaged weights in place, in eval mode.

        Returns:
            The history. The module ends with its selected weights.
        """
        batches_of = epochs if callable(epochs) else epochs.__getitem__
        starts = [0]
        for count in steps:
            starts.append(starts[-1] + count)
        self.load()
        train_step = self.processes.sharing(self.module, train_step)
        writer = self._writer() if self.processes.main else None
        began = time.monotonic()
        for epoch in range(len(steps)):
            if self.step >= starts[epoch + 1] and len(self.history.rows) > epoch:
                continue
            if self._out_of_patience():
                log.info("%s: no better %s for %s epochs, stopping at epoch %d", self.config.stage,
                         self.config.select, self.config.patience, epoch)  # fmt: skip
                break
            self._run_epoch(epoch, batches_of(epoch), starts, train_step)
            row = self._finish_epoch(epoch, steps[epoch], validate, time.monotonic() - began)
            began = time.monotonic()
            if writer is not None:
                for name, value in row.items():
                    writer.add_scalar(f"{self.config.stage}/{name}", value, epoch)
                writer.flush()
        if writer is not None:
            writer.close()
            if self.history.rows:
                self._write_log()  # where a kill came between the last checkpoint and its row
                self._draw_curves()
        if self._best is not None:
            self.module.load_state_dict(self._best)
        elif self._average is not None:
            self.module.load_state_dict(self._average)
        return self.history

    def _run_epoch(self, epoch: int, batches: Sequence[Any], starts: Sequence[int], train_step: Step) -> None:
        self.module.train()
        done = self.step - starts[epoch]
        saved = time.monotonic()
        bar = tqdm(total=len(batches), initial=done, desc=f"{self.config.stage} {epoch + 1}/{len(starts) - 1}",
                   unit="step", mininterval=2, disable=not self.processes.main)  # fmt: skip
        for batch in batches[done:]:
            self._set_rate(self.step / max(starts[-1], 1))
            seed = step_seed(self.config.seed, self.config.stage, self.step)
            torch.manual_seed(seed + self.processes.rank)  # dropout
            generator = torch.Generator().manual_seed(seed)
            with autocast(self.device, self.config.precision):
                losses = train_step(batch, generator)
            totals = self._totals(losses)
            self._update(losses["loss"], totals["loss"])
            for name, value in totals.items():
                self._sums[name] = self._sums.get(name, 0.0) + value
            self.step += 1
            bar.update()
            bar.set_postfix(loss=f"{self._sums['loss'] / (self.step - starts[epoch]):.3f}")
            if time.monotonic() - saved > self.config.checkpoint_seconds:
                self.save()
                saved = time.monotonic()
        bar.close()

    def _totals(self, losses: Mapping[str, Tensor]) -> dict[str, float]:
        values = torch.stack([value.detach().double().to(self.device) for value in losses.values()])
        return dict(zip(losses, self.processes.total(values).tolist(), strict=True))

    def _update(self, loss: Tensor, total: float) -> None:
        self._check("loss", total)
        self.optimizer.zero_grad(set_to_none=True)
        (loss * self.processes.count).backward()  # type: ignore[no-untyped-call]  # the engine gives mean gradients
        weights = [p for group in self.optimizer.param_groups for p in group["params"]]
        self._check("gradient", float(nn.utils.clip_grad_norm_(weights, self.config.clip)))
        self.optimizer.step()
        if self._average is not None:
            decay = min(self.config.ema, (1 + self.step) / (10 + self.step))
            with torch.no_grad():
                for key, value in self.module.state_dict().items():
                    if value.is_floating_point():
                        self._average[key].lerp_(value, 1 - decay)
                    else:
                        self._average[key].copy_(value)

    def _check(self, what: str, value: float) -> None:
        """Stop before a value that is no number reaches the weights, and with them a checkpoint."""
        if not math.isfinite(value):
            raise FloatingPointError(
                f"{self.config.stage}: the {what} is {value} at step {self.step}. The last good checkpoint is kept in "
                f"{self.directory}. Go on with --resume and --precision fp32; where that does not help, look for "
                "values that are no numbers in the data and its caches, or lower the learning rate."
            )

    def _finish_epoch(
        self, epoch: int, count: int, validate: Callable[[], Mapping[str, float]] | None, seconds: float
    ) -> dict[str, float]:
        row = {"epoch": float(epoch + 1), "lr": float(self.optimizer.param_groups[-1]["lr"])}
        row |= {name: total / count for name, total in self._sums.items()}
        self._sums = {}
        if validate is not None:
            with self.averaged():
                row |= self._validated(validate)
                self._keep_best(epoch, row)
        row["seconds"] = seconds
        self.history.rows.append(row)
        self.save()
        if self.processes.main:
            self._write_log()
            if time.monotonic() - self._drawn >= CURVES_SECONDS:
                self._draw_curves()
        log.info("%s epoch %d: %s", self.config.stage, epoch + 1,
                 ", ".join(f"{k} {v:.4g}" for k, v in row.items() if k != "epoch"))  # fmt: skip
        return row

    def _validated(self, validate: Callable[[], Mapping[str, float]]) -> dict[str, float]:
        self.module.eval()
        with torch.inference_mode():
            figures = self.processes.from_main(lambda: dict(validate()))
        return {f"val_{name}": float(value) for name, value in figures.items()}

    def _keep_best(self, epoch: int, row: Mapping[str, float]) -> None:
        if self.config.select is None or (self.config.eligible and not row[f"val_{self.config.eligible}"]):
            return
        value = row[f"val_{self.config.select}"]
        if value > self.history.best_value:
            self.history.best_value, self.history.best_epoch = value, epoch
            self._best = {key: tensor.detach().clone() for key, tensor in self.module.state_dict().items()}

    def _out_of_patience(self) -> bool:
        patience = self.config.patience
        return patience is not None and len(self.history.rows) - 1 - self.history.best_epoch >= patience > 0

    @contextmanager
    def averaged(self) -> Iterator[None]:
        """The averaged weights in place of the raw ones, for as long as the context lasts."""
        if self._average is None:
            yield
            return
        raw = {key: value.detach().clone() for key, value in self.module.state_dict().items()}
        self.module.load_state_dict(self._average)
        try:
            yield
        finally:
            self.module.load_state_dict(raw)

    def _set_rate(self, progress: float) -> None:
        config = self.config
        if progress < config.warmup:
            factor = (progress + 1e-3) / (config.warmup + 1e-3)
        else:
            along = (progress - config.warmup) / max(1 - config.warmup, 1e-9)
            factor = config.floor + (1 - config.floor) * 0.5 * (1 + math.cos(math.pi * min(along, 1.0)))
        for group, peak in zip(self.optimizer.param_groups, self._peaks, strict=True):
            group["lr"] = peak * factor

    # -- keeping ---------------------------------------------------------------------------------------------------

    @property
    def checkpoint(self) -> Path:
        """The stage's last checkpoint."""
        return self.directory / "checkpoint.pt"

    @property
    def previous(self) -> Path:
        """The checkpoint before that."""
        return self.directory / "checkpoint.previous.pt"

    def save(self) -> None:
        """Write the checkpoint beside the old one, which is kept as ``previous``; on process 0 alone."""
        if not self.processes.main:
            return
        content = {
            "module": self.module.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "average": self._average,
            "best": self._best,
            "step": self.step,
            "sums": self._sums,
            "rows": self.history.rows,
            "best_epoch": self.history.best_epoch,
            "best_value": self.history.best_value,
            "start": self.history.start,
        }
        save_atomically(content, self.checkpoint, previous=self.previous)

    def load(self) -> bool:
        """Continue from the checkpoint, or from the one before where it cannot be read; False where there is none.

        Raises:
            ValueError: neither can be read, or the checkpoint belongs to another model.
        """
        if self._loaded or not (self.checkpoint.exists() or self.previous.exists()):
            return False
        content, path = read_newest((self.checkpoint, self.previous), self.device)
        try:
            self.module.load_state_dict(content["module"])
            self.optimizer.load_state_dict(content["optimizer"])
        except Exception as error:
            raise ValueError(
                f"checkpoint {path} cannot be resumed: it is of another model ({in_short(error)}). Restore "
                f"the configuration it was made with, or remove {self.directory} to start this stage anew."
            ) from error
        self._average, self._best = content["average"], content["best"]
        self.step, self._sums = content["step"], content["sums"]
        self.history = History(
            content["rows"], content["best_epoch"], content["best_value"], content.get("start") or {}
        )
        self._loaded = True
        log.info("%s: resumed at step %d", self.config.stage, self.step)
        self.processes.wait()  # none may write before all have read
        if path == self.previous and self.processes.main:
            os.replace(path, self.checkpoint)  # else the next one would push it out and keep what cannot be read
        return True

    def _writer(self) -> Any:
        from torch.utils.tensorboard import SummaryWriter

        return SummaryWriter(str(self.directory / "tensorboard"), purge_step=len(self.history.rows))

    def _rows(self) -> list[dict[str, float]]:
        return [row for row in (self.history.start, *self.history.rows) if row]

    def _write_log(self) -> None:
        rows = self._rows()
        names = list(dict.fromkeys(name for row in rows for name in row))
        text = io.StringIO()
        table = csv.DictWriter(text, names)
        table.writeheader()
        table.writerows(rows)
        write_atomic(self.directory / "log.csv", text.getvalue().encode())

    def _draw_curves(self) -> None:
        from training.trainer.plots import plot_history

        plot_history(self._rows(), self.directory / "curves.png", title=self.config.stage)
        self._drawn = time.monotonic()
