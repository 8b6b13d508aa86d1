"""The life of the service: load in the background, warm up, serve, swap bundles, drain."""

from __future__ import annotations

import asyncio
import logging
import signal
import time
from collections.abc import Coroutine, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import Literal, Protocol

from model.images.read import ImageLimits
from retrieval_index.user_cases import AddedCasesError
from service.cases.store import Casebook
from service.inference.admission import BusyError
from service.inference.backend import Backend
from service.inference.engine import Engine
from service.inference.loader import Loaded, LoadError, load
from service.inference.threads import in_a_passing_thread
from service.metrics import Metrics
from service.routes.responses import model_info
from service.schemas.models import ModelInfo
from service.settings import Settings
from service.web.problems import STOPPING, Problem, places
from service.web.shutdown import End

log = logging.getLogger(__name__)
LAST_WORDS_S = 4.0  # of the drain: what still waits is answered, what is sent or computed goes on
END_S = 2.5  # of the drain: whatever is not answered is; clients that are still sending have the rest to read it
_BATCH = {"cpu": 1, "cuda": 8}  # unless the settings say otherwise, which tell why


class Holdings(Protocol):
    """The reference cases by now. ``service.inference.loader.Loaded`` is one."""

    @property
    def cases(self) -> int | None:
        """How many there are; None without retrieval."""

    @property
    def texts(self) -> bool:
        """Whether any of them holds its text."""


@dataclass(frozen=True)
class Ready:
    """All that answering needs."""

    backend: Backend
    model: ModelInfo
    device: str
    holdings: Holdings

    @contextmanager
    def place(self) -> Iterator[None]:
        """Hold a place in the house from before the body is read until the answer is made.

        Raises:
            Problem: ``busy``, 503; none is free, here or in the replica that was asked.
        """
        with place(self.backend.place()):
            yield


@contextmanager
def place(held: AbstractContextManager[None]) -> Iterator[None]:
    """Hold a place for as long as the context lasts.

    Args:
        held: ``place`` of a backend, or ``Places.hold``.

    Raises:
        Problem: ``busy``, 503; none is free, or what is done meanwhile says so.
    """
    try:
        with held:
            yield
    except BusyError as error:
        raise busy(error) from error


def busy(error: BusyError) -> Problem:
    """The problem of a house without a free place."""
    return Problem("busy", f"Try again in a moment: {error}.", headers={"Retry-After": str(error.retry_after_s)})


