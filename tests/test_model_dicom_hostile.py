"""Damaged and malicious DICOM files raise an ImageError, within bounds of memory and time."""

from __future__ import annotations

import struct
import time
import tracemalloc
import zlib
from collections.abc import Callable, Iterator

import numpy as np
import pytest
from pydicom import dcmread
from pydicom.filebase import DicomBytesIO

from model.images import ImageError, read_image
from tests.support.dicom import JPEG_BASELINE, compressed, dataset, dicom, encapsulated, film, jpeg, lut, tiny_elements

pytestmark = pytest.mark.filterwarnings("ignore")  # pydicom warns about every wrong value
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
        at = element.file_tell
        yield from (at - 8, at - 3, at, at + 1)


@pytest.mark.parametrize("kind", [kind for kind in FILES if kind != "deflated"])
def test_rejects_files_cut_at_any_element(kind: str) -> None:
    data = FILES[kind]
    assert outcome(data) == "read"
    found = {at: outcome(data[:at]) for at in boundaries(data) if 132 < at < len(data) - 4}
    assert len(found) > 80
    assert set(found.values()) <= {"truncated", "no_pixels"}
    assert outcome(data[:-200]) == "truncated"


def test_rejects_deflated_files_cut_anywhere() -> None:
    data = FILES["deflated"]
    found = {outcome(data[:at]) for at in range(140, len(data) - 12, 7)}
    assert found <= {"truncated", "no_pixels"}


def flip_bits(data: bytearray, rng: np.random.Generator) -> None:
    for at in rng.integers(132, len(data), rng.integers(1, 9)):
        data[at] ^= 1 << int(rng.integers(8))


def write_wrong_length(data: bytearray, rng: np.random.Generator) -> None:
    at = int(rng.integers(132, min(len(data) - 8, 1400)))
    wrong = int(rng.choice([0, 1, 2, 0xFF, 0xFFFE, 0xFFFF, 0x7FFFFFFF, 0xFFFFFFFE, 0xFFFFFFFF]))
    struct.pack_into("<H" if wrong <= 0xFFFF and rng.random() < 0.5 else "<L", data, at, wrong)


@pytest.mark.parametrize("damage", [flip_bits, write_wrong_length])
@pytest.mark.parametrize("kind", FILES)
def test_damaged_files_raise_image_errors_only(
    kind: str, damage: Callable[[bytearray, np.random.Generator], None]
) -> None:
    rng = np.random.default_rng(len(kind))
    found = set()
    for _ in range(60):
        data = bytearray(FILES[kind])
        damage(data, rng)
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
    """A deflated file: meta information, `header`, then `zeros` zero bytes."""
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


def test_inflates_a_deflate_bomb_no_further_than_its_pixels() -> None:
    _, header, pixels = opened(dicom(film(), stored=12))
    image = element(0x7FE0, 0x10, b"OW", pixels[12:], 400 * 2**20)
    found, memory, _ = peak(bomb(header + image, 200 * 2**20))
    assert found == "read"  # its first bytes are the image; the rest is not read
    assert memory < 64
    found, memory, _ = peak(bomb(element(0x0007, 0x01, b"OB", b"", 500 * 2**20), 200 * 2**20))
    assert found in ("truncated", "no_pixels", "not_a_radiograph")
    assert memory < 64


def test_rejects_half_a_million_tiny_elements_early() -> None:
    found, memory, seconds = peak(tiny_elements(dicom(film(), stored=12)))
    assert found == "truncated"
    assert memory < 64
    assert seconds < 10  # one or two without tracemalloc


@pytest.mark.parametrize("depth", [500, 3_000, 100_000])
def test_rejects_deeply_nested_sequences(depth: int) -> None:
    meta, header, pixels = opened(dicom(film(), stored=12))
    nested = (element(0x0009, 0x1000, b"SQ", b"", 0xFFFFFFFF) + struct.pack("<HHL", 0xFFFE, 0xE000, 0xFFFFFFFF)) * depth
    assert outcome(meta + nested + header + pixels) == "truncated"


def test_rejects_long_values_without_reading_them() -> None:
    meta, header, pixels = opened(dicom(film(), stored=12))
    long = element(0x0028, 0x1050, b"UN", b"1\\" * 2**21)
    found, memory, _ = peak(meta + header + long + pixels)
    assert found == "truncated"
    assert memory < 32


def test_expands_run_lengths_no_further_than_the_image() -> None:
    frame = struct.pack("<16L", 2, 64, 64 + 2**20, *[0] * 13) + b"\x81\x00" * 2**19 * 2
    found, memory, _ = peak(encapsulated(dataset(film(), stored=12), "1.2.840.10008.1.2.5", frame))
    assert found == "truncated"
    assert memory < 16
