"""HTTP requests as raw bytes: they can be stored, sent again, and be wrong in any layer."""

from __future__ import annotations

import contextlib
import http.client
import json
import socket
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any
from urllib.parse import urlsplit

ANSWER_WITHIN_S = 60.0
CONTENT_TYPE = "multipart/form-data; boundary=b0undary"


@dataclass(frozen=True)
class RawRequest:
    """One request: everything that is sent over one connection."""

    data: bytes = field(repr=False)  # header and body
    framed: bool = True  # False where the bytes are not valid HTTP; uvicorn then answers 400 in plain text itself
    whole: bool = True  # False where the body is shorter than declared; the service may then close without an answer


@dataclass(frozen=True)
class Answer:
    """A response; ``headers`` in lower case."""

    status: int
    headers: Mapping[str, str]
    body: bytes


class NoAnswerError(RuntimeError):
    """The connection was closed, or stayed silent, without an answer."""


def request(method: str, path: str, body: bytes = b"", headers: Mapping[str, str] = MappingProxyType({})) -> bytes:
    """A correct request on a connection that is closed after the answer; ``headers`` replace or extend its headers."""
    values = {"Host": "service", "Content-Length": str(len(body)), "Connection": "close", **headers}
    lines = [f"{method} {path} HTTP/1.1", *(f"{name}: {value}" for name, value in values.items())]
    return "\r\n".join([*lines, "", ""]).encode() + body


def post_report(body: bytes) -> bytes:
    """``POST /report`` with a multipart body."""
    return request("POST", "/report", body, {"Content-Type": CONTENT_TYPE})


def form(fields: Iterable[tuple[str, bytes]], *, boundary: str = "b0undary") -> bytes:
    """A correct multipart body, images as files and the rest as values."""
    body = b""
    for name, value in fields:
        file = f'; filename="{name}"\r\nContent-Type: image/png' if name in ("frontal", "lateral") else ""
        head = f'--{boundary}\r\nContent-Disposition: form-data; name="{name}"{file}\r\n\r\n'
        body += head.encode() + value + b"\r\n"
    return body + f"--{boundary}--\r\n".encode()


def study_request(fields: Mapping[str, bytes]) -> RawRequest:
    """A correct request with these fields."""
    return RawRequest(post_report(form(fields.items())))


def connect(url: str, timeout_s: float = ANSWER_WITHIN_S) -> socket.socket:
    """A TCP connection to the host and port of ``url``."""
    address = urlsplit(url)
    return socket.create_connection((address.hostname or "127.0.0.1", address.port or 80), timeout_s)


def receive(connection: socket.socket, method: str | None = None) -> Answer:
    """Read one answer; raises OSError or HTTPException where it does not arrive completely."""
    response = http.client.HTTPResponse(connection, method=method)
    response.begin()
    return Answer(response.status, {name.lower(): value for name, value in response.getheaders()}, response.read())


def send(url: str, request: RawRequest, *, timeout_s: float = ANSWER_WITHIN_S) -> Answer:
    """Send the request and read one answer; raises NoAnswerError where there is none."""
    try:
        connection = connect(url, timeout_s)
    except OSError as error:
        raise NoAnswerError(f"no connection: {error}") from error
    with connection:
        with contextlib.suppress(ConnectionError):  # an early refusal may close first; its answer is still to be read
            connection.sendall(request.data)
            if not request.whole:
                connection.shutdown(socket.SHUT_WR)
        try:
            return receive(connection, "HEAD" if request.data[:5] == b"HEAD " else None)
        except TimeoutError as error:
            raise NoAnswerError(f"silent for {timeout_s:g} s") from error
        except (OSError, http.client.HTTPException) as error:
            raise NoAnswerError(f"closed without a whole answer: {type(error).__name__}") from error


def events(lines: Iterable[str]) -> Iterator[tuple[str, Any]]:
    """Server-sent events with JSON data, each as (name, data); a comment is named ``:``, its data the line."""
    name, data = "message", ""
    for line in lines:
        kind, _, value = line.partition(":")
        if not line:
            if data:
                yield name, json.loads(data)
            name, data = "message", ""
        elif not kind:
            yield ":", line
        elif kind == "event":
            name = value.strip()
        elif kind == "data":
            data += value
