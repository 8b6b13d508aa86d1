"""Requests from the served OpenAPI description, right and wrong ones, drawn by schemathesis."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any
from urllib.parse import urlsplit

import requests
import schemathesis
from hypothesis import strategies as st
from schemathesis.checks import CheckFunction, not_a_server_error
from schemathesis.core.failures import FailureGroup
from schemathesis.core.result import Ok
from schemathesis.specs.openapi import checks

from benchmarks.fuzzing.inputs import Input, endlessly
from benchmarks.fuzzing.mutation import files
from benchmarks.raw_http import Answer, RawRequest

# `negative_data_rejection` holds only where the whole request is wrong beyond doubt, which schemathesis decides.
CHECKS: list[CheckFunction] = [
    not_a_server_error, checks.status_code_conformance, checks.content_type_conformance,
    checks.response_headers_conformance, checks.response_schema_conformance, checks.allow_header_conformance,
    checks.negative_data_rejection,
]  # fmt: skip
BUSY = 503
# Of an image field: mostly whole files, some mutated, some bytes.
IMAGES = st.one_of(
    files((0,)).map(lambda file: file[1]), files((0, 1)).map(lambda file: file[1]), st.binary(max_size=200)
)


def inputs(document: dict[str, Any], seed: int) -> Iterator[Input]:
    """Endless requests for the operations of an OpenAPI document; same seed, same requests."""
    for media_type in ("image/png", "image/jpeg", "application/dicom", "application/octet-stream"):
        schemathesis.openapi.media_type(media_type, IMAGES)
    operations = schemathesis.openapi.from_dict(document).get_all_operations()
    strategies = []
    for operation in (result.ok() for result in operations if isinstance(result, Ok)):
        weight = 8 if operation.method.upper() == "POST" and operation.path == "/report" else 1
        modes = [schemathesis.GenerationMode.POSITIVE]
        if operation.body or operation.query or operation.headers or operation.path_parameters:
            modes.append(schemathesis.GenerationMode.NEGATIVE)
        strategies += [operation.as_strategy(generation_mode=mode) for mode in modes] * weight
    for origin, case in endlessly(st.one_of(strategies), seed):
        transport = case.as_transport_kwargs(base_url="http://service")
        known = ("method", "url", "headers", "files", "data", "params", "auth", "cookies", "json")
        prepared = requests.Request(**{name: transport[name] for name in known if name in transport}).prepare()
        yield Input("schema", f"{origin}: {case.method} {case.path}", _raw(prepared), _check(case, prepared))


def _raw(request: requests.PreparedRequest) -> RawRequest:
    url = urlsplit(str(request.url))
    body = request.body or b""
    body = body.encode() if isinstance(body, str) else bytes(body)  # type: ignore[arg-type]  # never a stream here
    headers = {str(name): str(value) for name, value in request.headers.items()}
    headers.pop("X-Schemathesis-TestCaseId", None)  # random, and the service does not read it
    headers |= {"Host": "service", "Connection": "close"}
    target = url.path + (f"?{url.query}" if url.query else "")
    lines = [f"{request.method} {target} HTTP/1.1", *(f"{name}: {value}" for name, value in headers.items())]
    return RawRequest("\r\n".join([*lines, "", ""]).encode("latin-1", "replace") + body)


def _check(case: schemathesis.Case[Any], prepared: requests.PreparedRequest) -> Callable[[Answer], list[str]]:
    """Schemathesis' own rules for the answer to ``case``."""

    def check(answer: Answer) -> list[str]:
        if answer.status == BUSY:
            return []  # documented, and judged by the invariants
        headers = {name: [value] for name, value in answer.headers.items()}
        response = schemathesis.Response(answer.status, headers, answer.body, prepared, 0.0, False)
        try:
            case.validate_response(response, checks=CHECKS)
        except FailureGroup as group:
            return [f"schemathesis: {type(failure).__name__}: {failure}" for failure in group.exceptions]
        return []

    return check
