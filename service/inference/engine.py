"""The model server, the only place where the model runs: one worker thread a device, fed in batches.

The event loop only awaits futures; images are decoded in a small pool of their own. What goes wrong stays with whom it
went wrong for: a batch that fails is done again one by one, one that does not fit into memory in halves, and a job
whose caller left is dropped before it runs. Only a device that can no longer compute ends the engine.
"""

from __future__ import annotations

import asyncio
import dataclasses
import gc
import logging
import math
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from typing import Protocol

import torch

from model.drafter import Draft, DraftOptions, Listener, StudyView
from model.images.read import DEFAULT_LIMITS, ImageError, ImageLimits, Resample, read_image
from model.views import View
from service.inference.admission import Places
from service.inference.batch_queue import ClosedError, Job, JobQueue
from service.inference.callbacks import on_this_loop
from service.metrics import Metrics
from service.web.problems import places

log = logging.getLogger(__name__)
GROW_AFTER = 50  # batches of the largest size that fits, before a larger one is tried again


class MemoryShortError(RuntimeError):
    """The device had too little memory for a draft, also in a smaller batch."""


class BrokenError(RuntimeError):
    """The device can no longer compute; the message says what it said."""


class FieldError(ValueError):
    """An image that cannot be read, and the form field it came in."""

    def __init__(self, field: str, code: str, message: str) -> None:
        super().__init__(message)
        self.field, self.code = field, code

    def __reduce__(self) -> tuple[type[FieldError], tuple[str, str, str]]:
        return FieldError, (self.field, self.code, str(self))


class Drafts(Protocol):
    """What the engine needs of a drafter; ``model.drafter.Drafter`` is one."""

    @property
    def image_size(self) -> int:
        """S: side in pixels of the squares that ``draft`` takes."""

    @property
    def resample(self) -> Resample:
        """Filter of the squash to those squares."""

    def draft(
        self, studies: Sequence[Sequence[StudyView]], options: DraftOptions, *, listeners: Sequence[Listener | None]
    ) -> list[Draft]:
        """One draft a study; ``listeners`` of each may be told early of what is final, from the calling thread."""


