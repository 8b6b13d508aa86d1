"""Checks the pixel format in a DICOM header and decodes the pixels."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from pydicom.dataset import Dataset
from pydicom.encaps import get_frame
from pydicom.uid import UID

from model.images.dicom.codecs import NATIVE, RLE, check_frame, choose_decoder
from model.images.dicom.parse import DicomFile
from model.images.errors import ImageError, ImageLimits, check_counts, check_size

StoredValues = npt.NDArray[np.uint8] | npt.NDArray[np.uint16]  # (H, W), the stored bits as unsigned numbers

GREY = ("MONOCHROME1", "MONOCHROME2")
PALETTE = "PALETTE COLOR"
COLOUR = ("RGB", "YBR_FULL", "YBR_FULL_422", "YBR_ICT", "YBR_RCT")
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
        ImageError: ``truncated``, ``too_complex`` or ``unsupported_transfer_syntax``.
    """
    decoder, plugin = choose_decoder(file.syntax, fmt.stored)
    element = file.pixels(fmt.length)
    native = file.syntax in NATIVE
    if element.encapsulated == native:
        raise ImageError("truncated", f"The DICOM pixel data does not match its transfer syntax. {_DAMAGED}")
    source = element.value[: fmt.length + fmt.length % 2] if native else element.value
    if native and len(source) < fmt.length:
        raise ImageError(
            "truncated",
            f"The DICOM pixel data holds {len(source):,} bytes; {fmt.columns} x {fmt.rows} pixels need "
            f"{fmt.length:,}. {_DAMAGED}",
        )
    bits = fmt.stored if native else _check_compressed(source, file.syntax, fmt, limits)
    options: Any = {
        "rows": fmt.rows, "columns": fmt.columns, "number_of_frames": 1, "samples_per_pixel": fmt.samples,
        "bits_allocated": fmt.allocated, "bits_stored": fmt.stored, "pixel_representation": int(fmt.signed),
        "photometric_interpretation": fmt.photometric, "planar_configuration": int(fmt.planar),
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
    shift = fmt.shift if native or file.syntax == RLE else 0
    return _stored_values(values, shift, bits), bits


def _check_compressed(source: bytes, syntax: UID, fmt: PixelFormat, limits: ImageLimits) -> int:
    """Bits per value of a compressed frame whose header agrees with the DICOM header."""
    table = "bytes in its offset table"
    check_counts("DICOM image", {table: int.from_bytes(source[4:8], "little")}, {table: limits.offset_table_bytes})
    try:
        frame = get_frame(source, 0, number_of_frames=1)
    except Exception as error:  # pydicom raises several types
        raise ImageError("truncated", f"The fragments of the DICOM pixel data are damaged. {_DAMAGED}") from error
    precision = check_frame(frame, syntax, fmt.rows, fmt.columns, fmt.samples, fmt.allocated, limits)
    return max(fmt.stored, min(precision, 16))


def _stored_values(values: npt.NDArray[Any], shift: int, bits: int) -> npt.NDArray[Any]:
    """The `bits` of each value above `shift` as the smallest unsigned type; other bits are dropped."""
    native = values.astype(values.dtype.newbyteorder("="), copy=False)
    unsigned = native.view(f"u{native.dtype.itemsize}")
    if shift:
        unsigned = unsigned >> shift
    if bits < 8 * unsigned.dtype.itemsize:
        unsigned = unsigned & unsigned.dtype.type(2**bits - 1)
    return unsigned.astype(np.uint8 if bits <= 8 else np.uint16, copy=False)


def read_int(header: Dataset, name: str, default: int | None = None) -> int:
    """A non-negative integer of the header.

    Raises:
        ImageError: ``truncated``: the value is missing or is not one non-negative integer.
    """
    value = header.get(name)
    if value is None or value == "":
        if default is not None:
            return default
        raise ImageError("truncated", f"The DICOM header lacks {name}. {_DAMAGED}")
    try:
        number = int(value)
    except (TypeError, ValueError, OverflowError):
        number = -1
    if number < 0:
        raise ImageError("truncated", f"{name} of the DICOM header is not a whole number. {_DAMAGED}")
    return number
