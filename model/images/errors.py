"""The error of a refused image, and the limits that are checked before decoding."""

from __future__ import annotations

from dataclasses import dataclass


class ImageError(ValueError):
    """An image that cannot be read. ``code`` is stable for programs, the message is for people.

    Codes of any image: ``empty``, ``not_an_image``, ``unsupported_format``, ``truncated``,
    ``animated``, ``too_small``, ``too_large``. Further codes of DICOM:
    ``unsupported_transfer_syntax``, ``not_a_radiograph``, ``for_processing``, ``no_pixels``,
    ``unsupported_pixels``. The message contains no file name and no free text of the file.
    """

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code


@dataclass(frozen=True)
class ImageLimits:
    """Limits checked on the header before decoding.

    Attributes:
        min_side: shortest side accepted, in pixels.
        max_pixels: width x height accepted. 64 million is four times a 4,300 x 3,500 detector.
    """

    min_side: int = 32
    max_pixels: int = 64_000_000


DEFAULT_LIMITS = ImageLimits()


def check_size(size: tuple[int, int], limits: ImageLimits) -> None:
    """Check (width, height).

    Raises:
        ImageError: ``too_large`` or ``too_small``.
    """
    width, height = size
    if width * height > limits.max_pixels:
        raise too_large(limits, size)
    if min(width, height) < limits.min_side:
        raise ImageError(
            "too_small",
            f"The image is {width} x {height} pixels; at least {limits.min_side} on each side are needed. "
            "Send the radiograph itself, not an icon or thumbnail.",
        )


def too_large(limits: ImageLimits, size: tuple[int, int] | None = None) -> ImageError:
    """The error of an image with more pixels than allowed; ``size`` is (width, height)."""
    what = f"is {size[0]:,} x {size[1]:,} pixels" if size else "has too many pixels"
    return ImageError(
        "too_large",
        f"The image {what}; at most {limits.max_pixels:,} pixels are read. Send it at a lower resolution.",
    )
