"""The engine: slots, image decoding, queue, cancellation, shutdown."""

from __future__ import annotations

import asyncio
import pickle
import sys
import threading

import pytest

from model.images import ImageError
from model.types import View
from service.inference import engine as engine_module
from service.inference.admission import BusyError
from service.inference.backend import FieldError
from service.inference.engine import Engine
from tests.support.recorder import OPTIONS, SIZE, running, study, texts
from tests.support.service import WAIT_S, png

pytestmark = pytest.mark.anyio


async def test_cancelled_upload_is_freed_while_it_waits_for_a_decoder() -> None:
    async with running(decode_threads=1) as (engine, _):
        hold = threading.Event()
        engine._decoders.submit(hold.wait)  # the only thread is busy
        data = b"x" * 1_000_000
        before = sys.getrefcount(data)
        reading = asyncio.create_task(engine.read_view(data, View.FRONTAL))
        await asyncio.sleep(0.01)
        reading.cancel()
        await asyncio.gather(reading, return_exceptions=True)
        assert sys.getrefcount(data) == before
        hold.set()


async def test_stalled_decoding_and_stalled_batch_are_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    begun, go = threading.Event(), threading.Event()

    def hang(*_: object, **__: object) -> object:
        begun.set()
        go.wait(WAIT_S)
        raise ImageError("truncated", "Let go.")

    monkeypatch.setattr(engine_module, "read_image", hang)
    async with running() as (engine, recorder):
        for work, started, release in (
            (engine.read_view(b"x", View.FRONTAL), begun, go),
            (engine.submit(study(1), OPTIONS), recorder.begun, recorder.go),
        ):
            assert engine.stalled_s == 0
            task = asyncio.ensure_future(work)
            assert await asyncio.to_thread(started.wait, WAIT_S)
            await asyncio.sleep(0.02)
            assert 0.01 < engine.stalled_s < WAIT_S
            release.set()
            await asyncio.gather(task, return_exceptions=True)
        while engine.stalled_s:
            await asyncio.sleep(0.001)


async def test_waits_for_pending_uploads_only() -> None:
    async with running(max_batch_size=2, max_wait_ms=WAIT_S * 1000) as (engine, recorder):
        recorder.go.set()
        with engine.admission.acquire_slot():
            alone = await engine.submit(study(1), OPTIONS)
        with engine.admission.acquire_slot(), engine.admission.acquire_slot():  # the second is still sending
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
        view = await engine.read_view(png(), View.LATERAL)
        assert (view.pixels.shape, view.view) == ((SIZE, SIZE), View.LATERAL)


async def test_unreadable_image_names_the_first_wrong_field() -> None:
    async with running() as (engine, _):
        with pytest.raises(FieldError) as caught:
            await engine.draft({"lateral": b"no image", "frontal": b"neither"}, OPTIONS)
    error = caught.value
    assert (error.field, error.code) == ("frontal", "not_an_image")
    again = pickle.loads(pickle.dumps(error))  # as it travels between processes
    assert (again.field, again.code, str(again)) == (error.field, error.code, str(error))


async def test_cancelled_job_never_runs() -> None:
    async with running() as (engine, recorder):
        first = asyncio.create_task(engine.submit(study(1), OPTIONS))
        await asyncio.to_thread(recorder.begun.wait, WAIT_S)
        left = asyncio.create_task(engine.submit(study(2), OPTIONS))
        stays = asyncio.create_task(engine.submit(study(3), OPTIONS))
        await asyncio.sleep(0)
        left.cancel()
        await asyncio.sleep(0)
        recorder.go.set()
        await asyncio.gather(first, stays)
        assert recorder.seen == [1, 3]


async def test_slots_are_limited_and_released() -> None:
    async with running(capacity=2) as (engine, _):
        with engine.admission.acquire_slot():
            with engine.admission.acquire_slot():
                assert engine.admission.in_use == 2
                with pytest.raises(BusyError, match="all 2 slots"), engine.admission.acquire_slot():
                    pass
            assert engine.admission.in_use == 1
            with pytest.raises(KeyError), engine.admission.acquire_slot():
                raise KeyError
            assert engine.admission.in_use == 1
        assert engine.admission.in_use == 0


async def test_close_finishes_queued_jobs() -> None:
    async with running() as (engine, recorder):
        tasks = [asyncio.create_task(engine.submit(study(number), OPTIONS)) for number in range(3)]
        await asyncio.to_thread(recorder.begun.wait, WAIT_S)
        closing = asyncio.create_task(asyncio.to_thread(engine.close))
        recorder.go.set()
        assert texts(await asyncio.gather(*tasks)) == ["0", "1", "2"]
        await closing


async def test_refuse_waiting_fails_queued_jobs_and_finishes_running_ones() -> None:
    async with running() as (engine, recorder):
        first = asyncio.create_task(engine.submit(study(1), OPTIONS))
        assert await asyncio.to_thread(recorder.begun.wait, WAIT_S)
        waiting = [asyncio.create_task(engine.submit(study(number), OPTIONS)) for number in (2, 3)]
        while engine.waiting < 2:
            await asyncio.sleep(0.001)
        assert engine.refuse_waiting("enough") == 2
        refused = await asyncio.gather(*waiting, return_exceptions=True)
        recorder.go.set()
        assert texts([await first, *refused]) == ["1", "ClosedError", "ClosedError"]


async def test_retry_after_follows_the_measured_speed() -> None:
    async with running(capacity=1) as (engine, recorder):
        with engine.admission.acquire_slot():
            asyncio.get_running_loop().call_later(2.2, recorder.go.set)
            await engine.submit(study(1), OPTIONS)
            with pytest.raises(BusyError) as caught, engine.admission.acquire_slot():
                pass
    assert caught.value.retry_after_s >= 2


def test_engine_requires_a_drafter() -> None:
    with pytest.raises(ValueError, match="at least one drafter"):
        Engine([], capacity=1)
