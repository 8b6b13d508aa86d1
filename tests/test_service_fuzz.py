"""`python -m benchmarks.fuzz` with 150 inputs of each kind: no rule is broken; broken rules are detected."""

from __future__ import annotations

import json
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
from fastapi.sse import format_sse_event

from benchmarks import fuzz, load
from benchmarks.fuzzing.files import PATIENT, files, png, seeds, with_checksums
from benchmarks.fuzzing.inputs import endlessly, inputs
from benchmarks.fuzzing.rules import Rules, rules_of
from benchmarks.fuzzing.studies import pacs_and_queue
from benchmarks.raw_http import Answer, NoAnswerError, RawRequest, send, study_request
from benchmarks.server import Server
from model.images import ImageError, load_pixels
from service.app import create_app
from service.routes.streaming import EventSequence
from service.schemas.examples import PROBLEM_EXAMPLE, REPORT_EXAMPLE
from service.schemas.models import ReportResponse
from tests.support.http import Request, http_server, respond_with
from tests.support.service import PROBLEM, Live, live_server

INPUTS = 150
pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")  # Pillow's, on the files made here


@pytest.fixture(scope="module")
def live(bundle: Path) -> Iterator[Live]:
    with pacs_and_queue() as pacs, live_server(bundle, **fuzz.SETTINGS, **pacs) as server:
        yield server


@pytest.mark.parametrize("kind", fuzz.KINDS)
def test_no_input_breaks_a_rule(live: Live, kind: str, tmp_path: Path) -> None:
    count = INPUTS if kind != "studies" else INPUTS // 2  # each reads the PACS
    outcome = fuzz.Fuzz(Server(live.url), seed=1, out=tmp_path).run(count, kinds=[kind], quiet=True)
    assert outcome.violations == []
    assert outcome.in_the_end == []
    answers = outcome.statuses[kind]
    assert sum(answers.values()) == outcome.inputs == count
    assert answers["200"] > 3  # not all are refused at the door
    assert len(answers) > 4
    assert not any(tmp_path.iterdir())


def test_same_seed_draws_same_inputs() -> None:
    document = create_app().openapi()
    for kind in ("bodies", "files", "studies"):  # those of "schema" differ in the boundary of the form
        first, again, other = ([one.request.data for one in islice(inputs(kind, document, n), 20)] for n in (3, 3, 4))
        assert first == again
        assert first != other


# --- the rules can be broken ------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def rules() -> Rules:
    return rules_of(create_app().openapi())


REPORT = RawRequest(b"POST /report HTTP/1.1\r\n\r\n")


def answer(status: int, body: object, kind: str = PROBLEM, **headers: str) -> Answer:
    return Answer(status, {"content-type": kind, **headers}, json.dumps(body).encode())


def problem(status: int, code: str) -> dict[str, Any]:
    return {**PROBLEM_EXAMPLE, "status": status, "code": code}


def stream_of(**changes: object) -> Answer:
    """A stream of the example, its report changed."""
    report = ReportResponse.model_validate({**REPORT_EXAMPLE, **changes})
    (first, cases), *sentences, (last, _) = EventSequence().on_report(ReportResponse.model_validate(REPORT_EXAMPLE))
    events = [(first, cases), *sentences, (last, report)]
    body = b"".join(format_sse_event(event=name, data_str=data.model_dump_json()) for name, data in events)
    return Answer(200, {"content-type": "text/event-stream"}, b": keep-alive\n\n" + body)


def test_accepts_correct_answers(rules: Rules) -> None:
    for right in (
        answer(200, REPORT_EXAMPLE, "application/json"),
        stream_of(),
        answer(422, PROBLEM_EXAMPLE),
        answer(503, problem(503, "busy"), **{"retry-after": "2"}),
    ):
        assert rules(REPORT, right) == []
    assert rules(RawRequest(b"GARBAGE", framed=False), Answer(400, {}, b"Invalid HTTP request received.")) == []
    assert rules(RawRequest(REPORT.data.ljust(70_000)), Answer(431, {"content-type": "text/plain"}, b"Headers")) == []


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        (answer(500, problem(500, "internal")), "status 500: 'internal'"),
        (answer(503, problem(503, "busy")), "503: 'busy' with Retry-After ''"),
        (answer(503, problem(503, "failed"), **{"retry-after": "2"}), "503: 'failed'"),
        (answer(422, {"detail": "no"}), "a problem against the schema"),
        (answer(415, PROBLEM_EXAMPLE), "the problem says 422"),
        (answer(422, PROBLEM_EXAMPLE, "application/json"), "not application/problem+json"),
        (Answer(404, {"content-type": PROBLEM}, b"<html>"), "not JSON"),
        (Answer(400, {}, b"Invalid HTTP request received."), "status 400"),
        (Answer(431, {"content-type": "text/plain"}, b"Headers"), "status 431"),
        (answer(200, {**REPORT_EXAMPLE, "findings": "Seen on XXXX."}, "application/json"), "xxxx in the findings"),
        (answer(200, {**REPORT_EXAMPLE, "labels": 3}, "application/json"), "against the schema"),
        (Answer(200, {}, b"\xff"), "not JSON"),
        (stream_of(findings="Others."), "sentences that are not the findings"),
        (stream_of(reference_cases=[]), "other cases than in the report"),
        (Answer(200, {"content-type": "text/event-stream"}, b"event: problem\ndata: {}\n\n"), "a stream of problem"),
        (Answer(200, {"content-type": "text/event-stream"}, b"event: cases\ndata: {\n\n"), "not JSON"),
        (Answer(200, {"content-type": "text/event-stream"}, b""), "a stream of nothing"),
    ],
)  # fmt: skip
def test_names_the_broken_rule(rules: Rules, wrong: Answer, words: str) -> None:
    assert words in " ".join(rules(REPORT, wrong))


