"""The training loop: resumed equals unbroken, selection, early stopping, damaged checkpoints."""

from __future__ import annotations

import csv
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from training.trainer.context import RunContext
from training.trainer.loop import Loop, LoopConfig, step_seed

X = torch.randn(40, 6, generator=torch.Generator().manual_seed(0))
Y = X @ torch.arange(6.0) + 1


class KilledError(Exception):
    """Stands for the process ending here."""


def network() -> nn.Module:
    torch.manual_seed(1)
    return nn.Sequential(nn.Linear(6, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Dropout(0.3), nn.Linear(16, 1))


def context(directory: Path, checkpoint_seconds: float = 1e9) -> RunContext:
    return RunContext(torch.device("cpu"), 3, "fp32", directory, checkpoint_seconds=checkpoint_seconds)


def train(
    directory: Path, *, stop_at: int | None = None, select: str | None = None, patience: int | None = None,
    epochs: int = 4, lr: float = 0.02, checkpoint_seconds: float = 0.0,
) -> tuple[nn.Module, Loop]:  # fmt: skip
    """Four epochs of five steps; ``stop_at`` ends the process within that step."""
    net = network()
    config = LoopConfig("toy", ema=0.9, select=select, patience=patience)
    loop = Loop(config, context(directory, checkpoint_seconds), net, torch.optim.Adam(net.parameters(), lr=lr))

    def step(batch: Tensor, generator: torch.Generator) -> dict[str, Tensor]:
        if loop.step == stop_at:
            raise KilledError
        noisy = X[batch] + 0.1 * torch.randn(X[batch].shape, generator=generator)
        return {"loss": (net(noisy).squeeze(1) - Y[batch]).square().mean()}

    def batches(epoch: int) -> list[Tensor]:
        order = torch.randperm(40, generator=torch.Generator().manual_seed(epoch))
        return list(order.split(8))

    def validate() -> dict[str, float]:
        return {"score": -float((net(X).squeeze(1) - Y).square().mean())}

    loop.fit(batches, epochs=epochs, steps=5, train_step=step, validate=validate)
    return net, loop


@pytest.mark.parametrize(
    ("stop_at", "select", "seconds"),
    [*((stop_at, select, 0.0) for stop_at in (0, 3, 5, 12, 19) for select in (None, "score")), (13, None, 1e9)],
)
def test_resumed_equals_unbroken(tmp_path: Path, stop_at: int, select: str | None, seconds: float) -> None:
    """With a checkpoint at each step, and with one at each epoch, whose steps after it are repeated."""
    expected, unbroken = train(tmp_path / "unbroken", select=select, checkpoint_seconds=seconds)
    with pytest.raises(KilledError):
        train(tmp_path / "broken", stop_at=stop_at, select=select, checkpoint_seconds=seconds)
    actual, resumed = train(tmp_path / "broken", select=select, checkpoint_seconds=seconds)
    for key, value in expected.state_dict().items():
        assert torch.equal(value, actual.state_dict()[key]), key
    assert [r["loss"] for r in resumed.history.rows] == pytest.approx([r["loss"] for r in unbroken.history.rows])
    assert resumed.history.best_epoch == unbroken.history.best_epoch


def test_module_ends_in_eval_mode_where_no_epoch_was_left(tmp_path: Path) -> None:
    """A stage that was killed between its last checkpoint and its result; what it measures next must not change it."""
    for _ in range(2):
        net, _ = train(tmp_path, select="score")
        assert not any(module.training for module in net.modules())


def test_loss_falls_and_log_has_one_row_an_epoch(tmp_path: Path) -> None:
    _, loop = train(tmp_path, epochs=30)
    rows = list(csv.DictReader((tmp_path / "toy" / "log.csv").open()))
    assert len(rows) == 30
    assert float(rows[-1]["loss"]) < 0.5 * float(rows[0]["loss"])
    assert (tmp_path / "toy" / "curves.png").read_bytes()[:4] == b"\x89PNG"
    assert list((tmp_path / "toy" / "tensorboard").iterdir())
    assert loop.step == 150


def test_resume_restores_a_log_row_lost_after_its_checkpoint(tmp_path: Path) -> None:
    train(tmp_path)
    log = tmp_path / "toy" / "log.csv"
    whole = log.read_bytes()
    log.write_bytes(b"".join(whole.splitlines(keepends=True)[:-1]))  # a kill between the checkpoint and its log row
    train(tmp_path)
    assert log.read_bytes() == whole


def test_curves_are_drawn_during_a_long_stage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for folder, seconds in (("short", 1e9), ("long", 0.0)):
        monkeypatch.setattr("training.trainer.history.CURVES_SECONDS", seconds)
        with pytest.raises(KilledError):
            train(tmp_path / folder, stop_at=7)
    assert (tmp_path / "long" / "toy" / "curves.png").exists()
    assert not (tmp_path / "short" / "toy" / "curves.png").exists()


def test_keeps_best_epoch_and_stops_after_patience(tmp_path: Path) -> None:
    net, loop = train(tmp_path, select="score", patience=2, epochs=60, lr=0.5)
    scores = [row["val_score"] for row in loop.history.rows]
    assert len(scores) < 60
    assert scores[loop.history.best_epoch] == max(scores)
    net.eval()
    with torch.no_grad():
        kept = -float((net(X).squeeze(1) - Y).square().mean())
    assert kept == pytest.approx(max(scores), rel=1e-4)


@pytest.mark.parametrize(
    ("loss", "message"),
    [
        (lambda net: net(X).sum() * float("nan"), "the loss is nan .* lower the learning rate"),
        (lambda net: sum((p.sum() * 0).abs().sqrt() for p in net.parameters()) + 1.0,
         r"the gradient is nan at step 5.*--precision fp32"),
    ],
)  # fmt: skip
def test_infinite_loss_or_gradient_changes_neither_weights_nor_checkpoint(
    tmp_path: Path, loss: Callable[[nn.Module], Tensor], message: str
) -> None:
    net, _ = train(tmp_path, epochs=1)
    before = (tmp_path / "toy" / "checkpoint.pt").read_bytes()
    loop = Loop(LoopConfig("toy"), context(tmp_path), net, torch.optim.Adam(net.parameters()))
    loop.load()
    weights = {key: value.clone() for key, value in net.state_dict().items() if "running" not in key}
    with pytest.raises(FloatingPointError, match=message):
        loop.fit(lambda epoch: list(torch.arange(40).split(8)), epochs=3, steps=5,
                 train_step=lambda batch, generator: {"loss": loss(net)})  # fmt: skip
    assert (tmp_path / "toy" / "checkpoint.pt").read_bytes() == before
    assert all(torch.equal(net.state_dict()[key], value) for key, value in weights.items() if "num_batches" not in key)


def test_continues_from_previous_checkpoint_where_the_last_is_damaged(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    expected, _ = train(tmp_path / "unbroken")
    broken = tmp_path / "broken"
    with pytest.raises(KilledError):
        train(broken, stop_at=13)
    last = (broken / "toy" / "checkpoint.pt").read_bytes()
    (broken / "toy" / "checkpoint.pt").write_bytes(last[: len(last) // 2])
    with pytest.raises(KilledError):
        train(broken, stop_at=12)  # before anything new is written
    assert "continuing from the previous one" in caplog.text
    actual, _ = train(broken)  # and the good one has not been pushed out
    assert all(torch.equal(v, actual.state_dict()[k]) for k, v in expected.state_dict().items())


def test_rejects_damaged_checkpoints_with_the_remedy(tmp_path: Path) -> None:
    train(tmp_path, epochs=1)
    for name in ("checkpoint.pt", "checkpoint.previous.pt"):
        (tmp_path / "toy" / name).write_bytes(b"not a checkpoint")
    with pytest.raises(
        ValueError, match=r"checkpoint\.pt .*previous\.pt .* cannot be resumed. Remove .* to start this"
    ):
        train(tmp_path)


def test_rejects_checkpoint_of_a_different_model(tmp_path: Path) -> None:
    train(tmp_path, epochs=1)
    other = nn.Linear(3, 3)
    loop = Loop(LoopConfig("toy"), context(tmp_path), other, torch.optim.Adam(other.parameters()))
    with pytest.raises(ValueError, match="it belongs to a different model"):
        loop.load()


def test_step_seeds_differ_by_seed_stage_and_step() -> None:
    seeds = {step_seed(seed, stage, step) for seed in (1, 2) for stage in ("a", "b") for step in range(50)}
    assert len(seeds) == 200


def test_rates_fall_by_steps_and_the_latest_of_equal_epochs_is_kept(tmp_path: Path) -> None:
    net = network()
    config = LoopConfig("toy", step_decay=(3, 0.8), select="score", latest=True, patience=2)
    loop = Loop(config, context(tmp_path), net, torch.optim.Adam(net.parameters(), lr=0.02))
    scores = iter([0.0, 0.0, 1.0, 1.0, 1.0, 0.5, 1.0, 0.5, 0.5, 1.0])
    history = loop.fit(
        lambda epoch: [torch.arange(40)], epochs=10, steps=1,
        train_step=lambda batch, _: {"loss": net(X[batch]).square().mean()}, validate=lambda: {"score": next(scores)},
    )  # fmt: skip
    assert [row["lr"] for row in history.rows] == pytest.approx([0.02 * 0.8 ** (epoch // 3) for epoch in range(9)])
    assert history.best_epoch == 6
