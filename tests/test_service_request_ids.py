"""Request ids: on every response and log line; ids that are not UUIDs are replaced."""

from __future__ import annotations

import logging
import threading
import uuid

import httpx
import pytest

from service.web.logging import current_request_id
from tests.support.service import png

VALID = "0190a5e2-7d1c-7b3e-9f00-5A5B6C7D8E9F"


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/health", 200),
        ("GET", "/", 200),
        ("GET", "/static/page.js", 200),
        ("GET", "/openapi.json", 200),
        ("GET", "/nothing", 404),
        ("DELETE", "/report", 405),
        ("POST", "/report", 415),
    ],
)
def test_every_response_has_a_request_id(client: httpx.Client, method: str, path: str, status: int) -> None:
    fresh = client.request(method, path)
    assert fresh.status_code == status
    assert fresh.headers.get_list("x-request-id") == [str(uuid.UUID(fresh.headers["x-request-id"]))]
    for sent in (VALID, uuid.uuid4().hex):
        echoed = client.request(method, path, headers={"X-Request-ID": sent})
        assert echoed.headers.get_list("x-request-id") == [sent]


@pytest.mark.parametrize(
    "invalid",
    [
        "ACC-2024-0001", "1234567", "", VALID + "0", VALID.replace("-", "", 1), f"{{{VALID}}}", f"urn:uuid:{VALID}",
        "g" * 32, "a" * 31, f"{VALID}, {VALID}", "1.2.840.113619.2.55.3.604688119", "-" * 36,
    ],
)  # fmt: skip
def test_replaces_other_request_ids(client: httpx.Client, invalid: str) -> None:
    for headers in ([("X-Request-ID", invalid)], [("X-Request-ID", VALID), ("x-request-id", invalid)]):
        given = client.get("/health", headers=headers).headers["x-request-id"]
        assert given not in (invalid, VALID)
        assert uuid.UUID(given).version == 4


def test_every_log_line_of_a_request_holds_its_id(client: httpx.Client, caplog: pytest.LogCaptureFixture) -> None:
    """With concurrent requests too."""
    seen: list[tuple[str | None, str]] = []
    handler = logging.Handler()
    handler.emit = lambda record: seen.append((current_request_id(), record.getMessage()))  # type: ignore[method-assign]
    caplog.set_level(logging.INFO, "service")
    logging.getLogger("service").addHandler(handler)
    sent = [str(uuid.uuid4()) for _ in range(6)]

    def ask(request_id: str) -> None:
        client.post("/report", files={"frontal": ("f", png())}, headers={"X-Request-ID": request_id})

    try:
        threads = [threading.Thread(target=ask, args=(request_id,)) for request_id in sent]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        client.get("/nothing")
    finally:
        logging.getLogger("service").removeHandler(handler)
    for request_id in sent:
        lines = [line for known, line in seen if known == request_id]
        assert len(lines) == 2, seen
        assert lines[0].startswith("draft ")
        assert lines[1].startswith("POST /report 200 ")
    assert len(seen) == 2 * len(sent) + 1
    assert current_request_id() is None
