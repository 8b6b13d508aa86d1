"""The engine: slots, image decoding, queue, cancellation, shutdown."""

from __future__ import annotations

import asyncio
import pickle
import sys
import threading

import pytest

from model.images import ImageError
from model.types import Draft, StudyView, View
from service.inference import engine as engine_module
from service.inference.admission import BusyError
from service.inference.backend import FieldError
from service.inference.engine import Engine
from tests.support.recorder import OPTIONS, SIZE, Recorder, study, texts
from tests.support.service import WAIT_S, png


def test_cancelled_upload_is_freed_while_it_waits_for_a_decoder() -> None:
    async def main() -> tuple[int, int]:
        engine = Engine([Recorder()], capacity=8, decode_threads=1)
        hold = threading.Event()
        engine._decoders.submit(hold.wait)  # the only thread is busy
        data = b"x" * 1_000_000
        before = sys.getrefcount(data)
        reading = asyncio.create_task(engine.read_view(data, View.FRONTAL))
        await asyncio.sleep(0.01)
        reading.cancel()
        await asyncio.gather(reading, return_exceptions=True)
        after = sys.getrefcount(data)
        hold.set()
        await asyncio.to_thread(engine.close)
        return before, after

    before, after = asyncio.run(main())
    assert after == before


def test_stalled_image_decoding_is_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    begun, go = threading.Event(), threading.Event()

    def hang(*_: object, **__: object) -> object:
        begun.set()
        go.wait(WAIT_S)
        raise ImageError("truncated", "Let go.")

    monkeypatch.setattr(engine_module, "read_image", hang)

    async def main() -> float:
        engine = Engine([Recorder()], capacity=8)
        reading = asyncio.create_task(engine.read_view(b"x", View.FRONTAL))
        assert await asyncio.to_thread(begun.wait, WAIT_S)
        await asyncio.sleep(0.02)
        stalled = engine.stalled_s
        go.set()
        await asyncio.gather(reading, return_exceptions=True)
        await asyncio.to_thread(engine.close)
        assert engine.stalled_s == 0
        return stalled

    assert 0.01 < asyncio.run(main()) < WAIT_S


def test_waits_for_pending_uploads_only() -> None:
    async def main() -> tuple[float, float, list[list[int]]]:
        recorder = Recorder()
        recorder.go.set()
        engine = Engine([recorder], capacity=4, max_batch_size=2, max_wait_ms=WAIT_S * 1000)
        with engine.admission.acquire_slot():
            alone = await engine.submit(study(1), OPTIONS)
        with engine.admission.acquire_slot(), engine.admission.acquire_slot():  # the second is still sending
            first = asyncio.create_task(engine.submit(study(2), OPTIONS))
            await asyncio.sleep(0.05)
            assert recorder.batches == [[1]]
            second = await engine.submit(study(3), OPTIONS)
            await first
        await asyncio.to_thread(engine.close)
        return alone.timings_ms["queue"], second.timings_ms["queue"], recorder.batches

    alone_ms, second_ms, batches = asyncio.run(main())
    assert batches == [[1], [2, 3]]
    assert alone_ms < WAIT_S * 100
    assert second_ms < WAIT_S * 100


def test_draft_records_queue_time_and_frees_the_files() -> None:
    async def main() -> Draft:
        recorder = Recorder()
        recorder.go.set()
        engine = Engine([recorder], capacity=1)
        images = {"frontal": png()}
        draft = await engine.draft(images, OPTIONS)
        await asyncio.to_thread(engine.close)
        assert images == {}  # the files are let go once they are decoded
        return draft

    assert list(asyncio.run(main()).timings_ms) == ["images", "queue", "encode"]


