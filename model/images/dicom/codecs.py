"""Transfer syntaxes and their decoders, and the check of a compressed frame's header.

A decoder allocates what the frame header declares. Before decoding, that header must therefore
agree with Rows x Columns of the DICOM header, which were checked against the limits.

Pillow decodes 8-bit lossy JPEG; imagecodecs, registered with pydicom as a decoding plugin, all
other compressed syntaxes. GDCM crashes the process on damaged frames; the other codecs hold the
interpreter lock during decoding, so that one upload would block the whole process.
"""

from __future__ import annotations

import importlib.util
import struct
from typing import Any

import numpy as np
from pydicom.pixels.decoders.base import Decoder, DecodeRunner, get_decoder
from pydicom.uid import UID

from model.images.dicom.jpeg_2000 import check_jpeg_2000
from model.images.errors import ImageError
from model.images.limits import ImageLimits
from model.images.structure import JPEG_MAGIC, FrameHeader, check_jpeg

NATIVE = frozenset({"1.2.840.10008.1.2", "1.2.840.10008.1.2.1", "1.2.840.10008.1.2.1.99", "1.2.840.10008.1.2.2"})
RLE = "1.2.840.10008.1.2.5"
JPEG_BASELINE = "1.2.840.10008.1.2.4.50"
JPEG_EXTENDED = "1.2.840.10008.1.2.4.51"
JPEG = (JPEG_EXTENDED, "1.2.840.10008.1.2.4.57", "1.2.840.10008.1.2.4.70")
JPEG_LS = ("1.2.840.10008.1.2.4.80", "1.2.840.10008.1.2.4.81")
JPEG_2000 = tuple(f"1.2.840.10008.1.2.4.{number}" for number in (90, 91, 201, 202, 203))
LOSSLESS = frozenset({RLE, *JPEG[1:], JPEG_LS[0], *(f"1.2.840.10008.1.2.4.{number}" for number in (90, 201, 202))})
PILLOW, IMAGECODECS = "pillow", "imagecodecs"
PLUGINS: dict[str, str] = {  # compressed transfer syntax -> pydicom's plugin
    JPEG_BASELINE: PILLOW,
    **dict.fromkeys((RLE, *JPEG, *JPEG_LS, *JPEG_2000), IMAGECODECS),
}
DECODER_DEPENDENCIES = {  # pydicom reads it from the module of a plugin
    syntax: ("imagecodecs>=2025.3",) for syntax, plugin in PLUGINS.items() if plugin == IMAGECODECS
}
_MOST_PADDING = 1_024  # bytes of a run-length segment beyond its pixels
_UNCOMPRESSED = "Send it uncompressed (Explicit VR Little Endian)"


def is_available(syntax: str) -> bool:
    """Whether imagecodecs is installed and decodes a transfer syntax; pydicom calls it."""
    return syntax in DECODER_DEPENDENCIES and importlib.util.find_spec("imagecodecs") is not None


def decode_frame(frame: bytes, runner: DecodeRunner) -> bytes:
    """Decode one frame by imagecodecs; pydicom calls it.

    Raises:
        RuntimeError: the frame is damaged.
    """
    import imagecodecs

    syntax = runner.transfer_syntax
    if syntax == RLE:
        return _decode_run_lengths(frame, runner)
    if syntax in JPEG:
        values: Any = imagecodecs.jpeg8_decode(frame)
    else:
        values = imagecodecs.jpegls_decode(frame) if syntax in JPEG_LS else imagecodecs.jpeg2k_decode(frame)
    if runner.samples_per_pixel > 1:
        runner.set_option("planar_configuration", 0)
        if syntax in JPEG_2000:  # imagecodecs converts YBR to RGB
            runner.set_option("photometric_interpretation", "RGB")
    if 8 * values.dtype.itemsize < runner.bits_allocated:  # keeps the sign of a codestream of few bits
        values = values.astype(f"{values.dtype.kind}{runner.bits_allocated // 8}")
    data: bytes = values.tobytes()
    return data


def _decode_run_lengths(frame: bytes, runner: DecodeRunner) -> bytes:
    """Planes of little-endian samples; each segment holds one byte of each, the highest first (PS3.5 annex G)."""
    import imagecodecs

    pixels, width = runner.rows * runner.columns, runner.bits_allocated // 8
    count, *starts = struct.unpack("<16L", frame[:64])
    if count != runner.samples_per_pixel * width:
        raise ValueError("the number of segments does not fit the samples")
    planes = np.empty((runner.samples_per_pixel, pixels, width), np.uint8)
    for index, (start, end) in enumerate(zip(starts[:count], [*starts[1:count], len(frame)], strict=True)):
        segment = imagecodecs.packbits_decode(frame[start:end], out=pixels + _MOST_PADDING)
        planes[index // width, :, width - 1 - index % width] = np.frombuffer(segment, np.uint8, pixels)
    runner.set_option("planar_configuration", 1)
    return planes.tobytes()


for _syntax in DECODER_DEPENDENCIES:
    if IMAGECODECS not in get_decoder(_syntax).available_plugins and is_available(_syntax):
        get_decoder(_syntax).add_plugin(IMAGECODECS, (__name__, decode_frame.__name__))


def choose_decoder(syntax: UID, bits_stored: int, samples: int) -> tuple[Decoder, str]:
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
    plugin = PILLOW if syntax == JPEG_EXTENDED and bits_stored == 8 else PLUGINS[syntax]
    if plugin not in decoder.available_plugins:
        raise ImageError(
            "unsupported_transfer_syntax",
            f"The transfer syntax is {syntax.name}, for which no codec is installed. {_UNCOMPRESSED}, "
            "or install one in the service (pip install '.[dicom-codecs]' in the source tree).",
        )
    if samples > 1 and syntax in JPEG and plugin == IMAGECODECS:  # its colour space is undefined
        raise ImageError("unsupported_transfer_syntax", f"Colour in {syntax.name} is not supported. {_UNCOMPRESSED}.")
    return decoder, plugin


def check_frame(
    frame: bytes, syntax: UID, rows: int, columns: int, samples: int, bits_allocated: int, limits: ImageLimits
) -> FrameHeader:
    """Check the structure of a compressed frame, and that it has the size in the DICOM header.

    Returns:
        The header of the frame; of run-length frames, which do not contain it, with
        BitsAllocated as precision.

    Raises:
        ImageError: ``truncated`` or ``too_complex``.
    """
    if syntax == RLE:
        return FrameHeader(columns, rows, samples, bits_allocated, reversible=True)
    if syntax in JPEG_2000:
        header = check_jpeg_2000(frame, limits)
    else:
        header = check_jpeg(frame, limits, jpeg_ls=syntax in JPEG_LS) if _pydicom_finds_scan(frame, limits) else None
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
    return header


def _pydicom_finds_scan(frame: bytes, limits: ImageLimits) -> bool:
    """Whether pydicom finds the first scan or the end within a few steps; it may misread fill bytes as lengths."""
    at = 2
    for _ in range(limits.segments):
        if frame[at : at + 2] == b"\xff\xda" or at >= len(frame):
            return frame.startswith(JPEG_MAGIC)
        at += 2 + int.from_bytes(frame[at + 2 : at + 4])
    return False