class Broken:
    """Responds to /openapi.json and /health like the service, to the first two studies, and then with 500."""

    def __init__(self) -> None:
        self.document = json.dumps(create_app().openapi()).encode()
        self.answers = 0

    def __call__(self, request: Request) -> None:
        status, body = 200, json.dumps({"queue": {"depth": int(self.answers > 2), "capacity": 3}}).encode()
        if request.command == "POST":
            self.answers += 1
            report = json.dumps({**REPORT_EXAMPLE, "findings": f"Text {self.answers}."}).encode()
            status, body = (200, report) if self.answers <= 2 else (500, b"oops")
        elif request.path == "/openapi.json":
            body = self.document
        respond_with(body, status)(request)


def test_stores_violations_and_replays_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(load, "idle", lambda url: {"status_code": 200, "queue": {"depth": 1}})  # without the wait
    with http_server(Broken()) as url:
        assert fuzz.main(["--inputs", "6", "--url", url, "--out", str(tmp_path)]) == 1
        kept = sorted((tmp_path / "violations").glob("*.http"))
        assert fuzz.main(["--replay", str(kept[0]), "--url", url, "--out", str(tmp_path)]) == 1
    found = json.loads((tmp_path / "fuzz.json").read_text())
    assert found["passed"] is False
    assert len(kept) == len(found["violations"]) >= 4
    assert any("queue {'depth': 1" in line for line in found["in_the_end"])
    assert any("a drawn study is answered 500" in line for line in found["in_the_end"])
    violation = json.loads(kept[0].with_suffix(".json").read_text())
    assert violation["origin"]
    assert any("status 500" in fault for fault in violation["faults"])
    assert "status 500" in capsys.readouterr().out


def test_no_connection_is_no_answer() -> None:
    with pytest.raises(NoAnswerError, match="no connection"):
        send("http://127.0.0.1:9", study_request({"frontal": b"x"}), timeout_s=2)


# --- the mutations reach the decoders ---------------------------------------------------------------------------------


def test_png_with_repaired_checksums_is_the_same_png() -> None:
    for name, data in seeds().items():
        if name.startswith("png"):
            assert with_checksums(data) == data, name


def code(data: bytes) -> str:
    """`read`, or the code of the error."""
    try:
        assert load_pixels(data, 64).shape == (64, 64)
    except ImageError as error:
        return error.code
    return "read"


def test_seeds_are_read_or_refused_by_their_format() -> None:
    found: dict[str, set[str]] = {}
    for name, data in seeds().items():
        found.setdefault(name.split()[0], set()).add(code(data))
    assert found["png"] == {"read", "animated", "truncated"}  # the compressed comment is too large
    assert found["jpeg"] == found["mpo"] == {"read"}
    assert found["gif"] == found["tiff"] == found["webp"] == found["bmp"] == {"unsupported_format"}
    assert {"read", "animated", "truncated", "too_small", "unsupported_pixels", "not_a_radiograph"} <= found["dicom"]


def test_mutated_files_are_read_or_refused_and_many_reach_the_decoders() -> None:
    """With wrong checksums nearly all PNG files would fail in the same way."""
    counts: dict[str, int] = {}
    for _, (_, data) in islice(endlessly(files(), 0), 500):
        found = code(data)  # any other error than an ImageError fails here
        counts[found] = counts.get(found, 0) + 1
    assert counts["read"] > 50
    assert counts["truncated"] > 80
    assert len(counts) > 6


def test_log_with_a_patient_name_or_an_error_is_noticed(live: Live, tmp_path: Path) -> None:
    log = tmp_path / "service.log"
    log.write_text(f"2026 WARNING {PATIENT}\n2026 ERROR unhandled\n")
    outcome = fuzz.Fuzz(Server(live.url, log=log), seed=1, out=None).run(3, quiet=True)
    assert [line for line in outcome.in_the_end if "log" in line] == [
        f"the log of the service holds {PATIENT!r}", "the log of the service holds ' ERROR '",
    ]  # fmt: skip


def test_form_of_raw_http_is_accepted(live: Live) -> None:
    found = send(live.url, study_request({"frontal": png(1), "top_k": b"2"}))
    assert found.status == 200
    assert len(json.loads(found.body)["reference_cases"]) == 2
