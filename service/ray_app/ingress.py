"""The HTTP ingress on Ray Serve: the same app, with replicas in other processes as its backend."""

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
from service.inference.admission import BusyError
from service.inference.backend import ClosedError, FieldError, OutOfMemoryError, RemoteDraft
from service.inference.runtime import QUEUE_CUTOFF_S, Runtime, ServingState
from service.metrics import Metrics
from service.ray_app.replica import Description, Failure, ModelReplica
from service.settings import Settings
from service.web.middleware import REQUEST_ID_HEADER as REQUEST_ID
from service.web.problems import STOPPING, Problem, format_traceback_locations, stopping

log = logging.getLogger(__name__)
ATTEMPTS = 2
POLL_INTERVAL_S, POLL_TIMEOUT_S = 1.0, 10.0  # of the state of the replicas
STALE_AFTER_S = 60.0  # without a response from any replica the service reports not ready
NO_REPLICA_READY = "No replica of the model is ready yet; Ray Serve starts them. Try again in a few seconds."
REPLICA_ERRORS = (RayError, ReplicaUnavailableError, DeploymentUnavailableError)  # see _is_lost
Replicas = DeploymentHandle[ModelReplica]


class RayBackend:
    """A ``service.inference.backend.Backend`` that sends studies to replicas. Created and used on the event loop."""

    def __init__(self, replicas: Replicas, metrics: Metrics) -> None:
        self.stalled_s = self.seconds_per_study = 0.0  # replicas watch and measure their devices
        self.waiting = 0  # in the queues of the replicas, at the last poll
        self.last_response = 0.0  # time.monotonic of the last response of a replica
        self._replicas, self._metrics = replicas, metrics
        self._drafting = 0  # running calls of draft
        self._refusal: asyncio.Future[str] = asyncio.get_running_loop().create_future()

    async def draft(
        self, images: dict[str, bytes], options: DraftOptions, on_event: EventCallback | None = None
    ) -> Draft:
        """See ``Backend``. If a replica is lost, another one drafts the study, once. ``on_event`` is not called.

        Raises:
            Problem: 503 ``replica_lost``.
            RuntimeError: a replica failed unexpectedly.
        """
        if self._refusal.done():
            raise ClosedError(self._refusal.result())
        request = asyncio.ensure_future(self._draft_with_retry(images, options))
        self._drafting += 1
        try:
            either: set[asyncio.Future[Any]] = {request, self._refusal}
            await asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED)
            if not request.done():
                raise ClosedError(self._refusal.result())
            return request.result()
        finally:
            self._drafting -= 1
            request.cancel()

    async def drain(self, timeout_s: float) -> None:
        """Do nothing: the backend is never swapped."""

    def refuse_waiting(self, reason: str) -> int:
        """Accept no more studies and fail those without a draft with ``ClosedError``; returns their number."""
        if not self._refusal.done():
            self._refusal.set_result(reason)
        return self._drafting

    def close(self, timeout_s: float = 0.0) -> None:
        """Do nothing: Ray stops the replicas."""

    async def _draft_with_retry(self, images: Mapping[str, bytes], options: DraftOptions) -> Draft:
        for attempt in range(1, ATTEMPTS + 1):
            if attempt > 1:
                self._metrics.retries.inc()
            try:
                result = await self._call(images, options)
            except ObjectStoreFullError as error:
                raise OutOfMemoryError("the shared memory is full") from error
            except REPLICA_ERRORS as error:
                if not _is_lost(error):
                    raise
                log.warning("attempt %d of %d: the replica was lost (%s)", attempt, ATTEMPTS, type(error).__name__)
                continue
            self.last_response = time.monotonic()
            if isinstance(result, RemoteDraft):
                return result
            if result.kind != "gone":
                raise _as_error(result)
            log.warning(
                "attempt %d of %d: the replica is stopping or lost its device: %s", attempt, ATTEMPTS, result.detail
            )
        raise Problem(
            "replica_lost",
            "The process that drafted this study was lost, and so was its replacement. Try again in a moment.",
            headers={"Retry-After": "5"},
        )

    async def _call(self, images: Mapping[str, bytes], options: DraftOptions) -> RemoteDraft | Failure:
        response = self._replicas.draft.remote(dict(images), options)
        try:
            result: RemoteDraft | Failure = await response
        except asyncio.CancelledError:  # deadline, disconnected client or stop: the replica need not finish
            response.cancel()  # type: ignore[no-untyped-call]
            raise
        return result


