"""What must hold for every answer, whatever was sent."""

from __future__ import annotations

import json
from typing import Any

from jsonschema import Draft202012Validator

from benchmarks.raw_http import Answer, RawRequest, events

PROBLEM, STREAM = "application/problem+json", "text/event-stream"
BUSY, REDACTED = "busy", "xxxx"
_PROTOCOL_ERROR = b"Invalid HTTP request received."  # uvicorn's answer to bytes that are not HTTP


class Judge:
    """Judges answers by the served OpenAPI description."""

    def __init__(self, document: dict[str, Any]) -> None:
        """``document`` is the answer of ``/openapi.json``."""
        components = {"components": document["components"]}

        def schema(name: str) -> Draft202012Validator:
            return Draft202012Validator({"$ref": f"#/components/schemas/{name}", **components})

        self._report, self._problem = schema("ReportResponse"), schema("ProblemDetails")
        self._events = {"cases": schema("CasesEvent"), "sentence": schema("SentenceEvent"), "report": self._report}

    def faults(self, request: RawRequest, answer: Answer) -> list[str]:
        """Everything wrong with an answer; empty if it is right."""
        if not request.framed and answer.status == 400 and answer.body == _PROTOCOL_ERROR:
            return []
        try:
            if answer.status >= 400:
                return self._problem_faults(request, answer)
            if not request.data.startswith(b"POST /report ") or answer.status >= 300:
                return []
            if answer.headers.get("content-type") == STREAM:
                return self._stream_faults(answer)
            return self._report_faults(json.loads(answer.body))
        except ValueError:
            return [f"status {answer.status} with data that is not JSON"]

    def _stream_faults(self, answer: Answer) -> list[str]:
        """Cases, sentences in order, then the report with the same content."""
        sent = [(name, data) for name, data in events(answer.body.decode().split("\n")) if name != ":"]
        names = [name for name, _ in sent]
        if names != ["cases", *["sentence"] * (len(sent) - 2), "report"]:
            return [f"a stream of {', '.join(names) or 'nothing'}"]
        faults = [
            f"a {name} event against the schema: {error.message[:300]}"
            for name, data in sent
            for error in self._events[name].iter_errors(data)
        ]
        if faults:
            return faults
        (_, cases), *sentences, (_, report) = sent
        if [data["index"] for _, data in sentences] != list(range(len(sentences))):
            faults.append("sentences out of order")
        if " ".join(data["sentence"]["text"] for _, data in sentences) != report["findings"]:
            faults.append("sentences that are not the findings")
        if cases["reference_cases"] != report["reference_cases"]:
            faults.append("other cases than in the report")
        return faults + self._report_faults(report)

    def _report_faults(self, body: Any) -> list[str]:
        faults = [f"a 200 against the schema: {error.message[:300]}" for error in self._report.iter_errors(body)]
        if not faults and REDACTED in body["findings"].lower():
            faults.append(f"{REDACTED} in the findings")
        return faults

    def _problem_faults(self, request: RawRequest, answer: Answer) -> list[str]:
        if request.data.startswith(b"HEAD "):
            return [] if answer.status < 500 else [f"status {answer.status}"]
        if answer.headers.get("content-type") != PROBLEM:
            return [f"status {answer.status} as {answer.headers.get('content-type')!r}, not {PROBLEM}"]
        body = json.loads(answer.body)
        faults = [f"a problem against the schema: {error.message[:300]}" for error in self._problem.iter_errors(body)]
        if body.get("status") != answer.status:
            faults.append(f"status {answer.status}, but the problem says {body.get('status')}")
        if answer.status == 503:
            if body.get("code") != BUSY or not answer.headers.get("retry-after", "").isdecimal():
                faults.append(f"503 {body.get('code')!r} with Retry-After {answer.headers.get('retry-after')!r}")
        elif answer.status >= 500:
            faults.append(f"status {answer.status}: {body.get('code')!r}")
        return faults


def is_busy(answer: Answer) -> bool:
    """Whether the service asks to repeat the request later."""
    return answer.status == 503 and b'"busy"' in answer.body
