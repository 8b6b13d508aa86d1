"""Prometheus metrics at ``/metrics``: counts, durations and states, without any patient data.

Label values come from fixed sets (routes, statuses, problem codes, stages); no client input becomes a label.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    PlatformCollector,
    ProcessCollector,
    generate_latest,
)
from prometheus_client.exposition import CONTENT_TYPE_LATEST
from starlette.responses import Response

_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 20.0, 30.0, 60.0)
_BATCHES = (1, 2, 3, 4, 6, 8, 12, 16, 32, 64)


class Metrics:
    """The metrics of one app, in a separate registry."""

    def __init__(self) -> None:
        self.registry = registry = CollectorRegistry()
        ProcessCollector(registry=registry)
        PlatformCollector(registry=registry)
        self.requests = Counter(
            "report_requests", "Responses, by route and status.", ("route", "status"), registry=registry
        )
        self.refusals = Counter("report_refusals", "Refused requests, by problem code.", ("cause",), registry=registry)
        self.abandoned = Counter(
            "report_abandoned", "Requests whose client disconnected before the response.", registry=registry
        )
        self.stage_seconds = Histogram(
            "report_stage_seconds", "Duration of each stage of POST /report, in seconds.", ("stage",), buckets=_SECONDS,
            registry=registry,
        )  # fmt: skip
        self.queue_seconds = Histogram(
            "report_queue_seconds",
            "Time that a study waited in the queue, in seconds.",
            buckets=_SECONDS,
            registry=registry,
        )
        self.batch_size = Histogram("report_batch_size", "Studies in a batch.", buckets=_BATCHES, registry=registry)
        self.failed_batches = Counter(
            "report_failed_batches", "Failed batches, by cause: error, memory, device.", ("cause",), registry=registry
        )
        self.retries = Counter(
            "report_retries", "Drafts repeated on another replica because the first one was lost.", registry=registry
        )
        self.reloads = Counter(
            "report_reloads", "Bundle swaps, by result: done, refused.", ("result",), registry=registry
        )
        self.refined = Counter(
            "report_refined",
            "Requested rewrites, by result: done, failed, skipped, off.",
            ("result",),
            registry=registry,
        )
        for result in ("done", "failed", "skipped", "off"):
            self.refined.labels(result)
        for result in ("done", "refused"):  # a series must exist before its first increase
            self.reloads.labels(result)
        for cause in ("error", "memory", "device"):
            self.failed_batches.labels(cause)
        self._ready = Gauge("report_ready", "1 if a model is loaded and warm.", registry=registry)
        self._waiting = Gauge("report_queue_depth", "Studies in the queue.", registry=registry)
        self._slots_in_use = [
            Gauge("report_slots_in_use", "In-flight requests of POST /report.", registry=registry),
            Gauge("report_places_taken", "Deprecated name of report_slots_in_use.", registry=registry),
        ]
        self._slots = [
            Gauge("report_slots", "Limit on in-flight requests of POST /report.", registry=registry),
            Gauge("report_places", "Deprecated name of report_slots.", registry=registry),
        ]
        self._bundle = Gauge(
            "report_bundle_info", "The served bundle; the value is always 1.", ("name", "digest", "device"),
            registry=registry,
        )  # fmt: skip

    def watch(
        self, *, ready: Callable[[], bool], waiting: Callable[[], int], in_use: Callable[[], int],
        capacity: Callable[[], int],
    ) -> None:  # fmt: skip
        """Read these states on every scrape."""
        for gauge, read in (
            (self._ready, ready),
            (self._waiting, waiting),
            *((gauge, in_use) for gauge in self._slots_in_use),
            *((gauge, capacity) for gauge in self._slots),
        ):
            gauge.set_function(lambda read=read: float(read()))  # type: ignore[misc]

    def serve(self, name: str, digest: str, device: str) -> None:
        """Record which bundle is served."""
        self._bundle.clear()
        self._bundle.labels(name, digest, device).set(1)

    def drafted(self, timings_ms: Mapping[str, float]) -> None:
        """Record the stage durations of one request."""
        for stage, ms in timings_ms.items():
            self.stage_seconds.labels(stage).observe(ms / 1000)

    def response(self) -> Response:
        """All metrics in the Prometheus text format."""
        return Response(generate_latest(self.registry), media_type=CONTENT_TYPE_LATEST)
