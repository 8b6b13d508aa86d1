"""Another experiment logger besides ``log.csv`` and TensorBoard, by the interface of Lightning Fabric's loggers.

Weights & Biases and MLflow have the loggers of PyTorch Lightning, which share that interface. Project,
server and account are those of their environment variables, such as ``WANDB_PROJECT``, ``WANDB_MODE``
and ``MLFLOW_TRACKING_URI``. They receive the configuration and the metrics, no report and no image.
"""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Callable, Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from model.files import write_atomic

if TYPE_CHECKING:
    from lightning_fabric.loggers.logger import Logger

log = logging.getLogger(__name__)

_NEEDS = {
    "tensorboard": (),
    "csv": ("lightning_fabric",),
    "wandb": ("pytorch_lightning", "wandb"),
    "mlflow": ("pytorch_lightning", "mlflow"),
}
LOGGERS = tuple(_NEEDS)
_PROJECT = "cxr-report"


def check_logger(name: str) -> None:
    """Raise ValueError where the packages of a logger are not installed."""
    if missing := [package for package in _NEEDS[name] if find_spec(package) is None]:
        extra = "train" if name == "csv" else name
        raise ValueError(f"--logger {name} needs {' and '.join(missing)}: pip install '.[{extra}]' in the source tree")


class ExperimentLogger:
    """One run in another logger. A failure of it, such as of its network, is logged and does not end the training."""

    def __init__(self, logger: Logger) -> None:
        self._logger = logger

    @classmethod
    def open(cls, name: str, folder: Path, run: str, config: dict[str, Any]) -> ExperimentLogger | None:
        """The logger of a run named ``run`` in its work directory, continued where it exists; None for TensorBoard.

        Raises:
            ValueError: it cannot start, for want of an account or a network for instance.
        """
        if name == "tensorboard":
            return None
        kept = folder / "logger.json"  # the id of the run, by logger
        ids: dict[str, str] = json.loads(kept.read_text()) if kept.exists() else {}
        try:
            logger = _open(name, folder, run, ids.get(name))
            if name != "csv":  # Fabric's takes no configuration; run.json holds it
                logger.log_hyperparams(config)
                write_atomic(kept, json.dumps(ids | {name: _run_id(logger)}).encode())
        except Exception as error:
            raise ValueError(
                f"--logger {name} cannot start: {error}; use its offline mode, or another logger"
            ) from error
        return cls(logger)

    def record(self, values: Mapping[str, float], step: int) -> None:
        """Log values at an epoch of a stage."""
        self._try(lambda: self._logger.log_metrics(dict(values), step))
        self._try(self._logger.save)

    def close(self, status: Literal["success", "failed"]) -> None:
        """End the run."""
        self._try(lambda: self._logger.finalize(status))

    def _try(self, action: Callable[[], None]) -> None:
        try:
            action()
        except Exception as error:  # of a third party, in a run of hours
            log.warning("the experiment logger failed, training goes on without this entry: %s", error)


def _open(name: str, folder: Path, run: str, number: str | None) -> Logger:
    if name == "csv":
        from lightning_fabric.loggers.csv_logs import CSVLogger

        return CSVLogger(folder, name="csv", flush_logs_every_n_steps=1)
    from pytorch_lightning.loggers import MLFlowLogger, WandbLogger

    if name == "wandb":
        project = os.environ.get("WANDB_PROJECT", _PROJECT)
        wandb: Logger = WandbLogger(project=project, name=run, save_dir=folder, id=number, resume="allow")
        return wandb
    server = os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{folder / 'mlflow.db'}"
    experiment = os.environ.get("MLFLOW_EXPERIMENT_NAME", _PROJECT)
    mlflow: Logger = MLFlowLogger(experiment, run_name=run, tracking_uri=server, run_id=number)
    return mlflow


def _run_id(logger: Any) -> str:
    """The id by which a later command continues the run."""
    return str(logger.run_id if hasattr(logger, "run_id") else logger.experiment.id)
