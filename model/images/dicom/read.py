"""A DICOM file to grey pixels and metadata, in memory.

The steps: ``parse`` reads the elements, ``header`` checks the kind of object and reads the
metadata, ``pixel_data`` and ``codecs`` decode the stored values, ``lut`` maps them to greys.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image
from pydicom.dataset import Dataset
from pydicom.pixels.processing import apply_color_lut

from model.images.dicom.header import DicomMetadata, check_kind, read_metadata
from model.images.dicom.lut import apply_grayscale_pipeline, apply_table
from model.images.dicom.parse import DicomFile, find_start
from model.images.dicom.pixel_data import GREY, PALETTE, decode, read_pixel_format
from model.images.errors import ImageError
from model.images.limits import ImageLimits, check_counts
from model.types import View

_MOST_PALETTE_ENTRIES = 2**18  # a table has at most 65,536
_INDIRECT_COST = 2**10  # entries that are as slow as an indirect segment
_LUMA = np.array([0.299, 0.587, 0.114])  # ITU-R 601-2, as Pillow's


def is_dicom(data: bytes) -> bool:
    """Whether the bytes are a DICOM file, with or without its preamble."""
    return find_start(data) is not None


def view_in_header(data: bytes) -> View | None:
    """The view in the header of a DICOM file, without its pixels; None for a file without one, or of another kind."""
    if not is_dicom(data):
        return None
    try:
        return read_metadata(DicomFile(data).header).view
    except MemoryError:
        raise
    except Exception:  # pydicom raises many types; the decoding of the pixels names the fault
        return None


def read_dicom(data: bytes, limits: ImageLimits) -> tuple[Image.Image, DicomMetadata]:
    """Decode one DICOM radiograph.

    Args:
        data: the file.
        limits: bounds on Rows x Columns.

    Returns:
        The image, mode ``L`` or ``F`` with 0 black to 255 white, and the metadata of the header.

    Raises:
        ImageError: the file cannot be read or is not a radiograph.
    """
    try:
        return _read(data, limits)
    except (ImageError, MemoryError):
        raise
    except Exception as error:  # pydicom raises many types; their messages may quote patient data
        raise ImageError(
            "truncated", f"The DICOM file is damaged ({type(error).__name__}). Export the image again and resend it."
        ) from error


def _read(data: bytes, limits: ImageLimits) -> tuple[Image.Image, DicomMetadata]:
    file = DicomFile(data)
    if file.cut_short:
        raise ImageError("truncated", "The DICOM file is cut short within its header. Export it again and resend it.")
    check_kind(file.header)
    fmt = read_pixel_format(file, limits)
    values, bits = decode(file, fmt, limits)
    if fmt.photometric in GREY:
        greys, warnings = apply_grayscale_pipeline(values, bits, file.header, fmt, little_endian=file.little_endian)
        return Image.fromarray(greys), read_metadata(file.header, warnings)
    if fmt.photometric == PALETTE:
        image = Image.fromarray(apply_table(_palette(file.header, bits), values))
    elif values.dtype == np.uint8 and bits == 8:
        image = Image.fromarray(values, "RGB").convert("L")
    else:
        image = Image.fromarray(luma(values, 2**bits - 1))
    return image, read_metadata(file.header)


def _palette(header: Dataset, bits: int) -> npt.NDArray[np.float32]:
    """Grey of each stored value, 0..255."""
    count, first, depth = (int(number) for number in header.RedPaletteColorLookupTableDescriptor)
    for colour in ("Red", "Green", "Blue"):
        data = header.get(f"Segmented{colour}PaletteColorLookupTableData") or b""
        _check_segments(np.frombuffer(data, "u1" if depth == 8 else "<u2", len(data) * 8 // depth).tolist(), depth)
    values = np.minimum(np.arange(2**bits, dtype=np.int32), first + (count or 2**16) - 1)  # pydicom would wrap around
    colours = apply_color_lut(values, header)[:, :3]
    return luma(colours, 255 if colours.max() <= 255 else 65535)


def _check_segments(words: Sequence[int], depth: int) -> None:
    """Check that a segmented table (PS3.3 C.7.9.2) expands to few entries; pydicom expands it in Python."""
    count = {"entries": 0}

    def expand(at: int, segments: int) -> None:
        while segments and at + 1 < len(words):
            kind, length = words[at : at + 2]
            count["entries"] += 1 + (length if kind < 2 else _INDIRECT_COST)
            check_counts("DICOM palette", count, {"entries": _MOST_PALETTE_ENTRIES})
            if kind == 2:  # repeats other segments
                offset = words[at + 2 : at + 2 + 32 // depth]
                expand(sum(word << depth * position for position, word in enumerate(offset)), length or -1)
            at += 2 + (length, 1, 32 // depth)[min(kind, 2)]
            segments -= 1

    expand(0, -1)


def luma(colours: npt.NDArray[Any], most: int) -> npt.NDArray[np.float32]:
    """(…, 3) colours from 0 to `most` to (…) greys from 0 to 255."""
    greys = np.zeros(colours.shape[:-1], np.float32)
    for channel, weight in enumerate(_LUMA):
        greys += colours[..., channel] * np.float32(255.0 * weight / most)
    return greys
