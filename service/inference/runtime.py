"""The lifecycle of the service: load a bundle in the background, warm up, serve, swap bundles, drain."""

from __future__ import annotations

import asyncio
import logging
import signal
import time
from collections.abc import Coroutine
from contextlib import suppress
from dataclasses import dataclass
from typing import Literal, Protocol

from model.images import ImageLimits
from retrieval_index.user_cases import UserCaseStoreError
from service.cases.store import ReferenceCaseStore
from service.inference.admission import AdmissionLimiter
from service.inference.backend import Backend
from service.inference.decode_pool import DecodeError, DecodePool
from service.inference.engine import Engine
from service.inference.loader import LoadedBundle, LoadError, Pace, load
from service.inference.threads import run_in_temporary_thread
from service.metrics import Metrics
from service.schemas.models import ModelInfo
from service.settings import Settings
from service.web.problems import STOPPING, Problem, format_traceback_locations
from service.web.shutdown import ShutdownDeadline

log = logging.getLogger(__name__)
QUEUE_CUTOFF_S = 4.0  # before the end of the drain: queued requests get 503, running ones continue
ABORT_CUTOFF_S = 2.5  # before the end of the drain: all others get 503; clients need time to read it
REQUEST_TIMEOUT_S, MAX_REQUEST_TIMEOUT_S = 30.0, 150.0  # the range of the automatic limit
_TIMEOUT_MARGIN = 3.0  # times the expected time of the requests in flight
_DEFAULT_BATCH_SIZE = {"cpu": 1, "cuda": 8}  # by device type; see Settings.max_batch_size


def ignore_hangup() -> None:
    """Ignore SIGHUP while no bundle can be swapped, because its default action ends the process."""
    with suppress(AttributeError, ValueError):  # not POSIX, or not the main thread
        signal.signal(signal.SIGHUP, signal.SIG_IGN)


class CaseIndexInfo(Protocol):
    """Size of the case index; ``service.inference.loader.LoadedBundle`` is one."""

    @property
    def cases(self) -> int | None:
        """Number of reference cases; None without retrieval."""

    @property
    def texts(self) -> bool:
        """Whether at least one case has its report text."""


@dataclass(frozen=True)
class ServingState:
    """The current backend and the description of its bundle."""

    backend: Backend
    model: ModelInfo
    device: str
    case_index: CaseIndexInfo


