"""The engine: image decoding, stalls, waiting for uploads, Retry-After; test_service_model_server has the rest."""

from __future__ import annotations

import asyncio
import pickle

import pytest

from service.inference.admission import AdmissionLimiter, BusyError
from service.inference.backend import FieldError
from service.inference.decode_pool import DecodePool
from service.inference.engine import Engine
from tests.support.recorder import OPTIONS, running, study, texts
from tests.support.service import WAIT_S, png

pytestmark = pytest.mark.anyio


async def test_stalled_batch_is_measured() -> None:
    async with running() as (engine, recorder):
        assert engine.stalled_s == 0
        task = asyncio.ensure_future(engine.submit(study(1), OPTIONS))
        assert await asyncio.to_thread(recorder.begun.wait, WAIT_S)
        await asyncio.sleep(0.02)
        assert 0.01 < engine.stalled_s < WAIT_S
        recorder.go.set()
        await task
        while engine.stalled_s:
            await asyncio.sleep(0.001)


async def test_waits_for_pending_uploads_only() -> None:
    limiter = AdmissionLimiter(2)
    async with running(admission=limiter, max_batch_size=2, max_wait_ms=WAIT_S * 1000) as (engine, recorder):
        recorder.go.set()
        with limiter.acquire_slot():
            alone = await engine.submit(study(1), OPTIONS)
        with limiter.acquire_slot(), limiter.acquire_slot():  # the second is still sending
            first = asyncio.create_task(engine.submit(study(2), OPTIONS))
            await asyncio.sleep(0.05)
            assert recorder.batches == [[1]]
            second = await engine.submit(study(3), OPTIONS)
            await first
        assert recorder.batches == [[1], [2, 3]]
        assert alone.timings_ms["queue"] < WAIT_S * 100
        assert second.timings_ms["queue"] < WAIT_S * 100


async def test_draft_records_queue_time_and_frees_the_files() -> None:
    async with running() as (engine, recorder):
        recorder.go.set()
        images = {"frontal": png()}
        draft = await engine.draft(images, OPTIONS)
        assert images == {}
        assert list(draft.timings_ms) == ["images", "queue", "encode"]


async def test_unreadable_image_names_the_first_wrong_field() -> None:
    async with running() as (engine, _):
        with pytest.raises(FieldError) as caught:
            await engine.draft({"lateral": b"no image", "frontal": b"neither"}, OPTIONS)
    error = caught.value
    assert (error.field, error.code) == ("frontal", "not_an_image")
    again = pickle.loads(pickle.dumps(error))  # as it travels between processes
    assert (again.field, again.code, str(again)) == (error.field, error.code, str(error))


async def test_slots_are_limited_and_released() -> None:
    limiter = AdmissionLimiter(2)
    with limiter.acquire_slot():
        with limiter.acquire_slot():
            assert limiter.in_use == 2
            with pytest.raises(BusyError, match="all 2 slots"), limiter.acquire_slot():
                pass
        assert limiter.in_use == 1
        with pytest.raises(KeyError), limiter.acquire_slot():
            raise KeyError
        assert limiter.in_use == 1
    assert limiter.in_use == 0


async def test_draining_engine_waits_for_its_own_drafts() -> None:
    async with running() as (engine, recorder):
        drafting = asyncio.create_task(engine.draft({"frontal": png()}, OPTIONS))
        assert await asyncio.to_thread(recorder.begun.wait, WAIT_S)
        draining = asyncio.create_task(engine.drain(WAIT_S))
        await asyncio.sleep(0.1)
        assert not draining.done()
        recorder.go.set()
        assert (await drafting).findings
        await draining


async def test_close_finishes_queued_jobs() -> None:
    async with running() as (engine, recorder):
        tasks = [asyncio.create_task(engine.submit(study(number), OPTIONS)) for number in range(3)]
        await asyncio.to_thread(recorder.begun.wait, WAIT_S)
        closing = asyncio.create_task(asyncio.to_thread(engine.close))
        recorder.go.set()
        assert texts(await asyncio.gather(*tasks)) == ["0", "1", "2"]
        await closing


async def test_retry_after_follows_the_measured_speed() -> None:
    async with running() as (engine, recorder):
        asyncio.get_running_loop().call_later(2.2, recorder.go.set)
        await engine.submit(study(1), OPTIONS)
        limiter = AdmissionLimiter(1, lambda: engine.seconds_per_study)
        with limiter.acquire_slot(), pytest.raises(BusyError) as caught, limiter.acquire_slot():
            pass
    assert caught.value.retry_after_s >= 2


def test_engine_requires_a_drafter() -> None:
    with pytest.raises(ValueError, match="at least one drafter"):
        Engine([], DecodePool(1, memory_bytes=2**30, cpu_s=10), AdmissionLimiter(1))
