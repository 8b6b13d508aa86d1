"""Multipart bodies: fields missing, repeated, unknown or huge, odd boundaries, wrong lengths."""

from __future__ import annotations

from collections.abc import Iterator

from hypothesis import strategies as st

from benchmarks.fuzzing.inputs import Input, endlessly
from benchmarks.fuzzing.seeds import png, seeds
from benchmarks.raw_http import RawRequest

KNOWN = ("frontal", "lateral", "top_k", "beam_size", "include", "stream")
HUGE = (65_000, 300_000, 1_100_000, 2_300_000)  # bytes: around the limits that `benchmarks.fuzz` gives the service
Part = tuple[str, bytes]  # headers, content

_images = st.deferred(lambda: st.sampled_from([png(0), seeds()["png 16-bit"], seeds()["jpeg"], seeds()["gif"]]))
_names = st.one_of(
    st.sampled_from(KNOWN),
    st.sampled_from(KNOWN),
    st.sampled_from(["Frontal", "frontal[]", "frontal ", "", "__proto__", "\u017f", "a" * 5000, "top_k;x"]),
    st.text(max_size=12),
)
_contents = st.one_of(
    _images,
    st.integers(-5, 60).map(lambda value: str(value).encode()),
    st.sampled_from([b"", b" 3 ", b"0x3", b"1e1", b"3\r\n", b"9" * 33, "٣".encode(), b"\0", b"NaN", b"--b0undary"]),
    st.binary(max_size=300),
    st.sampled_from(HUGE).map(bytes),
)
_right_values = {
    **dict.fromkeys(("frontal", "lateral"), _images),
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
_files = st.sampled_from(["", '; filename="x.png"', "; filename=", "; filename*=utf-8''x%20y", '; filename="'])
_more_headers = st.sampled_from(
    ["", "", "\r\nContent-Type: image/png", "\r\nContent-Transfer-Encoding: base64", "\r\nX"]
)


@st.composite
def _any_part(draw: st.DrawFn) -> Part:
    name, file = draw(_names), draw(_files)
    forms = [f'form-data; name="{name}"{file}'] * 6
    forms += [f"form-data; name={name}", "form-data", f'attachment; name="{name}"', f'FORM-DATA; NAME="{name}"', ""]
    return f"Content-Disposition: {draw(st.sampled_from(forms))}{draw(_more_headers)}", draw(_contents)


@st.composite
def _nearly_right(draw: st.DrawFn) -> list[Part]:
    """A correct form, with perhaps one part repeated or one wrong part added, so that later checks are reached."""
    parts = []
    for name in draw(st.lists(st.sampled_from(KNOWN), unique=True, max_size=4)):
        file = '; filename="x"' if name in ("frontal", "lateral") else ""
        parts.append((f'Content-Disposition: form-data; name="{name}"{file}', draw(_right_values[name])))
    one_more = draw(st.booleans())
    if parts and one_more:
        parts.append(draw(st.one_of(st.sampled_from(parts), _any_part())))
    return parts


@st.composite
def requests(draw: st.DrawFn) -> RawRequest:
    """One ``POST /report``, right or wrong in any of its layers."""
    parts = draw(st.one_of(st.lists(_any_part(), max_size=6), _nearly_right(), _nearly_right()))
    boundary = draw(_boundaries)
    written = draw(st.sampled_from([boundary] * 8 + [boundary.upper(), boundary + "x"])).encode()
    end = draw(st.sampled_from([b"\r\n"] * 8 + [b"\n", b"\r"]))
    body = draw(st.sampled_from([b""] * 6 + [b"\r\n", b"preamble\r\n", b"\0" * 10]))
    for headers, content in parts:
        body += b"--" + written + end + headers.encode("utf-8", "replace") + end + end + content + end
    closings = [b"--B--\r\n"] * 8 + [b"--B--", b"--B", b"", b"--B--\r\nepilogue", b"--B--\r\n--B--\r\n"]
    body += draw(st.sampled_from(closings)).replace(b"B", written)
    kinds = [f"multipart/form-data; boundary={boundary}"] * 10 + [
        f'multipart/form-data; boundary="{boundary}"', "multipart/form-data", "multipart/mixed; boundary=b0undary",
        "application/json", "application/x-www-form-urlencoded", "", f"MULTIPART/FORM-DATA; BOUNDARY={boundary}",
        f"multipart/form-data; charset=utf-16; boundary={boundary}",
    ]  # fmt: skip
    more = ["Accept: */*"] * 12 + ["Content-Encoding: gzip", "Accept: text/html", "Accept: text/event-stream",
                                   "X-Request-Id: \xff"]  # fmt: skip
    head = [
        f"POST /report{draw(st.sampled_from([''] * 9 + ['?top_k=3', '/', '?%00']))} HTTP/1.1",
        "Host: service",
        "Connection: close",
        f"Content-Type: {draw(st.sampled_from(kinds))}",
        draw(st.sampled_from(more)),
    ]
    return _framed(draw, head, body)


def _framed(draw: st.DrawFn, head: list[str], body: bytes) -> RawRequest:
    """Announce the length of the body, send it in chunks, or announce it wrongly."""
    how = draw(
        st.sampled_from(["length"] * 6 + ["chunked"] * 2 + ["short", "long", "cut chunks", "broken chunks", "none"])
    )
    if "chunk" in how:
        head.append("Transfer-Encoding: chunked")
        size = draw(st.sampled_from([1, 7, 1000, 65_536])) if len(body) < 20_000 else 65_536
        pieces = [body[start : start + size] for start in range(0, len(body), size)]
        body = b"".join(b"%x\r\n%s\r\n" % (len(piece), piece) for piece in pieces)
        body += {"chunked": b"0\r\n\r\n", "cut chunks": b"", "broken chunks": b"zz\r\n0\r\n\r\n"}[how]
    elif how == "none":
        body = b""  # without a length a request has no body
    else:
        announced = (
            len(body) + {"length": 0, "short": -draw(st.integers(1, 50)), "long": draw(st.integers(1, 5000))}[how]
        )
        head.append(f"Content-Length: {max(0, announced)}")
        body = body[: max(0, announced)]
    data = "\r\n".join([*head, "", ""]).encode("latin-1", "replace") + body
    return RawRequest(data, framed=how != "broken chunks", whole=how not in ("cut chunks", "long"))


def inputs(seed: int) -> Iterator[Input]:
    """Endless requests; same seed, same requests."""
    for origin, request in endlessly(requests(), seed):
        yield Input("bodies", origin, request)
