"""What must hold for every answer, whatever was sent."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

from jsonschema import Draft202012Validator

from benchmarks.raw_http import Answer, RawRequest, events
from service.web.protocol import MAX_HEADER_BYTES

JSON, PROBLEM, STREAM = "application/json", "application/problem+json", "text/event-stream"
REDACTED = "xxxx"
_PROTOCOL_ERROR = b"Invalid HTTP request received."  # uvicorn's answer to bytes that are not HTTP
Rules = Callable[[RawRequest, Answer], list[str]]


def is_busy(answer: Answer) -> bool:
    """Whether the service asks to repeat the request later."""
    return answer.status == 503 and b'"busy"' in answer.body


def rules_of(document: dict[str, Any]) -> Rules:
    """A function that returns everything wrong with an answer by the answer of ``/openapi.json``; empty if right."""
    names = {
        "cases": "CasesEvent",
        "sentence": "SentenceEvent",
        "report": "ReportResponse",
        "problem": "ProblemDetails",
        "study": "StudyReportResponse",
    }
    validators = {
        event: Draft202012Validator({"$ref": f"#/components/schemas/{name}", "components": document["components"]})
        for event, name in names.items()
    }

    def against_schema(name: str, body: Any) -> list[str]:
        return [f"a {name} against the schema: {error.message[:300]}" for error in validators[name].iter_errors(body)]

    def report(body: Any) -> list[str]:
        found = against_schema("report", body)
        return found or ([f"{REDACTED} in the findings"] if REDACTED in body["findings"].lower() else [])

    def stream(answer: Answer) -> list[str]:
        sent = [(name, data) for name, data in events(answer.body.decode().split("\n")) if name != ":"]
        names = [name for name, _ in sent]
        if names != ["cases", *["sentence"] * (len(sent) - 2), "report"]:
            return [f"a stream of {', '.join(names) or 'nothing'}"]
        if found := [fault for name, data in sent for fault in against_schema(name, data)]:
            return found
        (_, cases), *sentences, (_, last) = sent
        right = {
            "sentences out of order": [data["index"] for _, data in sentences] == list(range(len(sentences))),
            "sentences that are not the findings":
                " ".join(data["sentence"]["text"] for _, data in sentences) == last["findings"],
            "other cases than in the report": cases["reference_cases"] == last["reference_cases"],
        }  # fmt: skip
        return [fault for fault, holds in right.items() if not holds] + report(last)

    def problem(answer: Answer) -> list[str]:
        if answer.headers.get("content-type") != PROBLEM:
            return [f"status {answer.status} as {answer.headers.get('content-type')!r}, not {PROBLEM}"]
        body = json.loads(answer.body)
        found, code = against_schema("problem", body), body.get("code")
        retry_after = answer.headers.get("retry-after", "")
        if body.get("status") != answer.status:
            found.append(f"status {answer.status}, but the problem says {body.get('status')}")
        if answer.status >= 500 and not (is_busy(answer) and retry_after.isdecimal()):
            found.append(f"status {answer.status}: {code!r} with Retry-After {retry_after!r}")
        return found

    def faults(request: RawRequest, answer: Answer) -> list[str]:
        if not request.framed and answer.status == 400 and answer.body == _PROTOCOL_ERROR:
            return []
        if answer.status == 431 and len(request.data) > MAX_HEADER_BYTES:
            return []  # a limit of the connection, such as that on the framing of chunks of one byte
        try:
            if answer.status >= 400:
                if request.data.startswith(b"HEAD "):
                    return [] if answer.status < 500 else [f"status {answer.status}"]
                return problem(answer)
            if request.data.startswith(b"POST /studies/") and answer.headers.get("content-type") == JSON:
                return against_schema("study", json.loads(answer.body))
            if not request.data.startswith(b"POST /report ") or answer.status >= 300:
                return []
            is_stream = answer.headers.get("content-type") == STREAM
            return stream(answer) if is_stream else report(json.loads(answer.body))
        except ValueError:
            return [f"status {answer.status} with data that is not JSON"]

    return faults
