"""The body of ``POST /report``: multipart, read from the stream into bounded memory, checked as it arrives.

Starlette's own form parser rolls parts over 1 MB to a temporary file and has no bound on the body; patients'
images must not touch the disk. Here every byte is counted as it comes, with or without a Content-Length, file
names are never kept, and the first thing wrong ends the reading.
"""

from __future__ import annotations

import asyncio
import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header
from starlette.requests import Request

from model.drafter import MAX_BEAM_SIZE, MAX_TOP_K
from service.problems import Problem

if TYPE_CHECKING:
    from python_multipart.multipart import MultipartCallbacks

IMAGE_FIELDS = ("frontal", "lateral")
NUMBER_FIELDS = {"top_k": MAX_TOP_K, "beam_size": MAX_BEAM_SIZE}  # each 1..most
WORD_FIELDS = {"include": ("attention",), "stream": ("true", "false"), "refine": ("true", "false")}
FIELDS = (*IMAGE_FIELDS, *NUMBER_FIELDS, *WORD_FIELDS)

MULTIPART_OVERHEAD = 64 * 1024  # bytes granted for boundaries, part headers and number fields
_MAX_VALUE_BYTES = 32
_MAX_PROSE_BYTES = 4096
_NAMED = {  # values of headers that an error may quote; others could be anything
    *("gzip", "x-gzip", "deflate", "br", "zstd", "compress"),
    *("application/json", "application/x-www-form-urlencoded", "application/octet-stream", "application/dicom"),
    *("image/png", "image/jpeg", "text/plain", "multipart/mixed", "multipart/related"),
}
_MALFORMED = "Send the form as curl -F or a browser would: every part with a name, the last boundary closed with --."


@dataclass(frozen=True)
class Upload:
    """A request, complete and checked but for the content of its images.

    Attributes:
        images: field name (``frontal``, ``lateral``) -> bytes of the file; at least one.
        top_k: reference cases wanted, or None for the bundle's default.
        beam_size: beam size wanted, or None for the bundle's default.
        attention: ``include=attention``: each sentence's attention is wanted.
        stream: server-sent events are wanted.
        refine: a rewritten draft is wanted beside the model's.
    """

    images: dict[str, bytes] = field(repr=False)
    top_k: int | None = None
    beam_size: int | None = None
    attention: bool = False
    stream: bool = False
    refine: bool = False


async def read_upload(request: Request, *, max_file_bytes: int, timeout_s: float) -> Upload:
    """Read and check the body of a request.

    Args:
        request: its body must not have been read.
        max_file_bytes: largest image file; the body may hold two of them.
        timeout_s: seconds within which the whole body must arrive.

    Raises:
        Problem: 4xx; what is wrong with the request.
        ClientDisconnect: the client went away.
    """
    max_body_bytes = len(IMAGE_FIELDS) * max_file_bytes + MULTIPART_OVERHEAD
    form = _Form(_boundary(request), max_file_bytes)
    if request.query_params:
        name = shown(next(iter(request.query_params)))
        raise Problem("unknown_field", f"{name} came in the address. Send it as a form field in the body.")
    declared = request.headers.get("content-length", "")
    if declared.isdecimal() and int(declared) > max_body_bytes:
        raise _body_too_large(max_body_bytes)
    received = 0
    try:
        async with asyncio.timeout(timeout_s):
            async for chunk in request.stream():
                received += len(chunk)
                if received > max_body_bytes:
                    raise _body_too_large(max_body_bytes)
                form.feed(chunk)
    except TimeoutError as error:
        raise Problem(
            "upload_timeout",
            f"The body did not arrive within {timeout_s:g} s. Check the connection and try again.",
        ) from error
    return form.finish()


def shown(name: str) -> str:
    """A field name as an error may quote it: printable and short."""
    clean = "".join(character if character.isprintable() else "?" for character in name)
    return repr(clean if len(clean) <= 40 else clean[:40] + "…")


def _quoted(header: str) -> str:
    """What a header says, quoted where it is one of the usual values: no other may come back in an error."""
    return f"is {header!r}" if header in _NAMED else "is one that is not read here"


def _body_too_large(most: int) -> Problem:
    return Problem(
        "upload_too_large", f"The body is larger than {most:,} bytes. Send the images at a lower resolution."
    )


def _boundary(request: Request) -> bytes:
    encoding = request.headers.get("content-encoding", "identity").strip().lower()
    if encoding not in ("", "identity"):
        raise Problem(
            "unsupported_encoding", f"The Content-Encoding {_quoted(encoding)}. Send the body as it is, not compressed."
        )
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


class _Form:
    """Parser callbacks that gather the known fields and refuse everything else at the earliest byte."""

    def __init__(self, boundary: bytes, max_file_bytes: int) -> None:
        self._max_file_bytes = max_file_bytes
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

    def finish(self) -> Upload:
        if not self._complete:
            raise Problem("malformed_multipart", "The body ends before its last boundary. Send it again, whole.")
        images = {name: self._image(name) for name in IMAGE_FIELDS if name in self._values}
        numbers = {name: self._number(name, most) for name, most in NUMBER_FIELDS.items() if name in self._values}
        if not images:
            raise Problem("missing_image", "Neither frontal nor lateral was sent. Send at least one of them as a file.")
        words = {name: self._word(name, allowed) for name, allowed in WORD_FIELDS.items() if name in self._values}
        return Upload(
            images,
            numbers.get("top_k"),
            numbers.get("beam_size"),
            attention=words.get("include") == "attention",
            stream=words.get("stream") == "true",
            refine=words.get("refine") == "true",
        )

    # -- checks of whole fields ----------------------------------------------------------------------------

    def _image(self, name: str) -> bytes:
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

    def _number(self, name: str, most: int) -> int:
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

    def _word(self, name: str, allowed: tuple[str, ...]) -> str:
        text = self._values[name].decode("utf-8", "replace").strip()
        if text not in allowed:
            was = f"is {shown(text)}" if text else "is empty"
            raise Problem("unknown_value", f"{name} {was}. Send {' or '.join(allowed)}, or leave it out.", field=name)
        return text

    # -- parser callbacks ----------------------------------------------------------------------------------

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
        if name not in FIELDS:
            raise Problem(
                "unknown_field",
                f"The field {shown(name)} is not known. Send {', '.join(FIELDS)}.",
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
        if self._name not in IMAGE_FIELDS:
            if len(value) > _MAX_VALUE_BYTES:
                raise Problem(
                    "not_a_number" if self._name in NUMBER_FIELDS else "unknown_value",
                    f"The field {self._name} is longer than any value it may hold.",
                    field=self._name,
                )
        elif len(value) > self._max_file_bytes:
            raise Problem(
                "upload_too_large",
                f"The file in {self._name} is larger than {self._max_file_bytes:,} bytes. Reduce it.",
                field=self._name,
            )

    def _on_end(self) -> None:
        self._complete = True


def _is_prose(data: bytes) -> bool:
    """Whether the bytes read as printable text, such as a path typed in place of a file."""
    try:
        return data.decode("utf-8").isprintable()
    except UnicodeDecodeError:
        return False
