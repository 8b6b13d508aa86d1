"""Requests as the bytes on the wire, so that any of them can be kept, sent again, and be as wrong as it likes."""

from __future__ import annotations

import contextlib
import http.client
import io
import json
import socket
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

ANSWER_WITHIN_S = 60.0


@dataclass(frozen=True)
class RawRequest:
    """One request: everything that is sent over one connection.

    Attributes:
        data: the bytes, head and body.
        framed: it is HTTP from its first byte to its last. Of what is not, the protocol layer (uvicorn) says 400 in
            plain text before the service sees it.
        whole: the body ends where its head says. Of one that does not, the service can only notice that the client
            left: it may close without an answer.
    """

    data: bytes = field(repr=False)
    framed: bool = True
    whole: bool = True


@dataclass(frozen=True)
class Answer:
    """A response; ``headers`` in lower case."""

    status: int
    headers: Mapping[str, str]
    body: bytes


class NoAnswerError(RuntimeError):
    """The connection closed, or stayed silent, without an answer; the message says which."""


def post_report(body: bytes, content_type: str, *, length: int | None = None) -> bytes:
    """``POST /report`` with a Content-Length: the true one, unless told another."""
    head = (
        f"POST /report HTTP/1.1\r\nHost: service\r\nContent-Type: {content_type}\r\n"
        f"Content-Length: {len(body) if length is None else length}\r\nConnection: close\r\n\r\n"
    )
    return head.encode("latin-1", "replace") + body


def form(fields: Mapping[str, bytes], *, boundary: str = "b0undary") -> bytes:
    """A correct multipart body, images as files and the rest as values."""
    out = io.BytesIO()
    for name, value in fields.items():
        file = f'; filename="{name}"\r\nContent-Type: image/png' if name in ("frontal", "lateral") else ""
        out.write(f'--{boundary}\r\nContent-Disposition: form-data; name="{name}"{file}\r\n\r\n'.encode())
        out.write(value + b"\r\n")
    out.write(f"--{boundary}--\r\n".encode())
    return out.getvalue()


def study_request(fields: Mapping[str, bytes]) -> RawRequest:
    """A correct request with these fields."""
    return RawRequest(post_report(form(fields), "multipart/form-data; boundary=b0undary"))


def send(url: str, request: RawRequest, *, timeout_s: float = ANSWER_WITHIN_S) -> Answer:
    """Send all of it, say that no more will come, read one answer.

    Raises:
        NoAnswerError: there was none.
    """
    address = urlsplit(url)
    try:
        connection = socket.create_connection((address.hostname or "127.0.0.1", address.port or 80), timeout_s)
    except OSError as error:
        raise NoAnswerError(f"no connection: {error}") from error
    with connection:
        # An early refusal may close before all is sent; its answer is still to be read.
        with contextlib.suppress(ConnectionError):
            connection.sendall(request.data)
            if not request.whole:
                connection.shutdown(socket.SHUT_WR)
        response = http.client.HTTPResponse(connection, method="HEAD" if request.data[:5] == b"HEAD " else None)
        try:
            response.begin()
            headers = {name.lower(): value for name, value in response.getheaders()}
            return Answer(response.status, headers, response.read())
        except TimeoutError as error:
            raise NoAnswerError(f"silent for {timeout_s:g} s") from error
        except (OSError, http.client.HTTPException) as error:
            raise NoAnswerError(f"closed without a whole answer: {type(error).__name__}") from error


def events(lines: Iterable[str]) -> Iterator[tuple[str, Any]]:
    """Server-sent events whose data is JSON, each by its name; a comment is named ``:``, its data the line.

    Raises:
        ValueError: data that is no JSON.
    """
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


def load(path: Path, *, framed: bool = True, whole: bool = True) -> RawRequest:
    """A request that was kept in a file."""
    return RawRequest(path.read_bytes(), framed, whole)
