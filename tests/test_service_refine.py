"""The refine hook against a local chat-completions server: prompts, faults, circuit breaker, limits."""

from __future__ import annotations

import asyncio
import gzip
import json
import shutil
import ssl
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import pytest

from model.text.labeler import label_report
from service.llm import client, refine
from service.llm.client import MAX_ANSWER_BYTES, MAX_CHARACTERS, Chat, ChatError
from service.llm.refine import Refiner
from service.metrics import Metrics
from service.schemas.examples import REPORT_EXAMPLE
from service.schemas.models import ReportResponse
from service.settings import Settings
from tests.support.formats import example
from tests.support.http import Request, Respond, http_server, respond_with
from tests.support.logs import all_log_lines
from tests.support.service import png, ready_client, until

KEY = "local-key"
CANARY = "Wilhelmine-Canary"


@dataclass
class Completions:
    """A chat-completions server in a thread: `answer` handles a request."""

    answer: Respond | None = None
    seen: list[tuple[str, dict[str, str], dict[str, Any]]] = field(default_factory=list)
    url: str = ""


def completion(text: object, reason: str = "stop") -> bytes:
    """The body of a response."""
    message = {"role": "assistant", "content": text}
    return json.dumps({"choices": [{"index": 0, "message": message, "finish_reason": reason}]}).encode()


@pytest.fixture(scope="module")
def model() -> Iterator[Completions]:
    state = Completions()

    def respond(request: Request) -> None:
        headers = {name.lower(): value for name, value in request.headers.items()}
        state.seen.append((request.path, headers, json.loads(request.body)))
        assert state.answer is not None
        state.answer(request)

    with http_server(respond) as url:
        state.url = f"{url}/v1"
        yield state


def respond_late(request: Request) -> None:
    time.sleep(1.5)
    respond_with(completion("too late"))(request)


@contextmanager
def service(bundle: Path, model: Completions, key_file: Path, **changes: Any) -> Iterator[httpx.Client]:
    key_file.write_text(KEY + "\n")
    settings = {"refine_url": model.url, "refine_model": "local-llm", "refine_key_file": key_file, **changes}
    model.seen.clear()
    with ready_client(bundle, warm_up=False, **settings) as client:
        yield client


@pytest.fixture(scope="module")
def refining(bundle: Path, model: Completions, tmp_path_factory: pytest.TempPathFactory) -> Iterator[httpx.Client]:
    key_file = tmp_path_factory.mktemp("keys") / "key"
    with service(bundle, model, key_file, refine_timeout_s=0.6) as client:
        yield client


def ask(client: httpx.Client, **fields: str) -> dict[str, Any]:
    files = {view: (f"{CANARY}.png", png()) for view in ("frontal", "lateral")}
    answer = client.post("/report", files=files, data=fields)
    assert answer.status_code == 200, answer.text
    body: dict[str, Any] = answer.json()
    return body


def codes(body: dict[str, Any]) -> set[str]:
    return {warning["code"] for warning in body["warnings"]}


@pytest.fixture
def no_breaker(monkeypatch: pytest.MonkeyPatch) -> None:
    """Disable the circuit breaker."""
    monkeypatch.setattr(refine, "BREAKER_THRESHOLD", 1_000)


def test_rewritten_text_is_kept_apart_from_the_draft(refining: httpx.Client, model: Completions) -> None:
    plain = ask(refining)
    model.answer = respond_with(completion("<think>Let me see.</think>\n The heart is normal. xxxx "))
    body = ask(refining, refine="true")
    assert body["refined"] == {"text": "The heart is normal. [redacted]", "model": "local-llm"}
    for name in ("findings", "sentences", "labels", "reference_cases"):
        assert body[name] == plain[name]
    assert body["timings_ms"]["total"] >= body["timings_ms"]["refine"] > 0
    assert plain["refined"] is None
    assert len(model.seen) == 1, "only requests with refine=true call it"


