"""Endless inputs of four kinds, the same ones for the same seed."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, TypeVar
from urllib.parse import urlsplit

import requests
import schemathesis
from hypothesis import HealthCheck, Phase, Verbosity, given, settings
from hypothesis import seed as with_seed
from hypothesis import strategies as st
from schemathesis.checks import CheckFunction, not_a_server_error
from schemathesis.core.failures import FailureGroup
from schemathesis.core.result import Ok
from schemathesis.specs.openapi import checks

from benchmarks.fuzzing.files import files, png, seeds
from benchmarks.fuzzing.studies import studies
from benchmarks.raw_http import Answer, RawRequest, form, study_request

T = TypeVar("T")
ROUND = 50  # examples per hypothesis run; each round has its own seed and can be drawn again alone
BUSY = 503
# `negative_data_rejection` holds only where the whole request is wrong beyond doubt, which schemathesis decides.
CHECKS: list[CheckFunction] = [
    not_a_server_error, checks.status_code_conformance, checks.content_type_conformance,
    checks.response_headers_conformance, checks.response_schema_conformance, checks.allow_header_conformance,
    checks.negative_data_rejection,
]  # fmt: skip


@dataclass(frozen=True)
class Input:
    """A request and its origin."""

    kind: str  # ``schema``, ``bodies``, ``files`` or ``studies``
    origin: str  # what draws the same request again: seed and number of the example, and what was done
    request: RawRequest
    check: Callable[[Answer], list[str]] | None = None  # further rules for the answer; returns what is wrong


def inputs(kind: str, document: dict[str, Any], seed: int) -> Iterator[Input]:
    """Endless inputs of a kind; ``document`` is the answer of ``/openapi.json``."""
    if kind == "schema":
        for origin, case in endlessly(_cases(document), seed):
            prepared = _prepared(case)
            yield Input(kind, f"{origin}: {case.method} {case.path}", _raw(prepared), _check(case, prepared))
    elif kind == "bodies":
        for origin, request in endlessly(bodies(), seed):
            yield Input(kind, origin, request)
    elif kind == "studies":
        for origin, request in endlessly(studies(), seed):
            yield Input(kind, origin, request)
    else:
        views = st.sampled_from((("frontal",), ("lateral",), ("frontal", "lateral")))
        for origin, ((done, data), names) in endlessly(st.tuples(files(), views), seed):
            request = study_request({**dict.fromkeys(names, data), "beam_size": b"1"})
            yield Input(kind, f"{origin}: {done} in {' and '.join(names)}", request)


def endlessly(strategy: st.SearchStrategy[T], start: int) -> Iterator[tuple[str, T]]:
    """Examples with their origin, round after round; the same ones for the same ``start``."""
    for number in itertools.count(start):
        for position, example in enumerate(_round(strategy, number)):
            yield f"hypothesis seed {number}, example {position}", example


def _round(strategy: st.SearchStrategy[T], number: int) -> list[T]:
    examples: list[T] = []

    @with_seed(number)
    @settings(
        max_examples=ROUND, phases=[Phase.generate], database=None, deadline=None, verbosity=Verbosity.quiet,
        suppress_health_check=list(HealthCheck),
    )  # fmt: skip
    @given(strategy)
    def gather(example: T) -> None:
        examples.append(example)

    gather()
    return examples


# --- requests of the OpenAPI description ------------------------------------------------------------------------------


def _cases(document: dict[str, Any]) -> st.SearchStrategy[schemathesis.Case[Any]]:
    """Right and wrong requests for all operations; image fields hold mostly whole files, some mutated, some bytes."""
    images = (
        files((0, 0, 1)).map(lambda file: file[1]) | files((0,)).map(lambda file: file[1]) | st.binary(max_size=200)
    )
    for media_type in ("image/png", "image/jpeg", "application/dicom", "application/octet-stream"):
        schemathesis.openapi.media_type(media_type, images)
    strategies = []
    for result in schemathesis.openapi.from_dict(document).get_all_operations():
        assert isinstance(result, Ok)
        operation = result.ok()
        modes = [schemathesis.GenerationMode.POSITIVE]
        if operation.body or operation.query or operation.headers or operation.path_parameters:
            modes.append(schemathesis.GenerationMode.NEGATIVE)
        weight = 8 if (operation.method.upper(), operation.path) == ("POST", "/report") else 1
        strategies += [operation.as_strategy(generation_mode=mode) for mode in modes] * weight
    return st.one_of(strategies)


def _prepared(case: schemathesis.Case[Any]) -> requests.PreparedRequest:
    transport = case.as_transport_kwargs(base_url="http://service")
    known = ("method", "url", "headers", "files", "data", "params", "auth", "cookies", "json")
    return requests.Request(**{name: transport[name] for name in known if name in transport}).prepare()


def _raw(request: requests.PreparedRequest) -> RawRequest:
    url, body = urlsplit(str(request.url)), request.body or b""
    body = body.encode() if isinstance(body, str) else bytes(body)  # type: ignore[arg-type]  # never a stream here
    headers = {str(name): str(value) for name, value in request.headers.items()}
    headers.pop("X-Schemathesis-TestCaseId", None)  # random, and the service does not read it
    headers |= {"Host": "service", "Connection": "close"}
    target = url.path + (f"?{url.query}" if url.query else "")
    lines = [f"{request.method} {target} HTTP/1.1", *(f"{name}: {value}" for name, value in headers.items())]
    return RawRequest("\r\n".join([*lines, "", ""]).encode("latin-1", "replace") + body)


def _check(case: schemathesis.Case[Any], prepared: requests.PreparedRequest) -> Callable[[Answer], list[str]]:
    """Schemathesis' own rules for the answer to ``case``; a 503 is judged by ``rules`` alone."""

    def check(answer: Answer) -> list[str]:
        headers = {name: [value] for name, value in answer.headers.items()}
        response = schemathesis.Response(answer.status, headers, answer.body, prepared, 0.0, False)
        try:
            if answer.status != BUSY:
                case.validate_response(response, checks=CHECKS)
        except FailureGroup as group:
            return [f"schemathesis: {type(failure).__name__}: {failure}" for failure in group.exceptions]
        return []

    return check


