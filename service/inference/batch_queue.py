"""The queue between HTTP and the model: first come, first served; a batch holds jobs of one kind."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field

from model.types import Draft, DraftOptions, EventCallback, StudyView
from service.inference.backend import ClosedError


@dataclass(frozen=True, eq=False)
class Job:
    """A study in the queue.

    Attributes:
        on_event: called with partial results from the worker thread. If a failed batch is repeated, the partial results
            of the study are sent again from the first.
        submitted: time of ``time.monotonic``.
        result: set by the worker.
    """

    study: Sequence[StudyView]
    options: DraftOptions
    on_event: EventCallback | None = None
    submitted: float = field(default_factory=time.monotonic)
    result: Future[Draft] = field(default_factory=Future)

    @property
    def kind(self) -> tuple[DraftOptions, int]:
        """Jobs of one kind may share a batch: same options, same number of views.

        Padding a missing view could change the last bit of a result.
        """
        return self.options, len(self.study)


class JobQueue:
    """Hands jobs to the workers in batches.

    A batch starts with the oldest job and adds later jobs of its kind. A worker waits for more jobs until the oldest
    one has waited ``max_wait_s``; it does not wait if no upload is pending or if another worker is idle. Jobs that
    were cancelled are skipped.
    """

    def __init__(self, *, max_wait_s: float, pending_uploads: Callable[[], int] = lambda: 0) -> None:
        """Create an empty queue.

        Args:
            max_wait_s: longest time that a job waits for others to join its batch.
            pending_uploads: returns the number of admitted requests that have no job yet; called from any thread.
        """
        self._max_wait_s = max_wait_s
        self._pending_uploads = pending_uploads
        self._jobs: list[Job] = []
        self._idle_workers = 0
        self._closed: str | None = None
        self._changed = threading.Condition()

    def __len__(self) -> int:
        """Number of queued jobs."""
        return len(self._jobs)

    def put(self, job: Job) -> None:
        """Append a job.

        Raises:
            ClosedError: the queue is closed.
        """
        with self._changed:
            if self._closed is not None:
                raise ClosedError(self._closed)
            self._jobs.append(job)
            self._changed.notify_all()

    def discard(self, job: Job) -> None:
        """Remove a job if it is still queued."""
        with self._changed:
            self._jobs = [other for other in self._jobs if other is not job]

    def take(self, max_size: int) -> list[Job]:
        """Block until a batch of 1 to ``max_size`` jobs is due and return it; empty once closed and exhausted.

        The futures of the returned jobs are running: they can no longer be cancelled.
        """
        with self._changed:
            self._idle_workers += 1
            try:
                while True:
                    candidates = [job for job in self._jobs if job.kind == self._jobs[0].kind]
                    if not candidates:
                        if self._closed is not None:
                            return []
                        self._changed.wait()
                        continue
                    remaining_s = candidates[0].submitted + self._max_wait_s - time.monotonic()
                    if len(candidates) >= max_size or remaining_s <= 0 or not self._more_expected():
                        share = -(-len(candidates) // self._idle_workers)  # rounded up
                        if batch := self._start(candidates[: min(max_size, share)]):
                            return batch
                    else:
                        self._changed.wait(remaining_s)
            finally:
                self._idle_workers -= 1

    def close(self, reason: str) -> None:
        """Accept no more jobs; workers still receive the queued ones."""
        with self._changed:
            if self._closed is None:
                self._closed = reason
            self._changed.notify_all()

    def refuse(self, error: Exception) -> int:
        """Fail all queued jobs with ``error``; returns their number."""
        with self._changed:
            queued, self._jobs = self._jobs, []
        refused = [job for job in queued if job.result.set_running_or_notify_cancel()]
        for job in refused:
            job.result.set_exception(error)
        return len(refused)

    def _more_expected(self) -> bool:
        return self._closed is None and self._idle_workers == 1 and self._pending_uploads() > 0

    def _start(self, batch: Sequence[Job]) -> list[Job]:
        """Remove the jobs from the queue and return those that were not cancelled meanwhile."""
        chosen = set(map(id, batch))
        self._jobs = [job for job in self._jobs if id(job) not in chosen]
        return [job for job in batch if job.result.set_running_or_notify_cancel()]
