"""Damaged and malicious DICOM files: an ImageError, within bounds of memory and time."""

from __future__ import annotations

import struct
import time
import tracemalloc
import zlib
from collections.abc import Iterator

import numpy as np
import pytest
from pydicom import dcmread
from pydicom.filebase import DicomBytesIO

from model.images import ImageError, read_image
from tests.support.dicom import JPEG_BASELINE, compressed, dataset, dicom, encapsulated, film, jpeg, lut, tiny_elements

pytestmark = pytest.mark.filterwarnings("ignore")  # pydicom warns of every value that is not as it should be
S = 32
DEFLATED = "1.2.840.10008.1.2.1.99"
TAGS = {
    "PatientName": "A^B", "ViewPosition": "PA", "BodyPartExamined": "CHEST", "PatientOrientation": ["L", "F"],
    "WindowCenter": [2000, 100], "WindowWidth": [3000, 50], "RescaleSlope": 1, "RescaleIntercept": 0,
    "PixelPaddingValue": 0, "VOILUTSequence": [lut(np.arange(64) * 60, 0, 12)],
}  # fmt: skip
SMALL = film(40, 36)
FILES = {
    "explicit": dicom(SMALL, stored=12, **TAGS),
    "implicit": dicom(SMALL, stored=12, syntax="1.2.840.10008.1.2", **TAGS),
    "big endian": dicom(SMALL, stored=12, syntax="1.2.840.10008.1.2.2", **TAGS),
    "deflated": dicom(SMALL, stored=12, syntax=DEFLATED, **TAGS),
    "run-length": compressed(dataset(SMALL, stored=12, **TAGS), "1.2.840.10008.1.2.5"),
    "JPEG 2000": compressed(dataset(SMALL, stored=12, **TAGS), "1.2.840.10008.1.2.4.90"),
    "JPEG": encapsulated(dataset(film(40, 36, 8), **TAGS), JPEG_BASELINE, jpeg(film(40, 36, 8))),
}


def outcome(data: bytes) -> str:
    """ "read", or the code of the error; anything but an ImageError fails the test."""
    try:
        image = read_image(data, S)
    except ImageError as error:
        return error.code
    assert image.pixels.shape == (S, S)
    return "read"


def boundaries(data: bytes) -> Iterator[int]:
    """Offsets of the elements of a file, and some near them."""
    for element in dcmread(DicomBytesIO(data)):
        place = element.file_tell
        yield from (place - 8, place - 3, place, place + 1)


@pytest.mark.parametrize("kind", [kind for kind in FILES if kind != "deflated"])
def test_a_file_cut_at_any_element_is_an_error(kind: str) -> None:
    data = FILES[kind]
    assert outcome(data) == "read"
    places = [place for place in boundaries(data) if 132 < place < len(data) - 4]
    found = {place: outcome(data[:place]) for place in places}
    assert len(found) > 80
    assert set(found.values()) <= {"truncated", "no_pixels"}
    assert outcome(data[:-200]) == "truncated"


def test_a_deflated_file_cut_anywhere_is_an_error() -> None:
    data = FILES["deflated"]
    found = {outcome(data[:place]) for place in range(140, len(data) - 12, 7)}
    assert found <= {"truncated", "no_pixels"}


@pytest.mark.parametrize("kind", FILES)
def test_flipped_bits_never_raise_anything_else(kind: str) -> None:
    rng = np.random.default_rng(len(kind))
    found = set()
    for _ in range(60):
        data = bytearray(FILES[kind])
        for place in rng.integers(132, len(data), rng.integers(1, 9)):
            data[place] ^= 1 << int(rng.integers(8))
        found.add(outcome(bytes(data)))
    assert len(found) > 1


@pytest.mark.parametrize("kind", FILES)
def test_wrong_lengths_never_raise_anything_else(kind: str) -> None:
    rng = np.random.default_rng(len(kind))
    header = min(len(FILES[kind]) - 8, 1400)
    found = set()
    for _ in range(60):
        data = bytearray(FILES[kind])
        place = int(rng.integers(132, header))
        wrong = int(rng.choice([0, 1, 2, 0xFF, 0xFFFE, 0xFFFF, 0x7FFFFFFF, 0xFFFFFFFE, 0xFFFFFFFF]))
        form = "<H" if wrong <= 0xFFFF and rng.random() < 0.5 else "<L"
        struct.pack_into(form, data, place, wrong)
        found.add(outcome(bytes(data)))
    assert len(found) > 1


