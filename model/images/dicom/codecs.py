"""Transfer syntaxes and their decoders, and the check of a compressed frame's header.

A decoder allocates what the frame header declares. Before decoding, that header must therefore
agree with Rows x Columns of the DICOM header, which were checked against the limits.

JPEG Lossless, JPEG-LS and JPEG 2000 are decoded by imagecodecs (the extra ``dicom-codecs``),
registered with pydicom as a decoding plugin. GDCM crashes the process on damaged frames; the other
codecs hold the interpreter lock during decoding, so that one upload would block the whole service.
"""

from __future__ import annotations

import importlib.util
import struct
from dataclasses import dataclass
from typing import Any

from pydicom.pixels.decoders.base import Decoder, DecodeRunner, get_decoder
from pydicom.uid import UID

from model.images.errors import ImageError

NATIVE = frozenset({"1.2.840.10008.1.2", "1.2.840.10008.1.2.1", "1.2.840.10008.1.2.1.99", "1.2.840.10008.1.2.2"})
RLE = "1.2.840.10008.1.2.5"
JPEG_BASELINE = "1.2.840.10008.1.2.4.50"
JPEG_EXTENDED = "1.2.840.10008.1.2.4.51"
JPEG = (JPEG_EXTENDED, "1.2.840.10008.1.2.4.57", "1.2.840.10008.1.2.4.70")
JPEG_LS = ("1.2.840.10008.1.2.4.80", "1.2.840.10008.1.2.4.81")
JPEG_2000 = tuple(f"1.2.840.10008.1.2.4.{number}" for number in (90, 91, 201, 202, 203))
IMAGECODECS = "imagecodecs"
PLUGINS: dict[str, tuple[str, ...]] = {  # compressed transfer syntax -> pydicom's plugins, preferred first
    RLE: ("pydicom",),
    JPEG_BASELINE: ("pillow",),
    **dict.fromkeys((*JPEG, *JPEG_LS, *JPEG_2000), (IMAGECODECS,)),
    **dict.fromkeys((JPEG_EXTENDED, *JPEG_2000[:2]), (IMAGECODECS, "pillow")),
}
DECODER_DEPENDENCIES = {  # pydicom reads it from the module of a plugin
    syntax: ("imagecodecs>=2025.3",) for syntax in (*JPEG, *JPEG_LS, *JPEG_2000)
}
_UNCOMPRESSED = "Send it uncompressed (Explicit VR Little Endian)"


def is_available(syntax: str) -> bool:
    """Whether imagecodecs is installed and decodes a transfer syntax; pydicom calls it."""
    return syntax in DECODER_DEPENDENCIES and importlib.util.find_spec("imagecodecs") is not None


def decode_frame(frame: bytes, runner: DecodeRunner) -> bytes:
    """Decode one frame by imagecodecs; pydicom calls it.

    Raises:
        ValueError: colour in JPEG Lossless or Extended, whose colour space is undefined.
        RuntimeError: the frame is damaged.
    """
    import imagecodecs

    syntax = runner.transfer_syntax
    if syntax in JPEG:
        if runner.samples_per_pixel > 1:
            raise ValueError("colour is not supported in this transfer syntax")
        values: Any = imagecodecs.jpeg8_decode(frame)
    else:
        values = imagecodecs.jpegls_decode(frame) if syntax in JPEG_LS else imagecodecs.jpeg2k_decode(frame)
    if runner.samples_per_pixel > 1:
        runner.set_option("planar_configuration", 0)
        if syntax in JPEG_2000:  # imagecodecs converts YBR to RGB
            runner.set_option("photometric_interpretation", "RGB")
    runner.set_option("bits_allocated", 8 * values.dtype.itemsize)
    data: bytes = values.tobytes()
    return data


for _syntax in DECODER_DEPENDENCIES:
    if IMAGECODECS not in get_decoder(_syntax).available_plugins and is_available(_syntax):
        get_decoder(_syntax).add_plugin(IMAGECODECS, (__name__, decode_frame.__name__))


@dataclass(frozen=True)
class FrameHeader:
    """Size, samples per pixel and bits per sample in the header of a compressed frame."""

    columns: int
    rows: int
    samples: int
    precision: int


