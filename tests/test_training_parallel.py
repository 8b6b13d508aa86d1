"""Training in two processes equals training in one: batches, losses, gradients; one set of files."""

from __future__ import annotations

import csv
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from model.bundle import load_bundle
from model.config import DecodingConfig
from model.decoding.search import Constraints, sample
from tests.support import parallel_worker
from tests.support.paths import REPOSITORY
from tests.support.processes import ENVIRONMENT, fork
from tests.support.service import free_port
from tests.support.tiny import random_patches, tiny_index, tiny_model, tiny_tokenizer
from training.data.device_array import DeviceRows
from training.data.features import OnlineFeatures, PatchSource, cache_features
from training.data.openi import open_openi
from training.data.pixel_cache import build_pixel_cache
from training.phantoms import write_phantom_root
from training.trainer.context import RunContext
from training.trainer.distributed import ProcessGroup, join

TRAIN = 15


def torchrun(*arguments: str) -> subprocess.CompletedProcess[str]:
    """Two processes on this machine, one thread each."""
    return subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", *arguments],
        cwd=REPOSITORY, env={**os.environ, **ENVIRONMENT}, text=True, capture_output=True, timeout=900,
    )  # fmt: skip


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_phantom_root(tmp_path_factory.mktemp("phantoms"), train=TRAIN, val=4, test=1, seed=5, size=64)


@pytest.fixture(scope="module")
def runs(root: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """The output folders of one process and of two."""
    one, two = tmp_path_factory.mktemp("one"), tmp_path_factory.mktemp("two")
    parallel_worker.main(root, one)
    statuses, log = in_two(two, str(root), str(two))
    assert statuses == [0, 0], log[-3000:]
    return one, two


def in_two(folder: Path, *arguments: str) -> tuple[list[int | None], str]:
    """Exit codes and logs of two processes, forked instead of started by torchrun."""
    port, logs = str(free_port()), [folder / f"log-{rank}" for rank in range(2)]
    processes = [fork(parallel_worker.member, [str(rank), port, *arguments], log) for rank, log in enumerate(logs)]
    for process in processes:
        process.join(300)
    return [process.exitcode for process in processes], "".join(log.read_text() for log in logs)


def columns(path: Path, *names: str) -> dict[str, list[float]]:
    rows = list(csv.DictReader(path.open()))
    return {name: [float(row[name]) for row in rows if row[name]] for name in names}


@pytest.mark.parametrize(
    ("stage", "names"),
    [
        ("pair", ["loss"]),
        ("retriever", ["loss", "val_loss", "val_mrr"]),
        ("ce", ["loss", "nll", "contrastive", "val_CIDEr", "val_selection"]),
        ("scst", ["loss", "policy", "nll", "reward", "greedy_reward", "val_CIDEr"]),
    ],
)
def test_two_processes_have_the_losses_of_one(runs: tuple[Path, Path], stage: str, names: list[str]) -> None:
    one, two = (columns(run / stage / "log.csv", *names) for run in runs)
    for name in names:
        assert two[name], name
        assert two[name] == pytest.approx(one[name], rel=1e-4, abs=1e-5), name


def test_gathered_negatives_give_the_gradients_of_the_whole_batch(runs: tuple[Path, Path]) -> None:
    one, two = (torch.load(run / "pair.pt", weights_only=True) for run in runs)
    torch.testing.assert_close(two, one, rtol=1e-5, atol=1e-6)


def test_only_process_0_writes(runs: tuple[Path, Path]) -> None:
    for stage in ("retriever", "ce", "scst"):
        assert len(list((runs[1] / stage / "tensorboard").iterdir())) == 1
        assert (runs[1] / stage / "checkpoint.pt").exists()


def test_command_runs_under_torchrun_and_a_refusal_ends_all_processes(root: Path, tmp_path: Path) -> None:
    arguments = ["training.run", "--dataset", "openi", "--root", str(root), "--preset", "smoke", "--device", "cpu",
                 "--backbone", "mobilenet_v3_small", "--set", "scst=none", "ce.epochs=1",
                 "--out", str(tmp_path / "B")]  # fmt: skip
    done = torchrun(*arguments)
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stderr.count("stage ce") == 1
    assert load_bundle(tmp_path / "B").config.trained_on["train_studies"] == TRAIN
    statuses, log = in_two(tmp_path, *arguments[1:], "--replace")  # process 0 finds the work directory taken
    assert None not in statuses, "process 1 waits for it"
    assert 0 not in statuses
    assert "add --resume" in log


def test_rejects_small_batches_and_one_named_gpu_for_two_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    both = ProcessGroup()
    both.count = 2
    assert [both.rows(5)] == [slice(0, 2)]
    with pytest.raises(ValueError, match="a batch of 1 cannot be shared by 2 processes"):
        both.rows(1)
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ValueError, match="use cuda or auto"):
        join("cuda:1")


