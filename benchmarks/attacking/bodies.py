"""Hostile bodies at two scales: small files that cost a decoder much, and large ones that hold nothing."""

from __future__ import annotations

import functools
import json
from dataclasses import dataclass

from tests.support import hostile_images as hostile

MIB = 1024 * 1024


@dataclass(frozen=True)
class Scale:
    """Size of the attacks.

    Attributes:
        side: pixels a side of an image that costs much.
        scans: of a progressive JPEG.
        flood_bytes: size of a file of empty segments or chunks, at most ``REPORT_MAX_UPLOAD_BYTES``.
        trailer_bytes: size of a trailer that does not end.
        sockets: connections that read no answer.
        hold_s: seconds after which a slow or stalled connection that is still open counts as held.
        idle_s: seconds that idle connections stay open.
    """

    side: int = 8000
    scans: int = 6000
    flood_bytes: int = 31 * MIB
    trailer_bytes: int = 64 * MIB
    sockets: int = 40
    hold_s: float = 45.0
    idle_s: float = 45.0


FULL = Scale()
SMALL = Scale(side=6000, scans=1500, flood_bytes=6 * MIB, trailer_bytes=16 * MIB, sockets=4, idle_s=3.0)


@functools.cache
def jpeg_of_scans(scale: Scale) -> bytes:
    """A progressive JPEG."""
    return hostile.progressive_jpeg(scale.side, scale.scans)


@functools.cache
def floods(scale: Scale) -> tuple[bytes, ...]:
    """JPEG files of empty segments, comments and fill bytes, and a PNG of empty chunks."""
    jpegs = (hostile.JPEG_FLOODS[name] for name in ("empty APP5", "empty comments", "fill"))
    chunks = hostile.flooded_png(hostile.PNG_FLOODS["empty chunks"], scale.flood_bytes)
    return *(hostile.flooded_jpeg(flood, scale.flood_bytes) for flood in jpegs), chunks


@functools.cache
def damaged_png(scale: Scale) -> bytes:
    """An RGBA PNG compressed to a thousandth, damaged in its last rows: it is decoded and then refused."""
    file = hostile.png(scale.side)
    end = len(file) - len(hostile.chunk(b"IEND")) - 4  # before the checksum
    return file[: end - 20] + b"\xff" * 20 + file[end:]


@functools.cache
def jpeg_2000(scale: Scale) -> bytes:
    """A DICOM file with a JPEG 2000 frame, less than 2 KB."""
    return hostile.jpeg_2000_dicom(hostile.jpeg_2000(scale.side), scale.side)


@functools.cache
def export_of_warnings(count: int) -> bytes:
    """A body of ``POST /export`` with ``count`` warnings, less than a megabyte."""
    from service.schemas.examples import REPORT_EXAMPLE

    warnings = [{"code": "a", "message": "b"}] * count
    return json.dumps({"report": {**REPORT_EXAMPLE, "warnings": warnings}}, separators=(",", ":")).encode()
