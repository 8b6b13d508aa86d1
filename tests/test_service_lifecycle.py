"""Loading, readiness, failures, concurrency and stop."""

from __future__ import annotations

import logging
import threading
from pathlib import Path

import httpx
import pytest

from service.inference import runtime
from service.inference.loader import LoadedBundle, load
from service.settings import Settings
from tests.support.service import AUTHORIZED, KEY, PROBLEM, WAIT_S, Gate, live_server, png, until, wait_until_ready
from tests.support.tiny import REPORTS

CANARY = "Canary-Patient-4711"


def post(client: httpx.Client) -> httpx.Response:
    return client.post("/report", files={"frontal": ("f", png())}, data={"beam_size": "1"})


# --- loading ------------------------------------------------------------------------------------------------


def test_health_has_the_reason_until_the_model_is_loaded(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    go = threading.Event()

    def load_later(settings: Settings) -> LoadedBundle:
        assert go.wait(WAIT_S)
        return load(settings)

    monkeypatch.setattr(runtime, "load", load_later)
    with live_server(bundle, wait=False, api_key=KEY) as live, live.client() as client:
        client.headers.update(AUTHORIZED)
        try:
            for answer in (client.get("/health"), post(client), client.post("/reload")):
                assert answer.status_code == 503
                assert answer.headers["content-type"] == PROBLEM
                assert answer.headers["retry-after"] == "5"
                assert answer.json()["code"] == "loading"
                assert "being loaded" in answer.json()["detail"]
            assert client.get("/").status_code == client.get("/livez").status_code == 200
            assert "report_ready 0.0" in client.get("/metrics").text
        finally:
            go.set()
        wait_until_ready(client)
        assert post(client).status_code == 200
        assert "report_ready 1.0" in client.get("/metrics").text


def test_health_when_ready(client: httpx.Client) -> None:
    body = client.get("/health").json()
    assert (body["status"], body["device"], body["cases"], body["texts"]) == ("ready", "cpu", len(REPORTS), True)
    assert (body["bundle"]["name"], body["bundle"]["hydrated"], len(body["bundle"]["digest"])) == ("tiny", False, 64)
    assert body["model"]["licence"] == "none: random weights"  # what the bundle states
    assert body["queue"] == {"depth": 0, "waiting": 0, "capacity": 16}
    assert body["model"]["backbone"] == "mobilenet_v3_small"


def failed(client: httpx.Client) -> str:
    until(lambda: client.get("/health").json()["code"] == "failed")
    answer = client.get("/health")
    assert answer.status_code == 503
    assert post(client).json() == answer.json()
    return str(answer.json()["detail"])


def test_missing_bundle_is_named(tmp_path: Path) -> None:
    with live_server(tmp_path / "nowhere", wait=False) as live, live.client() as client:
        assert "nowhere" in failed(client)


def test_unexpected_load_error_is_not_quoted(
    bundle: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def broken(settings: Settings) -> LoadedBundle:
        raise KeyError(CANARY)

    monkeypatch.setattr(runtime, "load", broken)
    with live_server(bundle, wait=False) as live, live.client() as client:
        assert "KeyError" in failed(client)
    assert "test_service_lifecycle.py" in caplog.text  # the location in the code
    assert CANARY not in caplog.text


# --- serving ----------------------------------------------------------------------------------------------------


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


def test_stop_while_loading_logs_no_error(bundle: Path, caplog: pytest.LogCaptureFixture) -> None:
    with live_server(bundle, wait=False):
        pass
    assert not [record for record in caplog.records if record.levelno >= logging.ERROR]


def test_refuses_a_reload_during_the_drain(bundle: Path) -> None:
    with live_server(bundle, warm_up=False, api_key=KEY) as live, live.client() as client:
        service = live.app.state.runtime
        service._loading.get_loop().call_soon_threadsafe(service.drain)
        until(lambda: service._drain_deadline is not None)
        answer = client.post("/reload", headers=AUTHORIZED)
        assert (answer.status_code, answer.json()["code"]) == (409, "reload_refused")
        assert "is stopping" in answer.json()["detail"]