def test_samples_of_a_batch_part_equal_those_of_the_batch() -> None:
    model, tokenizer = tiny_model(), tiny_tokenizer()
    constraints = Constraints.of(DecodingConfig(min_length=3), tokenizer)
    vectors = torch.from_numpy(tiny_index(model).vectors(np.arange(3)[None].repeat(5, 0)))
    encoded = model.encode(random_patches(model, 5, seed=0), vectors, torch.ones(5, 3, dtype=torch.bool))

    def drawn(part: slice, of: tuple[int, int] | None) -> torch.Tensor:
        rows = torch.arange(5)[part]
        generator = torch.Generator().manual_seed(7)
        return sample(model, encoded.select(rows), constraints, tokenizer.bos_id, count=3, generator=generator,
                      rng_slice=of).ids  # fmt: skip

    whole = drawn(slice(None), None)
    assert torch.equal(whole, torch.cat([drawn(slice(0, 2), (0, 5)), drawn(slice(2, 5), (2, 5))]))
    assert len(whole.unique(dim=0)) > 5


# --- images on the device ---------------------------------------------------------------------------------------------


def test_rows_on_the_device_equal_rows_on_disk(tmp_path: Path) -> None:
    array = np.random.default_rng(0).integers(0, 256, (9, 4, 4)).astype(np.uint8)
    np.save(tmp_path / "a.npy", array)
    mapped = np.load(tmp_path / "a.npy", mmap_mode="r")
    for placement in ("auto", "yes", "no"):
        taken = DeviceRows(mapped, torch.device("cpu"), placement).take([8, 0, 3, 3])
        assert taken.dtype == torch.uint8
        assert np.array_equal(taken.numpy(), array[[8, 0, 3, 3]])


@pytest.mark.parametrize("kind", ["frozen", "live"])
def test_batches_do_not_depend_on_placement_or_process_count(root: Path, tmp_path: Path, kind: str) -> None:
    source = open_openi(root)
    cache = build_pixel_cache(source, source.studies, 64, tmp_path)
    model, studies = tiny_model(), source.split("train")[:5]

    def patches(on_device: str) -> PatchSource:
        context = RunContext(torch.device("cpu"), 1, "fp32", tmp_path, on_device=on_device)  # type: ignore[arg-type]
        if kind == "live":
            return OnlineFeatures(model, cache, context.device, 0.5, context.on_device)
        return cache_features(model.backbone, cache, studies, 3, context, tmp_path, view_dropout=0.5, name="x")

    with torch.no_grad():
        held, read = (patches(where).patches(studies, torch.Generator().manual_seed(3)) for where in ("yes", "no"))
        parts = [patches("no").patches(studies, torch.Generator().manual_seed(3), part=part)
                 for part in (slice(0, 2), slice(2, 5))]  # fmt: skip
    assert not bool(read.view_mask.all())  # a view was dropped
    for name in ("tokens", "pooled", "views", "view_mask"):
        assert torch.equal(getattr(held, name), getattr(read, name)), name
        shared = torch.cat([getattr(part, name) for part in parts])
        torch.testing.assert_close(shared, getattr(read, name), rtol=1e-4, atol=1e-5)
