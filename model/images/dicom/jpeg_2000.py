"""The structure of a JPEG 2000 codestream (ITU-T T.800 annex A), checked before decoding.

OpenJPEG allocates each precinct and code-block of a tile and visits each packet, so that a header
of 100 bytes can cost gigabytes and minutes. Their number is computed from the header.
"""

from __future__ import annotations

import struct
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, replace

from model.images.limits import ImageLimits, check_counts
from model.images.structure import FrameHeader

_START = b"\xff\x4f\xff\x51"  # SOC, SIZ
_COD, _COC, _POC, _SOT, _SOD = 0xFF52, 0xFF53, 0xFF5F, 0xFF90, 0xFF93
_MOST_LEVELS = 32


@dataclass(frozen=True)
class _Coding:
    """Sizes of code-blocks, and of precincts by resolution from the lowest on, as exponents of 2."""

    block: tuple[int, int]
    precincts: tuple[tuple[int, int], ...]

    @staticmethod
    def read(style: int, values: bytes) -> _Coding:
        """The parameters of COD or COC (tables A.20, A.23)."""
        resolutions = min(values[0], _MOST_LEVELS) + 1
        sizes = values[5 : 5 + resolutions] if style & 1 else b"\xff" * resolutions
        return _Coding((values[1] % 16 + 2, values[2] % 16 + 2), tuple((size & 15, size >> 4) for size in sizes))

    def blocks(self, width: int, height: int, layers: int) -> int:
        """Packets and code-blocks of a component of a tile.

        Packets are counted on the finest grid of all resolutions, which some progressions visit.
        """
        columns = rows = blocks = 0
        for resolution, (x, y) in enumerate(self.precincts):
            reduced, bands = len(self.precincts) - 1 - resolution, 3 if resolution else 1
            w, h = -(-width >> reduced), -(-height >> reduced)
            columns, rows = max(columns, -(-w >> x)), max(rows, -(-h >> y))
            across, down = min(self.block[0] + bands // 3, x), min(self.block[1] + bands // 3, y)
            blocks += bands * -(-w >> across) * -(-h >> down)
        return len(self.precincts) * columns * rows * layers + blocks


def check_jpeg_2000(frame: bytes, limits: ImageLimits) -> FrameHeader | None:
    """Check the segments, packets and code-blocks of a codestream.

    Returns:
        The header; None if there is none, or several within a JP2 file.

    Raises:
        ImageError: ``too_complex``.
    """
    start = frame.find(_START)
    if start < 0 or (start > 0 and frame.count(_START) > 1) or start + 43 > len(frame):
        return None
    right, bottom, left, top, tile_width, tile_height, tile_left, tile_top, samples = struct.unpack_from(
        ">8IH", frame, start + 8
    )
    header = FrameHeader(right - left, bottom - top, samples, (frame[start + 42] & 0x7F) + 1)
    if not (tile_width and tile_height):
        return None
    tiles = -(-(right - tile_left) // tile_width) * -(-(bottom - tile_top) // tile_height)
    most = {"segments": limits.jpeg_2000_segments, "packets and code-blocks": limits.jpeg_2000_blocks}
    count: Counter[str] = Counter()
    layers, progressions, codings = 1, 1, set()
    for marker, payload in _segments(frame, start + 2):
        count["segments"] += 1
        check_counts("JPEG 2000 image", count, most)
        if marker == _COD:
            layers = max(layers, int.from_bytes(payload[2:4]))
            header = replace(header, reversible=payload[9:10] == b"\1")
            codings.add(_Coding.read(payload[0], payload[5:]))
        elif marker == _COC:
            codings.add(_Coding.read(payload[1], payload[2:]))
        elif marker == _POC:
            progressions += len(payload) // 7
    size = min(tile_width, header.columns), min(tile_height, header.rows)
    blocks = [coding.blocks(*size, layers * progressions) for coding in codings]
    count["packets and code-blocks"] = tiles * samples * max(blocks, default=0)
    check_counts("JPEG 2000 image", count, most)
    return header


def _segments(frame: bytes, at: int) -> Iterator[tuple[int, bytes]]:
    """Marker and payload of each segment in the main header and in the headers of tile-parts."""
    end = len(frame)
    while at + 4 <= len(frame):
        marker, length = struct.unpack_from(">HH", frame, at)
        if marker == _SOT:
            part = int.from_bytes(frame[at + 6 : at + 10])
            end = at + part if part else len(frame)
        if marker == _SOD:
            if end <= at:
                return
            at = end
            continue
        if marker < 0xFF00:
            return
        yield marker, frame[at + 4 : at + 2 + length]
        at += 2 + length
