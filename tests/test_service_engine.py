"""The engine: bounded, fair, careless of callers that left."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Sequence

import numpy as np
import pytest

from model.drafter import Draft, DraftOptions, StudyView
from model.images import ImageError
from model.views import View
from service.engine import BusyError, Engine
from tests.service_helpers import WAIT_S, png

SIZE = 48
OPTIONS = DraftOptions()


class Recorder:
    """Stands where a device would: keeps what reached it, answers when let go."""

    image_size, resample = SIZE, "bicubic"

    def __init__(self) -> None:
        self.seen: list[int] = []
        self.begun, self.go = threading.Event(), threading.Event()

    def draft(self, studies: Sequence[Sequence[StudyView]], options: DraftOptions) -> list[Draft]:
        self.begun.set()
        assert self.go.wait(WAIT_S)
        (study,) = studies
        self.seen.append(int(study[0].pixels[0, 0]))
        if self.seen[-1] == 13:
            raise RuntimeError("unlucky")
        return [Draft(str(self.seen[-1]), (), {}, (), (), {"encode": 1.0})]


def study(number: int) -> list[StudyView]:
    return [StudyView(np.full((SIZE, SIZE), number, np.uint8), View.FRONTAL)]


def test_jobs_are_answered_in_their_order_each_with_its_own() -> None:
    async def main() -> list[Draft]:
        recorder = Recorder()
        recorder.go.set()
        engine = Engine([recorder], capacity=8)
        drafts = await asyncio.gather(*(engine.submit(study(number), OPTIONS) for number in range(8)))
        await asyncio.to_thread(engine.close)
        assert recorder.seen == list(range(8))
        return drafts

    drafts = asyncio.run(main())
    assert [draft.findings for draft in drafts] == [str(number) for number in range(8)]
    assert all(list(draft.timings_ms) == ["queue", "encode"] for draft in drafts)


def test_a_failure_reaches_its_own_caller_alone() -> None:
    async def main() -> list[Draft | BaseException]:
        recorder = Recorder()
        recorder.go.set()
        engine = Engine([recorder], capacity=8)
        jobs = (engine.submit(study(number), OPTIONS) for number in (1, 13, 2))
        results = await asyncio.gather(*jobs, return_exceptions=True)
        await asyncio.to_thread(engine.close)
        return results

    first, failed, last = asyncio.run(main())
    assert isinstance(first, Draft)
    assert isinstance(failed, RuntimeError)
    assert isinstance(last, Draft)
    assert last.findings == "2"


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
        with engine.place():
            with engine.place():
                assert engine.depth == 2
                with pytest.raises(BusyError, match="all 2 places"), engine.place():
                    pass
            assert engine.depth == 1
            with pytest.raises(KeyError), engine.place():
                raise KeyError
            assert engine.depth == 1
        assert engine.depth == 0
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