def choose_decoder(syntax: UID, bits_stored: int) -> tuple[Decoder, str]:
    """The decoder of a transfer syntax and the name of its plugin ("" for uncompressed pixels).

    Raises:
        ImageError: ``unsupported_transfer_syntax``; the message names the syntax and the remedy.
    """
    if syntax in NATIVE:
        return get_decoder(syntax), ""
    if syntax not in PLUGINS:
        standard = syntax.name != syntax
        problem = f"is {syntax.name}, which is not supported" if standard else "is not a standard one"
        raise ImageError("unsupported_transfer_syntax", f"The transfer syntax {problem}. {_UNCOMPRESSED}.")
    decoder = get_decoder(syntax)
    pillow_reads = not (syntax == JPEG_EXTENDED and bits_stored > 8)  # it does not read 12-bit JPEG
    for plugin in PLUGINS[syntax]:
        if plugin in decoder.available_plugins and (pillow_reads or plugin != "pillow"):
            return decoder, plugin
    raise ImageError(
        "unsupported_transfer_syntax",
        f"The transfer syntax is {syntax.name}, for which no codec is installed. {_UNCOMPRESSED}, "
        "or install one in the service (pip install 'cxr-report[dicom-codecs]').",
    )


def check_frame(frame: bytes, syntax: UID, rows: int, columns: int, samples: int, bits_allocated: int) -> int:
    """Check that a compressed frame has the size in the DICOM header.

    Returns:
        Bits per sample of the frame; 0 for run-length frames, which do not contain it.

    Raises:
        ImageError: ``truncated``.
    """
    if syntax == RLE:
        _check_rle(frame, rows * columns)
        return 0
    header = _jpeg_2000_header(frame) if syntax in JPEG_2000 else _jpeg_header(frame)
    if header is None:
        raise ImageError(
            "truncated",
            "The DICOM pixel data is not a frame of its transfer syntax. Export the image again.",
        )
    if (header.columns, header.rows, header.samples) != (columns, rows, samples) or header.precision > bits_allocated:
        raise ImageError(
            "truncated",
            f"The compressed frame is {header.columns} x {header.rows} x {header.samples} of {header.precision} bits, "
            f"its DICOM header has {columns} x {rows} x {samples} of {bits_allocated} bits. Export the image again.",
        )
    return header.precision


def _jpeg_header(frame: bytes) -> FrameHeader | None:
    """The frame header (SOF) of JPEG or JPEG-LS."""
    if frame[:2] != b"\xff\xd8":
        return None
    offset = 2
    while offset + 4 <= len(frame):
        fill, marker, length = struct.unpack_from(">BBH", frame, offset)
        if fill != 0xFF:
            return None
        if marker == 0xFF:  # padding before a marker
            offset += 1
        elif marker == 0xF7 or (0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC)):
            if offset + 10 > len(frame):
                return None
            precision, rows, columns, samples = struct.unpack_from(">BHHB", frame, offset + 4)
            return FrameHeader(columns, rows, samples, precision)
        else:
            offset += 2 + length
    return None


def _jpeg_2000_header(frame: bytes) -> FrameHeader | None:
    """The SIZ marker of a JPEG 2000 codestream; None unless the frame has exactly one."""
    offset = frame.find(b"\xff\x4f\xff\x51")
    if offset < 0 or frame.count(b"\xff\x4f\xff\x51") > 1 or offset + 43 > len(frame):
        return None
    _, right, bottom, left, top, _, _, _, _, samples = struct.unpack_from(">H8IH", frame, offset + 6)
    return FrameHeader(right - left, bottom - top, samples, (frame[offset + 42] & 0x7F) + 1)


def _check_rle(frame: bytes, pixels: int) -> None:
    """Check that no run-length segment expands to much more than one plane; two bytes can become 128."""
    count = struct.unpack_from("<L", frame.ljust(64, b"\0"))[0]
    starts = struct.unpack_from(f"<{min(count, 15)}L", frame.ljust(64, b"\0"), 4)
    for start, end in zip(starts, (*starts[1:], len(frame)), strict=True):
        if _expanded_length(frame, start, min(end, len(frame)), limit=pixels + 1024) > pixels + 1024:
            raise ImageError("truncated", f"A run-length segment of the pixel data expands to over {pixels:,} bytes.")


def _expanded_length(frame: bytes, offset: int, end: int, limit: int) -> int:
    """Bytes that a run-length segment expands to; counting stops above `limit`."""
    length = 0
    while offset < end and length <= limit:
        control = frame[offset]
        if control < 128:
            length += control + 1
            offset += control + 2
        else:
            length += 257 - control if control > 128 else 0
            offset += 2 if control > 128 else 1
    return length
