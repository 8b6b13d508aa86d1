"""The grayscale pipeline (PS3.3 C.11): Modality LUT, then VOI LUT or window, then the polarity.

It is a function of one stored value of at most 16 bits, so it is computed once for each possible
value, in double precision, and looked up for each pixel.

pydicom's apply_modality_lut and apply_voi_lut give the same greys for regular headers (the tests
compare them), but cannot be used here: they fail on Modality LUTs of 10 to 15 bits, on LUT entries
of one byte each, on a rescale slope without an intercept and on unknown VOI LUT functions, and they
truncate fractional values before a VOI LUT.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from pydicom.dataset import Dataset

from model.images.dicom.numbers import read_floats
from model.images.dicom.pixel_data import PixelFormat
from model.images.errors import ImageError
from model.types import DraftWarning

Values = npt.NDArray[np.float64]

_BLOCK = 2**20  # pixels looked up at a time; numpy widens the indices to 8 bytes each


def apply_grayscale_pipeline(
    stored_values: npt.NDArray[Any], bits: int, header: Dataset, fmt: PixelFormat, *, little_endian: bool
) -> tuple[npt.NDArray[np.float32], list[DraftWarning]]:
    """Greys of a monochrome image.

    Args:
        stored_values: (H, W) unsigned numbers of `bits` bits.
        bits: 1..16.
        header: Modality LUT, VOI LUT and presentation attributes.
        fmt: signedness and photometric interpretation.
        little_endian: byte order of LUT data.

    Returns:
        (H, W) from 0 black to 255 white, and warnings about the header.

    Raises:
        ImageError: ``unsupported_pixels`` or ``truncated``: values of the header are invalid.
    """
    stored = np.arange(2**bits, dtype=np.float64)
    if fmt.signed:
        stored[2 ** (bits - 1) :] -= 2**bits
    present = np.zeros(2**bits, bool)
    for block in _blocks(stored_values):
        present[block] = True
    visible = present & ~_padding(header, bits)
    visible = visible if visible.any() else present
    inverted, warnings = _polarity(header, fmt)
    values = _modality(stored, header, fmt, little_endian)
    table, depth_warnings = _voi(values, header, fmt, little_endian)
    if table is not None and np.ptp(table[visible]) == 0 < np.ptp(values[visible]):
        table = None  # every pixel would have the same grey
    if table is None and (header.get("VOILUTSequence") or _window(header)):
        warnings.append(
            DraftWarning(
                "window_ignored",
                "its DICOM window maps all values to one grey; the full range of values was used instead",
            )
        )
    if table is not None:
        table = 1.0 - table if inverted else table
        warnings += depth_warnings
    else:
        table = _min_max(values, visible, bits, inverted, as_is=bits <= 8 and values is stored and not fmt.signed)
    return apply_table((255.0 * np.clip(table, 0.0, 1.0)).astype(np.float32), stored_values), warnings


def linear(values: Values, center: float, width: float) -> Values:
    """Window of PS3.3 C.11.2.1.2.1, 0..1; `width` is at least 1."""
    if width == 1:
        return (values > center - 0.5).astype(np.float64)
    return np.clip((values - (center - 0.5)) / (width - 1) + 0.5, 0.0, 1.0)


def linear_exact(values: Values, center: float, width: float) -> Values:
    """Window of PS3.3 C.11.2.1.3.2, 0..1; `width` is above 0."""
    return np.clip((values - center) / width + 0.5, 0.0, 1.0)


def sigmoid(values: Values, center: float, width: float) -> Values:
    """Window of PS3.3 C.11.2.1.3.1, 0..1; `width` is above 0."""
    return 1.0 / (1.0 + np.exp(np.clip(-4.0 * (values - center) / width, -700.0, 700.0)))


def _padding(header: Dataset, bits: int) -> npt.NDArray[np.bool_]:
    """Which stored values are padding (PS3.3 C.7.5.1.1.2)."""
    padding = np.zeros(2**bits, bool)
    first = read_floats(header, "PixelPaddingValue")
    if first:
        last = read_floats(header, "PixelPaddingRangeLimit") or first
        low, high = sorted((int(first[0]), int(last[0])))
        if high - low < 2**bits:
            padding[np.arange(low, high + 1) % 2**bits] = True
    return padding


def _polarity(header: Dataset, fmt: PixelFormat) -> tuple[bool, list[DraftWarning]]:
    """Whether the lowest value is white, and a warning if the header contradicts itself."""
    shape = str(header.get("PresentationLUTShape") or "").strip().upper()
    inverted = fmt.photometric == "MONOCHROME1"
    if shape not in ("INVERSE", "IDENTITY") or (shape == "INVERSE") == inverted:
        return inverted, []
    warning = DraftWarning(
        "contradictory_polarity",
        f"its DICOM header says {fmt.photometric} and PresentationLUTShape {shape}; it was read with the "
        "lowest value white. Check that it is not inverted",
    )
    return True, [warning]


def _modality(stored: Values, header: Dataset, fmt: PixelFormat, little_endian: bool) -> Values:
    if header.get("ModalityLUTSequence"):
        entries, first, _ = _lut(header.ModalityLUTSequence[0], fmt.signed, little_endian)
        return _map_values(stored, entries, first)
    slope = (read_floats(header, "RescaleSlope") or [1.0])[0]
    intercept = (read_floats(header, "RescaleIntercept") or [0.0])[0]
    if slope == 0:
        raise ImageError("unsupported_pixels", "RescaleSlope of the DICOM header is 0: all pixels would be equal.")
    return stored if (slope, intercept) == (1.0, 0.0) else stored * slope + intercept


def _voi(
    values: Values, header: Dataset, fmt: PixelFormat, little_endian: bool
) -> tuple[Values | None, list[DraftWarning]]:
    """Greys 0..1 by the first VOI LUT or else the first window, and warnings; None if there is no usable one."""
    if header.get("VOILUTSequence"):
        entries, first, depth = _lut(header.VOILUTSequence[0], bool(values.min() < 0), little_endian)
        white, warnings = _white(entries, depth)
        return _map_values(values, entries, first) / white, warnings
    window = _window(header)
    if window is None:
        return None, []
    center, width = window
    function = str(header.get("VOILUTFunction") or "LINEAR").strip().upper()
    if width <= 0 or (width < 1 and function not in ("LINEAR_EXACT", "SIGMOID")):
        return None, []
    window_function = {"LINEAR_EXACT": linear_exact, "SIGMOID": sigmoid}.get(function, linear)
    return window_function(values, center, width), []


def _white(entries: Values, depth: int) -> tuple[float, list[DraftWarning]]:
    """The entry of a VOI LUT that is white: by its stated depth, or the highest one if that does not fit."""
    white, most = 2.0**depth - 1, float(entries.max())
    if most == 0 or white / 2 < most <= white:
        return white, []
    warning = DraftWarning(
        "voi_lut_depth",
        f"its DICOM VOI LUT says {depth} bits, but its entries go to {most:.0f}; they were spread over all greys",
    )
    return most, [warning]


def _window(header: Dataset) -> tuple[float, float] | None:
    """Center and width of the first window."""
    centers, widths = read_floats(header, "WindowCenter"), read_floats(header, "WindowWidth")
    return (centers[0], widths[0]) if centers and widths else None


def _lut(item: Dataset, signed: bool, little_endian: bool) -> tuple[Values, int, int]:
    """Entries, the first mapped value, and bits per entry (PS3.3 C.11.1.1, C.11.2.1.1)."""
    count, first, depth = (int(number) for number in item.LUTDescriptor)
    count = count % 2**16 or 2**16
    first = (first % 2**16 ^ 0x8000) - 0x8000 if signed else first
    data: Any = item.get_item("LUTData")
    if not 8 <= depth <= 16 or data is None or getattr(data, "length", 0) > 2**18:
        raise ImageError("unsupported_pixels", f"A lookup table of {count:,} entries of {depth} bits is not supported.")
    if isinstance(data.value, bytes):
        narrow = len(data.value) < 2 * count
        kind = "u1" if narrow else "<u2" if little_endian else ">u2"
        entries = np.frombuffer(data.value, kind, count=count)
    else:
        entries = np.asarray(data.value)[:count]
    if len(entries) < count:
        raise ImageError("truncated", f"A lookup table holds {len(entries):,} of {count:,} entries.")
    return entries.astype(np.float64), first, depth


def _map_values(values: Values, entries: Values, first: int) -> Values:
    """Values mapped by a lookup table; values beyond an end take the entry of that end."""
    mapped: Values = entries[np.clip(np.rint(values) - first, 0, len(entries) - 1).astype(np.int64)]
    return mapped


def _min_max(values: Values, visible: npt.NDArray[np.bool_], bits: int, inverted: bool, *, as_is: bool) -> Values:
    """0..1 from the lowest to the highest visible value; 8-bit images ``as_is`` keep the greys of a PNG."""
    low, high = (0.0, 2.0**bits - 1) if as_is else (float(values[visible].min()), float(values[visible].max()))
    if high == low:
        return np.zeros_like(values)
    return (high - values if inverted else values - low) / (high - low)


def apply_table(table: npt.NDArray[np.float32], values: npt.NDArray[Any]) -> npt.NDArray[np.float32]:
    """The entry of each stored value."""
    greys = np.empty(values.shape, np.float32)
    for block, out in zip(_blocks(values), _blocks(greys), strict=True):
        np.take(table, block, out=out)
    return greys


def _blocks(image: npt.NDArray[Any]) -> Sequence[npt.NDArray[Any]]:
    """Views of a few rows each."""
    rows = max(1, _BLOCK // image.shape[1])
    return [image[row : row + rows] for row in range(0, len(image), rows)]
