"""Prometheus metrics at ``/metrics``: counts, durations and states, without any patient data.

Label values come from fixed sets (routes, statuses, problem codes, stages); no client input becomes a label.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial

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
        counter, gauge = partial(Counter, registry=registry), partial(Gauge, registry=registry)
        seconds = partial(Histogram, buckets=_SECONDS, registry=registry)
        self.requests = counter("report_requests", "Responses, by route and status.", ("route", "status"))
        self.refusals = counter("report_refusals", "Refused requests, by problem code.", ("cause",))
        self.abandoned = counter("report_abandoned", "Requests whose client disconnected before the response.")
        self.stage_seconds = seconds(
            "report_stage_seconds", "Duration of each stage of POST /report, in seconds.", ("stage",)
        )
        self.queue_seconds = seconds("report_queue_seconds", "Time that a study waited in the queue, in seconds.")
        self.batch_size = Histogram("report_batch_size", "Studies in a batch.", buckets=_BATCHES, registry=registry)
        self.failed_batches = counter(
            "report_failed_batches", "Failed batches, by cause: error, memory, device.", ("cause",)
        )
        self.retries = counter("report_retries", "Drafts repeated on another replica because the first one was lost.")
        self.reloads = counter("report_reloads", "Bundle swaps, by result: done, refused.", ("result",))
        self.refined = counter(
            "report_refined", "Requested rewrites, by result: done, failed, skipped, off.", ("result",)
        )
        for series, values in (
            (self.refined, ("done", "failed", "skipped", "off")),
            (self.reloads, ("done", "refused")),
            (self.failed_batches, ("error", "memory", "device")),
        ):
            for value in values:  # a series must exist before its first increase
                series.labels(value)
        self._ready = gauge("report_ready", "1 if a model is loaded and warm.")
        self._waiting = gauge("report_queue_depth", "Studies in the queue.")
        self._slots_in_use = [
            gauge("report_slots_in_use", "In-flight requests of POST /report."),
            gauge("report_places_taken", "Deprecated name of report_slots_in_use."),
        ]
        self._slots = [
            gauge("report_slots", "Limit on in-flight requests of POST /report."),
            gauge("report_places", "Deprecated name of report_slots."),
        ]
        self._bundle = gauge(
            "report_bundle_info", "The served bundle; the value is always 1.", ("name", "digest", "device")
        )

    def watch(
        self,
        ready: Callable[[], bool],
        waiting: Callable[[], int],
        in_use: Callable[[], int],
        capacity: Callable[[], int],
    ) -> None:
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
