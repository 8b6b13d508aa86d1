"""A fake drafter for tests of the engine and its workers."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any

import numpy as np
import torch

from model.types import Draft, DraftOptions, EventCallback, StudyView, View
from service.inference.admission import AdmissionLimiter
from service.inference.decode_pool import DecodePool
from service.inference.engine import Engine
from tests.support.service import WAIT_S

SIZE = 48
OPTIONS = DraftOptions()
Studies = Sequence[Sequence[StudyView]]
Callbacks = Sequence[EventCallback | None]


class Recorder:
    """A drafter that records its batches and waits for ``go``; studies are identified by their grey value."""

    image_size, resample = SIZE, "bicubic"

    def __init__(self) -> None:
        self.batches: list[list[int]] = []
        self.begun, self.go = threading.Event(), threading.Event()
        self.max_batch = 1000

    @property
    def seen(self) -> list[int]:
        """Studies in the order in which they ran."""
        return [number for batch in self.batches for number in batch]

    def draft(self, studies: Studies, options: DraftOptions, *, callbacks: Callbacks) -> list[Draft]:
        """Draft, or fail as ``FAILURES`` and ``max_batch`` define."""
        self.begun.set()
        assert self.go.wait(WAIT_S)
        numbers = [int(study[0].pixels[0, 0]) for study in studies]
        self.batches.append(numbers)
        if len(numbers) > self.max_batch:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB")
        for number, error in FAILURES.items():
            if number in numbers:
                raise error
        return [Draft(str(number), (), {}, (), (), {"encode": 1.0}) for number in numbers]


FAILS, EXITS, LOSES_THE_DEVICE = 13, 14, 15
FAILURES: dict[int, BaseException] = {
    FAILS: RuntimeError("a faulty study"),
    EXITS: SystemExit("a library that would end the process"),
    LOSES_THE_DEVICE: torch.AcceleratorError("CUDA error: an illegal memory access was encountered"),
}


def study(number: int, views: int = 1) -> list[StudyView]:
    """A study whose pixels all have the value ``number``."""
    return [StudyView(np.full((SIZE, SIZE), number, np.uint8), view) for view in list(View)[:views]]


@asynccontextmanager
async def running(
    *recorders: Recorder, admission: AdmissionLimiter | None = None, **options: Any
) -> AsyncIterator[tuple[Engine, Recorder]]:
    """An engine over the recorders (by default a new one), and the first of them; closed at the end."""
    recorders = recorders or (Recorder(),)
    decoder = DecodePool(1, memory_bytes=2**30, cpu_s=10)
    engine = Engine(recorders, decoder, admission or AdmissionLimiter(20), **options)
    try:
        yield engine, recorders[0]
    finally:
        for recorder in recorders:
            recorder.go.set()
        await asyncio.to_thread(engine.close)
        await decoder.close()


async def in_one_batch(
    recorder: Recorder, engine: Engine, *jobs: tuple[list[StudyView], DraftOptions]
) -> list[Draft | BaseException]:
    """Submit the jobs while a first job occupies the worker, so that all are queued together; returns their results."""
    first = asyncio.create_task(engine.submit(study(99), OPTIONS))
    assert await asyncio.to_thread(recorder.begun.wait, WAIT_S)
    tasks = [asyncio.create_task(engine.submit(*job)) for job in jobs]
    while engine.waiting < len(jobs):
        await asyncio.sleep(0.001)
    recorder.go.set()
    results = await asyncio.gather(first, *tasks, return_exceptions=True)
    while recorder.batches and recorder.batches[0] == [99]:
        recorder.batches.pop(0)
    return results[1:]


def texts(results: Sequence[Draft | BaseException]) -> list[str]:
    """The findings of each draft, or the name of the error."""
    return [result.findings if isinstance(result, Draft) else type(result).__name__ for result in results]
