"""The engine: bounded, fair, careless of callers that left."""

from __future__ import annotations

import asyncio
import pickle
import sys
import threading
from collections.abc import Sequence

import numpy as np
import pytest
import torch

from model.images import ImageError
from model.types import Draft, DraftOptions, EventCallback, StudyView, View
from service.inference import engine as engine_module
from service.inference import worker
from service.inference.admission import BusyError
from service.inference.backend import ClosedError, FieldError
from service.inference.engine import Engine
from tests.support.service import WAIT_S, png

SIZE = 48
OPTIONS = DraftOptions()


class Recorder:
    """Stands where a device would: keeps the batches that reached it, answers when let go."""

    image_size, resample = SIZE, "bicubic"

    def __init__(self) -> None:
        self.batches: list[list[int]] = []
        self.begun, self.go = threading.Event(), threading.Event()
        self.room = 1000

    @property
    def seen(self) -> list[int]:
        return [number for batch in self.batches for number in batch]

    def draft(
        self,
        studies: Sequence[Sequence[StudyView]],
        options: DraftOptions,
        *,
        callbacks: Sequence[EventCallback | None],
    ) -> list[Draft]:
        self.begun.set()
        assert self.go.wait(WAIT_S)
        numbers = [int(study[0].pixels[0, 0]) for study in studies]
        self.batches.append(numbers)
        if len(numbers) > self.room:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB")
        for number, error in FAILURES.items():
            if number in numbers:
                raise error
        return [Draft(str(number), (), {}, (), (), {"encode": 1.0}) for number in numbers]


UNLUCKY, EXITS, LOSES_THE_DEVICE = 13, 14, 15
FAILURES: dict[int, BaseException] = {
    UNLUCKY: RuntimeError("unlucky"),
    EXITS: SystemExit("a library that would end the process"),
    LOSES_THE_DEVICE: torch.AcceleratorError("CUDA error: an illegal memory access was encountered"),
}


def study(number: int, views: int = 1) -> list[StudyView]:
    return [StudyView(np.full((SIZE, SIZE), number, np.uint8), view) for view in list(View)[:views]]


async def in_one_batch(
    recorder: Recorder, engine: Engine, *jobs: tuple[list[StudyView], DraftOptions]
) -> list[Draft | BaseException]:
    """Submit while the worker is held by a first job, so that all wait together; their results."""
    first = asyncio.create_task(engine.submit(study(99), OPTIONS))
    assert await asyncio.to_thread(recorder.begun.wait, WAIT_S)
    tasks = [asyncio.create_task(engine.submit(*job)) for job in jobs]
    while engine.waiting < len(jobs):
        await asyncio.sleep(0.001)
    recorder.go.set()
    results = await asyncio.gather(*tasks, return_exceptions=True)
    await asyncio.gather(first, return_exceptions=True)
    await asyncio.to_thread(engine.close)
    while recorder.batches and recorder.batches[0] == [99]:
        recorder.batches.pop(0)
    return results


def texts(results: Sequence[Draft | BaseException]) -> list[str]:
    return [result.findings if isinstance(result, Draft) else type(result).__name__ for result in results]


def run(
    *jobs: tuple[list[StudyView], DraftOptions], room: int = 1000, most: int = 8
) -> tuple[list[str], list[list[int]]]:
    """What the jobs are answered when they wait together, and the batches they were drafted in."""

    async def main() -> tuple[list[str], list[list[int]]]:
        recorder = Recorder()
        recorder.room = room
        engine = Engine([recorder], capacity=20, max_batch_size=most)
        results = await in_one_batch(recorder, engine, *jobs)
        return texts(results), recorder.batches

    return asyncio.run(main())


def test_jobs_that_wait_share_batches_each_has_its_own_answer() -> None:
    answers, batches = run(*((study(number), OPTIONS) for number in range(10)), most=4)
    assert answers == [str(number) for number in range(10)]
    assert batches == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9]]


def test_only_jobs_of_a_kind_share_a_batch_and_the_oldest_goes_first() -> None:
    wide = DraftOptions(beam_size=5)
    answers, batches = run((study(0), OPTIONS), (study(1), wide), (study(2, views=2), OPTIONS), (study(3), OPTIONS),
                           (study(4), wide))  # fmt: skip
    assert answers == ["0", "1", "2", "3", "4"]
    assert batches == [[0, 3], [1, 4], [2]]


def test_a_failure_stays_its_own() -> None:
    answers, batches = run(*((study(number), OPTIONS) for number in (1, UNLUCKY, 2, EXITS, 3)))
    assert answers == ["1", "RuntimeError", "2", "RuntimeError", "3"]
    assert batches == [[1, UNLUCKY, 2, EXITS, 3], [1], [UNLUCKY], [2], [EXITS], [3]]


def test_what_does_not_fit_is_done_again_in_halves_and_later_batches_are_smaller() -> None:
    answers, batches = run(*((study(number), OPTIONS) for number in range(10)), room=4)
    assert answers == [str(number) for number in range(10)]
    assert batches == [[*range(8)], [0, 1, 2, 3], [4, 5, 6, 7], [8, 9]]