@dataclasses.dataclass(eq=False)
class _Worker:
    """One device.

    ``most``: the largest batch that fits, ``limit`` at most; ``well``: batches in a row that were as large and did fit;
    ``since``: when its batch began.
    """

    drafter: Drafts
    limit: int
    most: int
    well: int = 0
    since: float | None = None

    def shrink(self, size: int) -> None:
        """A batch of ``size`` did not fit."""
        self.most, self.well = max(1, size // 2), 0
        log.warning("batches hold at most %d studies from now on", self.most)

    def fitted(self, size: int) -> None:
        """A batch of ``size`` did; after enough of the largest a larger one is tried: memory may be there again."""
        if size < self.most or self.most == self.limit:
            return
        self.well += 1
        if self.well >= GROW_AFTER:
            self.most, self.well = min(2 * self.most, self.limit), 0
            log.info("batches hold up to %d studies again", self.most)


class Engine:
    """Drafts for many callers on a few devices."""

    def __init__(
        self,
        drafters: Sequence[Drafts],
        *,
        capacity: int,
        max_batch_size: int = 8,
        max_wait_ms: float = 5.0,
        decode_threads: int = 2,
        limits: ImageLimits = DEFAULT_LIMITS,
        metrics: Metrics | None = None,
        on_broken: Callable[[str], None] = lambda reason: None,
    ) -> None:
        """Start the workers.

        Args:
            drafters: one for each device; each is used by one thread only.
            capacity: requests in the house at once.
            max_batch_size: studies drafted together at most.
            max_wait_ms: longest that a study waits for others to join its batch.
            decode_threads: threads that decode images.
            limits: bounds on the size of an image.
            metrics: told of batches and waiting times.
            on_broken: called once, from a worker's thread, when a device can no longer compute.

        Raises:
            ValueError: no drafter.
        """
        if not drafters:
            raise ValueError("an engine needs at least one drafter")
        self._places = Places(capacity, self._retry_after_s)
        self._inside = 0  # changed on the event loop only
        self._limits = limits
        self._metrics = metrics or Metrics()
        self._on_broken = on_broken
        self._image_size, self._resample = drafters[0].image_size, drafters[0].resample
        self._pace_s = 0.0  # seconds a study, lately
        self._queue = JobQueue(max_wait_s=max_wait_ms / 1000, on_the_way=lambda: self._places.taken - self._inside)
        self._decoders = ThreadPoolExecutor(decode_threads, thread_name_prefix="decode")
        self._workers = [_Worker(drafter, max_batch_size, max_batch_size) for drafter in drafters]
        self._decoding: dict[object, float] = {}  # images that are decoded now -> since when
        self._threads = [
            threading.Thread(target=self._work, args=(worker,), name=f"model-{number}", daemon=True)
            for number, worker in enumerate(self._workers)
        ]
        for thread in self._threads:
            thread.start()

    # -- for the event loop ------------------------------------------------------------------------------------------

    @property
    def capacity(self) -> int:
        """Requests in the house at once."""
        return self._places.capacity

    @property
    def depth(self) -> int:
        """Requests in the house: arriving, waiting or computed."""
        return self._places.taken

    @property
    def waiting(self) -> int:
        """Studies that wait for a worker."""
        return len(self._queue)

    @property
    def stalled_s(self) -> float:
        """How long the slowest batch has been computed, or the slowest image decoded, by now; 0 where none is."""
        begun = [worker.since for worker in self._workers if worker.since is not None]
        now = time.monotonic()
        return now - min([now, *begun, *self._decoding.copy().values()])

    def place(self) -> AbstractContextManager[None]:
        """Hold one of ``capacity`` places from before the body is read until the answer is made.

        Raises:
            BusyError: none is free.
        """
        return self._places.hold()

    async def draft(self, images: dict[str, bytes], options: DraftOptions, listener: Listener | None = None) -> Draft:
        """Decode the images of one study and draft it; ``timings_ms`` of the result gains ``images`` and ``queue``.

        Args:
            images: view -> content of its file, one or both; emptied once they are decoded.
            options: of this request.
            listener: see ``Backend``.

        Raises:
            FieldError: an image cannot be read; of several the first in the order of the views.
            MemoryShortError: the device had too little memory.
            BrokenError: the device can no longer compute.
            ClosedError: the engine stops.
            Exception: whatever the drafter raised for this study.
        """
        began = time.perf_counter()
        study = await self._decode_all(images)
        images.clear()  # while it waits only the pixels are kept
        decoded_ms = (time.perf_counter() - began) * 1000
        draft = await self.submit(study, options, listener)
        return dataclasses.replace(draft, timings_ms={"images": decoded_ms, **draft.timings_ms})

    async def submit(
        self, study: Sequence[StudyView], options: DraftOptions, listener: Listener | None = None
    ) -> Draft:
        """Draft one decoded study; raises as ``draft``, and on cancellation gives the study up where it waits."""
        job = Job(study, options, None if listener is None else on_this_loop(listener))
        self._queue.put(job)
        self._inside += 1
        try:
            return await asyncio.wrap_future(job.result)
        finally:
            self._inside -= 1
            if job.result.cancelled():
                self._queue.discard(job)

    async def drain(self, timeout_s: float) -> None:
        """Wait until nobody holds a place any more, ``timeout_s`` at most, then close."""
        until = time.monotonic() + timeout_s
        await self._places.emptied(until)
        await asyncio.to_thread(self.close, max(until - time.monotonic(), 1.0))

    def refuse_waiting(self, reason: str) -> int:
        """Take no more, and answer those that wait with ``ClosedError``; what is computed goes on. How many waited."""
        self._queue.close(reason)
        return self._queue.refuse(ClosedError(reason))

    def close(self, timeout_s: float = 30.0) -> None:
        """Finish the jobs that wait, then stop the threads; those still at work after ``timeout_s`` are left behind."""
        until = time.monotonic() + timeout_s
        self._queue.close("the service is stopping")
        for thread in self._threads:
            thread.join(max(until - time.monotonic(), 0.0))
        self._queue.refuse(ClosedError("the service is stopping"))
        self._decoders.shutdown(wait=False, cancel_futures=True)

    def _retry_after_s(self) -> int:
        """When a place will have become free by the pace of late, in whole seconds, 1 to 60."""
        return min(max(math.ceil(self._pace_s * self._places.taken / len(self._workers) / 2), 1), 60)

    # -- images ------------------------------------------------------------------------------------------------------

    async def _decode_all(self, images: Mapping[str, bytes]) -> list[StudyView]:
        """All views at the same time, in the order of ``View``."""
        views = [view for view in View if view.value in images]
        results = await asyncio.gather(
            *(self.read_view(images[view.value], view) for view in views), return_exceptions=True
        )
        study = []
        for view, result in zip(views, results, strict=True):
            if isinstance(result, ImageError):
                raise FieldError(view.value, result.code, str(result)) from result
            if isinstance(result, BaseException):
                raise result
            study.append(result)
        return study

    async def read_view(self, data: bytes, view: View) -> StudyView:
        """Decode one image off the event loop.

        Raises:
            ImageError: see ``model.images.read_image``.
        """
        file = [data]  # emptied on cancellation: the executor keeps what waits for a thread
        del data
        try:
            return await asyncio.get_running_loop().run_in_executor(self._decoders, self._decode, file, view)
        except asyncio.CancelledError:
            file.clear()
            raise

    def _decode(self, file: list[bytes], view: View) -> StudyView:
        mark = object()
        self._decoding[mark] = time.monotonic()
        try:
            image = read_image(file.pop(), self._image_size, limits=self._limits, resample=self._resample)
        finally:
            del self._decoding[mark]
        return StudyView(image.pixels, view, image.warnings(view), image.view)

    # -- for the workers ---------------------------------------------------------------------------------------------

    def _work(self, worker: _Worker) -> None:
        while jobs := self._queue.take(worker.most):
            worker.since = time.monotonic()
            try:
                self._attempt(worker, jobs)
            except BaseException as error:  # ours, not the drafter's: the loop must go on
                log.critical("the engine failed with %s\n%s", type(error).__name__, places(error))
                _fail(jobs, RuntimeError("the engine failed"))
            worker.since = None
            del jobs  # the images of the last batch need not wait for the next

    def _attempt(self, worker: _Worker, jobs: Sequence[Job], *, last: bool = False) -> None:
        """Draft a batch, and where that fails its parts; every job has its answer afterwards.

        Args:
            worker: whose drafter.
            jobs: the batch.
            last: whether memory ran out for this lone study before.
        """
        began = time.monotonic()
        try:
            drafts = worker.drafter.draft(
                [job.study for job in jobs], jobs[0].options, listeners=[job.listener for job in jobs]
            )
            if len(drafts) != len(jobs):
                raise RuntimeError(f"{len(drafts)} drafts came for {len(jobs)} studies")
        except BaseException as caught:
            log.error("a batch of %d failed with %s\n%s", len(jobs), type(caught).__name__, places(caught))
            error = caught.with_traceback(None)  # whose frames hold the tensors that a second attempt needs room for
        else:
            self._finish(jobs, drafts, began)
            worker.fitted(len(jobs))
            return
        if is_memory_short(error):
            self._metrics.failed_batches.labels("memory").inc()
            _free_memory()
            if len(jobs) > 1:
                worker.shrink(len(jobs))
                for part in (jobs[: worker.most], jobs[worker.most :]):
                    self._attempt(worker, part)
            elif not last:
                self._attempt(worker, jobs, last=True)
            else:
                _fail(jobs, MemoryShortError("the device has too little memory for this study"))
        elif is_broken(error):
            self._metrics.failed_batches.labels("device").inc()
            self._break(jobs, type(error).__name__)
        else:
            self._metrics.failed_batches.labels("error").inc()
            if len(jobs) == 1:
                _fail(jobs, error)
                return
            for job in jobs:
                self._attempt(worker, [job])

    def _finish(self, jobs: Sequence[Job], drafts: Sequence[Draft], began: float) -> None:
        taken_s = time.monotonic() - began
        self._pace_s = 0.8 * self._pace_s + 0.2 * taken_s / len(jobs) if self._pace_s else taken_s / len(jobs)
        self._metrics.batch_size.observe(len(jobs))
        for job, draft in zip(jobs, drafts, strict=True):
            waited_s = began - job.submitted
            self._metrics.queue_seconds.observe(waited_s)
            timings = {"queue": waited_s * 1000, **draft.timings_ms}
            job.result.set_result(dataclasses.replace(draft, timings_ms=timings))

    def _break(self, jobs: Sequence[Job], what: str) -> None:
        reason = f"The device can no longer compute ({what}); the service log says where. The service must be restarted"
        log.critical(reason)
        self._queue.close(reason)
        _fail(jobs, BrokenError(reason))
        self._queue.refuse(BrokenError(reason))
        self._on_broken(reason)


def is_memory_short(error: BaseException) -> bool:
    """Whether an exception says that memory ran out, of a device or of this machine."""
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    text = str(error).lower()
    return isinstance(error, RuntimeError) and ("out of memory" in text or "can't allocate memory" in text)


def is_broken(error: BaseException) -> bool:
    """Whether a device answers nothing but errors from now on: a CUDA error outlives the call that met it."""
    return isinstance(error, torch.AcceleratorError)


def _fail(jobs: Sequence[Job], error: BaseException) -> None:
    """Answer jobs with an error; an exit or interrupt would end the event loop that awaits it, so it goes by name."""
    shown = error if isinstance(error, Exception) else RuntimeError(f"the drafter raised {type(error).__name__}")
    for job in jobs:
        if not job.result.done():
            job.result.set_exception(shown)


def _free_memory() -> None:
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
