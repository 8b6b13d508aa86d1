"""Numbers of a DICOM header, as real files have them."""

from __future__ import annotations

import math
from decimal import Decimal
from typing import Any

from pydicom.datadict import dictionary_VR
from pydicom.dataset import Dataset

from model.images.errors import ImageError

_BINARY = frozenset({"US", "SS", "UL", "SL", "FL", "FD"})
_DAMAGED = "Export the image again and resend it."


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


def read_floats(header: Dataset, name: str) -> list[float]:
    """The numbers of an element; empty if it is missing.

    Decimal strings may have a decimal comma, and empty values, which are skipped.

    Raises:
        ImageError: ``truncated``: not all are finite numbers.
    """
    raw: Any = header.get_item(name)
    if raw is None:
        return []
    try:
        if isinstance(raw.value, bytes) and dictionary_VR(name) == "DS" and raw.VR not in _BINARY:
            texts = raw.value.decode("ascii").replace(",", ".").split("\\")
            floats = [float(text) for part in texts if (text := part.strip(" \0\t\r\n"))]
        else:
            value: Any = header.get(name)
            parts = [value] if isinstance(value, int | float | Decimal | str) else value
            floats = [float(part) for part in parts or () if part != ""]
    except (TypeError, ValueError, OverflowError):
        floats = [math.nan]
    if not all(math.isfinite(number) for number in floats):
        raise ImageError(
            "truncated",
            f"{name} of the DICOM header is not a number. Export the image again and resend it, "
            "or correct the element.",
        )
    return floats
