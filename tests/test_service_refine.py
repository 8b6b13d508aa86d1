"""The refine hook against a real local server that speaks the protocol: what it is sent, how its faults end."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import httpx
import pytest

from model.labeler import label_report
from service import refine
from service.refine import MAX_ANSWER_BYTES, MAX_CHARACTERS
from service.settings import Settings
from tests.helpers import write_tiny_bundle
from tests.service_helpers import png, ready_client

KEY = "local-key"
CANARY = "Wilhelmine-Canary"


@dataclass
class Completions:
    """A chat-completions server in a thread: `answer` is what it does with a request."""

    answer: Any = None
    seen: list[tuple[str, dict[str, str], dict[str, Any]]] = field(default_factory=list)
    url: str = ""


def completion(text: object) -> bytes:
    return json.dumps({"choices": [{"index": 0, "message": {"role": "assistant", "content": text}}]}).encode()


@pytest.fixture(scope="module")
def model() -> Iterator[Completions]:
    told = Completions()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            told.seen.append((self.path, {name.lower(): value for name, value in self.headers.items()}, body))
            with suppress(OSError):  # the service did not wait
                told.answer(self)

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    told.url = f"http://127.0.0.1:{server.server_address[1]}/v1"
    yield told
    server.shutdown()
    server.server_close()


def says(data: bytes, status: int = 200, **headers: str) -> Any:
    def answer(handler: BaseHTTPRequestHandler) -> None:
        handler.send_response(status)
        for name, value in headers.items():
            handler.send_header(name, value)
        handler.send_header("Content-Length", str(len(data)))
        handler.end_headers()
        handler.wfile.write(data)

    return answer


def sleeps(handler: BaseHTTPRequestHandler) -> None:
    time.sleep(1.5)
    says(completion("too late"))(handler)


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_bundle(tmp_path_factory.mktemp("bundles") / "tiny")


@contextmanager
def service(bundle: Path, model: Completions, key_file: Path, **changes: Any) -> Iterator[httpx.Client]:
    key_file.write_text(KEY + "\n")
    settings = {"refine_url": model.url, "refine_model": "local-llm", "refine_key_file": key_file, **changes}
    model.seen.clear()
    with ready_client(bundle, warm_up=False, **settings) as client:
        yield client


@pytest.fixture(scope="module")
def client(bundle: Path, model: Completions, tmp_path_factory: pytest.TempPathFactory) -> Iterator[httpx.Client]:
    key_file = tmp_path_factory.mktemp("keys") / "key"
    with service(bundle, model, key_file, refine_timeout_s=0.6) as client:
        yield client


def ask(client: httpx.Client, **fields: str) -> dict[str, Any]:
    answer = client.post(
        "/report", files={"frontal": (f"{CANARY}.png", png()), "lateral": (f"{CANARY}.png", png())}, data=fields
    )
    assert answer.status_code == 200, answer.text
    body: dict[str, Any] = answer.json()
    return body


def codes(body: dict[str, Any]) -> set[str]:
    return {warning["code"] for warning in body["warnings"]}


@pytest.fixture
def eager(monkeypatch: pytest.MonkeyPatch) -> None:
    """No rest after failures: each fault is met by itself."""
    monkeypatch.setattr(refine, "FAILURES", 1_000)


def test_a_rewritten_draft_stands_beside_the_models_own(client: httpx.Client, model: Completions) -> None:
    plain = ask(client)
    model.answer = says(completion("<think>Let me see.</think>\n The heart is normal. xxxx "))
    body = ask(client, refine="true")
    assert body["refined"] == {"text": "The heart is normal. [redacted]", "model": "local-llm"}
    for name in ("findings", "sentences", "labels", "reference_cases"):
        assert body[name] == plain[name]
    assert body["timings_ms"]["total"] >= body["timings_ms"]["refine"] > 0
    assert plain["refined"] is None
    assert len(model.seen) == 1, "it is asked where the request asks for it, and only there"


def test_it_is_told_the_draft_and_its_cases_and_nothing_else(client: httpx.Client, model: Completions) -> None:
    model.answer = says(completion("Clear lungs."))
    model.seen.clear()
    body = ask(client, refine="true")
    ((path, headers, sent),) = model.seen
    assert path == "/v1/chat/completions"
    assert headers["authorization"] == f"Bearer {KEY}"
    assert (sent["model"], sent["temperature"], sent["stream"]) == ("local-llm", 0, False)
    assert [message["role"] for message in sent["messages"]] == ["system", "user"]
    told = json.loads(sent["messages"][1]["content"])
    assert set(told) == {"findings", "labels", "reference_cases"}
    assert told["findings"] == body["findings"]
    assert [case["findings"] for case in told["reference_cases"]] == [
        case["findings"] for case in body["reference_cases"]
    ]
    assert set(told["reference_cases"][0]) == {"similarity", "findings", "labels"}
    assert CANARY not in json.dumps(model.seen)


@pytest.mark.usefixtures("eager")
@pytest.mark.parametrize(
    "answer",
    [
        pytest.param(sleeps, id="slow"),
        pytest.param(says(b"overloaded", 503), id="error"),
        pytest.param(says(b"", 302, Location="http://127.0.0.1:9/elsewhere"), id="redirect"),
        pytest.param(says(b"<html>"), id="not JSON"),
        pytest.param(says(b"[" * 100_000), id="nested"),
        pytest.param(says(b'{"choices": []}'), id="no choice"),
        pytest.param(says(completion(None)), id="no text"),
        pytest.param(says(completion("   ")), id="blank"),
        pytest.param(says(completion("a" * (MAX_CHARACTERS + 1))), id="long"),
        pytest.param(says(b" " * (MAX_ANSWER_BYTES + 1)), id="huge"),
        pytest.param(lambda handler: handler.connection.close(), id="hangs up"),
    ],
)
def test_its_faults_cost_a_warning(client: httpx.Client, model: Completions, answer: Any) -> None:
    model.answer = answer
    began = time.monotonic()
    body = ask(client, refine="true")
    assert time.monotonic() - began < 1.4, "bounded by REPORT_REFINE_TIMEOUT_S"
    assert body["refined"] is None
    assert body["findings"]
    assert "refine_failed" in codes(body)


def test_a_finding_that_it_adds_is_named(client: httpx.Client, model: Completions) -> None:
    model.answer = says(completion("There is a large right pneumothorax."))
    assert label_report("There is a large right pneumothorax.")["Pneumothorax"] == "present"
    body = ask(client, refine="true")
    assert body["labels"]["Pneumothorax"] != "present"
    (warning,) = [warning for warning in body["warnings"] if warning["code"] == "refine_added"]
    assert "Pneumothorax" in warning["message"]


def test_after_failures_in_a_row_it_is_given_a_rest(bundle: Path, model: Completions, tmp_path: Path) -> None:
    with service(bundle, model, tmp_path / "key") as client:
        model.answer = says(b"", 500)
        for _ in range(refine.FAILURES + 2):
            assert "refine_failed" in codes(ask(client, refine="true"))
        assert len(model.seen) == refine.FAILURES
        metrics = client.get("/metrics").text
        assert f'report_refined_total{{result="failed"}} {refine.FAILURES}.0' in metrics
        assert 'report_refined_total{result="skipped"} 2.0' in metrics


def test_without_a_language_model_the_answer_says_so(bundle: Path) -> None:
    with ready_client(bundle, warm_up=False) as client:
        body = ask(client, refine="true")
        assert body["refined"] is None
        assert "refine_off" in codes(body)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"refine_url": "ftp://host/v1", "refine_model": "m"}, "http://"),
        ({"refine_url": "http://user:pass@host/v1", "refine_model": "m"}, "REPORT_REFINE_KEY_FILE"),
        ({"refine_url": "http://host/v1"}, "REPORT_REFINE_MODEL"),
        ({"refine_model": "m"}, "REPORT_REFINE_URL"),
        ({"refine_url": "http://host/v1", "refine_model": "m", "refine_key_file": "/nowhere"}, "cannot be read"),
    ],
)
def test_half_a_configuration_is_refused_at_start(given: dict[str, str], said: str) -> None:
    with pytest.raises(ValueError, match=r"REPORT_REFINE|http|read") as refusal:
        Settings(**given)  # type: ignore[arg-type]
    assert said in str(refusal.value)
    assert "pass" not in str(refusal.value).replace("passed", "")
