"""One worker thread per device: takes batches from the queue, drafts them, and isolates failures.

- A batch that fails is drafted again study by study, so that only the faulty study fails.
- A batch that does not fit into memory is drafted again in halves, and later batches are smaller.
- A device that fails on every call (a CUDA error persists) stops the engine.
"""

from __future__ import annotations

import dataclasses
import gc
import logging
import threading
import time
from collections.abc import Callable, Sequence
from typing import Protocol

import torch

from model.types import Draft, DraftOptions, EventCallback, Resample, StudyView
from service.inference.backend import DeviceLostError, OutOfMemoryError
from service.inference.batch_queue import Job, JobQueue
from service.metrics import Metrics
from service.web.problems import format_traceback_locations

log = logging.getLogger(__name__)
_NO_MEMORY = ("out of memory", "can't allocate memory", "status_alloc_failed")  # the last: cuBLAS and cuDNN
GROW_AFTER = 50  # full batches in a row that fit, before a larger batch is tried


class SupportsDraft(Protocol):
    """The interface of ``model.drafter.Drafter`` that a worker uses."""

    @property
    def image_size(self) -> int:
        """S: side in pixels of the square images that ``draft`` takes."""

    @property
    def resample(self) -> Resample:
        """Filter that scales an image to S x S."""

    def draft(
        self,
        studies: Sequence[Sequence[StudyView]],
        options: DraftOptions,
        *,
        callbacks: Sequence[EventCallback | None],
    ) -> list[Draft]:
        """Return one draft per study; the calling thread may call ``callbacks`` with partial results."""


class DeviceWorker:
    """Drafts batches on one device in one thread, which starts at once.

    Attributes:
        batch_limit: largest batch that is tried now, at most ``max_batch_size``.
        batch_started_at: when the running batch started (``time.monotonic``); None while idle.
        seconds_per_study: moving average; 0 before the first batch if no initial value is given.
    """

    def __init__(
        self,
        drafter: SupportsDraft,
        queue: JobQueue,
        *,
        name: str,
        max_batch_size: int,
        metrics: Metrics,
        seconds_per_study: float = 0.0,
        on_device_lost: Callable[[str], None],
    ) -> None:
        self.batch_limit = self._max_batch_size = max_batch_size
        self.batch_started_at: float | None = None
        self.seconds_per_study = seconds_per_study
        self._consecutive_ok = 0
        self._drafter, self._queue, self._metrics, self._on_device_lost = drafter, queue, metrics, on_device_lost
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self._thread.start()

    def join(self, timeout_s: float) -> None:
        """Wait at most ``timeout_s`` until the closed queue is exhausted and the thread ends."""
        self._thread.join(timeout_s)

    def _run(self) -> None:
        while jobs := self._queue.take(self.batch_limit):
            self.batch_started_at = time.monotonic()
            try:
                self._draft(jobs)
            except BaseException as error:  # a bug of this module: the thread must survive it
                log.critical("the engine failed with %s\n%s", type(error).__name__, format_traceback_locations(error))
                _fail(jobs, RuntimeError("the engine failed"))
            self.batch_started_at = None
            del jobs  # free the images before the next batch arrives

    def _draft(self, jobs: Sequence[Job], *, memory_retry: bool = False) -> None:
        """Draft a batch, or its parts if that fails; every job has a result afterwards.

        ``memory_retry`` is set on the second attempt of a single study that did not fit into memory.
        """
        started_at = time.monotonic()
        try:
            drafts = self._drafter.draft(
                [job.study for job in jobs], jobs[0].options, callbacks=[job.on_event for job in jobs]
            )
            if len(drafts) != len(jobs):
                raise RuntimeError(f"the drafter returned {len(drafts)} drafts for {len(jobs)} studies")
        except BaseException as caught:
            log.error(
                "a batch of %d failed with %s\n%s", len(jobs), type(caught).__name__, format_traceback_locations(caught)
            )
            error = caught.with_traceback(None)  # its frames hold tensors; a retry needs their memory
        else:
            self._finish(jobs, drafts, started_at)
            return
        if is_out_of_memory(error):
            self._metrics.failed_batches.labels("memory").inc()
            self._retry_in_halves(jobs, memory_retry=memory_retry)
        elif is_device_lost(error):
            self._metrics.failed_batches.labels("device").inc()
            self._lose_device(jobs, type(error).__name__)
        else:
            self._metrics.failed_batches.labels("error").inc()
            if len(jobs) == 1:
                _fail(jobs, error)
                return
            for job in jobs:
                self._draft([job])

    def _retry_in_halves(self, jobs: Sequence[Job], *, memory_retry: bool) -> None:
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        if len(jobs) > 1:
            self.batch_limit, self._consecutive_ok = max(1, len(jobs) // 2), 0
            log.warning("out of memory: the batch size is limited to %d", self.batch_limit)
            for part in (jobs[: self.batch_limit], jobs[self.batch_limit :]):
                self._draft(part)
        elif not memory_retry:
            self._draft(jobs, memory_retry=True)
        else:
            _fail(jobs, OutOfMemoryError("the device has too little memory for this study"))

    def _finish(self, jobs: Sequence[Job], drafts: Sequence[Draft], started_at: float) -> None:
        per_study_s = (time.monotonic() - started_at) / len(jobs)
        before_s = self.seconds_per_study
        self.seconds_per_study = 0.8 * before_s + 0.2 * per_study_s if before_s else per_study_s
        self._metrics.batch_size.observe(len(jobs))
        for job, draft in zip(jobs, drafts, strict=True):
            queued_s = started_at - job.submitted
            self._metrics.queue_seconds.observe(queued_s)
            timings = {"queue": queued_s * 1000, **draft.timings_ms}
            job.result.set_result(dataclasses.replace(draft, timings_ms=timings))
        self._grow(len(jobs))

    def _grow(self, size: int) -> None:
        """Double the batch limit after enough full batches: memory may be free again."""
        if size < self.batch_limit or self.batch_limit == self._max_batch_size:
            return
        self._consecutive_ok += 1
        if self._consecutive_ok >= GROW_AFTER:
            self.batch_limit, self._consecutive_ok = min(2 * self.batch_limit, self._max_batch_size), 0
            log.info("the batch size is limited to %d again", self.batch_limit)

    def _lose_device(self, jobs: Sequence[Job], error_name: str) -> None:
        reason = f"The device can no longer compute ({error_name}); see the service log. The service must be restarted"
        log.critical(reason)
        self._queue.close(reason)
        _fail(jobs, DeviceLostError(reason))
        self._queue.refuse(DeviceLostError(reason))
        self._on_device_lost(reason)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether a device or this machine ran out of memory."""
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    text = str(error).lower()
    return isinstance(error, RuntimeError) and any(cause in text for cause in _NO_MEMORY)


def is_device_lost(error: BaseException) -> bool:
    """Whether the device fails on every further call: a CUDA error persists until the process ends."""
    return isinstance(error, torch.AcceleratorError)


def _fail(jobs: Sequence[Job], error: BaseException) -> None:
    """Fail the jobs that have no result; an exit or interrupt is replaced, as it would stop the event loop."""
    shown = error if isinstance(error, Exception) else RuntimeError(f"the drafter raised {type(error).__name__}")
    for job in jobs:
        if not job.result.done():
            job.result.set_exception(shown)