def test_prompt_has_only_the_draft_and_its_cases(refining: httpx.Client, model: Completions) -> None:
    model.answer = respond_with(completion("Clear lungs."), Set_Cookie="session=1")
    model.seen.clear()
    body = ask(refining, refine="true")
    ((path, headers, sent),) = model.seen
    assert path == "/v1/chat/completions"
    assert headers["authorization"] == f"Bearer {KEY}"
    assert (sent["model"], sent["temperature"], sent["stream"]) == ("local-llm", 0, False)
    assert [message["role"] for message in sent["messages"]] == ["system", "user"]
    prompt = json.loads(sent["messages"][1]["content"])
    assert set(prompt) == {"findings", "labels", "reference_cases"}
    assert prompt["findings"] == body["findings"]
    assert [case["findings"] for case in prompt["reference_cases"]] == [
        case["findings"] for case in body["reference_cases"]
    ]
    assert set(prompt["reference_cases"][0]) == {"similarity", "findings", "labels"}
    assert CANARY not in json.dumps(model.seen)
    ask(refining, refine="true")
    assert len(model.seen) == 2
    assert not any("cookie" in headers for _, headers, _ in model.seen), "calls share no state"


@pytest.mark.usefixtures("no_breaker")
@pytest.mark.parametrize(
    "answer",
    [
        pytest.param(respond_late, id="slow"),
        pytest.param(respond_with(b"overloaded", 503), id="error"),
        pytest.param(respond_with(b"", 307, Location="/elsewhere"), id="redirect"),
        pytest.param(respond_with(b"<html>"), id="not JSON"),
        pytest.param(respond_with(b"[" * 100_000), id="nested"),
        pytest.param(respond_with(b'{"choices": []}'), id="no choice"),
        pytest.param(respond_with(completion(None)), id="no text"),
        pytest.param(respond_with(completion("   ")), id="blank"),
        pytest.param(respond_with(completion("a" * (MAX_CHARACTERS + 1))), id="long"),
        pytest.param(respond_with(completion("The heart is", "length")), id="cut short"),
        pytest.param(respond_with(completion("<think>There may be a pneumothorax")), id="unfinished reasoning"),
        pytest.param(respond_with(gzip.compress(completion("Clear lungs.")), Content_Encoding="gzip"), id="compressed"),
        pytest.param(respond_with(b" " * (MAX_ANSWER_BYTES + 1)), id="huge"),
        pytest.param(lambda request: request.connection.close(), id="hangs up"),
    ],
)
def test_server_faults_become_warnings(refining: httpx.Client, model: Completions, answer: Any) -> None:
    model.answer = answer
    model.seen.clear()
    began = time.monotonic()
    body = ask(refining, refine="true")
    assert time.monotonic() - began < 1.4, "bounded by REPORT_REFINE_TIMEOUT_S"
    assert [path for path, _, _ in model.seen] == ["/v1/chat/completions"]
    assert body["refined"] is None
    assert body["timings_ms"]["total"] >= body["timings_ms"]["refine"] > 0
    assert body["findings"]
    assert "refine_failed" in codes(body)


def test_added_finding_is_named(refining: httpx.Client, model: Completions) -> None:
    model.answer = respond_with(completion("There is a large right pneumothorax."))
    assert label_report("There is a large right pneumothorax.")["Pneumothorax"] == "present"
    body = ask(refining, refine="true")
    assert body["labels"]["Pneumothorax"] != "present"
    (warning,) = [warning for warning in body["warnings"] if warning["code"] == "refine_added"]
    assert "Pneumothorax" in warning["message"]


def test_changed_findings_are_named() -> None:
    report = ReportResponse.model_validate(REPORT_EXAMPLE)
    labels = {name: report.labels[name] for name in ("Pleural Effusion", "Atelectasis", "Cardiomegaly", "Pneumothorax")}
    assert list(labels.values()) == ["present", "uncertain", "absent", None]
    kept = "There is a pleural effusion with possible atelectasis."
    texts = {
        f"{kept} Possible pneumothorax.": {"refine_added": "Pneumothorax"},
        f"{kept} Possible cardiomegaly.": {"refine_added": "Cardiomegaly"},
        f"{kept} No pneumothorax.": {},
        kept: {},
        "There is a pleural effusion with atelectasis.": {"refine_added": "Atelectasis"},
        "There is a pleural effusion.": {"refine_dropped": "Atelectasis"},
        "Possible pleural effusion and atelectasis.": {"refine_dropped": "Pleural Effusion"},
        "The heart is normal in size.": {"refine_dropped": "Atelectasis, Pleural Effusion"},
        "A left pleural effusion with possible left atelectasis.": {},
        "A right pleural effusion with possible left atelectasis.": {"refine_moved": "Pleural Effusion"},
        "Bilateral pleural effusions with possible atelectasis on the left.": {"refine_moved": "Pleural Effusion"},
        "Left pleural effusion, no right pleural effusion. Possible left atelectasis.": {},
    }
    for text, expected in texts.items():
        named = {one.code: one.message.rpartition(": ")[2].rstrip(".") for one in refine.differences(report, text)}
        assert named == expected, text


