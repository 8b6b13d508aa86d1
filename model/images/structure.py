"""Structural limits of PNG and JPEG files, checked before any decoder.

Pillow parses chunks and segments in Python, and libjpeg decodes every scan over all blocks of its
components. The checks bound this work: they jump from one chunk or segment to the next, stop at the
first exceeded limit, and search for markers with numpy.
"""

from __future__ import annotations

import struct
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

from model.images.limits import ImageLimits, check_counts, check_size

PNG_MAGIC, JPEG_MAGIC = b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff"

_SOI, _EOI, _SOS, _APP1, _APP2, _SOF_LS = 0xD8, 0xD9, 0xDA, 0xE1, 0xE2, 0xF7
_SOF = frozenset({*range(0xC0, 0xD0), _SOF_LS} - {0xC4, 0xC8, 0xCC})
_LOSSLESS = (0xC3, _SOF_LS)
_COST = {  # of a block in a scan, relative to Huffman coding
    **dict.fromkeys((0xC9, 0xCA), 4),  # arithmetic coding
    **dict.fromkeys(_LOSSLESS, 8),
}
_METADATA = frozenset({*range(0xE0, 0xF0), 0xFE})  # APPn, COM
_WITHOUT_LENGTH = frozenset({0xC8, _SOI, _EOI, *range(0xF0, 0xFE)})
_WITHOUT_LENGTH_LS = _WITHOUT_LENGTH - {_SOF_LS, 0xF8}
_SECOND_BYTES = np.isin(np.arange(256), [*range(0xC0, 0xD0), *range(0xD8, 0xFF)])  # of markers, without RST


@dataclass(frozen=True)
class FrameHeader:
    """Size, samples per pixel and bits per sample in the header of a compressed frame.

    ``reversible`` is true if its coding loses nothing by itself; JPEG 2000 may still be cut.
    """

    columns: int
    rows: int
    samples: int
    precision: int
    reversible: bool = False


def check_png(data: bytes, limits: ImageLimits) -> bytes:
    """Check the chunks of a PNG file.

    Returns:
        The last EXIF block; empty if there is none.

    Raises:
        ImageError: ``too_complex``.
    """
    most = {
        "chunks": limits.png_chunks,
        "chunks besides pixels": limits.segments,
        "compressed texts and profiles": limits.png_compressed_chunks,
        "bytes of metadata": limits.metadata_bytes,
    }
    count: Counter[str] = Counter()
    exif = b""
    at = len(PNG_MAGIC)
    while at + 8 <= len(data):
        length, kind = struct.unpack_from(">L4s", data, at)
        count["chunks"] += 1
        if kind == b"IEND":
            break
        if kind != b"IDAT":
            count["chunks besides pixels"] += 1
            count["compressed texts and profiles"] += kind in (b"zTXt", b"iTXt", b"iCCP")
            count["bytes of metadata"] += min(length, len(data) - at)
        check_counts("PNG", count, most)
        if kind == b"eXIf":
            exif = data[at + 8 : at + 8 + length]
            _check_tiff(exif, limits)
        at += 12 + length
    return exif


def check_jpeg(data: bytes, limits: ImageLimits, *, jpeg_ls: bool = False) -> FrameHeader | None:
    """Check the segments and scans of a JPEG or JPEG-LS file, up to the end of its first picture.

    Returns:
        The frame header; None if it is missing or malformed.

    Raises:
        ImageError: ``too_complex``, ``too_large`` or ``too_small``.
    """
    most = {
        "segments": limits.segments,
        "scans": limits.jpeg_scans,
        "blocks in all scans": limits.jpeg_blocks,
        "bytes of metadata": limits.metadata_bytes,
        "bytes of tables": limits.jpeg_table_bytes,
        "bytes between segments": limits.jpeg_fill_bytes,
    }
    frame: FrameHeader | None = None
    blocks = 0  # of a component
    count: Counter[str] = Counter()
    exif = []
    for marker, skipped, payload in _segments(data, jpeg_ls):
        count["segments"] += 1
        if not count["scans"]:
            count["bytes between segments"] += skipped
        elif marker == _EOI:
            break
        if marker in _METADATA:
            count["bytes of metadata"] += len(payload)
        else:
            count["bytes of tables"] += len(payload)
        if marker == _SOS and payload:
            count["scans"] += 1
            count["blocks in all scans"] += blocks * payload[0]
            near = payload[1 + 2 * payload[0] :][:1]  # of JPEG-LS: the largest error
            if frame and jpeg_ls and near != b"\0":
                frame = replace(frame, reversible=False)
        check_counts("JPEG", count, most)
        if marker in _SOF and frame is None and len(payload) >= 6 and len(payload) == 6 + 3 * payload[5]:
            precision, rows, columns, samples = struct.unpack_from(">BHHB", payload)
            frame = FrameHeader(columns, rows, samples, precision, marker in _LOSSLESS)
            check_size((columns, rows), limits)
            blocks = -(-rows // 8) * -(-columns // 8) * _COST.get(marker, 1)
        elif marker == _APP1 and payload.startswith(b"Exif\0\0"):
            exif.append(payload[6:])  # Pillow joins them
        elif marker == _APP2 and payload.startswith(b"MPF\0"):
            _check_tiff(payload[4:], limits)
    _check_tiff(b"".join(exif), limits)
    return frame


def _segments(data: bytes, jpeg_ls: bool) -> Iterator[tuple[int, int, bytes]]:
    """The marker of each segment, the bytes skipped before it, and its payload.

    As in libjpeg, any bytes up to the next marker are skipped: fill before the first scan,
    entropy-coded data after it.
    """
    without_length = _WITHOUT_LENGTH_LS if jpeg_ls else _WITHOUT_LENGTH
    at = 2
    while (found := _next_marker(data, at)) is not None:
        marker, start = data[found + 1], found + 2
        length = 0 if marker in without_length else max(2, int.from_bytes(data[start : start + 2]))
        yield marker, found - at, data[start + 2 : start + length]
        at = start + length


def _next_marker(data: bytes, start: int) -> int | None:
    """Offset of the next marker other than RST; None if there is none."""
    size = 2**12
    while start + 1 < len(data):
        window = np.frombuffer(data, np.uint8, min(size, len(data) - start), start)
        candidates = np.flatnonzero(window[:-1] == 0xFF)
        markers = candidates[_SECOND_BYTES[window[candidates + 1]]]
        if len(markers):
            return start + int(markers[0])
        start += len(window) - 1
        size = min(4 * size, 2**20)
    return None


def _check_tiff(block: bytes, limits: ImageLimits) -> None:
    """Check the number of entries of an EXIF or MPF block, which Pillow reads in Python."""
    block = block.removeprefix(b"Exif\0\0")
    order: Literal["little", "big"] = "little" if block[:2] == b"II" else "big"
    at = int.from_bytes(block[4:8], order)
    check_counts("EXIF block", {"entries": int.from_bytes(block[at : at + 2], order)}, {"entries": limits.tiff_entries})
