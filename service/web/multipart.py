"""Multipart bodies, read from the stream into bounded memory and checked as they arrive.

Starlette's own form parser rolls parts over 1 MB to a temporary file and has no bound on the body; patients'
images must not touch the disk. Here every byte is counted as it comes, with or without a Content-Length, file
names are never kept, and the first thing wrong ends the reading.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header
from starlette.requests import Request

from service.web.problems import Problem

if TYPE_CHECKING:
    from python_multipart.multipart import MultipartCallbacks

MULTIPART_OVERHEAD = 64 * 1024  # bytes granted for boundaries, part headers and all fields but files
_MAX_PROSE_BYTES = 4096
GRACE_S, SLOWEST_BYTES_S = 10.0, 8 * 1024  # a body that comes slower, the grace aside, must not hold a place
_NAMED = {  # values of headers that an error may quote; others could be anything
    *("gzip", "x-gzip", "deflate", "br", "zstd", "compress"),
    *("application/json", "application/x-www-form-urlencoded", "application/octet-stream", "application/dicom"),
    *("image/png", "image/jpeg", "text/plain", "multipart/mixed", "multipart/related"),
}
_MALFORMED = "Send the form as curl -F or a browser would: every part with a name, the last boundary closed with --."


@dataclass(frozen=True)
class FormField:
    """A field that a form may have.

    Attributes:
        most: bytes.
        too_long: code of the problem of a longer one.
        is_file: whether it holds a file.
    """

    most: int
    too_long: str = "out_of_range"
    is_file: bool = False

    @classmethod
    def file(cls, most: int) -> FormField:
        """A field that holds a file of ``most`` bytes."""
        return cls(most, "upload_too_large", is_file=True)


class Form:
    """The fields of one request; a field that was not sent is None."""

    def __init__(self, values: dict[str, bytearray], without_file_name: frozenset[str]) -> None:
        self._values, self._without_file_name = values, without_file_name

    def file(self, name: str) -> bytes | None:
        """The bytes of an image file; the form lets go of them.

        Raises:
            Problem: ``empty``, or ``not_a_file``: it holds a line of text, such as a path typed in place of the file.
        """
        if name not in self._values:
            return None
        data = bytes(self._values.pop(name))
        if not data:
            raise Problem(
                "empty", f"The field {name} is empty. Send a PNG, JPEG or DICOM file, or leave it out.", field=name
            )
        if name in self._without_file_name and len(data) <= _MAX_PROSE_BYTES and _is_prose(data):
            raise Problem(
                "not_a_file",
                f"The field {name} holds text, not a file. With curl write -F {name}=@FILE, with the @.",
                field=name,
            )
        return data

    def files(self, names: Iterable[str]) -> dict[str, bytes]:
        """Those of the files that were sent; raises as ``file``."""
        return {name: data for name in names if (data := self.file(name)) is not None}

    def number(self, name: str, most: int) -> int | None:
        """A whole number from 1 to ``most``.

        Raises:
            Problem: ``empty``, ``not_a_number`` or ``out_of_range``.
        """
        if name not in self._values:
            return None
        text = self._values[name].decode("utf-8", "replace").strip()
        allowed = f"Send a whole number from 1 to {most}, or leave it out."
        if not text:
            raise Problem("empty", f"The field {name} is empty. {allowed}", field=name)
        if not re.fullmatch(r"[+-]?[0-9]+", text):
            raise Problem("not_a_number", f"{name} is {shown(text)}. {allowed}", field=name)
        value = int(text)
        if not 1 <= value <= most:
            raise Problem("out_of_range", f"{name} is {value}. {allowed}", field=name)
        return value

    def word(self, name: str, allowed: tuple[str, ...]) -> str | None:
        """One of a few words.

        Raises:
            Problem: ``unknown_value``.
        """
        if name not in self._values:
            return None
        text = self._values[name].decode("utf-8", "replace").strip()
        if text not in allowed:
            was = f"is {shown(text)}" if text else "is empty"
            raise Problem("unknown_value", f"{name} {was}. Send {' or '.join(allowed)}, or leave it out.", field=name)
        return text

    def text(self, name: str) -> str | None:
        """Free text, its ends trimmed; None where it is empty as well.

        Raises:
            Problem: ``malformed_value``: it is not UTF-8.
        """
        try:
            return self._values.get(name, bytearray()).decode("utf-8").strip() or None
        except UnicodeDecodeError as error:
            raise Problem("malformed_value", f"The field {name} is not UTF-8. Send it as UTF-8.", field=name) from error


def refuse_compressed(request: Request) -> None:
    """Take a body only as it is.

    Raises:
        Problem: ``unsupported_encoding``, 415.
    """
    encoding = request.headers.get("content-encoding", "identity").strip().lower()
    if encoding not in ("", "identity"):
        raise Problem(
            "unsupported_encoding", f"The Content-Encoding {_quoted(encoding)}. Send the body as it is, not compressed."
        )


async def read_form(request: Request, fields: Mapping[str, FormField], *, timeout_s: float) -> Form:
    """Read the body of a request.

    Args:
        request: its body must not have been read.
        fields: all that it may hold. The body may be as large as all files together, and ``MULTIPART_OVERHEAD``.
        timeout_s: seconds within which the whole body must arrive.

    Raises:
        Problem: 4xx; what is wrong with the request.
        ClientDisconnect: the client went away.
    """
    max_body_bytes = sum(field.most for field in fields.values() if field.is_file) + MULTIPART_OVERHEAD
    reader = _Reader(_boundary(request), fields)
    if request.query_params:
        name = shown(next(iter(request.query_params)))
        raise Problem("unknown_field", f"{name} came in the address. Send it as a form field in the body.")
    remedy = "Send the images at a lower resolution."
    await receive(request, reader.feed, most=max_body_bytes, timeout_s=timeout_s, remedy=remedy)
    return reader.finish()


async def receive(
    request: Request, take: Callable[[bytes], object], *, most: int, timeout_s: float, remedy: str
) -> None:
    """Read a body from the stream, counted as it comes, with or without a Content-Length.

    Args:
        request: its body must not have been read.
        take: is given each chunk.
        most: bytes that the body may have.
        timeout_s: seconds within which the whole body must arrive, at ``SLOWEST_BYTES_S`` or faster.
        remedy: what to do about a body that is too large.

    Raises:
        Problem: ``upload_too_large``, 413; ``upload_timeout``, 408; what ``take`` raises.
        ClientDisconnect: the client went away.
    """
    too_large = Problem("upload_too_large", f"The body is larger than {most:,} bytes. {remedy}")
    declared = request.headers.get("content-length", "")
    if declared.isdecimal() and int(declared) > most:
        raise too_large
    received, began = 0, asyncio.get_running_loop().time()
    try:
        async with asyncio.timeout(min(timeout_s, GRACE_S)) as limit:
            async for chunk in request.stream():
                received += len(chunk)
                if received > most:
                    raise too_large
                take(chunk)
                limit.reschedule(began + min(timeout_s, GRACE_S + received / SLOWEST_BYTES_S))
    except TimeoutError as error:
        raise Problem(
            "upload_timeout",
            f"The body did not arrive within {timeout_s:g} s, or came at less than {SLOWEST_BYTES_S // 1024} KiB/s. "
            "Check the connection and try again.",
        ) from error


def shown(name: str) -> str:
    """A field name as an error may quote it: printable and short."""
    clean = "".join(character if character.isprintable() else "?" for character in name)
    return repr(clean if len(clean) <= 40 else clean[:40] + "…")


def _quoted(header: str) -> str:
    """What a header says, quoted where it is one of the usual values: no other may come back in an error."""
    return f"is {header!r}" if header in _NAMED else "is one that is not read here"


def _boundary(request: Request) -> bytes:
    refuse_compressed(request)
    kind, options = parse_options_header(request.headers.get("content-type"))
    if kind != b"multipart/form-data":
        was = _quoted(kind.decode("latin-1").lower()) if kind else "is missing"
        raise Problem("not_multipart", f"The Content-Type {was}. Send multipart/form-data, as curl -F does.")
    boundary = options.get(b"boundary", b"")
    if not boundary:
        raise Problem(
            "malformed_multipart", "The Content-Type names no boundary. Let the HTTP library set this header."
        )
    return boundary


class _Reader:
    """Parser callbacks that gather the known fields and refuse everything else at the earliest byte."""

    def __init__(self, boundary: bytes, fields: Mapping[str, FormField]) -> None:
        self._fields = fields
        self._values: dict[str, bytearray] = {}
        self._without_file_name: set[str] = set()
        self._header_name = bytearray()
        self._header_value = bytearray()
        self._disposition = b""
        self._name = ""
        self._complete = False
        callbacks: MultipartCallbacks = {
            "on_part_begin": self._on_part_begin,
            "on_header_field": self._on_header_field,
            "on_header_value": self._on_header_value,
            "on_header_end": self._on_header_end,
            "on_headers_finished": self._on_headers_finished,
            "on_part_data": self._on_part_data,
            "on_end": self._on_end,
        }
        try:
            self._parser = MultipartParser(boundary, callbacks)
        except FormParserError as error:
            raise Problem("malformed_multipart", _MALFORMED) from error

    def feed(self, chunk: bytes) -> None:
        if self._complete:  # what follows the last boundary means nothing (RFC 2046)
            return
        try:
            self._parser.write(chunk)
        except FormParserError as error:
            raise Problem("malformed_multipart", _MALFORMED) from error

    def finish(self) -> Form:
        if not self._complete:
            raise Problem("malformed_multipart", "The body ends before its last boundary. Send it again, whole.")
        return Form(self._values, frozenset(self._without_file_name))

    # -- parser callbacks ------------------------------------------------------------------------------------------

    def _on_part_begin(self) -> None:
        self._disposition = b""
        self._header_name.clear()
        self._header_value.clear()

    def _on_header_field(self, data: bytes, start: int, end: int) -> None:
        self._header_name += data[start:end]

    def _on_header_value(self, data: bytes, start: int, end: int) -> None:
        self._header_value += data[start:end]

    def _on_header_end(self) -> None:
        if self._header_name.lower() == b"content-disposition":
            self._disposition = bytes(self._header_value)
        self._header_name.clear()
        self._header_value.clear()

    def _on_headers_finished(self) -> None:
        _, options = parse_options_header(self._disposition)
        if b"name" not in options:
            raise Problem("malformed_multipart", "A part has no name. " + _MALFORMED)
        name = options[b"name"].decode("utf-8", "replace")
        if name not in self._fields:
            raise Problem(
                "unknown_field",
                f"The field {shown(name)} is not known. Send {', '.join(self._fields)}.",
                field=name[:64],
            )
        if name in self._values:
            raise Problem("duplicate_field", f"The field {name} came twice. Send it once.", field=name)
        if b"filename" not in options:
            self._without_file_name.add(name)
        self._values[name] = bytearray()
        self._name = name

    def _on_part_data(self, data: bytes, start: int, end: int) -> None:
        value = self._values[self._name]
        value += data[start:end]
        field = self._fields[self._name]
        if len(value) > field.most:
            what = "file in" if field.is_file else "field"
            detail = f"The {what} {self._name} is larger than {field.most:,} bytes. Reduce it."
            raise Problem(field.too_long, detail, field=self._name)

    def _on_end(self) -> None:
        self._complete = True


def _is_prose(data: bytes) -> bool:
    """Whether the bytes read as printable text, such as a path typed in place of a file."""
    try:
        return data.decode("utf-8").isprintable()
    except UnicodeDecodeError:
        return False