def test_unprintable_characters_are_removed(refining: httpx.Client, model: Completions) -> None:
    model.answer = respond_with(completion("Clear \ud800lungs.\x00\n\n No\tedema."))
    for accept in ("application/json", "application/fhir+json", "text/plain"):
        files = {"frontal": ("f", png())}
        answer = refining.post("/report", files=files, data={"refine": "true"}, headers={"Accept": accept})
        assert answer.status_code == 200
        assert "Clear lungs. No edema." in answer.text


def test_stream_ends_with_the_rewritten_text(refining: httpx.Client, model: Completions) -> None:
    model.answer = respond_with(completion("Clear lungs."))
    files = {"frontal": ("f", png())}
    events = refining.post("/report", files=files, data={"refine": "true", "stream": "true"}).text.strip().split("\n\n")
    name, data = events[-1].splitlines()
    assert name == "event: report"
    assert json.loads(data.removeprefix("data: "))["refined"]["text"] == "Clear lungs."


def test_circuit_breaker_opens_after_repeated_failures(
    bundle: Path, model: Completions, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(refine, "BREAKER_COOLDOWN_S", 1.0)
    with service(bundle, model, tmp_path / "key") as client:
        model.answer = respond_with(b"", 500)
        for _ in range(refine.BREAKER_THRESHOLD + 2):
            assert "refine_failed" in codes(ask(client, refine="true"))
        assert len(model.seen) == refine.BREAKER_THRESHOLD
        metrics = client.get("/metrics").text
        assert f'report_refined_total{{result="failed"}} {refine.BREAKER_THRESHOLD}.0' in metrics
        assert 'report_refined_total{result="skipped"} 2.0' in metrics
        time.sleep(refine.BREAKER_COOLDOWN_S)
        for _ in range(2):  # one more failure opens it again
            ask(client, refine="true")
        assert len(model.seen) == refine.BREAKER_THRESHOLD + 1


def test_waiting_for_the_language_model_uses_no_slot(bundle: Path, model: Completions, tmp_path: Path) -> None:
    go = threading.Event()

    def waits(request: Request) -> None:
        go.wait(10)
        respond_with(completion("Clear lungs."))(request)

    model.answer = waits
    with service(bundle, model, tmp_path / "key", max_concurrent_requests=1) as client:
        late: list[dict[str, Any]] = []
        waiting = threading.Thread(target=lambda: late.append(ask(client, refine="true")))
        waiting.start()
        until(lambda: model.seen)
        assert client.get("/health").json()["queue"]["depth"] == 0
        ask(client)
        with pytest.raises(httpx.ReadTimeout):  # the client disconnects
            client.post("/report", files={"frontal": ("f", png())}, data={"refine": "true"}, timeout=0.5)
        until(lambda: "report_abandoned_total 1.0" in client.get("/metrics").text)
        assert not late
        go.set()
        waiting.join()
    assert late[0]["refined"]["text"] == "Clear lungs."


# --- without a service ----------------------------------------------------------------------------------------------


def refiner(model: Completions, metrics: Metrics | None = None, **changes: Any) -> Refiner:
    return Refiner(Settings(refine_url=model.url, refine_model="local-llm", **changes), metrics or Metrics())


def test_queued_calls_that_time_out_are_not_failures(model: Completions, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(refine, "MAX_CONCURRENCY", 1)
    monkeypatch.setattr(refine, "MAX_QUEUE", 1)
    model.answer = respond_late
    metrics = Metrics()
    hook = refiner(model, metrics, refine_timeout_s=0.3)

    async def three() -> list[ReportResponse]:
        return await asyncio.gather(*(hook.refine(example(), 60) for _ in range(3)))

    model.seen.clear()
    answers = asyncio.run(three())
    assert all("refine_failed" in {warning.code for warning in answer.warnings} for answer in answers)
    assert len(model.seen) == 1
    for result, count in {"failed": 1, "skipped": 2}.items():
        assert metrics.registry.get_sample_value("report_refined_total", {"result": result}) == count


def test_response_in_tiny_pieces_does_not_block_the_service(
    model: Completions, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(client, "MAX_ANSWER_BYTES", 30_000)

    def endless(request: Request) -> None:
        request.wfile.write(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
        while True:
            request.wfile.write(b"1\r\n \r\n" * 10_000)

    async def longest_block_s() -> float:
        asking = asyncio.create_task(Chat(model.url, "m").ask("", "{}"))
        longest, last = 0.0, time.monotonic()
        while not asking.done():
            await asyncio.sleep(0.005)
            longest, last = max(longest, time.monotonic() - last), time.monotonic()
        with pytest.raises(ChatError, match="larger than"):
            await asking
        return longest

    model.answer = endless
    assert asyncio.run(longest_block_s()) < 0.2


@pytest.mark.parametrize("within_s", [0.1, 0.0, -1.0])
def test_request_deadline_limits_the_call(model: Completions, within_s: float) -> None:
    model.answer = respond_late
    began = time.monotonic()
    answer = asyncio.run(refiner(model).refine(example(), within_s))
    assert time.monotonic() - began < 1
    assert answer.refined is None
    assert answer.findings == example().findings


@pytest.mark.parametrize("status", [200, 500])
def test_logs_hold_neither_prompt_nor_response(
    model: Completions, caplog: pytest.LogCaptureFixture, tmp_path: Path, status: int
) -> None:
    (tmp_path / "key").write_text(KEY)
    model.answer = respond_with(completion(CANARY), status, reason=CANARY, X_Note=CANARY, Set_Cookie=f"a={CANARY}")
    with all_log_lines(caplog) as streams:
        answer = asyncio.run(refiner(model, refine_key_file=tmp_path / "key").refine(example(), 5))
    assert (answer.refined is not None) == (status == 200)
    for stream in streams.values():
        log = stream.getvalue()
        assert "httpcore" in log, "the log has the exchange"
        assert not [secret for secret in (CANARY, KEY, example().sentences[0].text) if secret in log]
        assert ("status 500" in log) == (status == 500)


@pytest.mark.skipif(shutil.which("openssl") is None, reason="needs openssl, to make a certificate")
def test_certificates_are_verified_against_system_authorities(
    model: Completions, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    key, certificate = tmp_path / "key.pem", tmp_path / "certificate.pem"
    make = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"]
    make += ["-subj", "/CN=localhost", "-addext", "subjectAltName=IP:127.0.0.1"]
    subprocess.run([*make, "-keyout", key, "-out", certificate], check=True, capture_output=True)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)

    with http_server(respond_with(completion("Clear lungs.")), tls=context) as url:
        with pytest.raises(ChatError, match="ConnectError"):
            asyncio.run(Chat(f"{url}/v1", "m").ask("", ""))
        monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
        assert asyncio.run(Chat(f"{url}/v1", "m").ask("", "")) == "Clear lungs."


def test_unconfigured_refine_adds_a_warning(client: httpx.Client) -> None:
    body = ask(client, refine="true")
    assert body["refined"] is None
    assert "refine_off" in codes(body)


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({"refine_url": "ftp://host/v1", "refine_model": "m"}, "http://"),
        ({"refine_url": "http://user:pass@host/v1", "refine_model": "m"}, "REPORT_REFINE_KEY_FILE"),
        ({"refine_url": "http://host:99999/v1", "refine_model": "m"}, "http://"),
        ({"refine_url": "http://[::1/v1", "refine_model": "m"}, "http://"),
        ({"refine_url": "http://host/v1"}, "REPORT_REFINE_MODEL"),
        ({"refine_model": "m"}, "REPORT_REFINE_URL"),
        ({"refine_url": "http://host/v1", "refine_model": "m", "refine_key_file": "/nowhere"}, "cannot be read"),
    ],
)
def test_rejects_incomplete_configuration_at_start(given: dict[str, str], expected: str) -> None:
    with pytest.raises(ValueError, match=r"REPORT_REFINE|http|read") as refusal:
        Settings(**given)  # type: ignore[arg-type]
    assert expected in str(refusal.value)
    assert "pass" not in str(refusal.value).replace("passed", "")
