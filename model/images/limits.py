"""The limits of an image that are checked before it is decoded."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from model.images.errors import ImageError


@dataclass(frozen=True)
class ImageLimits:
    """Limits checked before decoding.

    Attributes:
        min_side: shortest side accepted, in pixels.
        max_pixels: width x height accepted.
        segments: segments of a JPEG; chunks of a PNG except its pixels.
        metadata_bytes: bytes of comments and application data in a JPEG; of all chunks except the pixels in a PNG.
        tiff_entries: entries of an EXIF block.
        png_chunks: all chunks of a PNG.
        png_compressed_chunks: compressed texts and colour profiles, each of up to 1 MiB inflated.
        jpeg_scans: scans of a JPEG.
        jpeg_blocks: blocks of 8 x 8 samples in all scans of a JPEG.
        jpeg_table_bytes: bytes of tables and headers in a JPEG.
        jpeg_fill_bytes: bytes between the segments before the first scan.
        offset_table_bytes: basic offset table of compressed DICOM pixels.
        jpeg_2000_segments: segments and tile-parts of a JPEG 2000 codestream.
        jpeg_2000_blocks: packets and code-blocks of a JPEG 2000 codestream.
    """

    min_side: int = 32
    max_pixels: int = 64_000_000
    segments: int = 1_000
    metadata_bytes: int = 8 * 2**20
    tiff_entries: int = 1_000
    png_chunks: int = 65_536
    png_compressed_chunks: int = 64
    jpeg_scans: int = 100
    jpeg_blocks: int = 32_000_000
    jpeg_table_bytes: int = 2**18
    jpeg_fill_bytes: int = 2**16
    offset_table_bytes: int = 1_024
    jpeg_2000_segments: int = 20_000
    jpeg_2000_blocks: int = 1_000_000


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


def check_counts(kind: str, counts: Mapping[str, int], most: Mapping[str, int]) -> None:
    """Check that the parts of a file, such as scans, are not too many.

    Raises:
        ImageError: ``too_complex``.
    """
    for what, limit in most.items():
        if counts[what] > limit:
            raise ImageError(
                "too_complex",
                f"The {kind} has more than {limit:,} {what}. Save the image again, without metadata, and resend it.",
            )
