"""JPEG files taken apart into segments, changed, and put together with right lengths."""

from __future__ import annotations

import struct
from collections.abc import Callable

import numpy as np

Segment = tuple[int, bytes]  # marker, content; the entropy-coded rest stands after the last one
_SOS = 0xDA
_FRAMES = tuple(marker for marker in range(0xC0, 0xD0) if marker not in (0xC4, 0xC8, 0xCC))
_TIFF = b"Exif\0\0II*\0\x08\0\0\0"


def segments(data: bytes) -> tuple[list[Segment], bytes]:
    """Segments up to the first scan's header, and what follows it."""
    found, place = [], 2
    while place + 4 <= len(data) and data[place] == 0xFF:
        (length,) = struct.unpack(">H", data[place + 2 : place + 4])
        found.append((data[place + 1], data[place + 4 : place + 2 + length]))
        place += 2 + max(length, 2)
        if found[-1][0] == _SOS:
            break
    return found, data[place:]


def joined(parts: list[Segment], rest: bytes) -> bytes:
    """A file of these segments."""
    return b"\xff\xd8" + b"".join(
        b"\xff" + bytes([marker]) + struct.pack(">H", min(len(content) + 2, 0xFFFF)) + content
        for marker, content in parts
    ) + rest  # fmt: skip


def _on_segments(
    change: Callable[[list[Segment], int, np.random.Generator], None],
) -> Callable[[bytes, np.random.Generator], bytes]:
    def mutate(data: bytes, rng: np.random.Generator) -> bytes:
        parts, rest = segments(data)
        if parts:
            change(parts, int(rng.integers(len(parts))), rng)
        return joined(parts, rest)

    return mutate


def _bytes(parts: list[Segment], place: int, rng: np.random.Generator) -> None:
    marker, content = parts[place]
    out = bytearray(content)
    for _ in range(min(len(out), int(rng.integers(1, 6)))):
        out[int(rng.integers(len(out)))] = int(rng.integers(256))
    parts[place] = marker, bytes(out)


def _length(parts: list[Segment], place: int, rng: np.random.Generator) -> None:
    marker, content = parts[place]
    parts[place] = marker, (content + rng.bytes(300))[: int(rng.integers(0, len(content) + 300))]


def _remove(parts: list[Segment], place: int, rng: np.random.Generator) -> None:
    del parts[place]


def _twice(parts: list[Segment], place: int, rng: np.random.Generator) -> None:
    parts.insert(place, parts[int(rng.integers(len(parts)))])


def _marker(parts: list[Segment], place: int, rng: np.random.Generator) -> None:
    parts[place] = int(rng.integers(0xC0, 0xFF)), parts[place][1]


def _frame(parts: list[Segment], place: int, rng: np.random.Generator) -> None:
    """Another precision, height, width, number of components or sampling than the scan has."""
    for number, (marker, content) in enumerate(parts):
        if marker in _FRAMES and len(content) >= 8:
            out = bytearray(content)
            field = int(rng.integers(4))
            if field == 0:
                out[0] = int(rng.choice([0, 2, 8, 12, 16, 255]))
            elif field in (1, 2):
                size = int(rng.choice([0, 1, 31, 32, 500, 2500, 65_535]))
                out[2 * field - 1 : 2 * field + 1] = struct.pack(">H", size)
            else:
                out[5 + int(rng.integers(len(out) - 5))] = int(rng.choice([0, 1, 2, 3, 4, 0x11, 0x44, 0xFF]))
            parts[number] = marker, bytes(out)


def _exif(parts: list[Segment], place: int, rng: np.random.Generator) -> None:
    """An EXIF block with an orientation of any type and count, or with pointers that lead nowhere or in circles."""
    entries = int(rng.choice([0, 1, 2, 5, 65_535]))
    block = _TIFF + struct.pack("<H", entries)
    for _ in range(min(entries, 5)):
        tag = int(rng.choice([0x0112, 0x0112, 0x8769, 0x8825, 0x0100, 0xA005]))
        kind, count = int(rng.integers(0, 14)), int(rng.choice([0, 1, 2, 1000, 2**32 - 1]))
        block += struct.pack("<HHII", tag, kind, count, int(rng.choice([0, 1, 6, 8, 9, 2**31, 2**32 - 1])))
    block += struct.pack("<I", int(rng.choice([0, 8, 2**31])))
    parts.insert(0, (0xE1, block))


def _scan(data: bytes, rng: np.random.Generator) -> bytes:
    """Change the coded pixels: bytes, restart markers in the wrong place, an early or missing end."""
    parts, rest = segments(data)
    out = bytearray(rest)
    for _ in range(min(len(out), int(rng.integers(1, 20)))):
        out[int(rng.integers(len(out)))] = int(rng.integers(256))
    if rng.random() < 0.5:
        place = int(rng.integers(len(out) + 1))
        out[place:place] = bytes([0xFF, int(rng.integers(0xC0, 0xFF))])
    return joined(parts, bytes(out))


MUTATIONS = {
    "segment bytes": _on_segments(_bytes), "segment length": _on_segments(_length),
    "segment removed": _on_segments(_remove), "segment twice": _on_segments(_twice),
    "another marker": _on_segments(_marker), "frame header": _on_segments(_frame), "EXIF block": _on_segments(_exif),
    "coded pixels": _scan,
}  # fmt: skip
