"""Another experiment logger besides log.csv and TensorBoard; W&B and MLflow where they are installed."""

from __future__ import annotations

import csv
import json
from argparse import Namespace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from training.phantoms import write_phantom_root
from training.run import main
from training.trainer.context import RunContext
from training.trainer.loggers import LOGGERS, ExperimentLogger, check_logger
from training.trainer.loop import Loop, LoopConfig


def train(directory: Path, logger: ExperimentLogger | None, epochs: int = 3) -> list[dict[str, str]]:
    """The rows of log.csv after a toy training."""
    net = nn.Linear(2, 1)
    context = RunContext(torch.device("cpu"), 3, "fp32", directory, logger=logger)
    loop = Loop(LoopConfig("toy"), context, net, torch.optim.Adam(net.parameters(), lr=0.1))

    def step(batch: Tensor, _: torch.Generator) -> dict[str, Tensor]:
        return {"loss": net(batch).square().mean()}

    loop.fit(lambda epoch: [torch.ones(4, 2)] * 2, epochs=epochs, steps=2, train_step=step)
    with (directory / "toy" / "log.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def test_csv_logger_gets_the_values_of_the_log(tmp_path: Path) -> None:
    logger = ExperimentLogger.open("csv", tmp_path, "B", {"ce": {"epochs": 3}})
    rows = train(tmp_path, logger)
    with (tmp_path / "csv" / "version_0" / "metrics.csv").open(newline="") as file:
        logged = list(csv.DictReader(file))
    assert [row["step"] for row in logged] == ["0", "1", "2"]
    for name in ("loss", "lr", "epoch"):
        assert [row[f"toy/{name}"] for row in logged] == [row[name] for row in rows]
    assert list((tmp_path / "toy" / "tensorboard").iterdir())


def test_tensorboard_needs_no_other_logger(tmp_path: Path) -> None:
    assert ExperimentLogger.open("tensorboard", tmp_path, "B", {}) is None
    assert list(tmp_path.iterdir()) == []
    assert len(train(tmp_path, None)) == 3


def test_failing_logger_does_not_end_the_training(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    from lightning_fabric.loggers.logger import Logger  # imports PyTorch's compiler

    class Broken(Logger):
        """A logger that has lost its server."""

        name = version = None

        def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
            raise ConnectionError("no route to the server")

        def log_hyperparams(self, params: dict[str, Any] | Namespace, *args: Any, **kwargs: Any) -> None: ...

    assert len(train(tmp_path, ExperimentLogger(Broken()))) == 3
    assert caplog.text.count("the experiment logger failed, training goes on without this entry: no route") == 3


@pytest.mark.parametrize("name", LOGGERS)
def test_missing_packages_are_refused_with_the_remedy(
    name: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """The installed ones are accepted."""
    if name in ("tensorboard", "csv") or (find_spec("pytorch_lightning") and find_spec(name)):
        check_logger(name)
        return
    root = write_phantom_root(tmp_path / "root", train=2, val=1, test=1, seed=3, size=64)
    command = ["--root", str(root), "--preset", "smoke", "--out", str(tmp_path / "B"), "--device", "cpu"]
    assert main([*command, "--logger", name]) == 2
    assert f"{name}: pip install '.[{name}]' in the source tree" in caplog.text
    assert f"--logger {name} needs " in caplog.text
    assert [path.name for path in tmp_path.iterdir()] == ["root"]


@pytest.mark.skipif(not (find_spec("pytorch_lightning") and find_spec("mlflow")), reason="MLflow is not installed")
def test_mlflow_continues_its_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"file://{tmp_path}/mlruns")
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    for epochs in (2, 3):
        train(tmp_path, ExperimentLogger.open("mlflow", tmp_path, "B", {"ce": {"epochs": 3}}), epochs)
    (run,) = tmp_path.glob("mlruns/*/*/metrics/toy/loss")
    assert len(run.read_text().splitlines()) == 3
    assert json.loads((tmp_path / "logger.json").read_text()) == {"mlflow": run.parents[2].name}
    assert (run.parents[2] / "params" / "ce" / "epochs").read_text() == "3"


@pytest.mark.skipif(not (find_spec("pytorch_lightning") and find_spec("wandb")), reason="W&B is not installed")
def test_wandb_writes_a_run_offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_MODE", "offline")
    logger = ExperimentLogger.open("wandb", tmp_path, "B", {"ce": {"epochs": 3}})
    assert logger is not None
    train(tmp_path, logger)
    logger.close("success")
    (run,) = tmp_path.glob("wandb/offline-run-*/run-*.wandb")
    assert json.loads((tmp_path / "logger.json").read_text())["wandb"] in run.name
