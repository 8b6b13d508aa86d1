"""The HTTP side under Ray Serve: the same app, whose drafts come from replicas in other processes."""

from __future__ import annotations

import asyncio
import logging
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from ray.exceptions import ObjectStoreFullError, RayError, RayTaskError, TaskCancelledError
from ray.serve.exceptions import DeploymentUnavailableError, ReplicaUnavailableError
from ray.serve.handle import DeploymentHandle
from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from model.types import Draft, DraftOptions, EventCallback
from service.app import create_app
from service.inference.admission import AdmissionLimiter, BusyError
from service.inference.backend import ClosedError, FieldError, OutOfMemoryError, RemoteDraft
from service.inference.runtime import QUEUE_CUTOFF_S, Runtime, ServingState
from service.metrics import Metrics
from service.ray_app.replica import Description, Failure, ModelReplica
from service.settings import Settings
from service.web.middleware import REQUEST_ID_HEADER as REQUEST_ID
from service.web.problems import STOPPING, Problem, format_traceback_locations, stopping

log = logging.getLogger(__name__)
ATTEMPTS = 2
POLL_INTERVAL_S, POLL_TIMEOUT_S = 1.0, 10.0
STALE_AFTER_S = 60.0  # without a word of any replica, at most, before the service calls itself not ready
NO_REPLICA_READY = "No replica of the model is up yet; Ray Serve starts them. Try again in a few seconds."
REPLICA_LOST_ERRORS = (RayError, ReplicaUnavailableError, DeploymentUnavailableError)  # not all of them: see _is_lost
Replicas = DeploymentHandle[ModelReplica]


class RayBackend:
    """Drafts by replicas: ``service.inference.backend.Backend`` over a handle. Made and used on the event loop."""

    def __init__(self, replicas: Replicas, capacity: int, metrics: Metrics) -> None:
        self.stalled_s = 0.0  # a replica watches its own device
        self.waiting = 0  # in the replicas, by their last word
        self.answered = 0.0  # when a replica last did, by time.monotonic
        self._replicas, self._metrics = replicas, metrics
        self.admission = AdmissionLimiter(capacity)
        self._refusal: asyncio.Future[str] = asyncio.get_running_loop().create_future()

    async def draft(
        self, images: dict[str, bytes], options: DraftOptions, listener: EventCallback | None = None
    ) -> Draft:
        """See ``Backend``. A draft whose replica is lost is asked of another, once. The listener is told nothing early.

        Raises:
            Problem: 503 ``replica_lost``; 500 where a replica failed in a way that nobody foresaw.
        """
        if self._refusal.done():
            raise ClosedError(self._refusal.result())
        asking = asyncio.ensure_future(self._ask(images, options))
        try:
            either: set[asyncio.Future[Any]] = {asking, self._refusal}
            await asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED)
            if not asking.done():
                raise ClosedError(self._refusal.result())
            return asking.result()
        finally:
            asking.cancel()

    async def drain(self, timeout_s: float) -> None:
        """See ``Backend``."""
        await self.admission.wait_idle(time.monotonic() + timeout_s)

    def refuse_waiting(self, reason: str) -> int:
        """Take no more, and answer all that have no draft yet with ``ClosedError``; how many those were."""
        if not self._refusal.done():
            self._refusal.set_result(reason)
        return self.admission.in_use

    def close(self, timeout_s: float = 0.0) -> None:
        """Nothing to do: the replicas are Ray's."""

    async def _ask(self, images: Mapping[str, bytes], options: DraftOptions) -> Draft:
        for attempt in range(1, ATTEMPTS + 1):
            if attempt > 1:
                self._metrics.retries.inc()
            try:
                result = await self._call(images, options)
            except ObjectStoreFullError as error:
                raise OutOfMemoryError("the shared memory is full") from error
            except REPLICA_LOST_ERRORS as error:
                if not _is_lost(error):
                    raise
                log.warning("attempt %d of %d: the replica was lost (%s)", attempt, ATTEMPTS, type(error).__name__)
                continue
            self.answered = time.monotonic()
            if isinstance(result, RemoteDraft):
                return result
            if result.kind != "gone":
                raise _as_error(result)
            log.warning("attempt %d of %d: the replica gives up: %s", attempt, ATTEMPTS, result.detail)
        raise Problem(
            "replica_lost",
            "The process that drafted this study was lost, and so was the one after it. Try again in a moment.",
            headers={"Retry-After": "5"},
        )

    async def _call(self, images: Mapping[str, bytes], options: DraftOptions) -> RemoteDraft | Failure:
        response = self._replicas.draft.remote(dict(images), options)
        try:
            result: RemoteDraft | Failure = await response
        except asyncio.CancelledError:  # deadline, client gone, stop: nobody computes for nobody
            response.cancel()  # type: ignore[no-untyped-call]
            raise
        return result


def _is_lost(error: Exception) -> bool:
    """Whether the replica or what it said is gone, as against an error of its code or a call that was taken back."""
    return not isinstance(error, RayTaskError | TaskCancelledError)


def _as_error(failure: Failure) -> Exception:
    match failure.kind:
        case "image":
            return FieldError(failure.field, failure.code, failure.detail)
        case "memory":
            return OutOfMemoryError(failure.detail)
        case "busy":
            return BusyError(failure.detail)
        case _:
            return RuntimeError(f"a replica failed with {failure.detail}; its log says where")


