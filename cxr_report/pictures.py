"""Radiographs from paths, bytes, arrays and PIL images."""

from __future__ import annotations

import io
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from model.images import ImageError, read_image, read_pixels, thumbnail
from model.types import Resample, StudyView, View

Picture = str | os.PathLike[str] | bytes | npt.NDArray[Any] | Image.Image
"""A path or the bytes of a PNG, JPEG or DICOM file; an array as ``read_pixels`` takes; a PIL image."""

_LONGEST = 1024  # side in pixels of a displayed file


def read_view(picture: Picture, view: View, size: int, resample: Resample) -> StudyView:
    """The input of the drafter, with the pixels and checks of the service.

    Raises:
        ImageError: the image is refused.
        OSError: the file cannot be opened.
        TypeError: ``picture`` is of another type.
    """
    with _named(picture, view.value):
        if isinstance(picture, np.ndarray | Image.Image):
            return read_pixels(picture, size, resample=resample).as_view(view)
        return read_image(_bytes(picture), size, resample=resample).as_view(view)


def displayed(picture: Picture) -> npt.NDArray[np.uint8]:
    """A picture for display, (H, W, 3); files as the page shows them, with a longer side of at most 1,024 pixels.

    Raises:
        ImageError, OSError, TypeError: as ``read_view``; or the pixels of an image are not 8-bit.
    """
    with _named(picture, "picture"):
        if not isinstance(picture, np.ndarray | Image.Image):
            picture = Image.open(io.BytesIO(thumbnail(_bytes(picture), _LONGEST)))
        array = np.asarray(picture)
        if array.dtype not in (np.uint8, np.bool_) or array.ndim not in (2, 3):
            kind = f"{array.shape} {array.dtype}"
            raise ImageError("unsupported_pixels", f"The image is {kind}. Give (H, W) or (H, W, 3) uint8, or a file.")
        shown = picture if isinstance(picture, Image.Image) else Image.fromarray(array)
        return np.asarray(shown.convert("RGB"))


def _bytes(picture: str | os.PathLike[str] | bytes) -> bytes:
    return picture if isinstance(picture, bytes) else Path(picture).read_bytes()


@contextmanager
def _named(picture: object, role: str) -> Iterator[None]:
    """Errors with the role and the path of the picture, and the remedy."""
    name = f"{role} {os.fspath(picture)}" if isinstance(picture, str | os.PathLike) else role
    try:
        yield
    except ImageError as error:
        raise ImageError(error.code, f"{name}: {error}") from error
    except OSError as error:
        remedy = "give the path of a PNG, JPEG or DICOM file"
        raise OSError(error.errno, f"{error.strerror}; {remedy}", error.filename) from error
    except TypeError as error:
        if isinstance(picture, str | os.PathLike | bytes | np.ndarray | Image.Image):
            raise
        kind = type(picture).__name__
        raise TypeError(f"{role} is a {kind}; give a path, bytes, a NumPy array or a PIL image") from error