def _is_lost(error: Exception) -> bool:
    """Whether the replica or its result is lost; an error of its code or a cancelled call is not a loss."""
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
            return RuntimeError(f"a replica failed with {failure.detail}; see its log")


class RayRuntime(Runtime):
    """A runtime without a model: ready while at least one replica is."""

    def __init__(self, settings: Settings, replicas: Replicas, capacity: int) -> None:
        super().__init__(settings, capacity)
        self.reason = NO_REPLICA_READY
        self._replicas = replicas
        self._backend: RayBackend | None = None
        self._last_description = 0.0
        self._last: tuple[Counter[str], str] | None = None

    def check_accepting(self) -> None:
        """See ``Runtime``.

        Raises:
            Problem: 503 while no replica is ready, or if the service is stopping.
        """
        if self._drain_deadline is not None:
            raise stopping()
        super().check_accepting()

    def start(self) -> None:
        """Start to poll the replicas; returns at once."""
        self._backend = RayBackend(self._replicas, self.metrics)
        self._spawn_background_task(self._poll(self._backend), "poll-replicas")

    async def reload(self) -> ServingState:
        """Refuse: replicas that swap one by one would serve two bundles, and a restarted one could load either.

        Raises:
            Problem: 409 with the alternative.
        """
        self.serving()
        self.metrics.reloads.labels("refused").inc()
        raise Problem(
            "reload_refused",
            "Replicas are not swapped in place. Deploy the new bundle under another path with serve deploy, which "
            "replaces them one by one, or restart python -m service.ray_app.",
        )

    async def finish(self) -> None:
        """Drain: finish or refuse all in-flight requests within ``drain_timeout_s``."""
        self._drain_deadline = time.monotonic() + self.settings.drain_timeout_s
        if self._backend is None:
            return
        timeout_s = self.settings.drain_timeout_s
        await self.admission.wait_idle(max(timeout_s - QUEUE_CUTOFF_S, timeout_s / 2))
        if count := self._backend.refuse_waiting(STOPPING):
            log.warning("stopping: %d requests without a draft were refused", count)
        await self.admission.wait_idle(QUEUE_CUTOFF_S)
        await self.decoder.close()

    def _current_backend(self) -> RayBackend | None:
        return self._backend

    async def _poll(self, backend: RayBackend) -> None:
        while True:
            try:
                responses = self._replicas.broadcast("describe")
                results = await responses.results_async(timeout_s=POLL_TIMEOUT_S, return_exceptions=True)
                self._update(backend, [result for result in results if isinstance(result, Description)])
            except DeploymentUnavailableError:
                self._update(backend, [])
            except TimeoutError:  # one slow replica delays all results, so drafts count as a sign of life too
                if time.monotonic() - max(self._last_description, backend.last_response) > STALE_AFTER_S:
                    self._update(backend, [])
            except Exception as error:
                log.error(
                    "the replicas cannot be polled: %s\n%s", type(error).__name__, format_traceback_locations(error)
                )
            await asyncio.sleep(POLL_INTERVAL_S)

    def _update(self, backend: RayBackend, replicas: Sequence[Description]) -> None:
        """Update the serving state; if the replicas serve several bundles, the most common one is described."""
        if not replicas:
            if self._serving is not None:
                log.error("no replica is ready")
            self._serving, self.state, self.reason, self._last = None, "loading", NO_REPLICA_READY, None
            return
        self._last_description = time.monotonic()
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


class _RequestIdDeduplicator:
    """Middleware that removes the request id header if Ray Serve's proxy adds the same one."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def send_without_duplicate(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                if headers.get(REQUEST_ID) == Headers(scope=scope).get(REQUEST_ID):
                    del headers[REQUEST_ID]
            await send(message)

        await self.app(scope, receive, send_without_duplicate if scope["type"] == "http" else send)


class Ingress:
    """The app as a Ray Serve deployment; ``serve.ingress()`` wraps it."""

    def __init__(self, replicas: Replicas, settings: Settings, capacity: int) -> None:
        """Store the parts of the app.

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

        return _RequestIdDeduplicator(create_app(self._settings, make_runtime))

    async def finish(self) -> None:
        """Drain in-flight requests; called before Ray Serve is shut down."""
        if self._runtime is not None:
            await self._runtime.finish()