class RayRuntime(Runtime):
    """Knows the replicas instead of a model: ready while at least one is."""

    def __init__(self, settings: Settings, replicas: Replicas, capacity: int) -> None:
        super().__init__(settings)
        self.reason = NO_REPLICA_READY
        self._replicas, self._capacity = replicas, capacity
        self._backend: RayBackend | None = None
        self._heard = 0.0
        self._last: tuple[Counter[str], str] | None = None
        self.metrics.watch(
            ready=lambda: self.state == "ready",
            waiting=lambda: self._backend.waiting if self._backend else 0,
            in_use=lambda: self._backend.admission.in_use if self._backend else 0,
            capacity=lambda: capacity,
        )

    def serving(self) -> ServingState:
        """See ``Runtime``.

        Raises:
            Problem: 503, while no replica is up and once the service stops.
        """
        if self._drain_deadline is not None:
            raise stopping()
        return super().serving()

    def start(self) -> None:
        """Begin to follow the replicas; called on the event loop, returns at once."""
        self._backend = RayBackend(self._replicas, self._capacity, self.metrics)
        self._spawn_background_task(self._follow(self._backend), "follow-replicas")

    async def reload(self) -> ServingState:
        """Not here: replicas that swap one by one would answer with two bundles, and a new one would not know which.

        Raises:
            Problem: 409, with what to do instead.
        """
        self.serving()
        self.metrics.reloads.labels("refused").inc()
        raise Problem(
            "reload_refused",
            "Replicas are not swapped in place. Deploy the new bundle under another path with serve deploy, which "
            "replaces them one by one, or restart python -m service.ray_app.",
        )

    async def finish(self) -> None:
        """Take no more and answer all that is in the house within ``drain_timeout_s``."""
        self._drain_deadline = time.monotonic() + self.settings.drain_timeout_s
        if self._backend is None:
            return
        timeout_s = self.settings.drain_timeout_s
        await self._backend.drain(max(timeout_s - QUEUE_CUTOFF_S, timeout_s / 2))
        if count := self._backend.refuse_waiting(STOPPING):
            log.warning("stopping: %d requests without a draft were refused", count)
        await self._backend.drain(QUEUE_CUTOFF_S)

    async def _follow(self, backend: RayBackend) -> None:
        while True:
            try:
                asked = self._replicas.broadcast("describe")
                heard = await asked.results_async(timeout_s=POLL_TIMEOUT_S, return_exceptions=True)
                self._learn(backend, [one for one in heard if isinstance(one, Description)])
            except DeploymentUnavailableError:
                self._learn(backend, [])
            except TimeoutError:  # one that does not answer keeps the others' answers back: drafts tell as well
                if time.monotonic() - max(self._heard, backend.answered) > STALE_AFTER_S:
                    self._learn(backend, [])
            except Exception as error:
                log.error(
                    "the replicas cannot be asked: %s\n%s", type(error).__name__, format_traceback_locations(error)
                )
            await asyncio.sleep(POLL_INTERVAL_S)

    def _learn(self, backend: RayBackend, replicas: Sequence[Description]) -> None:
        """Take the replicas' word for what is served; of several bundles the one that most of them serve."""
        if not replicas:
            if self._serving is not None:
                log.error("no replica is up")
            self._serving, self.state, self.reason, self._last = None, "loading", NO_REPLICA_READY, None
            return
        self._heard = time.monotonic()
        backend.waiting = sum(replica.waiting for replica in replicas)
        digests = Counter(replica.model.digest for replica in replicas)
        digest = digests.most_common(1)[0][0]
        chosen = next(replica for replica in replicas if replica.model.digest == digest)
        devices = ",".join(sorted({replica.device for replica in replicas}))
        if (digests, devices) != self._last:
            counts = ", ".join(f"{count} with {digest[:12]}" for digest, count in digests.items())
            log.info("bundle %s on %s; replicas: %s", chosen.model.name, devices, counts)
            self.metrics.serve(chosen.model.name, digest, devices)
        self._last = digests, devices
        self._serving = ServingState(backend, chosen.model, devices, chosen)
        self.state = "ready"


class _WithoutEcho:
    """Middleware: Ray Serve's proxy sends a request's id back itself; where the app took it over, once is enough."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def without_echo(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                if headers.get(REQUEST_ID) == Headers(scope=scope).get(REQUEST_ID):
                    del headers[REQUEST_ID]
            await send(message)

        await self.app(scope, receive, without_echo if scope["type"] == "http" else send)


class Ingress:
    """The app as a Ray Serve deployment; ``serve.ingress()`` wraps it."""

    def __init__(self, replicas: Replicas, settings: Settings, capacity: int) -> None:
        """Keep what the app is made of.

        Args:
            replicas: handle of the deployment of ``ModelReplica``.
            settings: of the service.
            capacity: limit on concurrent requests, over all replicas.
        """
        self._replicas, self._settings, self._capacity = replicas, settings, capacity
        self._runtime: RayRuntime | None = None

    def __serve_build_asgi_app__(self) -> ASGIApp:
        def make_runtime(settings: Settings) -> RayRuntime:
            self._runtime = RayRuntime(settings, self._replicas, self._capacity)
            return self._runtime

        return _WithoutEcho(create_app(self._settings, make_runtime))

    async def finish(self) -> None:
        """Answer what is in the house, take no more; called before Ray Serve is shut down."""
        if self._runtime is not None:
            await self._runtime.finish()
