"""Worker threads: batches, isolation of failures, out-of-memory, lost devices."""

from __future__ import annotations

import asyncio

import pytest
import torch

from model.types import Draft, DraftOptions, StudyView
from service.inference import worker
from service.inference.backend import ClosedError
from tests.support.recorder import (
    EXITS,
    FAILS,
    LOSES_THE_DEVICE,
    OPTIONS,
    Callbacks,
    Recorder,
    Studies,
    in_one_batch,
    running,
    study,
    texts,
)
from tests.support.service import WAIT_S


def run(
    *jobs: tuple[list[StudyView], DraftOptions], max_batch: int = 1000, max_batch_size: int = 8
) -> tuple[list[str], list[list[int]]]:
    """Queue the jobs together; returns their results and the batches that ran."""

    async def main() -> tuple[list[str], list[list[int]]]:
        async with running(max_batch_size=max_batch_size) as (engine, recorder):
            recorder.max_batch = max_batch
            return texts(await in_one_batch(recorder, engine, *jobs)), recorder.batches

    return asyncio.run(main())


def test_queued_jobs_share_batches_and_get_their_own_drafts() -> None:
    answers, batches = run(*((study(number), OPTIONS) for number in range(10)), max_batch_size=4)
    assert answers == [str(number) for number in range(10)]
    assert batches == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9]]


def test_batch_holds_one_kind_of_job_and_the_oldest_runs_first() -> None:
    wide = DraftOptions(beam_size=5)
    answers, batches = run((study(0), OPTIONS), (study(1), wide), (study(2, views=2), OPTIONS), (study(3), OPTIONS),
                           (study(4), wide))  # fmt: skip
    assert answers == ["0", "1", "2", "3", "4"]
    assert batches == [[0, 3], [1, 4], [2]]


def test_failure_is_isolated_per_study() -> None:
    answers, batches = run(*((study(number), OPTIONS) for number in (1, FAILS, 2, EXITS, 3)))
    assert answers == ["1", "RuntimeError", "2", "RuntimeError", "3"]
    assert batches == [[1, FAILS, 2, EXITS, 3], [1], [FAILS], [2], [EXITS], [3]]


def test_out_of_memory_retries_in_halves_and_limits_later_batches() -> None:
    answers, batches = run(*((study(number), OPTIONS) for number in range(6)), max_batch=1, max_batch_size=4)
    assert answers == [str(number) for number in range(6)]
    assert batches == [[0, 1, 2, 3], [0, 1], [0], [1], [2, 3], [2], [3], [4], [5]]
    answers, batches = run(*((study(number), OPTIONS) for number in range(10)), max_batch=4)
    assert answers == [str(number) for number in range(10)]
    assert batches == [[*range(8)], [0, 1, 2, 3], [4, 5, 6, 7], [8, 9]]


def test_single_study_is_retried_once_after_out_of_memory() -> None:
    answers, batches = run((study(1), OPTIONS), max_batch=0)
    assert answers == ["OutOfMemoryError"]
    assert batches == [[1], [1]]


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (MemoryError(), True),
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB"), True),
        (torch.AcceleratorError("CUDA error: out of memory"), True),
        (RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"), True),
        (RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED"), True),
        (RuntimeError("shape mismatch"), False),
        (torch.AcceleratorError("CUDA error: an illegal memory access was encountered"), False),
    ],
)
def test_recognises_out_of_memory(error: BaseException, expected: bool) -> None:
    assert worker.is_out_of_memory(error) == expected


@pytest.mark.parametrize(("after", "tried"), [(1000, 1), (2, 3)])
def test_batch_limit_grows_after_enough_full_batches(monkeypatch: pytest.MonkeyPatch, after: int, tried: int) -> None:
    monkeypatch.setattr(worker, "GROW_AFTER", after)
    answers, batches = run(*((study(number), OPTIONS) for number in range(20, 44)), max_batch=4)
    assert answers == [str(number) for number in range(20, 44)]
    assert [len(batch) for batch in batches].count(8) == tried


def test_failure_in_a_half_is_isolated_per_study() -> None:
    answers, _ = run(*((study(number), OPTIONS) for number in (1, 2, FAILS, 3)), max_batch=2)
    assert answers == ["1", "2", "RuntimeError", "3"]


@pytest.mark.anyio
async def test_lost_device_closes_the_engine_and_fails_all_jobs() -> None:
    reasons: list[str] = []
    async with running(max_batch_size=2, on_device_lost=reasons.append) as (engine, recorder):
        jobs = [(study(number), OPTIONS) for number in (1, LOSES_THE_DEVICE, 2, 3)]
        assert texts(await in_one_batch(recorder, engine, *jobs)) == ["DeviceLostError"] * 4
        with pytest.raises(ClosedError, match="can no longer compute"):
            await engine.submit(study(4), OPTIONS)
    (reason,) = reasons
    assert "AcceleratorError" in reason


class TooFew(Recorder):
    """A drafter that loses a draft."""

    def draft(self, studies: Studies, options: DraftOptions, *, callbacks: Callbacks) -> list[Draft]:
        return super().draft(studies, options, callbacks=callbacks)[: -1 if len(studies) > 1 else None]


@pytest.mark.anyio
async def test_missing_drafts_fail_no_job_permanently() -> None:
    async with running(TooFew()) as (engine, recorder):
        assert texts(await in_one_batch(recorder, engine, *((study(n), OPTIONS) for n in (1, 2)))) == ["1", "2"]


@pytest.mark.anyio
async def test_two_devices_share_the_work() -> None:
    one, other = Recorder(), Recorder()
    async with running(one, other) as (engine, _):
        tasks = [asyncio.create_task(engine.submit(study(number), OPTIONS)) for number in range(2)]
        assert await asyncio.to_thread(one.begun.wait, WAIT_S)
        assert await asyncio.to_thread(other.begun.wait, WAIT_S)
        one.go.set()
        other.go.set()
        await asyncio.gather(*tasks)
    assert sorted(one.seen + other.seen) == [0, 1]
    assert len(one.seen) == len(other.seen) == 1
