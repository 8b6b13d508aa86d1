"""``stream=true``: the events equal the unstreamed report, and each failure has its event."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import pytest
import torch
from starlette.requests import ClientDisconnect, Request

from benchmarks.raw_http import events
from model import drafter
from model.config import DecodingConfig
from model.decoding.generate import generate
from model.decoding.search import Generated
from model.types import CasesFound, Draft, DraftOptions, EventCallback
from service.inference.engine import Engine
from service.inference.threads import threadsafe_callback
from service.routes import streaming
from service.schemas.events import CasesEvent
from service.schemas.examples import REPORT_EXAMPLE
from service.schemas.models import ProblemDetails, ReportResponse
from tests.support.service import PROBLEM, WAIT_S, Gate, live_server, png, ready_client, start_decoder, until
from tests.support.tiny import IMAGE_SIZE, write_tiny_bundle

STREAM = {"stream": "true"}
FULL_STOPS = 5.0  # of the untrained models: enough for several sentences
Event = tuple[str, Any]


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    decoding = DecodingConfig(min_length=14, block_trigrams=True)
    return write_tiny_bundle(tmp_path_factory.mktemp("bundles") / "tiny", decoding=decoding, full_stops=FULL_STOPS)


@pytest.fixture(scope="module")
def client(bundle: Path) -> Iterator[httpx.Client]:
    with ready_client(bundle, warm_up=False) as client:
        yield client


def files() -> dict[str, tuple[str, bytes]]:
    return {"frontal": ("f", png()), "lateral": ("l", png(70, 70))}


def stream(client: httpx.Client, data: dict[str, str] | None = None, **headers: str) -> list[Event]:
    with client.stream("POST", "/report", files=files(), data={**STREAM, **(data or {})}, headers=headers) as answer:
        assert answer.status_code == 200, answer.read()
        assert answer.headers["content-type"] == "text/event-stream"
        return list(events(answer.iter_lines()))


@pytest.mark.parametrize("method", ["greedy", "beam", "rerank", "consensus"])
def test_streamed_sentences_equal_the_report(method: str, tmp_path: Path) -> None:
    decoding = DecodingConfig.model_validate(
        {"method": method, "candidates": 4, "temperature": 1.0, "min_length": 14, "block_trigrams": True}
    )
    served = write_tiny_bundle(tmp_path / method, decoding=decoding, full_stops=FULL_STOPS)
    with ready_client(served, warm_up=False) as client:
        whole = client.post("/report", files=files(), data={"top_k": "2"}).json()
        (first, cases), *sentences, (last, report) = stream(client, {"top_k": "2"})
    assert (first, last) == ("cases", "report")
    assert cases == CasesEvent(reference_cases=whole["reference_cases"]).model_dump()
    assert len(cases["reference_cases"]) == 2
    assert len(sentences) >= 3
    assert [name for name, _ in sentences] == ["sentence"] * len(sentences)
    assert [event["index"] for _, event in sentences] == list(range(len(sentences)))
    assert [event["sentence"] for _, event in sentences] == whole["sentences"]
    assert " ".join(event["sentence"]["text"] for _, event in sentences) == whole["findings"]
    assert report.pop("report_id") != whole.pop("report_id")
    assert report.pop("timings_ms").keys() == whole.pop("timings_ms").keys()
    assert report == whole


def test_events_come_with_the_report_without_early_results(
    bundle: Path, monkeypatch: pytest.MonkeyPatch, client: httpx.Client
) -> None:
    """Replicas return whole drafts."""
    early = stream(client)
    draft = Engine.draft

    async def no_events(
        self: Engine, images: dict[str, bytes], options: DraftOptions, listener: object = None
    ) -> Draft:
        return await draft(self, images, options)

    monkeypatch.setattr(Engine, "draft", no_events)
    late = stream(client)
    assert late[:-1] == early[:-1]
    assert late[-1][1]["sentences"] == early[-1][1]["sentences"]


@pytest.mark.parametrize("accept", ["text/event-stream", "application/json", "*/*", "text/*", "text/plain, */*;q=0.1"])
def test_accepts_stream_for_event_stream_or_json(client: httpx.Client, accept: str) -> None:
    assert stream(client, accept=accept)[-1][0] == "report"


@pytest.mark.parametrize("accept", ["application/fhir+json", "text/plain", "application/dicom"])
def test_rejects_stream_when_only_documents_are_accepted(client: httpx.Client, accept: str) -> None:
    answer = client.post("/report", files=files(), data=STREAM, headers={"accept": accept})
    assert (answer.status_code, answer.json()["code"]) == (406, "not_acceptable")
    assert "leave stream out" in answer.json()["detail"]


def test_rejects_event_stream_without_stream_true(client: httpx.Client) -> None:
    answer = client.post("/report", files=files(), headers={"accept": "text/event-stream"})
    assert (answer.status_code, answer.json()["code"]) == (406, "not_acceptable")
    assert "stream=true" in answer.json()["detail"]


def test_stream_has_the_headers_of_every_response(client: httpx.Client) -> None:
    name = "0b0f1c52-6f0e-4c0b-9a52-0d3f5ad1c8f7"
    with client.stream("POST", "/report", files=files(), data=STREAM, headers={"X-Request-ID": name}) as answer:
        answer.read()
    for header, value in {
        "x-request-id": name, "cache-control": "no-store", "x-content-type-options": "nosniff", "vary": "Accept",
        "x-accel-buffering": "no",
    }.items():  # fmt: skip
        assert answer.headers[header] == value
    assert "content-security-policy" in answer.headers


def test_error_before_the_first_event_is_an_ordinary_problem(client: httpx.Client) -> None:
    answer = client.post("/report", files={"frontal": ("f", b"no image")}, data=STREAM)
    assert (answer.status_code, answer.headers["content-type"], answer.json()["field"]) == (422, PROBLEM, "frontal")


def test_deadline_and_busy_before_the_first_event_are_problems(bundle: Path, gates: list[Gate]) -> None:
    with (
        live_server(bundle, warm_up=False, request_timeout_s=0.4, max_concurrent_requests=1) as live,
        live.client() as client,
        ThreadPoolExecutor(1) as pool,
    ):
        start_decoder(client)
        late = pool.submit(client.post, "/report", files=files(), data=STREAM)
        assert gates[0].begun.wait(WAIT_S)
        busy = client.post("/report", files=files(), data=STREAM)
        assert (busy.status_code, busy.json()["code"]) == (503, "busy")
        assert (late.result(WAIT_S).status_code, late.result().json()["code"]) == (503, "deadline")
        gates[0].go.set()


@dataclass
class Held:
    """Replaces the decoding of a drafter: waits for `go` after the cases were sent.

    Attributes:
        error: raised by decoding number `fails`, counted from 1.
    """

    begun: threading.Event = field(default_factory=threading.Event)
    go: threading.Event = field(default_factory=threading.Event)
    error: Exception | None = None
    fails: int = 1
    count: int = 0

    def generate(self, *arguments: Any, **more: Any) -> Generated:
        self.count += 1
        self.begun.set()
        assert self.go.wait(WAIT_S)
        if self.error is not None and self.count == self.fails:
            raise self.error
        return generate(*arguments, **more)


@pytest.fixture
def held(monkeypatch: pytest.MonkeyPatch) -> Held:
    held = Held()
    monkeypatch.setattr(drafter, "generate", held.generate)
    return held


def depth(client: httpx.Client) -> int:
    return int(client.get("/health").json()["queue"]["depth"])


def test_stream_holds_its_slot_and_sends_keep_alives(
    client: httpx.Client, held: Held, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(streaming, "KEEP_ALIVE_S", 0.05)
    with client.stream("POST", "/report", files=files(), data=STREAM) as answer:
        received = events(answer.iter_lines())
        assert next(received)[0] == "cases"
        assert [next(received) for _ in range(2)] == [(":", ": keep-alive")] * 2
        assert depth(client) == 1
        held.go.set()
        assert [name for name, _ in received if name != ":"][-1] == "report"
        until(lambda: depth(client) == 0)


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (torch.AcceleratorError("CUDA error: an illegal memory access"), "failed"),
        (RuntimeError("Canary Patient"), "internal"),
    ],
)
def test_failure_after_the_first_event_sends_a_problem_event(
    bundle: Path, held: Held, error: Exception, code: str, caplog: pytest.LogCaptureFixture
) -> None:
    held.error = error
    held.go.set()
    with ready_client(bundle, warm_up=False) as client:
        (_, _), (name, problem) = stream(client)
        until(lambda: f'report_refusals_total{{cause="{code}"}} 1.0' in client.get("/metrics").text)
        assert 'report_requests_total{route="/report",status="200"} 1.0' in client.get("/metrics").text
    assert name == "problem"
    assert ProblemDetails.model_validate(problem).code == code
    assert "Canary" not in caplog.text + json.dumps(problem)


def test_deadline_after_the_first_event_sends_a_problem_event(bundle: Path, held: Held) -> None:
    with ready_client(bundle, warm_up=False, request_timeout_s=0.5) as client:
        start_decoder(client)
        (first, _), (last, problem) = stream(client)
        held.go.set()
        assert (first, last, problem["code"]) == ("cases", "problem", "deadline")
        assert depth(client) == 0


def test_disconnect_frees_the_slot_of_a_stream(client: httpx.Client, held: Held) -> None:
    with client.stream("POST", "/report", files=files(), data=STREAM) as answer:
        assert next(events(answer.iter_lines()))[0] == "cases"
    until(lambda: depth(client) == 0)
    held.go.set()
    until(lambda: "report_abandoned_total 1.0" in client.get("/metrics").text)
    assert stream(client)[-1][0] == "report"


def test_shutdown_lets_a_stream_finish(bundle: Path, held: Held) -> None:
    with (
        live_server(bundle, warm_up=False) as live,
        live.client() as client,
        client.stream("POST", "/report", files=files(), data=STREAM) as answer,
    ):
        received = events(answer.iter_lines())
        assert next(received)[0] == "cases"
        live.stop()
        held.go.set()
        assert list(received)[-1][0] == "report"


def test_repeated_draft_sends_each_event_once(bundle: Path, held: Held) -> None:
    """Its batch fails after the cases were sent; then it is drafted alone."""
    held.error, held.fails = RuntimeError("unlucky"), 2
    with ready_client(bundle, warm_up=False, max_batch_size=2) as client, ThreadPoolExecutor(3) as pool:
        first = pool.submit(stream, client)
        assert held.begun.wait(WAIT_S)
        others = [pool.submit(stream, client) for _ in range(2)]
        until(lambda: client.get("/health").json()["queue"]["waiting"] == 2)
        held.go.set()
        names = [name for name, _ in first.result(WAIT_S)]
        assert [[name for name, _ in other.result(WAIT_S)] for other in others] == [names] * 2
        assert 'report_failed_batches_total{cause="error"} 1.0' in client.get("/metrics").text
    assert names.count("cases") == 1
    assert held.count == 4, "the first alone, the failed batch of two, each of them alone"


def test_failing_listener_does_not_affect_the_draft(caplog: pytest.LogCaptureFixture) -> None:
    received: list[CasesFound] = []

    async def main() -> None:
        def fail(news: CasesFound) -> None:
            received.append(news)
            raise RuntimeError("Canary Patient")

        await asyncio.to_thread(threadsafe_callback(fail), CasesFound(()))
        while not received:
            await asyncio.sleep(0.001)

    asyncio.run(main())
    assert "an event callback failed with RuntimeError" in caplog.text
    assert "Canary" not in caplog.text


def test_events_of_a_report_are_sent_once_and_in_order() -> None:
    report = ReportResponse.model_validate(REPORT_EXAMPLE)
    parts = streaming.EventSequence()
    assert [name for name, _ in parts.on_event(CasesFound(()))] == ["cases"]
    assert list(parts.on_event(CasesFound(()))) == []
    (name, event), *rest = parts.on_report(report)  # the cases changed
    assert (name, event) == ("cases", CasesEvent(reference_cases=report.reference_cases))
    assert [name for name, _ in rest] == ["sentence", "sentence", "report"]
    refined = streaming.EventSequence()
    assert [name for name, _ in refined.on_event(report)] == ["cases", "sentence", "sentence"]
    assert [name for name, _ in refined.on_report(report)] == ["report"]


def test_client_that_does_not_read_is_disconnected(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(streaming, "SEND_TIMEOUT_S", 0.05)
    given_back: list[bool] = []

    async def never(*_: object) -> Any:
        await asyncio.Event().wait()

    async def report(listener: EventCallback) -> ReportResponse:
        return ReportResponse.model_validate(REPORT_EXAMPLE)

    held = ExitStack()
    held.callback(given_back.append, True)
    request = Request({"type": "http"}, never)
    with pytest.raises(ClientDisconnect):
        asyncio.run(streaming.EventStream(request, report, held)(request.scope, never, never))
    assert given_back == [True]


def test_attention_comes_with_the_report_on_request(client: httpx.Client) -> None:
    attentive = client.post("/report", files=files(), data={"include": "attention"}).json()
    for sentence in attentive["sentences"]:
        grids, cases = sentence["attention"]["patches"], sentence["attention"]["cases"]
        weights = [weight for grid in grids.values() for row in grid for weight in row] + cases
        assert list(grids) == ["frontal", "lateral"]
        assert [len(grid) for grid in grids.values()] == [IMAGE_SIZE // 32] * 2
        assert sum(weights) == pytest.approx(1, abs=1e-4)
        assert all(round(weight, 5) == weight for weight in weights)
    plain = client.post("/report", files=files()).json()
    assert all(sentence["attention"] is None for sentence in plain["sentences"])
    *early, (_, report) = stream(client, {"include": "attention"})
    assert all(event["sentence"]["attention"] is None for name, event in early if name == "sentence")
    assert report["sentences"] == attentive["sentences"]