# --- multipart bodies -------------------------------------------------------------------------------------------------

HUGE = (65_000, 300_000, 1_100_000, 2_300_000)  # bytes: around the limits that `benchmarks.fuzz` gives the service
_images = st.deferred(lambda: st.sampled_from([png(0), *(d for name, d in seeds().items() if name[:3] in "jpeg gif")]))
_counts = st.integers(-5, 60).map(lambda value: str(value).encode())
_right: dict[str, st.SearchStrategy[bytes]] = {
    "frontal": _images, "lateral": _images, "top_k": st.sampled_from([b"1", b"3"]), "beam_size": st.just(b"2"),
    "include": st.sampled_from([b"attention", b"evidence, attention", b"all"]),
    "stream": st.sampled_from([b"true", b"false", b"1"]),
}  # fmt: skip
_names = st.sampled_from([*_right, "Frontal", "frontal[]", "", "__proto__", "\u017f", "a" * 5000, 'top_k"; x="'])
_contents = (
    _images | _counts | st.binary(max_size=300) | st.sampled_from(HUGE).map(bytes)
    | st.sampled_from([b"", b"0x3", b"1e1", b"3\r\n", b"9" * 33, "٣".encode(), b"\0", b"NaN", b"--b0undary"])
)  # fmt: skip
_boundaries = st.sampled_from(
    ["b0undary"] * 6 + ["-", "a" * 70, "a" * 300, "a b", "'()+_,-./:=?", '"', "é", "b;c", "\t"]
)
_odd = st.sampled_from([  # replaced in the header and in the body
    (b"\r\n--", b"\n--"), (b"form-data", b"attachment"), (b"form-data", b""), (b"name", b"n"), (b'"', b""),
    (b"filename", b"filename*"), (b"Content-Type", b"X"), (b"--\r\n", b""), (b"--\r\n", b"--\r\nepilogue"),
    (b"; boundary=", b""), (b"multipart/form-data", b"application/json"), (b"multipart/form-data", b""),
    (b"; boundary", b"; charset=utf-16; boundary"), (b"*/*", b"text/html"), (b"*/*", b"text/event-stream"),
    (b"Accept: */*", b"Content-Encoding: gzip"), (b"*/*", b"\xff"),
    (b"/report", b"/report?%00"), (b"/report", b"/report/"), (b"image/png", b"image/gif"),
])  # fmt: skip
_framings = st.sampled_from(["length"] * 8 + ["chunked"] * 3 + ["short", "long", "cut chunks", "broken chunks", "none"])


@st.composite
def bodies(draw: st.DrawFn) -> RawRequest:
    """One ``POST /report``: fields right, wrong, missing, repeated or huge, odd syntax, a right or wrong length."""
    names = draw(st.lists(st.sampled_from(sorted(_right)), unique=True, max_size=4))
    fields = [(name, draw(_right[name])) for name in names]
    more = st.lists(st.tuples(_names | st.text(max_size=12), _contents), max_size=2)
    fields += draw(st.just(fields[:1]) | more) if draw(st.booleans()) else []
    boundary = draw(_boundaries)
    body = form(fields, boundary=boundary)
    line = "POST /report HTTP/1.1\r\nHost: service\r\nConnection: close\r\nAccept: */*\r\n"
    head = f"{line}Content-Type: multipart/form-data; boundary={boundary}\r\n".encode("latin-1")
    for old, new in draw(st.just([]) | st.lists(_odd, max_size=2)):
        head, body = head.replace(old, new), body.replace(old, new)
    how = draw(_framings)
    if "chunk" in how:
        size = 65_536 if len(body) > 20_000 else draw(st.sampled_from([1, 7, 1000]))
        pieces = [body[start : start + size] for start in range(0, len(body), size)]
        head += b"Transfer-Encoding: chunked\r\n"
        body = b"".join(b"%x\r\n%s\r\n" % (len(piece), piece) for piece in pieces)
        body += {"chunked": b"0\r\n\r\n", "cut chunks": b"", "broken chunks": b"zz\r\n0\r\n\r\n"}[how]
    elif how != "none":
        length = max(0, len(body) + {"length": 0, "short": -20, "long": 2000}[how])
        head, body = head + b"Content-Length: %d\r\n" % length, body[:length]
    else:
        body = b""
    return RawRequest(head + b"\r\n" + body, framed=how != "broken chunks", whole=how not in ("cut chunks", "long"))
