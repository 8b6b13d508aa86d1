"""Checks the pixel format in a DICOM header and decodes the pixels."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
from pydicom.encaps import get_frame

from model.images.dicom.codecs import (
    JPEG_BASELINE,
    JPEG_EXTENDED,
    LOSSLESS,
    NATIVE,
    PILLOW,
    RLE,
    check_frame,
    choose_decoder,
)
from model.images.dicom.numbers import read_floats, read_int
from model.images.dicom.parse import DicomFile, PixelElement
from model.images.errors import ImageError
from model.images.limits import ImageLimits, check_counts, check_size
from model.images.structure import FrameHeader

StoredValues = npt.NDArray[np.uint8] | npt.NDArray[np.uint16]  # (H, W), the stored bits as unsigned numbers

GREY = ("MONOCHROME1", "MONOCHROME2")
PALETTE = "PALETTE COLOR"
COLOUR = ("RGB", "YBR_FULL", "YBR_FULL_422", "YBR_ICT", "YBR_RCT")
_END_OF_IMAGE = b"\xff\xd9"  # marker of JPEG, JPEG-LS and JPEG 2000
_DAMAGED = "Export the image again and resend it."


@dataclass(frozen=True)
class PixelFormat:
    """The Image Pixel module (PS3.3 C.7.6.3) of one frame, checked.

    Attributes:
        rows, columns: height and width.
        samples: 1 for grey and palette, 3 for colour.
        allocated, stored: BitsAllocated and BitsStored.
        shift: unused bits below the value, from HighBit.
        signed: whether values are in two's complement.
        photometric: PhotometricInterpretation.
        planar: whether each colour is stored as a separate plane.
    """

    rows: int
    columns: int
    samples: int
    allocated: int
    stored: int
    shift: int
    signed: bool
    photometric: str
    planar: bool

    @property
    def length(self) -> int:
        """Bytes of the frame uncompressed."""
        bits = self.rows * self.columns * self.samples * self.allocated
        if self.photometric == "YBR_FULL_422":
            bits = bits // 3 * 2
        return (bits + 7) // 8


def read_pixel_format(file: DicomFile, limits: ImageLimits) -> PixelFormat:
    """The format of the pixels in the header.

    Raises:
        ImageError: ``no_pixels``, ``truncated``, ``animated``, ``too_large``, ``too_small`` or
            ``unsupported_pixels``.
    """
    header = file.header
    if file.pixel_keyword is None:
        raise ImageError("no_pixels", "The DICOM object has no pixel data. Send the image object of the study.")
    if file.pixel_keyword != "PixelData":
        raise ImageError("unsupported_pixels", f"The DICOM object has {file.pixel_keyword}, which is not supported.")
    check_size((read_int(header, "Columns"), read_int(header, "Rows")), limits)
    frames = read_int(header, "NumberOfFrames", 1) or 1
    if frames != 1:
        raise ImageError("animated", f"The DICOM object has {frames:,} frames. Send a single image.")
    stored = read_int(header, "BitsStored", 1)
    fmt = PixelFormat(
        rows=read_int(header, "Rows"),
        columns=read_int(header, "Columns"),
        samples=read_int(header, "SamplesPerPixel", 1),
        allocated=read_int(header, "BitsAllocated"),
        stored=read_int(header, "BitsStored", read_int(header, "BitsAllocated")),
        shift=read_int(header, "HighBit", stored - 1) + 1 - stored,
        signed=read_int(header, "PixelRepresentation", 0) == 1,
        photometric=str(header.get("PhotometricInterpretation") or "").strip().upper(),
        planar=read_int(header, "PlanarConfiguration", 0) == 1,
    )
    _check(fmt)
    return fmt


def _check(fmt: PixelFormat) -> None:
    if fmt.photometric not in (*GREY, PALETTE, *COLOUR):
        known = ", ".join((*GREY, PALETTE, *COLOUR))
        raise ImageError("unsupported_pixels", f"The PhotometricInterpretation is missing or not one of {known}.")
    if fmt.samples != (3 if fmt.photometric in COLOUR else 1):
        raise ImageError("unsupported_pixels", f"{fmt.samples} samples per pixel do not fit {fmt.photometric}.")
    if fmt.allocated not in ((8, 16) if fmt.samples == 3 else (1, 8, 16, 32)) or fmt.stored > 16:
        raise ImageError(
            "unsupported_pixels",
            f"{fmt.allocated} bits allocated and {fmt.stored} stored are not supported. Send 8 to 16 bits per sample.",
        )
    if not 1 <= fmt.stored <= fmt.allocated or not 0 <= fmt.shift <= fmt.allocated - fmt.stored:
        raise ImageError(
            "unsupported_pixels",
            f"BitsAllocated {fmt.allocated}, BitsStored {fmt.stored} and HighBit {fmt.shift + fmt.stored - 1} "
            f"contradict each other. {_DAMAGED}",
        )


def decode(file: DicomFile, fmt: PixelFormat, limits: ImageLimits) -> tuple[npt.NDArray[Any], int]:
    """Decode the frame.

    Returns:
        (H, W) ``StoredValues`` or (H, W, 3) unsigned RGB, and the bits of a value.

    Raises:
        ImageError: ``truncated``, ``too_complex``, ``unsupported_pixels`` or
            ``unsupported_transfer_syntax``.
    """
    decoder, plugin = choose_decoder(file.syntax, fmt.stored, fmt.samples)
    element = file.pixels(fmt.length)
    native = file.syntax in NATIVE
    if element.encapsulated == native and not file.states_syntax:
        raise ImageError(
            "truncated",
            "The DICOM file lacks its meta information, and with it the transfer syntax of its compressed pixels. "
            "Export it as a DICOM file (Part 10) and resend it.",
        )
    if element.encapsulated == native:
        raise ImageError("truncated", f"The DICOM pixel data does not match its transfer syntax. {_DAMAGED}")
    source = element.value[: fmt.length + fmt.length % 2] if native else element.value
    if native and len(source) < fmt.length:
        raise ImageError(
            "truncated",
            f"The DICOM pixel data holds {len(source):,} bytes; {fmt.columns} x {fmt.rows} pixels need "
            f"{fmt.length:,}. {_DAMAGED}",
        )
    frame = None if native else _check_compressed(element, file, fmt, limits)
    if plugin == PILLOW:
        fmt = replace(fmt, allocated=8, stored=min(fmt.stored, 8), shift=0)
    planar = fmt.planar and native  # codecs define the order of samples (PS3.5 8.2)
    options: Any = {
        "rows": fmt.rows, "columns": fmt.columns, "number_of_frames": 1, "samples_per_pixel": fmt.samples,
        "bits_allocated": fmt.allocated, "bits_stored": fmt.stored, "pixel_representation": int(fmt.signed),
        "photometric_interpretation": fmt.photometric, "planar_configuration": int(planar),
        "pixel_keyword": "PixelData", "pixel_vr": element.vr, "correct_unused_bits": False,
        "allow_excess_frames": False,
    }  # fmt: skip
    try:
        values, _ = decoder.as_array(source, index=0, raw=fmt.samples == 1, decoding_plugin=plugin, **options)
    except MemoryError:
        raise
    except Exception as error:  # decoders raise many types; all mean that the pixels cannot be read
        raise ImageError(
            "truncated", f"The DICOM pixel data cannot be decoded ({type(error).__name__}). {_DAMAGED}"
        ) from error
    if frame is None or file.syntax == RLE:
        return _stored_values(values, fmt, fmt.shift), fmt.stored
    if file.syntax not in LOSSLESS and frame.precision > fmt.stored:
        values = _saturate(values, fmt, frame)
    shift = fmt.shift if frame.precision >= fmt.shift + fmt.stored else 0
    return _stored_values(values, fmt, shift), fmt.stored


def _check_compressed(element: PixelElement, file: DicomFile, fmt: PixelFormat, limits: ImageLimits) -> FrameHeader:
    """The header of a compressed frame, which agrees with the DICOM header."""
    table = "bytes in its offset table"
    check_counts(
        "DICOM image", {table: int.from_bytes(element.value[4:8], "little")}, {table: limits.offset_table_bytes}
    )
    try:
        data = get_frame(element.value, 0, number_of_frames=1)
    except Exception as error:  # pydicom raises several types
        raise ImageError("truncated", f"The fragments of the DICOM pixel data are damaged. {_DAMAGED}") from error
    if not element.delimited and file.syntax != RLE and not data.rstrip(b"\0").endswith(_END_OF_IMAGE):
        raise ImageError("truncated", f"The DICOM pixel data is cut short. {_DAMAGED}")
    frame = check_frame(data, file.syntax, fmt.rows, fmt.columns, fmt.samples, fmt.allocated, limits)
    if file.syntax in (JPEG_BASELINE, JPEG_EXTENDED):
        _check_lossy_jpeg(file, fmt, frame.precision)
    return frame


def _check_lossy_jpeg(file: DicomFile, fmt: PixelFormat, precision: int) -> None:
    """Refuse headers that do not fit a lossy JPEG, whose values cannot be derived then."""
    windowed = bool(file.header.get("VOILUTSequence") or read_floats(file.header, "WindowCenter"))
    problem = ""
    if precision > 8 and (file.syntax == JPEG_BASELINE or fmt.stored == 8):
        problem = f"{file.syntax.name} with BitsStored {fmt.stored}"
    elif precision == 8 and fmt.signed:
        problem = "signed values, which it cannot hold"
    elif precision == 8 < fmt.stored and windowed:
        problem = f"a window for values of {fmt.stored} bits"
    if problem:
        raise ImageError(
            "unsupported_pixels",
            f"The DICOM pixel data is a lossy JPEG of {precision} bits, its header says {problem}. "
            "Export the image uncompressed and resend it.",
        )


def _saturate(values: npt.NDArray[Any], fmt: PixelFormat, frame: FrameHeader) -> npt.NDArray[Any]:
    """Values of a lossy codec that codes more bits than BitsStored: small overshoot is cut off."""
    span = 2**fmt.stored
    low = -span // 2 if fmt.signed else 0
    high = low + span - 1
    least, most = int(values.min()), int(values.max())
    near = low - span // 4 <= least and most <= high + span // 4
    if not near and not frame.reversible:
        raise ImageError(
            "unsupported_pixels",
            f"The DICOM pixel data is a lossy frame of {frame.precision} bits with values beyond BitsStored "
            f"{fmt.stored}. Export the image uncompressed and resend it.",
        )
    return values.clip(low, high) if near else values


def _stored_values(values: npt.NDArray[Any], fmt: PixelFormat, shift: int) -> npt.NDArray[Any]:
    """BitsStored bits of each value above `shift` as the smallest unsigned type.

    The other bits are no part of the value (PS3.5 8.1.1): overlays, a sign, or nothing defined.
    """
    native = values.astype(values.dtype.newbyteorder("="), copy=False)
    unsigned = native.view(f"u{native.dtype.itemsize}")
    if shift:
        unsigned = unsigned >> shift
    if fmt.stored < 8 * unsigned.dtype.itemsize:
        unsigned = unsigned & unsigned.dtype.type(2**fmt.stored - 1)
    return unsigned.astype(np.uint8 if fmt.stored <= 8 else np.uint16, copy=False)
