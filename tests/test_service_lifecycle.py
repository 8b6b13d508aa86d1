"""Loading, readiness, failures, concurrency and stop."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

from service.inference import runtime
from service.inference.loader import LoadedBundle, load
from service.settings import Settings
from tests.support.service import PROBLEM, WAIT_S, Gate, gate_drafters, live_server, png, ready_client, wait_until_ready
from tests.support.tiny import REPORTS, write_tiny_bundle

CANARY = "Canary-Patient-4711"


@pytest.fixture
def gates(monkeypatch: pytest.MonkeyPatch) -> list[Gate]:
    return gate_drafters(monkeypatch)


def post(client: httpx.Client) -> httpx.Response:
    return client.post("/report", files={"frontal": ("f", png())}, data={"beam_size": "1"})


@contextmanager
def posting(client: httpx.Client) -> Iterator[list[httpx.Response]]:
    """Send a request in a thread; after the block the list has its response."""
    answers: list[httpx.Response] = []
    thread = threading.Thread(target=lambda: answers.append(post(client)), daemon=True)
    thread.start()
    yield answers
    thread.join(WAIT_S)
    assert not thread.is_alive()


# --- loading ------------------------------------------------------------------------------------------------


def test_health_has_the_reason_until_the_model_is_loaded(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    go = threading.Event()

    def load_later(settings: Settings) -> LoadedBundle:
        assert go.wait(WAIT_S)
        return load(settings)

    monkeypatch.setattr(runtime, "load", load_later)
    with live_server(bundle, wait=False) as live, live.client() as client:
        try:
            for answer in (client.get("/health"), post(client)):
                assert answer.status_code == 503
                assert answer.headers["content-type"] == PROBLEM
                assert answer.headers["retry-after"] == "5"
                assert answer.json()["code"] == "loading"
                assert "being loaded" in answer.json()["detail"]
            assert client.get("/").status_code == 200
        finally:
            go.set()
        wait_until_ready(client)
        assert post(client).status_code == 200


def test_health_when_ready(bundle: Path) -> None:
    with ready_client(bundle, max_concurrent_requests=7) as client:
        body = client.get("/health").json()
    assert body["status"] == "ready"
    assert body["device"] == "cpu"
    assert body["bundle"]["name"] == "tiny"
    assert body["bundle"]["hydrated"] is False
    assert len(body["bundle"]["digest"]) == 64
    assert body["cases"] == len(REPORTS)
    assert body["texts"] is True
    assert body["queue"] == {"depth": 0, "waiting": 0, "capacity": 7}
    assert body["model"]["backbone"] == "mobilenet_v3_small"


def failed(live_client: httpx.Client) -> dict[str, Any]:
    deadline = time.monotonic() + WAIT_S
    while (answer := live_client.get("/health")).json()["code"] == "loading":
        assert time.monotonic() < deadline
        time.sleep(0.02)
    assert answer.status_code == 503
    assert post(live_client).json() == answer.json()
    body: dict[str, Any] = answer.json()
    assert body["code"] == "failed"
    return body


def test_missing_bundle_is_named(tmp_path: Path) -> None:
    with live_server(tmp_path / "nowhere", wait=False) as live, live.client() as client:
        assert "nowhere" in failed(client)["detail"]


def test_flipped_byte_is_detected(bundle: Path, tmp_path: Path) -> None:
    damaged = write_tiny_bundle(tmp_path / "damaged")
    weights = bytearray((damaged / "model.safetensors").read_bytes())
    weights[len(weights) // 2] ^= 1
    (damaged / "model.safetensors").write_bytes(weights)
    with live_server(damaged, wait=False) as live, live.client() as client:
        assert "model.safetensors was altered" in failed(client)["detail"]


def test_unexpected_load_error_is_not_quoted(
    bundle: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def broken(settings: Settings) -> LoadedBundle:
        raise KeyError(CANARY)

    monkeypatch.setattr(runtime, "load", broken)
    with live_server(bundle, wait=False) as live, live.client() as client:
        assert "KeyError" in failed(client)["detail"]
    assert "test_service_lifecycle.py" in caplog.text  # the location in the code
    assert CANARY not in caplog.text


# --- serving ----------------------------------------------------------------------------------------------------


def test_inference_does_not_block_the_event_loop(bundle: Path, gates: list[Gate]) -> None:
    with live_server(bundle, warm_up=False) as live, live.client() as client, posting(client) as answers:
        try:
            assert gates[0].begun.wait(WAIT_S)
            for _ in range(5):
                health = client.get("/health")
                assert health.status_code == 200
                assert health.json()["queue"]["depth"] == 1
            assert answers == []
        finally:
            gates[0].go.set()
    assert answers[0].status_code == 200


def test_failed_draft_has_no_side_effects(bundle: Path, gates: list[Gate], caplog: pytest.LogCaptureFixture) -> None:
    with live_server(bundle, warm_up=False) as live, live.client() as client:
        gates[0].go.set()
        before = post(client).json()
        gates[0].error = RuntimeError(f"an error that quotes {CANARY}")
        for _ in range(3):
            answer = post(client)
            assert answer.status_code == 500
            assert answer.headers["content-type"] == PROBLEM
            assert answer.json()["code"] == "internal"
            assert CANARY not in answer.text
        gates[0].error = None
        assert client.get("/health").json()["queue"]["depth"] == 0
        assert post(client).json()["sentences"] == before["sentences"]
    assert "RuntimeError" in caplog.text
    assert CANARY not in caplog.text


def test_concurrent_requests_get_the_same_drafts_as_single_ones(bundle: Path) -> None:
    studies = [png(60 + 7 * number, 80 + 5 * number) for number in range(6)]
    with live_server(bundle, max_concurrent_requests=6) as live, live.client() as client:

        def ask(data: bytes) -> Any:
            return client.post("/report", files={"frontal": ("f", data)}).json()

        alone = [ask(data)["sentences"] for data in studies]
        together: dict[int, Any] = {}
        threads = [
            threading.Thread(target=lambda n=number: together.update({n: ask(studies[n])}), daemon=True)
            for number in range(len(studies))
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(WAIT_S)
    assert [together[number]["sentences"] for number in range(len(studies))] == alone


def test_stop_finishes_the_running_request(bundle: Path, gates: list[Gate]) -> None:
    with live_server(bundle, warm_up=False) as live, live.client() as client:
        with posting(client) as answers:
            assert gates[0].begun.wait(WAIT_S)
            live.stop()
            time.sleep(0.3)  # uvicorn checks for a stop every 0.1 s
            gates[0].go.set()
        assert answers[0].status_code == 200


def test_stop_while_loading_logs_no_error(bundle: Path, caplog: pytest.LogCaptureFixture) -> None:
    with live_server(bundle, wait=False):
        pass
    assert not [record for record in caplog.records if record.levelno >= logging.ERROR]
