"""Inputs after the served OpenAPI description, right and wrong ones, drawn by schemathesis with images for files."""

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
from schemathesis.specs.openapi.checks import (
    allow_header_conformance,
    content_type_conformance,
    negative_data_rejection,
    response_headers_conformance,
    response_schema_conformance,
    status_code_conformance,
)

from benchmarks.fuzzing.files import MAKERS, mutated_file, original
from benchmarks.fuzzing.inputs import Input, endlessly
from benchmarks.raw_http import Answer, RawRequest

# `negative_data_rejection` may be asked only where the whole request is wrong beyond doubt, which schemathesis decides.
CHECKS: tuple[CheckFunction, ...] = (
    not_a_server_error,
    status_code_conformance,
    content_type_conformance,
    response_headers_conformance,
    response_schema_conformance,
    allow_header_conformance,
    negative_data_rejection,
)
BUSY = 503


@st.composite
def images(draw: st.DrawFn) -> bytes:
    """Files for the image fields: mostly whole ones, some mutated, some bytes."""
    number = draw(st.integers(0, 2**31 - 1))
    choice = draw(st.sampled_from(["whole", "whole", "mutated", "bytes"]))
    if choice == "bytes":
        return draw(st.binary(max_size=200))
    return original(draw(st.sampled_from(sorted(MAKERS))), number) if choice == "whole" else mutated_file(number)[1]


def inputs(document: dict[str, Any], seed: int) -> Iterator[Input]:
    """Endless requests for the operations of an OpenAPI document.

    Args:
        document: what ``/openapi.json`` answered.
        seed: same seed, same requests.
    """
    for media_type in ("image/png", "image/jpeg", "application/dicom", "application/octet-stream"):
        schemathesis.openapi.media_type(media_type, images())
    schema = schemathesis.openapi.from_dict(document)
    modes = [schemathesis.GenerationMode.POSITIVE, schemathesis.GenerationMode.NEGATIVE]
    operations = [result.ok() for result in schema.get_all_operations() if isinstance(result, Ok)]
    strategies = []
    for operation in operations:
        weight = 8 if operation.method.upper() == "POST" and operation.path == "/report" else 1
        for mode in modes:
            if mode.is_negative and not _can_be_wrong(operation):
                continue
            strategies += [operation.as_strategy(generation_mode=mode)] * weight
    for origin, case in endlessly(st.one_of(strategies), seed):
        prepared = _prepared(case)
        yield Input("schema", f"{origin}: {case.method} {case.path}", _wire(prepared), _checks(case, prepared))


def _can_be_wrong(operation: Any) -> bool:
    return bool(operation.body or operation.query or operation.headers or operation.path_parameters)


def _prepared(case: schemathesis.Case[Any]) -> requests.PreparedRequest:
    return requests.Request(**_known(case.as_transport_kwargs(base_url="http://service"))).prepare()


def _known(arguments: dict[str, Any]) -> dict[str, Any]:
    names = ("method", "url", "headers", "files", "data", "params", "auth", "cookies", "json")
    return {name: value for name, value in arguments.items() if name in names}


def _wire(request: requests.PreparedRequest) -> RawRequest:
    parts = urlsplit(str(request.url))
    target = parts.path + (f"?{parts.query}" if parts.query else "")
    body = request.body or b""
    body = body.encode() if isinstance(body, str) else bytes(body)  # type: ignore[arg-type]  # never a stream here
    headers = {str(name): str(value) for name, value in request.headers.items()}
    headers.pop("X-Schemathesis-TestCaseId", None)  # random, and the service does not read it
    headers |= {"Host": "service", "Connection": "close"}
    lines = [f"{request.method} {target} HTTP/1.1", *(f"{name}: {value}" for name, value in headers.items())]
    return RawRequest("\r\n".join([*lines, "", ""]).encode("latin-1", "replace") + body)


def _checks(case: schemathesis.Case[Any], prepared: requests.PreparedRequest) -> Callable[[Answer], list[str]]:
    def check(answer: Answer) -> list[str]:
        if answer.status == BUSY:
            return []  # documented, and judged by the invariants
        response = schemathesis.Response(
            answer.status, {name: [value] for name, value in answer.headers.items()}, answer.body, prepared, 0.0, False
        )
        try:
            case.validate_response(response, checks=list(CHECKS))
        except FailureGroup as group:
            return [f"schemathesis: {type(failure).__name__}: {failure}" for failure in group.exceptions]
        return []

    return check
