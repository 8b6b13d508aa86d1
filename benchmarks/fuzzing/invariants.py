"""What must hold for every answer, whatever was sent."""

from __future__ import annotations

import json
from typing import Any

from jsonschema import Draft202012Validator

from benchmarks.wire import Answer, Wire
from service.problems import MEDIA_TYPE

BUSY = "busy"
REDACTED = "xxxx"
_PROTOCOL_ERROR = b"Invalid HTTP request received."  # uvicorn's own word on bytes that are no HTTP


class Judge:
    """Judges answers by the served OpenAPI description."""

    def __init__(self, document: dict[str, Any]) -> None:
        """``document`` is what ``/openapi.json`` answered."""
        components = {"components": document["components"]}

        def schema(name: str) -> Draft202012Validator:
            return Draft202012Validator({"$ref": f"#/components/schemas/{name}", **components})

        self._report, self._problem = schema("ReportResponse"), schema("ProblemDetails")

    def faults(self, request: Wire, answer: Answer) -> list[str]:
        """Everything wrong with an answer, in words; empty where it is right."""
        if not request.framed and answer.status == 400 and answer.body == _PROTOCOL_ERROR:
            return []
        if 200 <= answer.status < 400:
            return self._success(request, answer)
        return self._refusal(request, answer)

    def _success(self, request: Wire, answer: Answer) -> list[str]:
        if not request.data.startswith(b"POST /report "):
            return []
        try:
            body = json.loads(answer.body)
        except ValueError:
            return ["a 200 whose body is no JSON"]
        faults = [f"a 200 against the schema: {error.message[:300]}" for error in self._report.iter_errors(body)]
        if REDACTED in str(body.get("findings", "")).lower():
            faults.append(f"{REDACTED} in the findings")
        return faults

    def _refusal(self, request: Wire, answer: Answer) -> list[str]:
        if request.data.startswith(b"HEAD "):
            return [] if answer.status < 500 else [f"status {answer.status}"]
        if answer.headers.get("content-type") != MEDIA_TYPE:
            return [f"status {answer.status} as {answer.headers.get('content-type')!r}, not {MEDIA_TYPE}"]
        try:
            body = json.loads(answer.body)
        except ValueError:
            return [f"status {answer.status} whose body is no JSON"]
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
    """Whether the service asks to come again later."""
    return answer.status == 503 and b'"busy"' in answer.body
