"""DICOM files with missing parts around the pixels, as real systems write them."""

from __future__ import annotations

import struct

import imagecodecs
import numpy as np
import pytest

from model.images.dicom.parse import read_elements
from tests.support.dicom import (
    JPEG_BASELINE,
    JPEG_LOSSLESS,
    compressed,
    dataset,
    dicom,
    encapsulated,
    encode,
    film,
    greys,
    jpeg,
    refused,
)

DELIMITER = b"\xfe\xff\xdd\xe0\0\0\0\0"
EIGHT = film(bits=8)
FRAMES = {
    "JPEG": encapsulated(dataset(EIGHT), JPEG_BASELINE, jpeg(EIGHT)),
    "JPEG Lossless": encapsulated(
        dataset(EIGHT), JPEG_LOSSLESS, imagecodecs.jpeg8_encode(EIGHT, lossless=True, predictor=1)
    ),
    "JPEG-LS": compressed(dataset(film(), stored=12), "1.2.840.10008.1.2.4.80"),
    "JPEG 2000": compressed(dataset(film(), stored=12), "1.2.840.10008.1.2.4.90"),
    "RLE": compressed(dataset(film(), stored=12), "1.2.840.10008.1.2.5"),
}


@pytest.mark.parametrize("end", [b"", bytes(8), bytes(8) + DELIMITER, bytes(3)])
@pytest.mark.parametrize("kind", FRAMES)
def test_reads_complete_frame_without_its_delimiter(kind: str, end: bytes) -> None:
    whole = FRAMES[kind]
    assert whole.endswith(DELIMITER)
    np.testing.assert_array_equal(greys(whole[:-8] + end), greys(whole))


def in_fragments(frame: bytes, size: int) -> bytes:
    """A file whose frame is split into fragments of `size` bytes."""
    made = dataset(EIGHT)
    encapsulated(made, JPEG_BASELINE, frame)
    parts = [frame[at : at + size] for at in range(0, len(frame), size)]
    items = [b"", *(part + b"\0" * (len(part) % 2) for part in parts)]
    made.PixelData = b"".join(struct.pack("<HHL", 0xFFFE, 0xE000, len(item)) + item for item in items)
    return encode(made)


def test_refuses_undelimited_frame_that_lacks_its_last_fragment() -> None:
    frame = jpeg(EIGHT)
    whole = in_fragments(frame, 200)
    np.testing.assert_array_equal(greys(whole), greys(FRAMES["JPEG"]))
    np.testing.assert_array_equal(greys(whole[:-8]), greys(whole))
    last = 8 + len(frame) % 200 + len(frame) % 2
    error = refused(whole[: -8 - last])
    assert (error.code, "cut short" in str(error)) == ("truncated", True)


@pytest.mark.parametrize("syntax", ["1.2.840.10008.1.2", "1.2.840.10008.1.2.1", "1.2.840.10008.1.2.2"])
@pytest.mark.parametrize("part", ["data set", "preamble and data set", "meta", "DICM", "short preamble", "zeros"])
def test_reads_files_without_preamble_or_meta_information(part: str, syntax: str) -> None:
    whole = dicom(film(), stored=12, syntax=syntax, WindowCenter=2048, WindowWidth=3000, PatientID="7")
    body = 144 + int.from_bytes(whole[140:144], "little")
    data = {
        "data set": whole[body:],
        "preamble and data set": whole[:132] + whole[body:],
        "meta": whole[132:],
        "DICM": whole[128:],
        "short preamble": whole[66:],
        "zeros": bytes(2) + whole,
    }[part]
    np.testing.assert_array_equal(greys(data), greys(whole))
    assert read_elements(data, ("PatientID",)).PatientID == "7"  # structured reports read it


def test_names_compressed_files_without_meta_information() -> None:
    whole = FRAMES["JPEG"]
    error = refused(whole[144 + int.from_bytes(whole[140:144], "little") :])
    assert (error.code, "meta information" in str(error)) == ("truncated", True)