def test_halves_are_halved_again_until_they_fit() -> None:
    answers, batches = run(*((study(number), OPTIONS) for number in range(6)), room=1, most=4)
    assert answers == [str(number) for number in range(6)]
    assert batches == [[0, 1, 2, 3], [0, 1], [0], [1], [2, 3], [2], [3], [4], [5]]


def test_a_lone_study_is_tried_again_when_memory_was_short() -> None:
    answers, batches = run((study(1), OPTIONS), room=0)
    assert answers == ["OutOfMemoryError"]
    assert batches == [[1], [1]]


@pytest.mark.parametrize(("after", "tried"), [(1000, 1), (2, 3)])
def test_a_larger_batch_is_tried_again_after_enough_that_fit(
    monkeypatch: pytest.MonkeyPatch, after: int, tried: int
) -> None:
    monkeypatch.setattr(worker, "GROW_AFTER", after)
    answers, batches = run(*((study(number), OPTIONS) for number in range(20, 44)), room=4)
    assert answers == [str(number) for number in range(20, 44)]
    assert [len(batch) for batch in batches].count(8) == tried


def test_a_cancelled_upload_is_let_go_while_it_waits_for_a_decoder() -> None:
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


def test_an_image_whose_decoding_does_not_end_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
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


def test_a_failure_among_what_was_halved_stays_its_own() -> None:
    answers, _ = run(*((study(number), OPTIONS) for number in (1, 2, UNLUCKY, 3)), room=2)
    assert answers == ["1", "2", "RuntimeError", "3"]


def test_a_lost_device_ends_the_engine_and_everybody_is_told() -> None:
    async def main() -> tuple[list[str], list[str]]:
        recorder, reasons = Recorder(), []
        engine = Engine([recorder], capacity=8, max_batch_size=2, on_device_lost=reasons.append)
        jobs = [(study(number), OPTIONS) for number in (1, LOSES_THE_DEVICE, 2, 3)]
        answers = texts(await in_one_batch(recorder, engine, *jobs))
        with pytest.raises(ClosedError, match="can no longer compute"):
            await engine.submit(study(4), OPTIONS)
        return answers, reasons

    answers, reasons = asyncio.run(main())
    assert answers == ["DeviceLostError"] * 4
    assert len(reasons) == 1
    assert "AcceleratorError" in reasons[0]


class TooFew(Recorder):
    """A drafter that loses a draft."""

    def draft(
        self,
        studies: Sequence[Sequence[StudyView]],
        options: DraftOptions,
        *,
        callbacks: Sequence[EventCallback | None],
    ) -> list[Draft]:
        return super().draft(studies, options, callbacks=callbacks)[: -1 if len(studies) > 1 else None]


def test_a_drafter_that_answers_too_few_wedges_nothing() -> None:
    async def main() -> list[str]:
        recorder = TooFew()
        return texts(
            await in_one_batch(recorder, Engine([recorder], capacity=8), *((study(n), OPTIONS) for n in (1, 2)))
        )

    assert asyncio.run(main()) == ["1", "2"]


def test_a_lone_request_waits_for_nobody_and_others_on_the_way_are_waited_for() -> None:
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


def test_timings_gain_the_wait_and_files_are_let_go() -> None:
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


def test_an_image_that_cannot_be_read_names_its_field_the_first_of_several() -> None:
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


def test_a_job_whose_caller_left_is_never_run() -> None:
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


def test_places_are_bounded_and_given_back() -> None:
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


def test_closing_finishes_what_waits() -> None:
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


def test_two_devices_share_the_work() -> None:
    async def main() -> tuple[list[int], list[int]]:
        one, other = Recorder(), Recorder()
        engine = Engine([one, other], capacity=4)
        tasks = [asyncio.create_task(engine.submit(study(number), OPTIONS)) for number in range(2)]
        assert await asyncio.to_thread(one.begun.wait, WAIT_S)
        assert await asyncio.to_thread(other.begun.wait, WAIT_S)
        one.go.set()
        other.go.set()
        await asyncio.gather(*tasks)
        await asyncio.to_thread(engine.close)
        return one.seen, other.seen

    one, other = asyncio.run(main())
    assert sorted(one + other) == [0, 1]
    assert len(one) == len(other) == 1


def test_waiting_can_be_refused_while_what_is_computed_ends() -> None:
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


def test_a_batch_that_does_not_end_is_seen() -> None:
    async def main() -> float:
        recorder = Recorder()
        engine = Engine([recorder], capacity=4)
        assert engine.stalled_s == 0
        running = asyncio.create_task(engine.submit(study(1), OPTIONS))
        assert await asyncio.to_thread(recorder.begun.wait, WAIT_S)
        await asyncio.sleep(0.02)
        stalled = engine.stalled_s
        recorder.go.set()
        await running
        await asyncio.to_thread(engine.close)
        assert engine.stalled_s == 0
        return stalled

    assert 0.01 < asyncio.run(main()) < WAIT_S


def test_the_time_to_come_back_follows_the_pace() -> None:
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


def test_images_are_decoded_to_the_drafters_size() -> None:
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


def test_an_engine_needs_a_device() -> None:
    with pytest.raises(ValueError, match="at least one drafter"):
        Engine([], capacity=1)