# --- bombs ----------------------------------------------------------------------------------------------------------


def element(group: int, number: int, vr: bytes, value: bytes, length: int | None = None) -> bytes:
    """An element in explicit VR with a long length field."""
    return struct.pack("<HH2sHL", group, number, vr, 0, len(value) if length is None else length) + value


def opened(data: bytes) -> tuple[bytes, bytes, bytes]:
    """A file of explicit VR as meta information, header and pixel element."""
    start = data.index(b"\x08\x00\x16\x00UI")
    pixels = data.rindex(b"\xe0\x7f\x10\x00OW")
    return data[:start], data[start:pixels], data[pixels:]


def bomb(header: bytes, zeros: int) -> bytes:
    """A deflated file: meta information, `header`, then `zeros` bytes of nothing."""
    meta = dicom(film(), stored=12, syntax=DEFLATED)
    meta = meta[: meta.index(b"1.2.840.10008.1.2.1.99")]
    meta += b"1.2.840.10008.1.2.1.99"
    deflate = zlib.compressobj(9, zlib.DEFLATED, -zlib.MAX_WBITS)
    out = [deflate.compress(header)]
    out += [deflate.compress(bytes(2**20)) for _ in range(zeros // 2**20)]
    return meta + b"".join(out) + deflate.flush()


def peak(data: bytes) -> tuple[str, float, float]:
    """Outcome, peak memory in MiB, seconds."""
    tracemalloc.start()
    began = time.perf_counter()
    try:
        found = outcome(data)
        return found, tracemalloc.get_traced_memory()[1] / 2**20, time.perf_counter() - began
    finally:
        tracemalloc.stop()


def test_a_deflate_bomb_is_inflated_no_further_than_its_pixels() -> None:
    _, header, pixels = opened(dicom(film(), stored=12))
    honest = element(0x7FE0, 0x10, b"OW", pixels[12:], 400 * 2**20)
    found, memory, _ = peak(bomb(header + honest, 200 * 2**20))
    assert found == "read"  # its first bytes are the image; the rest is never looked at
    assert memory < 64
    found, memory, _ = peak(bomb(element(0x0007, 0x01, b"OB", b"", 500 * 2**20), 200 * 2**20))
    assert found in ("truncated", "no_pixels", "not_a_radiograph")
    assert memory < 64


def test_a_million_tiny_elements_are_refused_early() -> None:
    found, memory, seconds = peak(tiny_elements(dicom(film(), stored=12)))
    assert found == "truncated"
    assert memory < 64
    assert seconds < 10  # a second or two where nothing traces its memory


@pytest.mark.parametrize("depth", [500, 3_000, 100_000])
def test_sequences_nested_without_end_are_refused(depth: int) -> None:
    meta, header, pixels = opened(dicom(film(), stored=12))
    nested = (element(0x0009, 0x1000, b"SQ", b"", 0xFFFFFFFF) + struct.pack("<HHL", 0xFFFE, 0xE000, 0xFFFFFFFF)) * depth
    assert outcome(meta + nested + header + pixels) == "truncated"


def test_long_values_of_wanted_elements_are_refused_unread() -> None:
    meta, header, pixels = opened(dicom(film(), stored=12))
    long = element(0x0028, 0x1050, b"UN", b"1\\" * 2**21)
    found, memory, _ = peak(meta + header + long + pixels)
    assert found == "truncated"
    assert memory < 32


def test_run_lengths_are_not_unfolded_beyond_the_image() -> None:
    frame = struct.pack("<16L", 2, 64, 64 + 2**20, *[0] * 13) + b"\x81\x00" * 2**19 * 2
    found, memory, _ = peak(encapsulated(dataset(film(), stored=12), "1.2.840.10008.1.2.5", frame))
    assert found == "truncated"
    assert memory < 16
