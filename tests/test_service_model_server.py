"""The model server behind HTTP: batches, deadlines, disconnects, swaps, lost devices, metrics, drain."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
import torch
from prometheus_client.parser import text_string_to_metric_families

from tests.support.service import (
    AUTHORIZED,
    KEY,
    PROBLEM,
    WAIT_S,
    Gate,
    Live,
    live_server,
    png,
    ready_client,
    start_decoder,
    until,
)
from tests.support.tiny import write_tiny_bundle

STUDIES = [png(60 + 7 * number, 80 + 5 * number) for number in range(8)]


def post(client: httpx.Client, image: bytes = STUDIES[0]) -> httpx.Response:
    return client.post("/report", files={"frontal": ("f", image)})


def samples(client: httpx.Client) -> dict[str, float]:
    """Samples of /metrics: name/label values, in the order of the label names -> value."""
    families = text_string_to_metric_families(client.get("/metrics").text)
    return {
        "/".join((sample.name, *sample.labels.values())): sample.value
        for family in families
        for sample in family.samples
    }


@contextmanager
def gated(bundle: Path, gates: list[Gate], **changes: object) -> Iterator[tuple[Live, httpx.Client, Gate]]:
    with live_server(bundle, warm_up=False, **changes) as live, live.client() as client:
        try:
            yield live, client, gates[0]
        finally:
            for gate in gates:
                gate.go.set()


def depth(client: httpx.Client) -> Any:
    return client.get("/health").json()["queue"]


# --- batches ----------------------------------------------------------------------------------------------------


def test_batched_drafts_equal_single_drafts(bundle: Path, gates: list[Gate]) -> None:
    limits = {"max_concurrent_requests": 16, "max_batch_size": 8}
    with gated(bundle, gates, **limits) as (_, client, gate), ThreadPoolExecutor(len(STUDIES) + 1) as pool:
        gate.go.set()
        alone = [post(client, study).json() for study in STUDIES]
        gate.go.clear()
        gate.begun.clear()
        gate.batches.clear()
        first = pool.submit(post, client)
        assert gate.begun.wait(WAIT_S)
        answers = [pool.submit(post, client, study) for study in STUDIES]
        until(lambda: depth(client)["waiting"] == len(STUDIES))
        gate.go.set()
        together = [answer.result(WAIT_S).json() for answer in answers]
        assert first.result(WAIT_S).status_code == 200
        assert gate.batches == [1, len(STUDIES)]
        assert samples(client)["report_batch_size_sum"] == 2 * len(STUDIES) + 1
    for one, other in zip(alone, together, strict=True):
        assert other["findings"] == one["findings"]
        ids, ids_alone = ([case["case_id"] for case in each["reference_cases"]] for each in (other, one))
        assert ids == ids_alone
        for single, batched in zip(one["sentences"], other["sentences"], strict=True):
            assert single["confidence"] == pytest.approx(batched["confidence"], abs=1e-4)  # rounded to four decimals


def test_batch_size_1_drafts_one_by_one_and_to_the_bit(bundle: Path, gates: list[Gate]) -> None:
    with gated(bundle, gates, max_batch_size=1) as (_, client, gate), ThreadPoolExecutor(6) as pool:
        gate.go.set()
        alone = [post(client, study).json()["sentences"] for study in STUDIES[:6]]
        gate.go.clear()
        answers = [pool.submit(post, client, study) for study in STUDIES[:6]]
        until(lambda: depth(client)["waiting"] == 5)
        gate.go.set()
        assert [answer.result(WAIT_S).json()["sentences"] for answer in answers] == alone
        assert gate.batches == [1] * 12


def test_overload_is_refused_at_once(bundle: Path, gates: list[Gate]) -> None:
    with gated(bundle, gates, max_concurrent_requests=3) as (_, client, gate), ThreadPoolExecutor(3) as pool:
        held = [pool.submit(post, client) for _ in range(3)]
        until(lambda: depth(client)["depth"] == 3)
        refused = [post(client) for _ in range(20)]
        assert {answer.json()["code"] for answer in refused} == {"busy"}
        assert all(int(answer.headers["retry-after"]) >= 1 for answer in refused)
        gate.go.set()
        assert [answer.result(WAIT_S).status_code for answer in held] == [200] * 3
        assert samples(client)["report_refusals_total/busy"] == 20
        assert samples(client)["report_requests_total//report/503"] == 20


# --- deadlines and disconnects ---------------------------------------------------------------------------


def test_request_gets_503_at_its_deadline(bundle: Path, gates: list[Gate]) -> None:
    with gated(bundle, gates, request_timeout_s=0.3) as (_, client, gate):
        start_decoder(client)
        answers = [post(client), post(client)]  # the first one runs, the second one is queued
        for answer in answers:
            assert answer.status_code == 503
            assert answer.headers["content-type"] == PROBLEM
            assert answer.json()["code"] == "deadline"
            assert "0.3 s" in answer.json()["detail"]
            assert answer.headers["retry-after"] == "5"
        gate.go.set()
        until(lambda: post(client).status_code == 200)
        assert gate.batches[:2] == [1, 1]  # the second study was never drafted
        assert depth(client) == {"depth": 0, "waiting": 0, "capacity": 16}


def test_disconnected_client_costs_no_draft(bundle: Path, gates: list[Gate]) -> None:
    with gated(bundle, gates) as (live, client, gate), ThreadPoolExecutor(1) as pool:
        held = pool.submit(post, client)
        assert gate.begun.wait(WAIT_S)
        with live.client() as leaving, pytest.raises(httpx.ReadTimeout):
            leaving.post("/report", files={"frontal": ("f", png())}, timeout=0.3)
        until(lambda: depth(client) == {"depth": 1, "waiting": 0, "capacity": 16})
        gate.go.set()
        assert held.result(WAIT_S).status_code == 200
        assert post(client).status_code == 200
        assert gate.batches == [1, 1]
        assert samples(client)["report_abandoned_total"] == 1


# --- bundles ----------------------------------------------------------------------------------------------------


def workers() -> int:
    return [thread.name for thread in threading.enumerate()].count("model-0")


def replace_bundle(path: Path, seed: int) -> None:
    new = write_tiny_bundle(path.with_name("new"), seed=seed)
    path.rename(path.with_name("old"))
    new.rename(path)


def test_bundle_swap_drops_no_request(bundle_copy: Path, gates: list[Gate]) -> None:
    with gated(bundle_copy, gates, api_key=KEY) as (_, client, gate), ThreadPoolExecutor(4) as pool:
        client.headers.update(AUTHORIZED)
        before = client.get("/health").json()["bundle"]["digest"]
        held = [pool.submit(post, client) for _ in range(3)]
        assert gate.begun.wait(WAIT_S)
        until(lambda: depth(client)["depth"] == 3)
        before_swap = workers()
        replace_bundle(bundle_copy, seed=7)
        answer = client.post("/reload")
        assert answer.status_code == 200
        after = answer.json()["bundle"]["digest"]
        assert after != before
        gates[1].go.set()
        assert post(client).json()["model"]["digest"] == after  # the previous bundle still has three requests
        gate.go.set()
        answers = [answer.result(WAIT_S) for answer in held]
        assert [answer.status_code for answer in answers] == [200] * 3
        assert {answer.json()["model"]["digest"] for answer in answers} == {before}
        assert samples(client)["report_reloads_total/done"] == 1
        assert samples(client)[f"report_bundle_info/cpu/{after}/tiny"] == 1
        until(lambda: workers() == before_swap)


def test_failed_swap_keeps_the_previous_bundle(bundle_copy: Path) -> None:
    with ready_client(bundle_copy, api_key=KEY) as client:
        client.headers.update(AUTHORIZED)
        before = post(client).json()["sentences"]
        weights = bytearray((bundle_copy / "model.safetensors").read_bytes())
        weights[-1] ^= 1
        (bundle_copy / "model.safetensors").write_bytes(weights)
        answer = client.post("/reload")
        assert answer.status_code == 409
        assert answer.json()["code"] == "reload_refused"
        assert "model.safetensors was altered" in answer.json()["detail"]
        assert client.get("/health").status_code == 200
        assert post(client).json()["sentences"] == before
        assert samples(client)["report_reloads_total/refused"] == 1


# --- lost devices -----------------------------------------------------------------------------------------------


def test_lost_device_fails_health_but_not_liveness(bundle: Path, gates: list[Gate]) -> None:
    with gated(bundle, gates) as (live, client, gate):
        gate.error = torch.AcceleratorError("CUDA error: unspecified launch failure")
        gate.go.set()
        answer = post(client)
        assert answer.status_code == 503
        assert answer.json()["code"] == "failed"
        assert "must be restarted" in answer.json()["detail"]
        until(lambda: client.get("/health").status_code == 503)
        assert "AcceleratorError" in client.get("/health").json()["detail"]
        assert post(client).json()["code"] == "failed"
        assert client.get("/livez").json() == {"status": "alive"}
        assert samples(client)["report_failed_batches_total/device"] == 1
        assert samples(client)["report_ready"] == 0
        assert live.app.state.runtime.device_lost


def test_stalled_batch_counts_as_a_lost_device(bundle: Path, gates: list[Gate]) -> None:
    with gated(bundle, gates, stall_timeout_s=0.4) as (live, client, gate), ThreadPoolExecutor(1) as pool:
        held = pool.submit(post, client)
        assert gate.begun.wait(WAIT_S)
        until(lambda: client.get("/health").status_code == 503)
        assert "REPORT_STALL_TIMEOUT_S" in client.get("/health").json()["detail"]
        assert live.app.state.runtime.device_lost
        gate.go.set()
        held.result(WAIT_S)


# --- start and stop -------------------------------------------------------------------------------------------


def test_metrics_count_stages_and_slots(bundle: Path) -> None:
    with ready_client(bundle, max_concurrent_requests=5) as client:
        assert post(client).status_code == 200
        client.get("/no/such/Canary")
        text = client.get("/metrics")
        values = samples(client)
    assert text.headers["content-type"].startswith("text/plain")
    for stage in ("upload", "images", "queue", "encode", "retrieve", "decode", "total"):
        assert values[f"report_stage_seconds_count/{stage}"] == 1
    assert values["report_queue_seconds_count"] == 1
    assert values["report_slots"] == values["report_places"] == 5
    assert values["report_requests_total/(no route)/404"] == 1
    assert values["process_resident_memory_bytes"] > 0
    assert "Canary" not in text.text


@pytest.mark.parametrize("in_time", [True, False])
def test_drain_responds_to_every_request_before_its_deadline(bundle: Path, gates: list[Gate], in_time: bool) -> None:
    """Queued requests are refused first; running ones have more time and are cancelled at the end."""
    with gated(bundle, gates, drain_timeout_s=3.0) as (live, client, gate), ThreadPoolExecutor(2) as pool:
        held = pool.submit(post, client)
        assert gate.begun.wait(WAIT_S)
        waits = pool.submit(post, client)
        until(lambda: depth(client)["waiting"] == 1)
        served = live.app.state.runtime
        served._loading.get_loop().call_soon_threadsafe(served.drain)
        live.stop()
        answer = waits.result(WAIT_S)
        assert answer.status_code == 503
        assert answer.json()["code"] == "stopping"
        if in_time:
            gate.go.set()
        last = held.result(WAIT_S)
        gate.go.set()
        assert last.status_code == (200 if in_time else 503)
        assert in_time or last.json()["code"] == "stopping"
