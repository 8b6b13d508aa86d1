"""imagecodecs as a decoding plugin of pydicom, where it is installed (the extra ``dicom-codecs``).

Of the codecs for JPEG Lossless, JPEG-LS and JPEG 2000 it is the one that neither ends the process on damaged frames
(GDCM does) nor holds Python's lock while it decodes (the others do, so that one upload would stop a whole service).
"""

from __future__ import annotations

import importlib.util
from typing import Any

from pydicom.pixels.decoders.base import DecodeRunner

LABEL = "imagecodecs"
JPEG = ("1.2.840.10008.1.2.4.51", "1.2.840.10008.1.2.4.57", "1.2.840.10008.1.2.4.70")
JPEG_LS = ("1.2.840.10008.1.2.4.80", "1.2.840.10008.1.2.4.81")
JPEG_2000 = tuple(f"1.2.840.10008.1.2.4.{number}" for number in (90, 91, 201, 202, 203))
DECODER_DEPENDENCIES = {syntax: ("imagecodecs>=2025.3",) for syntax in (*JPEG, *JPEG_LS, *JPEG_2000)}


def is_available(syntax: str) -> bool:
    """Whether frames of a transfer syntax can be decoded; part of what pydicom asks of a plugin."""
    return syntax in DECODER_DEPENDENCIES and importlib.util.find_spec("imagecodecs") is not None


def decode_frame(frame: bytes, runner: DecodeRunner) -> bytes:
    """Decode one frame; the other part.

    Raises:
        ValueError: colour in JPEG Lossless or Extended, whose colour space nothing tells.
        RuntimeError: the frame is damaged.
    """
    import imagecodecs

    syntax = runner.transfer_syntax
    if syntax in JPEG:
        if runner.samples_per_pixel > 1:
            raise ValueError("colour is not read in this transfer syntax")
        values: Any = imagecodecs.jpeg8_decode(frame)
    else:
        values = imagecodecs.jpegls_decode(frame) if syntax in JPEG_LS else imagecodecs.jpeg2k_decode(frame)
    if runner.samples_per_pixel > 1:
        runner.set_option("planar_configuration", 0)
        if syntax in JPEG_2000:  # which turns YBR into RGB itself
            runner.set_option("photometric_interpretation", "RGB")
    runner.set_option("bits_allocated", 8 * values.dtype.itemsize)
    data: bytes = values.tobytes()
    return data
