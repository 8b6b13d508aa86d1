"""Request bodies, counted as they arrive, read into limited memory and checked part by part.

Handlers call ``read_form`` themselves, after the API key was checked and a slot was acquired.
FastAPI's ``Form()`` parameters have these limitations:

- the whole body is read before any dependency runs, without a limit on its size or time;
- parts over 1 MB go to a temporary file;
- of a repeated field only the last part is kept;
- a body that ends before its last boundary is accepted.

The forms are therefore pydantic models (``service.schemas.forms``), and the parser is Starlette's
with restricted callbacks.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncGenerator, Mapping
from typing import TypeVar

from pydantic import ValidationError
from python_multipart.multipart import parse_options_header
from starlette.datastructures import Headers
from starlette.formparsers import MultiPartException, MultiPartParser
from starlette.requests import Request

from service.schemas.forms import FileLimit, FormPart, MultipartForm, PartLimit, missing_field, quote
from service.web.problems import Problem

MULTIPART_OVERHEAD = 64 * 1024  # bytes allowed for boundaries, part headers and all fields but files
GRACE_S = 10.0  # seconds before the minimum rate applies
MIN_BYTES_PER_S = 8 * 1024  # a slower body must not hold a slot
MAX_PAUSE_S = 15.0  # between two parts of a body, and of trailers
_MAX_CONTENT_TYPE = 1024  # bytes
_QUOTABLE = {  # header values that an error may quote; others could be anything
    *("gzip", "x-gzip", "deflate", "br", "zstd", "compress"),
    *("application/json", "application/x-www-form-urlencoded", "application/octet-stream", "application/dicom"),
    *("image/png", "image/jpeg", "text/plain", "multipart/mixed", "multipart/related"),
}
_MALFORMED = "Send the form as curl -F or a browser does: every part has a name, and the last boundary ends with --."
_NO_NAME = "A part has no name. " + _MALFORMED
_EXTENDED_NAME = 'A part has name* instead of name; multipart/form-data has no such parameter. Send name="frontal".'
_SINGLE_QUOTED = re.compile(rb"\A'(.*)'\Z", re.DOTALL)  # as scripts write it
_LF_ONLY = (
    "The multipart body ends its lines with LF; RFC 2046 requires CRLF. Send the form as curl -F or a browser does."
)

Form = TypeVar("Form", bound=MultipartForm)


async def read_form(
    request: Request, form: type[Form], *, max_file_bytes: int, timeout_s: float, optional: bool = False
) -> Form:
    """Read and check a multipart body; an ``optional`` one may be missing.

    Args:
        request: its body must not have been read.
        form: the fields. The body may be as large as all files together, and
            ``MULTIPART_OVERHEAD``.
        max_file_bytes: largest file.
        timeout_s: seconds within which the whole body must arrive.

    Raises:
        Problem: 4xx; the request is wrong.
        ClientDisconnect: the client disconnected.
    """
    if optional and _has_no_body(request):
        _refuse_query(request)
        return form()
    boundary = _check_multipart(request)
    limits = _limits(form, max_file_bytes)
    files = sum(limit.code == _FILE_CODE for limit in limits.values())
    body = receive(
        request,
        max_bytes=files * max_file_bytes + MULTIPART_OVERHEAD,
        timeout_s=timeout_s,
        remedy="Send the images at a lower resolution.",
    )
    parser = _FormParser(request.headers, _without_preamble(body, boundary), limits)
    try:
        await parser.parse()
    except MultiPartException as error:
        raise Problem("malformed_multipart", _MALFORMED) from error
    if not parser.complete:
        raise Problem("malformed_multipart", "The body ends before its last boundary. Send the whole body again.")
    try:
        return form.model_validate(parser.take_parts())
    except ValidationError as error:
        raise _field_problem(error, limits) from None


async def receive(request: Request, *, max_bytes: int, timeout_s: float, remedy: str) -> AsyncGenerator[bytes, None]:
    """The chunks of a body, counted as they arrive, with or without a Content-Length.

    Args:
        request: its body must not have been read.
        max_bytes: largest body.
        timeout_s: seconds within which the whole body must arrive, at ``MIN_BYTES_PER_S`` or
            faster, and without a pause of ``MAX_PAUSE_S``.
        remedy: what to do about a body that is too large.

    Raises:
        Problem: ``upload_too_large``, 413; ``upload_timeout``, 408.
        ClientDisconnect: the client disconnected.
    """
    too_large = Problem("upload_too_large", f"The body is larger than {max_bytes:,} bytes. {remedy}")
    declared = request.headers.get("content-length", "")
    if declared.isdecimal() and int(declared) > max_bytes:
        raise too_large
    stream, received, started = request.stream(), 0, asyncio.get_running_loop().time()
    while True:
        deadline = started + min(timeout_s, GRACE_S + received / MIN_BYTES_PER_S)
        try:
            async with asyncio.timeout_at(min(deadline, asyncio.get_running_loop().time() + MAX_PAUSE_S)):
                chunk = await anext(stream, None)
        except TimeoutError as error:
            raise Problem(
                "upload_timeout",
                f"The body did not arrive within {timeout_s:g} s, came at less than {MIN_BYTES_PER_S // 1024} KiB/s, "
                f"or paused for {MAX_PAUSE_S:g} s. Check the connection and try again.",
            ) from error
        if chunk is None:
            return
        received += len(chunk)
        if received > max_bytes:
            raise too_large
        yield chunk


def refuse_compressed(request: Request) -> None:
    """Accept only a body without Content-Encoding.

    Raises:
        Problem: ``unsupported_encoding``, 415.
    """
    encoding = request.headers.get("content-encoding", "identity").strip().lower()
    if encoding not in ("", "identity"):
        raise Problem(
            "unsupported_encoding",
            f"The Content-Encoding {_quote_header(encoding)}. Send the body uncompressed.",
        )


def _quote_header(value: str) -> str:
    return f"is {value!r}" if value in _QUOTABLE else "is not supported"


async def _without_preamble(body: AsyncGenerator[bytes, None], boundary: bytes) -> AsyncGenerator[bytes, None]:
    """The body from its first boundary; RFC 2046 allows text before it."""
    delimiter = re.compile(rb"\n(--%b)(.)" % re.escape(boundary), re.DOTALL)
    start, searched = bytearray(b"\n"), 0
    async for chunk in body:
        start += chunk
        if found := delimiter.search(start, searched):
            if found[2] == b"\n":
                raise Problem("malformed_multipart", _LF_ONLY)
            yield bytes(start[found.start(1) :])
            break
        if len(start) > MULTIPART_OVERHEAD:
            raise Problem(
                "malformed_multipart", f"No boundary begins within {MULTIPART_OVERHEAD:,} bytes. {_MALFORMED}"
            )
        searched = max(len(start) - len(boundary) - 3, 0)
    async for chunk in body:
        yield chunk


def _check_multipart(request: Request) -> bytes:
    """The boundary."""
    refuse_compressed(request)
    content_type = request.headers.get("content-type", "")
    if len(content_type) > _MAX_CONTENT_TYPE:
        raise Problem(
            "malformed_multipart", f"The Content-Type is longer than {_MAX_CONTENT_TYPE:,} bytes. Shorten it."
        )
    kind, options = parse_options_header(content_type)
    if kind != b"multipart/form-data":
        was = _quote_header(kind.decode("latin-1").lower()) if kind else "is missing"
        raise Problem("not_multipart", f"The Content-Type {was}. Send multipart/form-data, as curl -F does.")
    if not options.get(b"boundary"):
        raise Problem("malformed_multipart", "The Content-Type has no boundary. Let the HTTP library set this header.")
    _refuse_query(request)
    return options[b"boundary"]


def _has_no_body(request: Request) -> bool:
    return request.headers.get("content-length", "0") == "0" and "transfer-encoding" not in request.headers


def _refuse_query(request: Request) -> None:
    if request.query_params:
        name = quote(next(iter(request.query_params)))
        raise Problem("unknown_field", f"{name} is in the query string. Send it as a form field in the body.")


_FILE_CODE = "upload_too_large"


def _limits(form: type[MultipartForm], max_file_bytes: int) -> dict[str, PartLimit]:
    limits = {}
    for name, field in form.model_fields.items():
        (limit,) = (entry for entry in field.metadata if isinstance(entry, PartLimit | FileLimit))
        limits[name] = limit if isinstance(limit, PartLimit) else PartLimit(max_file_bytes, _FILE_CODE)
    return limits


class _FormParser(MultiPartParser):
    """Collects the known fields in memory and fails at the first byte of any other field."""

    def __init__(self, headers: Headers, stream: AsyncGenerator[bytes, None], limits: Mapping[str, PartLimit]) -> None:
        super().__init__(headers, stream)
        self.complete = False
        self._limits = limits
        self._values: dict[str, bytearray] = {}
        self._filenames: dict[str, bytes] = {}
        self._name = ""

    def take_parts(self) -> dict[str, FormPart]:
        """The parts by field name; the parser drops them.

        Browsers send an empty part with an empty file name where no file was chosen. Some clients send an empty part
        with an empty name.
        """
        self._values.pop("", None)
        names = [name for name, value in self._values.items() if value or self._filenames.get(name) != b""]
        return {name: FormPart(bytes(self._values.pop(name)), name in self._filenames) for name in names}

    def on_headers_finished(self) -> None:
        disposition = self._current_part.content_disposition or b""
        _, options = parse_options_header(disposition)
        if b"name" not in options:
            raise Problem("malformed_multipart", _EXTENDED_NAME if b"name*" in disposition.lower() else _NO_NAME)
        name = _SINGLE_QUOTED.sub(rb"\1", options[b"name"]).decode("utf-8", "replace")
        if name and name not in self._limits:
            raise self._unknown(name)
        if name in self._values:
            raise Problem("duplicate_field", f"The field {quote(name)} was sent twice. Send it once.", field=name)
        if b"filename" in options:
            self._filenames[name] = _SINGLE_QUOTED.sub(rb"\1", options[b"filename"])
        self._name, self._values[name] = name, bytearray()

    def _unknown(self, name: str) -> Problem:
        detail = f"The field {quote(name)} is not known. Send {', '.join(self._limits)}."
        return Problem("unknown_field", detail, field=name[:64])

    def on_part_data(self, data: bytes, start: int, end: int) -> None:
        if not self._name:
            raise self._unknown("")
        value, limit = self._values[self._name], self._limits[self._name]
        value += data[start:end]
        if len(value) > limit.max_bytes:
            what = "file in" if limit.code == _FILE_CODE else "field"
            detail = f"The {what} {self._name} is larger than {limit.max_bytes:,} bytes. Reduce it."
            raise Problem(limit.code, detail, field=self._name)

    def on_part_end(self) -> None:
        pass

    def on_end(self) -> None:
        self.complete = True


def _field_problem(error: ValidationError, limits: Mapping[str, PartLimit]) -> Problem:
    """The problem of the first field that is wrong, in the order of the form."""
    first = error.errors(include_url=False, include_input=False, include_context=False)[0]
    name = str(first["loc"][0]) if first["loc"] else None
    if first["type"] != "missing":
        return Problem(first["type"], first["msg"], field=name)
    if name is not None and limits[name].code == _FILE_CODE:
        return Problem("missing_image", f"No {name} was sent. Send one as a file.")
    return Problem("missing_field", missing_field(name).message(), field=name)