def test_unreadable_image_names_the_first_wrong_field() -> None:
    async def main() -> FieldError:
        engine = Engine([Recorder()], capacity=1)
        with pytest.raises(FieldError) as caught:
            await engine.draft({"lateral": b"no image", "frontal": b"neither"}, OPTIONS)
        await asyncio.to_thread(engine.close)
        return caught.value

    error = asyncio.run(main())
    assert (error.field, error.code) == ("frontal", "not_an_image")
    again = pickle.loads(pickle.dumps(error))  # as it travels between processes
    assert (again.field, again.code, str(again)) == (error.field, error.code, str(error))


def test_cancelled_job_never_runs() -> None:
    async def main() -> list[int]:
        recorder = Recorder()
        engine = Engine([recorder], capacity=8)
        running = asyncio.create_task(engine.submit(study(1), OPTIONS))
        await asyncio.to_thread(recorder.begun.wait, WAIT_S)
        left = asyncio.create_task(engine.submit(study(2), OPTIONS))
        stays = asyncio.create_task(engine.submit(study(3), OPTIONS))
        await asyncio.sleep(0)
        left.cancel()
        await asyncio.sleep(0)
        recorder.go.set()
        await asyncio.gather(running, stays)
        await asyncio.to_thread(engine.close)
        return recorder.seen

    assert asyncio.run(main()) == [1, 3]


def test_slots_are_limited_and_released() -> None:
    async def main() -> None:
        engine = Engine([Recorder()], capacity=2)
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
        await asyncio.to_thread(engine.close)

    asyncio.run(main())


def test_close_finishes_queued_jobs() -> None:
    async def main() -> list[Draft]:
        recorder = Recorder()
        engine = Engine([recorder], capacity=4)
        tasks = [asyncio.create_task(engine.submit(study(number), OPTIONS)) for number in range(3)]
        await asyncio.to_thread(recorder.begun.wait, WAIT_S)
        closing = asyncio.create_task(asyncio.to_thread(engine.close))
        recorder.go.set()
        drafts = await asyncio.gather(*tasks)
        await closing
        return drafts

    assert [draft.findings for draft in asyncio.run(main())] == ["0", "1", "2"]


def test_refuse_waiting_fails_queued_jobs_and_finishes_running_ones() -> None:
    async def main() -> list[str]:
        recorder = Recorder()
        engine = Engine([recorder], capacity=4)
        running = asyncio.create_task(engine.submit(study(1), OPTIONS))
        assert await asyncio.to_thread(recorder.begun.wait, WAIT_S)
        waiting = [asyncio.create_task(engine.submit(study(number), OPTIONS)) for number in (2, 3)]
        while engine.waiting < 2:
            await asyncio.sleep(0.001)
        assert engine.refuse_waiting("enough") == 2
        refused = await asyncio.gather(*waiting, return_exceptions=True)
        recorder.go.set()
        done = await running
        await asyncio.to_thread(engine.close)
        return texts([done, *refused])

    assert asyncio.run(main()) == ["1", "ClosedError", "ClosedError"]


def test_retry_after_follows_the_measured_speed() -> None:
    async def main() -> int:
        recorder = Recorder()
        engine = Engine([recorder], capacity=1)
        with engine.admission.acquire_slot():
            asyncio.get_running_loop().call_later(2.2, recorder.go.set)
            await engine.submit(study(1), OPTIONS)
            with pytest.raises(BusyError) as caught, engine.admission.acquire_slot():
                pass
        await asyncio.to_thread(engine.close)
        return caught.value.retry_after_s

    assert asyncio.run(main()) >= 2


def test_images_are_decoded_to_the_size_of_the_drafter() -> None:
    async def main() -> StudyView:
        engine = Engine([Recorder()], capacity=1)
        try:
            with pytest.raises(ImageError):
                await engine.read_view(b"no image", View.FRONTAL)
            return await engine.read_view(png(), View.LATERAL)
        finally:
            await asyncio.to_thread(engine.close)

    view = asyncio.run(main())
    assert view.pixels.shape == (SIZE, SIZE)
    assert view.view is View.LATERAL


def test_engine_requires_a_drafter() -> None:
    with pytest.raises(ValueError, match="at least one drafter"):
        Engine([], capacity=1)
