"""``/health`` and ``/metrics`` of the node, without any patient data."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector, generate_latest
from prometheus_client.exposition import CONTENT_TYPE_LATEST

from service.pacs.queue import STATES

PEERS = ("report_service", "archive")
REFUSALS = (
    *("address", "connections", "association", "too_large", "too_slow", "pipelined", "malformed", "full"),
    *("mismatch", "header", "error"),
)


class NodeMetrics:
    """The metrics of one node, in a separate registry."""

    def __init__(self) -> None:
        self.registry = registry = CollectorRegistry()
        ProcessCollector(registry=registry)
        counter, gauge = partial(Counter, registry=registry), partial(Gauge, registry=registry)
        self.received = counter("report_node_received", "Objects that were stored.")
        self.refused = counter("report_node_refused", "Refused connections and objects, by cause.", ("cause",))
        self.drafted = counter("report_node_drafted", "Structured reports written.")
        self.sent = counter("report_node_sent", "Structured reports stored in the archive.")
        self.failed = counter("report_node_failed", "Studies that failed.")
        self.retries = counter("report_node_retries", "Attempts that are repeated later, by peer.", ("peer",))
        self.draft_seconds = Histogram("report_node_draft_seconds", "Duration of a draft.", registry=registry)
        self.studies = gauge("report_node_studies", "Studies in the queue, by state.", ("state",))
        self.peer_up = gauge("report_node_peer_up", "1 unless the last attempt failed, by peer.", ("peer",))
        self.associations = gauge("report_node_associations", "Open connections.")
        self.held_bytes = gauge("report_node_held_bytes", "Received bytes and drafts that are not sent yet.")
        for cause in REFUSALS:
            self.refused.labels(cause)
        for peer in PEERS:
            self.retries.labels(peer)
            self.peer_up.labels(peer)
        for state in STATES:
            self.studies.labels(state)

    def refuse(self, cause: str) -> None:
        """Count a refusal; causes are those of ``REFUSALS``."""
        self.refused.labels(cause).inc()


Health = Callable[[], tuple[bool, dict[str, Any]]]  # whether the node works, and the body of /health


class StatusServer(ThreadingHTTPServer):
    """Answers ``GET /health`` and ``GET /metrics``.

    Raises:
        OSError: the address cannot be used.
    """

    daemon_threads = True
    request_queue_size = 16

    def __init__(self, host: str, port: int, health: Health, metrics: NodeMetrics, refresh: Callable[[], None]) -> None:
        super().__init__((host, port), _StatusHandler)
        self.health, self.metrics, self.refresh = health, metrics, refresh
        threading.Thread(target=self.serve_forever, args=(0.1,), name="status", daemon=True).start()

    @property
    def port(self) -> int:
        """The TCP port."""
        return int(self.server_address[1])


class _StatusHandler(BaseHTTPRequestHandler):
    server: StatusServer
    timeout = 5
    server_version, sys_version = "cxr-report", ""

    def do_GET(self) -> None:
        if self.path == "/health":
            works, body = self.server.health()
            self._answer(200 if works else 503, "application/json", json.dumps(body).encode())
        elif self.path == "/metrics":
            self.server.refresh()
            self._answer(200, CONTENT_TYPE_LATEST, generate_latest(self.server.metrics.registry))
        else:
            self._answer(404, "text/plain; charset=utf-8", b"The node answers at /health and /metrics.\n")

    def _answer(self, status: int, media_type: str, body: bytes) -> None:
        self.send_response(status)
        for name, value in (("Content-Type", media_type), ("Content-Length", len(body)), ("Cache-Control", "no-store")):
            self.send_header(name, str(value))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        """Log nothing: the lines would quote the request."""
