"""Transfer syntaxes: which are read, by which codec, and what a compressed frame says of itself before it is decoded.

A compressed frame has a header of its own. A decoder allocates what that says, so it must agree with Rows x Columns
of the DICOM header, which was checked, before any decoder sees the frame.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass

from pydicom.pixels.decoders.base import Decoder, get_decoder
from pydicom.uid import UID

from model.images.dicom import imagecodecs_decoder as dicom_imagecodecs
from model.images.dicom.imagecodecs_decoder import LABEL
from model.images.errors import ImageError

NATIVE = frozenset({"1.2.840.10008.1.2", "1.2.840.10008.1.2.1", "1.2.840.10008.1.2.1.99", "1.2.840.10008.1.2.2"})
RLE = "1.2.840.10008.1.2.5"
JPEG_EXTENDED = "1.2.840.10008.1.2.4.51"
PLUGINS: dict[str, tuple[str, ...]] = {  # compressed transfer syntax -> pydicom's plugins for it, the preferred first
    RLE: ("pydicom",),
    "1.2.840.10008.1.2.4.50": ("pillow",),
    **dict.fromkeys((*dicom_imagecodecs.JPEG, *dicom_imagecodecs.JPEG_LS, *dicom_imagecodecs.JPEG_2000), (LABEL,)),
    JPEG_EXTENDED: (LABEL, "pillow"),
    "1.2.840.10008.1.2.4.90": (LABEL, "pillow"),
    "1.2.840.10008.1.2.4.91": (LABEL, "pillow"),
}
_UNCOMPRESSED = "Send it uncompressed (Explicit VR Little Endian)"
_EXTRA = "pip install 'cxr-report[dicom-codecs]'"
for _syntax in dicom_imagecodecs.DECODER_DEPENDENCIES:
    if LABEL not in get_decoder(_syntax).available_plugins and dicom_imagecodecs.is_available(_syntax):
        get_decoder(_syntax).add_plugin(LABEL, (dicom_imagecodecs.__name__, "decode_frame"))


@dataclass(frozen=True)
class Frame:
    """What the header of a compressed frame says."""

    columns: int
    rows: int
    samples: int
    precision: int


def choose_decoder(syntax: UID, bits_stored: int) -> tuple[Decoder, str]:
    """The decoder of a transfer syntax and the plugin that runs it; ("", for uncompressed pixels).

    Raises:
        ImageError: ``unsupported_transfer_syntax``; the message names the syntax and what to do.
    """
    if syntax in NATIVE:
        return get_decoder(syntax), ""
    known = syntax.name != syntax
    if syntax not in PLUGINS:
        said = f"is {syntax.name}, which is not read here" if known else "is none of the standard"
        raise ImageError("unsupported_transfer_syntax", f"The transfer syntax {said}. {_UNCOMPRESSED}.")
    decoder = get_decoder(syntax)
    twelve = syntax == JPEG_EXTENDED and bits_stored > 8  # which pillow cannot read
    for plugin in PLUGINS[syntax]:
        if plugin in decoder.available_plugins and not (twelve and plugin == "pillow"):
            return decoder, plugin
    raise ImageError(
        "unsupported_transfer_syntax",
        f"The transfer syntax is {syntax.name}, for which no codec is installed here. {_UNCOMPRESSED}, "
        f"or have the service installed with one ({_EXTRA}).",
    )


def check_frame(frame: bytes, syntax: UID, rows: int, columns: int, samples: int, bits_allocated: int) -> int:
    """Check that a compressed frame is of the size that the DICOM header says.

    Returns:
        Bits of its values; 0 where the frame does not say.

    Raises:
        ImageError: ``truncated``.
    """
    if syntax == RLE:
        _check_rle(frame, rows * columns)
        return 0
    said = _jpeg_2000(frame) if syntax in dicom_imagecodecs.JPEG_2000 else _jpeg(frame)
    if said is None:
        raise ImageError(
            "truncated",
            "The DICOM pixel data is no frame of its transfer syntax. Export the image again.",
        )
    if (said.columns, said.rows, said.samples) != (columns, rows, samples) or said.precision > bits_allocated:
        raise ImageError(
            "truncated",
            f"The compressed frame is {said.columns} x {said.rows} x {said.samples} of {said.precision} bits, its "
            f"DICOM header says {columns} x {rows} x {samples} in {bits_allocated} bits. Export the image again.",
        )
    return said.precision


def _jpeg(frame: bytes) -> Frame | None:
    """The frame header of JPEG or JPEG-LS."""
    if frame[:2] != b"\xff\xd8":
        return None
    place = 2
    while place + 4 <= len(frame):
        fill, marker, length = struct.unpack_from(">BBH", frame, place)
        if fill != 0xFF:
            return None
        if marker == 0xFF:  # padding before a marker
            place += 1
        elif marker == 0xF7 or (0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC)):
            if place + 10 > len(frame):
                return None
            precision, rows, columns, samples = struct.unpack_from(">BHHB", frame, place + 4)
            return Frame(columns, rows, samples, precision)
        else:
            place += 2 + length
    return None


def _jpeg_2000(frame: bytes) -> Frame | None:
    """The size marker of a JPEG 2000 codestream, the only one in the frame, boxed or not."""
    place = frame.find(b"\xff\x4f\xff\x51")
    if place < 0 or frame.count(b"\xff\x4f\xff\x51") > 1 or place + 43 > len(frame):
        return None
    _, right, bottom, left, top, _, _, _, _, samples = struct.unpack_from(">H8IH", frame, place + 6)
    return Frame(right - left, bottom - top, samples, (frame[place + 42] & 0x7F) + 1)


def _check_rle(frame: bytes, pixels: int) -> None:
    """Check that no segment of a run-length frame unfolds to much more than a plane: two bytes can become 128."""
    count = struct.unpack_from("<L", frame.ljust(64, b"\0"))[0]
    starts = struct.unpack_from(f"<{min(count, 15)}L", frame.ljust(64, b"\0"), 4)
    for start, end in zip(starts, (*starts[1:], len(frame)), strict=True):
        if _unfolded(frame, start, min(end, len(frame)), most=pixels + 1024) > pixels + 1024:
            raise ImageError("truncated", f"A run-length segment of the pixel data unfolds to over {pixels:,} bytes.")


def _unfolded(frame: bytes, place: int, end: int, most: int) -> int:
    """Bytes that a run-length segment unfolds to; counting stops above `most`."""
    length = 0
    while place < end and length <= most:
        head = frame[place]
        if head < 128:
            length += head + 1
            place += head + 2
        else:
            length += 257 - head if head > 128 else 0
            place += 2 if head > 128 else 1
    return length
