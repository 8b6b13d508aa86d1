"""The life of the service: load in the background, warm up, serve, drain."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Literal

from model.images import ImageLimits
from service.answers import model_info
from service.bundles import Loaded, LoadError, load
from service.engine import Engine
from service.problems import Problem, places
from service.schemas import ModelInfo
from service.settings import Settings

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Ready:
    """All that answering needs."""

    loaded: Loaded
    engine: Engine
    model: ModelInfo


class Runtime:
    """Holds the model from start to stop. ``state``: loading, then ready, or failed for a ``reason``."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.state: Literal["loading", "ready", "failed"] = "loading"
        self.reason = "The model is being loaded; try again in a few seconds."
        self._ready: Ready | None = None
        self._loading: asyncio.Task[None] | None = None

    def ready(self) -> Ready:
        """What is served.

        Raises:
            Problem: 503, while loading and where loading failed.
        """
        if self._ready is not None:
            return self._ready
        if self.state == "failed":
            raise Problem("failed", self.reason)
        raise Problem("loading", self.reason, headers={"Retry-After": "5"})

    def start(self) -> None:
        """Begin to load; called on the event loop, returns at once."""
        self._loading = asyncio.create_task(self._load(), name="load-bundle")

    async def stop(self) -> None:
        """Finish the drafts under way and let the model go."""
        if self._loading is not None:
            await self._loading
        if self._ready is not None:
            await asyncio.to_thread(self._ready.engine.close)
        self._ready = None

    async def _load(self) -> None:
        began = time.perf_counter()
        try:
            loaded = await self._in_a_passing_thread(self._load_and_warm_up)
        except LoadError as error:
            self._fail(str(error))
        except Exception as error:
            log.critical("loading failed with %s\n%s", type(error).__name__, places(error))
            self._fail(f"loading failed with {type(error).__name__}; the service log says where")
        else:
            engine = Engine(
                [loaded.drafter],
                capacity=self.settings.queue_size,
                decode_threads=self.settings.decode_threads,
                limits=ImageLimits(max_pixels=self.settings.max_pixels),
            )
            self._ready = Ready(loaded, engine, model_info(loaded))
            self.state = "ready"
            log.info(
                "ready after %.1f s: bundle %s (%s) on %s, %s reference cases, texts %s",
                time.perf_counter() - began,
                loaded.bundle.config.name,
                loaded.bundle.digest[:12],
                loaded.device,
                "no" if loaded.cases is None else loaded.cases,
                "available" if loaded.texts else "not available",
            )

    @staticmethod
    async def _in_a_passing_thread(call: Callable[[], Loaded]) -> Loaded:
        """Run ``call`` in a thread that is gone before the engine's begin.

        Every thread that computes keeps a team of OpenMP threads for as long as it lives. Where these outnumber the
        cores, OpenMP puts them to sleep between two operators instead of letting them spin, and each operator waits for
        them to wake.
        """
        with ThreadPoolExecutor(1, thread_name_prefix="load") as loader:
            return await asyncio.get_running_loop().run_in_executor(loader, call)

    def _load_and_warm_up(self) -> Loaded:
        loaded = load(self.settings)
        if self.settings.warm_up:
            loaded.warm_up()
        return loaded

    def _fail(self, reason: str) -> None:
        self.reason, self.state = reason, "failed"
        log.critical("cannot serve: %s", reason)