class Runtime:
    """Holds the served bundle from start to stop. Its methods run on the event loop.

    Attributes:
        state: ``loading``, then ``ready``; ``failed`` for ``reason`` if no bundle could be loaded or the device was
            lost.
        device_lost: whether it failed after it had been ready.
        admission: limits the concurrent requests of all routes.
        decoder: decodes all images; its processes start with the bundle.
        case_store: the reference cases.
        metrics: of the app.
        shutdown_deadline: cancels all in-flight requests at the end of the drain.
    """

    def __init__(self, settings: Settings, capacity: int | None = None) -> None:
        """Create a runtime that admits ``capacity`` requests, by default ``max_concurrent_requests``."""
        self.settings = settings
        self.state: Literal["loading", "ready", "failed"] = "loading"
        self.reason = "The model is being loaded; try again in a few seconds."
        self.device_lost = False
        self.metrics = Metrics()
        self.shutdown_deadline = ShutdownDeadline()
        self.admission = AdmissionLimiter(
            capacity or settings.max_concurrent_requests,
            lambda: backend.seconds_per_study if (backend := self._current_backend()) else 0.0,
        )
        self.decoder = DecodePool(
            settings.decode_workers,
            memory_bytes=settings.decode_memory_bytes,
            cpu_s=settings.decode_cpu_s,
            limits=ImageLimits(max_pixels=settings.max_pixels),
        )
        self.case_store = ReferenceCaseStore(settings.user_cases_dir)
        self.metrics.watch(
            ready=lambda: self.state == "ready",
            waiting=lambda: backend.waiting if (backend := self._current_backend()) else 0,
            in_use=lambda: self.admission.in_use,
            capacity=lambda: self.admission.capacity,
        )
        self._serving: ServingState | None = None
        self._retired: list[Backend] = []  # swapped out, but still with in-flight requests
        self._tasks: set[asyncio.Task[object]] = set()
        self._loading: asyncio.Task[None] | None = None
        self._swapping = asyncio.Lock()
        self._drain_deadline: float | None = None  # time.monotonic; set when the drain starts

    def check_accepting(self) -> None:
        """Check that a new request can be served.

        Raises:
            Problem: as ``serving``.
        """
        self.serving()

    def serving(self) -> ServingState:
        """Return the current backend.

        Raises:
            Problem: 503 while loading, or if loading failed or the device was lost.
        """
        if self.state == "failed":
            raise Problem("failed", self.reason)
        if self._serving is not None:
            return self._serving
        raise Problem("loading", self.reason, headers={"Retry-After": "5"})

    def request_timeout_s(self) -> float:
        """Seconds that a request has now: the configured limit, or one that follows the measured speed."""
        if self.settings.request_timeout_s:
            return self.settings.request_timeout_s
        backend = self._current_backend()
        expected_s = self.admission.in_use * (backend.seconds_per_study if backend else 0.0)
        return min(max(REQUEST_TIMEOUT_S, _TIMEOUT_MARGIN * expected_s), MAX_REQUEST_TIMEOUT_S)

    # -- start -------------------------------------------------------------------------------------------------------

    def start(self) -> None:
        """Start to load the bundle; returns at once."""
        self._loading = asyncio.create_task(self._load_first(), name="load-bundle")
        self._spawn_background_task(self._watch_for_stalls(), "watchdog")
        try:
            asyncio.get_running_loop().add_signal_handler(
                signal.SIGHUP, lambda: self._spawn_background_task(self._reload_on_signal(), "reload")
            )
        except (AttributeError, NotImplementedError, RuntimeError, ValueError):
            log.debug("SIGHUP does not swap the bundle here")  # not the main thread, or not POSIX

    async def _load_first(self) -> None:
        try:
            self._serving = await self._load()
            self.state = "ready"
        except LoadError as error:
            self._fail(str(error))

    async def _load(self) -> ServingState:
        """Load the bundle, warm it up and start an engine.

        Raises:
            LoadError: any failure; the message quotes no unexpected exception.
        """
        started = time.perf_counter()
        settings, loop = self.settings, asyncio.get_running_loop()

        def on_device_lost(reason: str) -> None:
            loop.call_soon_threadsafe(self._lose_device, reason)

        try:
            loaded, pace = await run_in_temporary_thread(self._load_and_warm_up)
            if settings.warm_up:
                await self.decoder.start()
        except LoadError:
            raise
        except DecodeError as error:
            raise LoadError(str(error)) from error
        except Exception as error:
            log.critical("loading failed with %s\n%s", type(error).__name__, format_traceback_locations(error))
            raise LoadError(f"loading failed with {type(error).__name__}; see the service log") from error
        engine = Engine(
            loaded.drafters,
            self.decoder,
            self.admission,
            max_batch_size=settings.max_batch_size or _DEFAULT_BATCH_SIZE[loaded.drafter.device.type],
            max_wait_ms=settings.batch_max_wait_ms,
            seconds_per_study=pace.seconds,
            metrics=self.metrics,
            on_device_lost=on_device_lost,
        )
        model = loaded.model_info()
        self.metrics.serve(model.name, model.digest, loaded.device)
        log.info(
            "ready after %.1f s: bundle %s (%s) on %s, %s reference cases, texts %s",
            time.perf_counter() - started,
            model.name,
            model.digest[:12],
            loaded.device,
            "no" if loaded.cases is None else loaded.cases,
            "available" if loaded.texts else "not available",
        )
        if pace.is_starved and loaded.drafter.device.type == "cpu":
            log.warning("%s", pace.explain())
        return ServingState(engine, model, loaded.device, loaded)

    def _load_and_warm_up(self) -> tuple[LoadedBundle, Pace]:
        try:
            self.case_store.open()
        except UserCaseStoreError as error:
            raise LoadError(f"REPORT_USER_CASES_DIR: {error}") from error
        loaded = load(self.settings)
        pace = loaded.warm_up() if self.settings.warm_up else Pace()
        self.case_store.serve(loaded.bundle, loaded.index)
        return loaded, pace

    # -- swap --------------------------------------------------------------------------------------------------------

    async def reload(self) -> ServingState:
        """Load the bundle from disk again and serve it; in-flight requests finish with the previous one.

        Both bundles are in memory meanwhile. If the new one cannot be loaded, the previous one keeps serving.

        Raises:
            Problem: 409 with the reason; 503 while the first bundle is loaded, or if it failed.
        """
        self.serving()
        if self._drain_deadline is not None:
            raise Problem("reload_refused", "The service is stopping; start it again with the new bundle.")
        if self._swapping.locked():
            raise Problem("reload_refused", "Another swap is in progress; wait until it is done.")
        async with self._swapping:
            try:
                new = await self._load()
            except LoadError as error:
                self.metrics.reloads.labels("refused").inc()
                log.error("the bundle is not swapped: %s", error)
                raise Problem("reload_refused", f"The previous bundle keeps serving: {error}") from error
            try:
                old = self.serving()
            except Problem:  # the device was lost meanwhile
                new.backend.close()
                raise
            self._serving = new
            self.metrics.reloads.labels("done").inc()
            self._spawn_background_task(self._retire(old.backend), "retire")
            return new

    async def _retire(self, backend: Backend) -> None:
        self._retired.append(backend)
        await backend.drain(self.settings.upload_timeout_s + self.request_timeout_s())
        self._retired.remove(backend)

    async def _reload_on_signal(self) -> None:
        try:
            await self.reload()
        except Problem as problem:
            log.error("SIGHUP: %s", problem.detail)

    # -- failure -----------------------------------------------------------------------------------------------------

    async def _watch_for_stalls(self) -> None:
        """Treat the device as lost if a batch runs too long."""
        limit_s = self.settings.stall_timeout_s
        while limit_s:
            await asyncio.sleep(min(limit_s / 4, 5.0))
            if (backend := self._current_backend()) is not None and backend.stalled_s > limit_s:
                self._lose_device(
                    f"A batch has not ended for {limit_s:g} s (REPORT_STALL_TIMEOUT_S); the service must be restarted"
                )
                return

    def _lose_device(self, reason: str) -> None:
        self.device_lost = True
        self._fail(reason)
        if (backend := self._current_backend()) is not None:
            backend.refuse_waiting(reason)

    def _fail(self, reason: str) -> None:
        self.reason, self.state = reason, "failed"
        log.critical("cannot serve: %s", reason)

    # -- drain and stop ----------------------------------------------------------------------------------------------

    def drain(self) -> None:
        """Start the drain (on SIGTERM): every in-flight request gets a response within ``drain_timeout_s``."""
        if self._drain_deadline is None:
            self._drain_deadline = time.monotonic() + self.settings.drain_timeout_s
            log.info("stopping: in-flight requests have %g s to finish", self.settings.drain_timeout_s)
            self._spawn_background_task(self._enforce_drain_deadline(), "drain")

    async def _enforce_drain_deadline(self) -> None:
        timeout_s = self.settings.drain_timeout_s
        queue_cutoff_s = max(timeout_s - QUEUE_CUTOFF_S, timeout_s / 2)
        abort_cutoff_s = max(timeout_s - ABORT_CUTOFF_S, timeout_s * 3 / 4)
        await asyncio.sleep(queue_cutoff_s)
        if count := sum(backend.refuse_waiting(STOPPING) for backend in self._backends()):
            log.warning("stopping: %d queued requests were refused", count)
        await asyncio.sleep(abort_cutoff_s - queue_cutoff_s)
        if count := self.shutdown_deadline.trigger():
            log.warning("stopping: %d in-flight requests were cancelled", count)

    async def stop(self) -> None:
        """Finish the running drafts and release the model, within the rest of ``drain_timeout_s``."""
        self._drain_deadline = self._drain_deadline or time.monotonic() + self.settings.drain_timeout_s
        with suppress(AttributeError, NotImplementedError, RuntimeError, ValueError):
            asyncio.get_running_loop().remove_signal_handler(signal.SIGHUP)  # else the loop would restore the default
        ignore_hangup()
        if self._loading is not None:
            await asyncio.wait({self._loading}, timeout=self._remaining_s())
            self._loading.cancel()  # its thread is abandoned
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        for backend in self._backends():
            await asyncio.to_thread(backend.close, self._remaining_s())
        await self.decoder.close()
        await asyncio.to_thread(self.case_store.close)
        self._serving = None

    def _current_backend(self) -> Backend | None:
        return None if self._serving is None else self._serving.backend

    def _backends(self) -> list[Backend]:
        return [backend for backend in (*self._retired, self._current_backend()) if backend is not None]

    def _remaining_s(self) -> float:
        return max((self._drain_deadline or 0.0) - time.monotonic(), 0.5)

    def _spawn_background_task(self, work: Coroutine[object, object, object], name: str) -> None:
        task = asyncio.create_task(work, name=name)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
