"""The backend that runs the model in this process: image decoding, queue, one worker per device.

The event loop only awaits futures. Images are decoded in processes (``DecodePool``), batches run in
``DeviceWorker`` threads. A study whose client disconnects is removed from the queue.
"""

from __future__ import annotations

import asyncio
import dataclasses
import time
from collections.abc import Callable, Mapping, Sequence

from model.images import ImageError
from model.types import Draft, DraftOptions, EventCallback, StudyView, View
from service.inference.admission import AdmissionLimiter
from service.inference.backend import ClosedError, FieldError
from service.inference.batch_queue import Job, JobQueue
from service.inference.decode_pool import DecodePool
from service.inference.threads import threadsafe_callback
from service.inference.worker import DeviceWorker, SupportsDraft
from service.metrics import Metrics
from service.web.problems import STOPPING


class Engine:
    """Drafts the studies of many requests on one or more devices; a ``Backend``."""

    def __init__(
        self,
        drafters: Sequence[SupportsDraft],
        decoder: DecodePool,
        admission: AdmissionLimiter,
        *,
        max_batch_size: int = 8,
        max_wait_ms: float = 5.0,
        seconds_per_study: float = 0.0,
        metrics: Metrics | None = None,
        on_device_lost: Callable[[str], None] = lambda reason: None,
    ) -> None:
        """Start the workers.

        Args:
            drafters: one per device; each is used by one thread only.
            decoder: decodes the images; the caller closes it.
            admission: its requests that are not queued yet are expected to join a batch.
            max_batch_size: largest number of studies in a batch.
            max_wait_ms: longest time that a study waits for others to join its batch.
            seconds_per_study: the time of a draft, if it was measured.
            metrics: records batches and waiting times.
            on_device_lost: called from a worker thread with the reason when a device fails on every call.

        Raises:
            ValueError: there is no drafter.
        """
        if not drafters:
            raise ValueError("an engine needs at least one drafter")
        self._drafting = 0  # running calls of draft; changed on the event loop only
        self._submitted = 0  # of them, queued or running on a device
        self._decoder, self._drafter = decoder, drafters[0]
        self._queue = JobQueue(
            max_wait_s=max_wait_ms / 1000, pending_uploads=lambda: admission.in_use - self._submitted
        )
        metrics = metrics or Metrics()
        self._workers = [
            DeviceWorker(
                drafter, self._queue, name=f"model-{number}", max_batch_size=max_batch_size, metrics=metrics,
                seconds_per_study=seconds_per_study,
                on_device_lost=on_device_lost,
            )
            for number, drafter in enumerate(drafters)
        ]  # fmt: skip

    @property
    def waiting(self) -> int:
        """Studies in the queue."""
        return len(self._queue)

    @property
    def stalled_s(self) -> float:
        """Age in seconds of the oldest running batch; 0 if none runs."""
        started = [worker.batch_started_at for worker in self._workers if worker.batch_started_at is not None]
        now = time.monotonic()
        return now - min([now, *started])

    @property
    def seconds_per_study(self) -> float:
        """Mean time between two drafts under load; 0 before the first batch."""
        measured = [worker.seconds_per_study for worker in self._workers if worker.seconds_per_study] or [0.0]
        return sum(measured) / len(measured) / len(self._workers)

    async def draft(
        self, images: dict[str, bytes], options: DraftOptions, on_event: EventCallback | None = None
    ) -> Draft:
        """See ``Backend``. ``timings_ms`` of the draft gains ``images`` and ``queue``.

        Raises:
            FieldError: an image cannot be read; of several, the first in the order of ``View``.
            OutOfMemoryError, DeviceLostError, ClosedError: see ``Backend``.
            Exception: the error that the drafter raised for this study.
        """
        started = time.perf_counter()
        self._drafting += 1
        try:
            study = await self._decode_all(images)
            images.clear()  # while the study is queued only its pixels are kept
            decoded_ms = (time.perf_counter() - started) * 1000
            draft = await self.submit(study, options, on_event)
        finally:
            self._drafting -= 1
        return dataclasses.replace(draft, timings_ms={"images": decoded_ms, **draft.timings_ms})

    async def submit(
        self, study: Sequence[StudyView], options: DraftOptions, on_event: EventCallback | None = None
    ) -> Draft:
        """Draft one decoded study; raises as ``draft``. Cancellation removes the study from the queue."""
        job = Job(study, options, None if on_event is None else threadsafe_callback(on_event))
        self._queue.put(job)
        self._submitted += 1
        try:
            return await asyncio.wrap_future(job.result)
        finally:
            self._submitted -= 1
            if job.result.cancelled():
                self._queue.discard(job)

    async def drain(self, timeout_s: float) -> None:
        """Wait at most ``timeout_s`` until no call of ``draft`` is running, then close."""
        deadline = time.monotonic() + timeout_s
        while self._drafting and time.monotonic() < deadline:
            await asyncio.sleep(0.05)
        await asyncio.to_thread(self.close, max(deadline - time.monotonic(), 1.0))

    def refuse_waiting(self, reason: str) -> int:
        """Accept no more studies and fail the queued ones with ``ClosedError``; running batches finish."""
        self._queue.close(reason)
        return self._queue.refuse(ClosedError(reason))

    def close(self, timeout_s: float = 30.0) -> None:
        """Finish the queued studies, then stop the threads; abandon those that still run after ``timeout_s``."""
        deadline = time.monotonic() + timeout_s
        self._queue.close(STOPPING)
        for worker in self._workers:
            worker.join(max(deadline - time.monotonic(), 0.0))
        self._queue.refuse(ClosedError(STOPPING))

    async def _decode_all(self, images: Mapping[str, bytes]) -> list[StudyView]:
        """Decode all images concurrently; the result is in the order of ``View``."""
        views = [view for view in View if view.value in images]
        size, resample = self._drafter.image_size, self._drafter.resample
        decodings = (self._decoder.read(images[view.value], view, size, resample) for view in views)
        results = await asyncio.gather(*decodings, return_exceptions=True)
        study = []
        for view, result in zip(views, results, strict=True):
            if isinstance(result, ImageError):
                raise FieldError(view.value, result.code, str(result)) from result
            if isinstance(result, BaseException):
                raise result
            study.append(result)
        return study
