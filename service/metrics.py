"""What Prometheus is told at ``/metrics``: counts, times and states, none of them about a patient.

Label values come from short fixed sets (routes, statuses, problem codes, stages); nothing that a client sends becomes
one.
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
    """The metrics of one app, in a registry of their own."""

    def __init__(self) -> None:
        self.registry = registry = CollectorRegistry()
        ProcessCollector(registry=registry)
        PlatformCollector(registry=registry)
        self.requests = Counter("report_requests", "Requests answered.", ("route", "status"), registry=registry)
        self.refusals = Counter("report_refusals", "Requests refused, by problem code.", ("cause",), registry=registry)
        self.abandoned = Counter("report_abandoned", "Requests whose client left before the answer.", registry=registry)
        self.stage_seconds = Histogram(
            "report_stage_seconds", "Seconds by stage of POST /report.", ("stage",), buckets=_SECONDS,
            registry=registry,
        )  # fmt: skip
        self.queue_seconds = Histogram(
            "report_queue_seconds", "Seconds a study waited for the model.", buckets=_SECONDS, registry=registry
        )
        self.batch_size = Histogram(
            "report_batch_size", "Studies drafted together.", buckets=_BATCHES, registry=registry
        )
        self.failed_batches = Counter(
            "report_failed_batches", "Batches that failed: error, memory, device.", ("cause",), registry=registry
        )
        self.retries = Counter(
            "report_retries", "Drafts asked of another replica because the first was lost.", registry=registry
        )
        self.reloads = Counter("report_reloads", "Bundle swaps: done, refused.", ("result",), registry=registry)
        self.refined = Counter(
            "report_refined", "Rewritten drafts asked for: done, failed, skipped, off.", ("result",), registry=registry
        )
        for result in ("done", "failed", "skipped", "off"):
            self.refined.labels(result)
        for result in ("done", "refused"):  # so that the first one counts as an increase
            self.reloads.labels(result)
        for cause in ("error", "memory", "device"):
            self.failed_batches.labels(cause)
        self._ready = Gauge("report_ready", "1 when a model is loaded and warm.", registry=registry)
        self._waiting = Gauge("report_queue_depth", "Studies that wait for the model.", registry=registry)
        self._slots_in_use = [
            Gauge("report_slots_in_use", "In-flight requests of POST /report.", registry=registry),
            Gauge("report_places_taken", "Deprecated name of report_slots_in_use.", registry=registry),
        ]
        self._slots = [
            Gauge("report_slots", "Limit on in-flight requests of POST /report.", registry=registry),
            Gauge("report_places", "Deprecated name of report_slots.", registry=registry),
        ]
        self._bundle = Gauge(
            "report_bundle_info", "The bundle that is served; always 1.", ("name", "digest", "device"),
            registry=registry,
        )  # fmt: skip

    def watch(
        self, *, ready: Callable[[], bool], waiting: Callable[[], int], in_use: Callable[[], int],
        capacity: Callable[[], int],
    ) -> None:  # fmt: skip
        """Read these states whenever the metrics are asked for."""
        for gauge, read in (
            (self._ready, ready),
            (self._waiting, waiting),
            *((gauge, in_use) for gauge in self._slots_in_use),
            *((gauge, capacity) for gauge in self._slots),
        ):
            gauge.set_function(lambda read=read: float(read()))  # type: ignore[misc]

    def serve(self, name: str, digest: str, device: str) -> None:
        """Say which bundle is served from now on."""
        self._bundle.clear()
        self._bundle.labels(name, digest, device).set(1)

    def drafted(self, timings_ms: Mapping[str, float]) -> None:
        """Add one request's times by stage."""
        for stage, ms in timings_ms.items():
            self.stage_seconds.labels(stage).observe(ms / 1000)

    def response(self) -> Response:
        """All of it in Prometheus' text format."""
        return Response(generate_latest(self.registry), media_type=CONTENT_TYPE_LATEST)
