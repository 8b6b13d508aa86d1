"""The backend that runs the model in this process: admission, image decoding, queue, one worker per device.

The event loop only awaits futures. Images are decoded in a thread pool, batches run in ``DeviceWorker`` threads.
A study whose client disconnects is removed from the queue.
"""

from __future__ import annotations

import asyncio
import dataclasses
import math
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor

from model.images import DEFAULT_LIMITS, ImageError, ImageLimits, read_image
from model.types import Draft, DraftOptions, EventCallback, StudyView, View
from service.inference.admission import AdmissionLimiter
from service.inference.backend import ClosedError, FieldError
from service.inference.batch_queue import Job, JobQueue
from service.inference.threads import threadsafe_callback
from service.inference.worker import DeviceWorker, SupportsDraft
from service.metrics import Metrics

STOPPING = "the service is stopping"


def decode_view(data: bytes, view: View, drafter: SupportsDraft, limits: ImageLimits) -> StudyView:
    """Decode an image that was sent as ``view``.

    Raises:
        ImageError: see ``model.images.read_image``.
    """
    image = read_image(data, drafter.image_size, limits=limits, resample=drafter.resample)
    return StudyView(image.pixels, view, image.warnings(view), image.view)


class Engine:
    """Drafts the studies of many requests on one or more devices; a ``Backend``."""

    def __init__(
        self,
        drafters: Sequence[SupportsDraft],
        *,
        capacity: int,
        max_batch_size: int = 8,
        max_wait_ms: float = 5.0,
        decode_threads: int = 2,
        limits: ImageLimits = DEFAULT_LIMITS,
        metrics: Metrics | None = None,
        on_device_lost: Callable[[str], None] = lambda reason: None,
    ) -> None:
        """Start the workers.

        Args:
            drafters: one per device; each is used by one thread only.
            capacity: largest number of concurrent requests.
            max_batch_size: largest number of studies in a batch.
            max_wait_ms: longest time that a study waits for others to join its batch.
            decode_threads: threads that decode images.
            limits: bounds on the size of an image.
            metrics: records batches and waiting times.
            on_device_lost: called from a worker thread with the reason when a device fails on every call.

        Raises:
            ValueError: there is no drafter.
        """
        if not drafters:
            raise ValueError("an engine needs at least one drafter")
        self.admission = AdmissionLimiter(capacity, self._retry_after_s)
        self._submitted = 0  # requests that are queued or running; changed on the event loop only
        self._limits = limits
        self._drafter = drafters[0]
        self._decoders = ThreadPoolExecutor(decode_threads, thread_name_prefix="decode")
        self._decoding: dict[object, float] = {}  # running image decodings -> start time
        self._queue = JobQueue(
            max_wait_s=max_wait_ms / 1000, pending_uploads=lambda: self.admission.in_use - self._submitted
        )
        metrics = metrics or Metrics()
        self._workers = [
            DeviceWorker(
                drafter, self._queue, name=f"model-{number}", max_batch_size=max_batch_size, metrics=metrics,
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
        """Age in seconds of the oldest running batch or image decoding; 0 if none runs."""
        started = [worker.batch_started_at for worker in self._workers if worker.batch_started_at is not None]
        now = time.monotonic()
        return now - min([now, *started, *self._decoding.copy().values()])

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
        study = await self._decode_all(images)
        images.clear()  # while the study is queued only its pixels are kept
        decoded_ms = (time.perf_counter() - started) * 1000
        draft = await self.submit(study, options, on_event)
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
        """Wait at most ``timeout_s`` until no slot is in use, then close."""
        deadline = time.monotonic() + timeout_s
        await self.admission.wait_idle(deadline)
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
        self._decoders.shutdown(wait=False, cancel_futures=True)

    async def read_view(self, data: bytes, view: View) -> StudyView:
        """Run ``decode_view`` in the thread pool."""
        file = [data]  # the executor keeps queued arguments, so cancellation empties this list
        del data
        try:
            return await asyncio.get_running_loop().run_in_executor(self._decoders, self._decode, file, view)
        except asyncio.CancelledError:
            file.clear()
            raise

    async def _decode_all(self, images: Mapping[str, bytes]) -> list[StudyView]:
        """Decode all images concurrently; the result is in the order of ``View``."""
        views = [view for view in View if view.value in images]
        decodings = (self.read_view(images[view.value], view) for view in views)
        results = await asyncio.gather(*decodings, return_exceptions=True)
        study = []
        for view, result in zip(views, results, strict=True):
            if isinstance(result, ImageError):
                raise FieldError(view.value, result.code, str(result)) from result
            if isinstance(result, BaseException):
                raise result
            study.append(result)
        return study

    def _decode(self, file: list[bytes], view: View) -> StudyView:
        token = object()
        self._decoding[token] = time.monotonic()
        try:
            return decode_view(file.pop(), view, self._drafter, self._limits)
        finally:
            del self._decoding[token]

    def _retry_after_s(self) -> int:
        """Estimated seconds until a slot is free, 1 to 60."""
        measured = [worker.seconds_per_study for worker in self._workers if worker.seconds_per_study] or [0.0]
        mean_s = sum(measured) / len(measured)
        return min(max(math.ceil(mean_s * self.admission.in_use / len(self._workers) / 2), 1), 60)