class Runtime:
    """Holds the model from start to stop.

    Attributes:
        settings: of the service.
        state: loading, then ready; failed for a ``reason`` where nothing could be loaded or the device was lost.
        broken: whether it failed after it had been ready.
        casebook: the reference cases, to look up and to change.
        metrics: of the app.
        end: comes shortly before the drain is over.
    """

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.state: Literal["loading", "ready", "failed"] = "loading"
        self.reason = "The model is being loaded; try again in a few seconds."
        self.broken = False
        self.metrics = Metrics()
        self.end = End()
        self._limits = ImageLimits(max_pixels=settings.max_pixels)
        self.casebook = Casebook(settings.cases_dir, self._limits)
        self.metrics.watch(
            ready=lambda: self.state == "ready",
            waiting=lambda: self._ready.backend.waiting if self._ready else 0,
            taken=lambda: self._ready.backend.depth if self._ready else 0,
            places=lambda: settings.queue_size,
        )
        self._ready: Ready | None = None
        self._retired: list[Backend] = []
        self._tasks: set[asyncio.Task[object]] = set()
        self._loading: asyncio.Task[None] | None = None
        self._swapping = asyncio.Lock()
        self._ends_at: float | None = None  # of time.monotonic, once it is told to stop

    def ready(self) -> Ready:
        """What is served.

        Raises:
            Problem: 503, while loading and where loading failed or the device was lost.
        """
        if self.state == "failed":
            raise Problem("failed", self.reason)
        if self._ready is not None:
            return self._ready
        raise Problem("loading", self.reason, headers={"Retry-After": "5"})

    def start(self) -> None:
        """Begin to load; called on the event loop, returns at once."""
        self._loading = asyncio.create_task(self._load_first(), name="load-bundle")
        self._keep(self._watch(), "watch")
        try:
            asyncio.get_running_loop().add_signal_handler(
                signal.SIGHUP, lambda: self._keep(self._reload_for_signal(), "reload")
            )
        except (AttributeError, NotImplementedError, RuntimeError, ValueError):
            log.debug("SIGHUP does not swap the bundle here")  # not the main thread, or not POSIX

    async def stop(self) -> None:
        """Finish the drafts under way and let the model go, within what is left of ``drain_timeout_s``."""
        self._ends_at = self._ends_at or time.monotonic() + self.settings.drain_timeout_s
        if self._loading is not None:
            await asyncio.wait({self._loading}, timeout=self._left_s())
            self._loading.cancel()  # the thread is left behind
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        for backend in (*self._retired, *((self._ready.backend,) if self._ready is not None else ())):
            await asyncio.to_thread(backend.close, self._left_s())
        await asyncio.to_thread(self.casebook.close)
        self._ready = None

    def drain(self) -> None:
        """On SIGTERM: see that everybody is answered before ``drain_timeout_s`` is over. Called on the event loop."""
        if self._ends_at is None:
            self._ends_at = time.monotonic() + self.settings.drain_timeout_s
            log.info("stopping: requests in the house are answered within %g s", self.settings.drain_timeout_s)
            self._keep(self._refuse_late(), "drain")

    async def reload(self) -> Ready:
        """Load the bundle anew and serve it in the place of the present one, which finishes what it began.

        Both are in memory for that time. Where the new one cannot be loaded nothing changes.

        Returns:
            What is served from now on.

        Raises:
            Problem: 409, with what was wrong; 503 while the first bundle is being loaded, or is failed.
        """
        self.ready()
        if self._swapping.locked():
            raise Problem("reload_refused", "Another swap is under way; wait until it is done.")
        async with self._swapping:
            try:
                new = await self._load()
            except LoadError as error:
                self.metrics.reloads.labels("refused").inc()
                log.error("the bundle is not swapped: %s", error)
                raise Problem("reload_refused", f"The present bundle goes on serving: {error}") from error
            try:
                old = self.ready()
            except Problem:  # the device was lost meanwhile
                new.backend.close()
                raise
            self._ready = new
            self.metrics.reloads.labels("done").inc()
            self._keep(self._retire(old.backend), "retire")
            return new

    # -- inside ------------------------------------------------------------------------------------------------------

    async def _load_first(self) -> None:
        try:
            self._ready = await self._load()
            self.state = "ready"
        except LoadError as error:
            self._fail(str(error))

    async def _load(self) -> Ready:
        """Load, warm up, start an engine.

        Raises:
            LoadError: whatever went wrong, in words that quote nothing unforeseen.
        """
        began = time.perf_counter()
        settings, loop = self.settings, asyncio.get_running_loop()

        def on_broken(reason: str) -> None:
            loop.call_soon_threadsafe(self._lose_device, reason)

        try:
            loaded = await in_a_passing_thread(self._load_and_warm_up)
        except LoadError:
            raise
        except Exception as error:
            log.critical("loading failed with %s\n%s", type(error).__name__, places(error))
            raise LoadError(f"loading failed with {type(error).__name__}; the service log says where") from error
        engine = Engine(
            loaded.drafters,
            capacity=settings.queue_size,
            max_batch_size=settings.max_batch_size or _BATCH[loaded.drafter.device.type],
            max_wait_ms=settings.max_wait_ms,
            decode_threads=settings.decode_threads,
            limits=self._limits,
            metrics=self.metrics,
            on_broken=on_broken,
        )
        model = model_info(loaded)
        self.metrics.serve(model.name, model.digest, loaded.device)
        log.info(
            "ready after %.1f s: bundle %s (%s) on %s, %s reference cases, texts %s",
            time.perf_counter() - began,
            model.name,
            model.digest[:12],
            loaded.device,
            "no" if loaded.cases is None else loaded.cases,
            "available" if loaded.texts else "not available",
        )
        return Ready(engine, model, loaded.device, loaded)

    def _load_and_warm_up(self) -> Loaded:
        try:
            self.casebook.open()
        except AddedCasesError as error:
            raise LoadError(f"REPORT_CASES_DIR: {error}") from error
        loaded = load(self.settings)
        if self.settings.warm_up:
            loaded.warm_up()
        self.casebook.serve(loaded)
        return loaded

    async def _retire(self, backend: Backend) -> None:
        self._retired.append(backend)
        await backend.drain(self.settings.upload_timeout_s + self.settings.request_timeout_s)
        self._retired.remove(backend)

    async def _reload_for_signal(self) -> None:
        try:
            await self.reload()
        except Problem as problem:
            log.error("SIGHUP: %s", problem.detail)

    async def _refuse_late(self) -> None:
        whole = self.settings.drain_timeout_s
        waiting, all_ = max(whole - LAST_WORDS_S, whole / 2), max(whole - END_S, whole * 3 / 4)
        await asyncio.sleep(waiting)
        backends = (*self._retired, *((self._ready.backend,) if self._ready is not None else ()))
        if count := sum(backend.refuse_waiting(STOPPING) for backend in backends):
            log.warning("stopping: %d requests that still waited were refused", count)
        await asyncio.sleep(all_ - waiting)
        if count := self.end.come():
            log.warning("stopping: %d requests that were still sent or computed were given up", count)

    def _left_s(self) -> float:
        return max((self._ends_at or 0.0) - time.monotonic(), 0.5)

    async def _watch(self) -> None:
        """Give up where a device does not end its batch, or a decoder its image."""
        most = self.settings.stall_timeout_s
        while most:
            await asyncio.sleep(min(most / 4, 5.0))
            if self._ready is not None and self._ready.backend.stalled_s > most:
                self._lose_device(f"A batch, or the decoding of an image, has not ended for {most:g} s "
                                  "(REPORT_STALL_TIMEOUT_S); the service must be restarted")  # fmt: skip
                return

    def _lose_device(self, reason: str) -> None:
        self.broken = True
        self._fail(reason)
        if self._ready is not None:
            self._ready.backend.refuse_waiting(reason)

    def _fail(self, reason: str) -> None:
        self.reason, self.state = reason, "failed"
        log.critical("cannot serve: %s", reason)

    def _keep(self, work: Coroutine[object, object, object], name: str) -> None:
        task = asyncio.create_task(work, name=name)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
