"""The queue between HTTP and model: first come, first served, like with like in one batch."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field

from model.drafter import Draft, DraftOptions, Listener, StudyView


class ClosedError(RuntimeError):
    """The queue takes no more jobs; the message says why."""


@dataclass(frozen=True, eq=False)
class Job:
    """A study that waits for its draft.

    ``submitted`` is a time of ``time.monotonic``; ``listener`` is told by the worker of what is final early, again
    from the beginning where the study is drafted again.
    """

    study: Sequence[StudyView]
    options: DraftOptions
    listener: Listener | None = None
    submitted: float = field(default_factory=time.monotonic)
    result: Future[Draft] = field(default_factory=Future)

    @property
    def kind(self) -> tuple[DraftOptions, int]:
        """Only jobs of one kind share a batch: options are a batch's, and a padded view could move a last bit."""
        return self.options, len(self.study)


class JobQueue:
    """Jobs of many callers for a few workers, which take batches.

    A batch begins with the oldest job and takes others of its kind. A worker waits for more at most until the oldest
    has waited ``max_wait_s``, and not at all where nobody is on the way or another worker idles. Jobs whose callers
    left are dropped on the way.
    """

    def __init__(self, *, max_wait_s: float, on_the_way: Callable[[], int] = lambda: 0) -> None:
        """Make an empty queue.

        Args:
            max_wait_s: longest that a job waits for others to join its batch.
            on_the_way: number of requests that may become jobs soon; called from any thread.
        """
        self._max_wait_s = max_wait_s
        self._on_the_way = on_the_way
        self._jobs: list[Job] = []
        self._idle = 0
        self._closed: str | None = None
        self._changed = threading.Condition()

    def __len__(self) -> int:
        """Jobs that wait."""
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
        """Forget a job whose caller left, where it still waits."""
        with self._changed:
            self._jobs = [other for other in self._jobs if other is not job]

    def take(self, most: int) -> list[Job]:
        """Wait for the next batch of 1 to ``most`` jobs and begin it; empty once the queue is closed and all is taken.

        The futures of the jobs are set running: their callers can no longer cancel them.
        """
        with self._changed:
            self._idle += 1
            try:
                while True:
                    alike = self._next_kind()
                    if not alike:
                        if self._closed is not None:
                            return []
                        self._changed.wait()
                        continue
                    patience = alike[0].submitted + self._max_wait_s - time.monotonic()
                    if len(alike) >= most or patience <= 0 or not self._worth_waiting():
                        batch = self._begin(alike[: min(most, -(-len(alike) // self._idle))])
                        if batch:
                            return batch
                    else:
                        self._changed.wait(patience)
            finally:
                self._idle -= 1

    def close(self, reason: str) -> None:
        """Take no more jobs; those that wait are still handed out."""
        with self._changed:
            if self._closed is None:
                self._closed = reason
            self._changed.notify_all()

    def refuse(self, error: Exception) -> int:
        """Answer all jobs that wait with ``error``; how many that were."""
        with self._changed:
            waiting, self._jobs = self._jobs, []
        refused = [job for job in waiting if job.result.set_running_or_notify_cancel()]
        for job in refused:
            job.result.set_exception(error)
        return len(refused)

    def _next_kind(self) -> list[Job]:
        return [job for job in self._jobs if job.kind == self._jobs[0].kind]

    def _worth_waiting(self) -> bool:
        return self._closed is None and self._idle == 1 and self._on_the_way() > 0

    def _begin(self, chosen: Sequence[Job]) -> list[Job]:
        """Take the chosen out of the queue, all but those whose callers left at this very moment."""
        gone = set(map(id, chosen))
        self._jobs = [job for job in self._jobs if id(job) not in gone]
        return [job for job in chosen if job.result.set_running_or_notify_cancel()]
