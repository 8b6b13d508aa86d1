"""Multipart bodies from the bytes up: fields left out, doubled, unknown or huge, odd boundaries, wrong lengths."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from hypothesis import strategies as st

from benchmarks.fuzzing.files import original
from benchmarks.fuzzing.inputs import Input, endlessly
from benchmarks.raw_http import RawRequest

KNOWN = ("frontal", "lateral", "top_k", "beam_size", "include", "stream")
HUGE = (65_000, 300_000, 1_100_000, 2_300_000)  # bytes: around the caps that `benchmarks.fuzz` gives the service
_IMAGES = tuple(original(kind, 0) for kind in ("png 8-bit", "png 16-bit", "jpeg", "gif"))

_names = st.one_of(
    st.sampled_from(KNOWN),
    st.sampled_from(KNOWN),
    st.sampled_from(["Frontal", "frontal[]", "frontal ", "", "__proto__", "\u017f", "a" * 5000, "top_k;x"]),
    st.text(max_size=12),
)
_contents = st.one_of(
    st.sampled_from(_IMAGES),
    st.sampled_from(_IMAGES),
    st.integers(-5, 60).map(lambda value: str(value).encode()),
    st.sampled_from([b"", b" 3 ", b"0x3", b"1e1", b"3\r\n", b"9" * 33, "٣".encode(), b"\0", b"NaN", b"--b0undary"]),
    st.binary(max_size=300),
    st.sampled_from(HUGE).map(bytes),
)
_values = {
    **dict.fromkeys(("top_k", "beam_size"), st.integers(0, 9).map(lambda value: str(value).encode())),
    "include": st.sampled_from([b"attention", b"attention", b"all"]),
    "stream": st.sampled_from([b"true", b"true", b"false", b"1"]),
}
_boundaries = st.one_of(
    st.just("b0undary"),
    st.just("b0undary"),
    st.sampled_from(["-", "--", "a" * 70, "a" * 300, "a b", "'()+_,-./:=?", '"', "é", "b;c", "\t"]),
    st.text(alphabet=st.characters(min_codepoint=33, max_codepoint=126), min_size=1, max_size=20),
)


@dataclass(frozen=True)
class _Part:
    disposition: bytes
    content: bytes


@st.composite
def _parts(draw: st.DrawFn) -> _Part:
    name, content = draw(_names), draw(_contents)
    file_name = draw(
        st.sampled_from(["", '; filename="x.png"', "; filename=", "; filename*=utf-8''x%20y", '; filename="'])
    )
    form = draw(
        st.sampled_from(
            [f'form-data; name="{name}"{file_name}'] * 6
            + [f"form-data; name={name}", "form-data", f'attachment; name="{name}"', f'FORM-DATA; NAME="{name}"', ""]
        )
    )
    kind = draw(
        st.sampled_from(["", "", "\r\nContent-Type: image/png", "\r\nContent-Transfer-Encoding: base64", "\r\nX"])
    )
    return _Part(f"Content-Disposition: {form}{kind}".encode("utf-8", "replace"), content)


@st.composite
def _usual(draw: st.DrawFn) -> list[_Part]:
    """A right form, one field of which may be doubled or misnamed, so that the later checks are reached as well."""
    parts: list[_Part] = []
    for name in draw(st.lists(st.sampled_from(KNOWN), unique=True, max_size=4)):
        file = '; filename="x"' if name in ("frontal", "lateral") else ""
        content = draw(st.sampled_from(_IMAGES[:3]) if file else _values[name])
        parts.append(_Part(f'Content-Disposition: form-data; name="{name}"{file}'.encode(), content))
    one_more = draw(st.booleans())
    if parts and one_more:
        again = draw(st.booleans())
        parts.append(draw(st.sampled_from(parts)) if again else draw(_parts()))
    return parts


def _multipart(parts: list[_Part], boundary: bytes, end: bytes, preamble: bytes, closing: bytes) -> bytes:
    body = preamble
    for part in parts:
        body += b"--" + boundary + end + part.disposition + end + end + part.content + end
    return body + closing.replace(b"B", boundary)


@st.composite
def requests(draw: st.DrawFn) -> RawRequest:
    """One ``POST /report``, right or wrong in any of its layers."""
    parts = draw(st.lists(_parts(), max_size=6)) if draw(st.integers(0, 2)) == 0 else draw(_usual())
    boundary = draw(_boundaries)
    written = draw(st.sampled_from([boundary] * 8 + [boundary.upper(), boundary + "x"])).encode()
    closings = [b"--B--\r\n"] * 8 + [b"--B--", b"--B", b"", b"--B--\r\nepilogue", b"--B--\r\n--B--\r\n"]
    body = _multipart(
        parts, written,
        draw(st.sampled_from([b"\r\n"] * 8 + [b"\n", b"\r"])),
        draw(st.sampled_from([b""] * 6 + [b"\r\n", b"preamble\r\n", b"\0" * 10])),
        draw(st.sampled_from(closings)),
    )  # fmt: skip
    kinds = [f"multipart/form-data; boundary={boundary}"] * 10 + [
        f'multipart/form-data; boundary="{boundary}"', "multipart/form-data", "multipart/mixed; boundary=b0undary",
        "application/json", "application/x-www-form-urlencoded", "", f"MULTIPART/FORM-DATA; BOUNDARY={boundary}",
        f"multipart/form-data; charset=utf-16; boundary={boundary}",
    ]  # fmt: skip
    more: list[list[bytes]] = [[]] * 12 + [
        [b"Content-Encoding: gzip"], [b"Accept: text/html"], [b"Accept: text/event-stream"], [b"X-Request-Id: \xff"],
    ]  # fmt: skip
    head = [
        f"POST /report{draw(st.sampled_from([''] * 9 + ['?top_k=3', '/', '?%00']))} HTTP/1.1".encode(),
        b"Host: service",
        b"Connection: close",
        b"Content-Type: " + draw(st.sampled_from(kinds)).encode("latin-1", "replace"),
        *draw(st.sampled_from(more)),
    ]
    return _framed(draw, head, body)


def _framed(draw: st.DrawFn, head: list[bytes], body: bytes) -> RawRequest:
    """Put a length to the body, chunk it, or lie about it."""
    how = draw(
        st.sampled_from(["length"] * 6 + ["chunked"] * 2 + ["short", "long", "cut chunks", "broken chunks", "none"])
    )
    framed = whole = True
    if how in ("chunked", "cut chunks", "broken chunks"):
        head.append(b"Transfer-Encoding: chunked")
        size = draw(st.sampled_from([1, 7, 1000, 65_536])) if len(body) < 20_000 else 65_536
        pieces = [body[start : start + size] for start in range(0, len(body), size)]
        body = b"".join(b"%x\r\n%s\r\n" % (len(piece), piece) for piece in pieces)
        whole = how != "cut chunks"
        framed = how != "broken chunks"
        body += {"chunked": b"0\r\n\r\n", "cut chunks": b"", "broken chunks": b"zz\r\n0\r\n\r\n"}[how]
    elif how != "none":
        off = {"length": 0, "short": -draw(st.integers(1, 50)), "long": draw(st.integers(1, 5000))}[how]
        head.append(b"Content-Length: %d" % max(0, len(body) + off))
        whole = how != "long"
        body = body[: max(0, len(body) + off)] if how == "short" else body
    else:
        body = b""  # without a length a request has no body
    return RawRequest(b"\r\n".join([*head, b"", b""]) + body, framed, whole)


def inputs(seed: int) -> Iterator[Input]:
    """Endless requests; same seed, same requests."""
    for origin, request in endlessly(requests(), seed):
        yield Input("bodies", origin, request)
