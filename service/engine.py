"""The model server, the only place where the model runs: one worker thread a device, fed by a bounded queue.

The event loop only awaits futures; images are decoded in a small pool of their own. A job that fails takes
nothing with it, and a job whose caller went away is dropped before it runs.
"""

from __future__ import annotations

import asyncio
import dataclasses
import logging
import queue
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from typing import Protocol

from model.drafter import Draft, DraftOptions, StudyView
from model.images import DEFAULT_LIMITS, ImageLimits, Pixels, Resample, load_pixels
from model.views import View
from service.problems import places

log = logging.getLogger(__name__)


class BusyError(RuntimeError):
    """Every place is taken; try again later."""


class Drafts(Protocol):
    """What the engine needs of a drafter; ``model.drafter.Drafter`` is one."""

    @property
    def image_size(self) -> int:
        """S: side in pixels of the squares that ``draft`` takes."""

    @property
    def resample(self) -> Resample:
        """Filter of the squash to those squares."""

    def draft(self, studies: Sequence[Sequence[StudyView]], options: DraftOptions) -> list[Draft]:
        """One draft a study."""


@dataclasses.dataclass(frozen=True)
class _Job:
    study: Sequence[StudyView]
    options: DraftOptions
    submitted: float
    result: Future[Draft] = dataclasses.field(default_factory=Future)


class Engine:
    """Drafts for many callers on a few devices."""

    def __init__(
        self,
        drafters: Sequence[Drafts],
        *,
        capacity: int,
        decode_threads: int = 2,
        limits: ImageLimits = DEFAULT_LIMITS,
    ) -> None:
        """Start the workers.

        Args:
            drafters: one for each device; each is used by one thread only.
            capacity: requests in the house at once.
            decode_threads: threads that decode images.
            limits: bounds on the size of an image.
        """
        if not drafters:
            raise ValueError("an engine needs at least one drafter")
        self.capacity = capacity
        self._taken = 0
        self._limits = limits
        self._image_size, self._resample = drafters[0].image_size, drafters[0].resample
        self._queue: queue.Queue[_Job | None] = queue.Queue(capacity + len(drafters))
        self._decoders = ThreadPoolExecutor(decode_threads, thread_name_prefix="decode")
        self._workers = [
            threading.Thread(target=self._work, args=(drafter,), name=f"model-{number}", daemon=True)
            for number, drafter in enumerate(drafters)
        ]
        for worker in self._workers:
            worker.start()

    @property
    def depth(self) -> int:
        """Requests in the house: arriving, waiting or computed."""
        return self._taken

    @contextmanager
    def place(self) -> Iterator[None]:
        """Hold one of ``capacity`` places from before the body is read until the answer is made.

        Called on the event loop only.

        Raises:
            BusyError: none is free.
        """
        if self._taken >= self.capacity:
            raise BusyError(f"all {self.capacity} places are taken")
        self._taken += 1
        try:
            yield
        finally:
            self._taken -= 1

    async def read_view(self, data: bytes, view: View) -> StudyView:
        """Decode one image off the event loop.

        Raises:
            ImageError: see ``model.images.load_pixels``.
        """
        loop = asyncio.get_running_loop()
        pixels = await loop.run_in_executor(self._decoders, self._decode, data)
        return StudyView(pixels, view)

    async def submit(self, study: Sequence[StudyView], options: DraftOptions) -> Draft:
        """Draft one study; ``timings_ms`` of the result gains ``queue``.

        Raises:
            BusyError: the queue is full.
            Exception: whatever the drafter raised for this job.
        """
        job = _Job(study, options, time.perf_counter())
        try:
            self._queue.put_nowait(job)
        except queue.Full:
            raise BusyError(f"all {self.capacity} places are taken") from None
        return await asyncio.wrap_future(job.result)

    def close(self, timeout_s: float = 30.0) -> None:
        """Finish the jobs that wait, then stop the threads."""
        for _ in self._workers:
            self._queue.put(None)
        for worker in self._workers:
            worker.join(timeout_s)
        self._decoders.shutdown(wait=True, cancel_futures=True)

    def _decode(self, data: bytes) -> Pixels:
        return load_pixels(data, self._image_size, limits=self._limits, resample=self._resample)

    def _work(self, drafter: Drafts) -> None:
        while (job := self._queue.get()) is not None:
            if not job.result.set_running_or_notify_cancel():
                continue  # the caller went away
            waited_ms = (time.perf_counter() - job.submitted) * 1000
            try:
                (draft,) = drafter.draft([job.study], job.options)
                timings = {"queue": waited_ms, **draft.timings_ms}
                job.result.set_result(dataclasses.replace(draft, timings_ms=timings))
            except BaseException as error:
                log.error("a draft failed with %s\n%s", type(error).__name__, places(error))
                job.result.set_exception(error)
            del job
