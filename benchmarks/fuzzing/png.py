"""PNG files taken apart into chunks, changed, and put together with right lengths and checksums."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Callable

import numpy as np

SIGNATURE = b"\x89PNG\r\n\x1a\n"
Chunk = tuple[bytes, bytes]  # type, content
_OTHERS = (b"tRNS", b"gAMA", b"iCCP", b"zTXt", b"iTXt", b"tEXt", b"acTL", b"fcTL", b"fdAT", b"eXIf", b"PLTE", b"cHRM",
           b"sRGB", b"pHYs", b"IHDR", b"IEND", b"IDAT", b"quux", b"QUUX")  # fmt: skip


def chunks(data: bytes) -> list[Chunk]:
    """All whole chunks of a file, whatever their checksums."""
    found, place = [], len(SIGNATURE)
    while place + 12 <= len(data):
        (length,) = struct.unpack(">I", data[place : place + 4])
        if place + 12 + length > len(data):
            break
        found.append((data[place + 4 : place + 8], data[place + 8 : place + 8 + length]))
        place += 12 + length
    return found


def joined(parts: list[Chunk]) -> bytes:
    """A file of these chunks."""
    return SIGNATURE + b"".join(
        struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))
        for kind, content in parts
    )


def _on_chunks(
    change: Callable[[list[Chunk], int, np.random.Generator], None],
) -> Callable[[bytes, np.random.Generator], bytes]:
    def mutate(data: bytes, rng: np.random.Generator) -> bytes:
        parts = chunks(data)
        if parts:
            change(parts, int(rng.integers(len(parts))), rng)
        return joined(parts)

    return mutate


def _bytes(parts: list[Chunk], place: int, rng: np.random.Generator) -> None:
    kind, content = parts[place]
    out = bytearray(content)
    for _ in range(min(len(out), int(rng.integers(1, 8)))):
        out[int(rng.integers(len(out)))] = int(rng.integers(256))
    parts[place] = kind, bytes(out)


def _length(parts: list[Chunk], place: int, rng: np.random.Generator) -> None:
    kind, content = parts[place]
    wanted = int(rng.integers(0, 2 * len(content) + 8))
    parts[place] = kind, (content + rng.bytes(wanted))[:wanted]


def _remove(parts: list[Chunk], place: int, rng: np.random.Generator) -> None:
    del parts[place]


def _twice(parts: list[Chunk], place: int, rng: np.random.Generator) -> None:
    parts.insert(int(rng.integers(len(parts) + 1)), parts[place])


def _swap(parts: list[Chunk], place: int, rng: np.random.Generator) -> None:
    other = int(rng.integers(len(parts)))
    parts[place], parts[other] = parts[other], parts[place]


def _strange(parts: list[Chunk], place: int, rng: np.random.Generator) -> None:
    kind = _OTHERS[int(rng.integers(len(_OTHERS)))]
    content = rng.bytes(int(rng.integers(0, 64)))
    if kind in (b"zTXt", b"iCCP") and rng.random() < 0.7:  # a text that unpacks to megabytes
        content = b"Comment\0\0" + zlib.compress(bytes(int(rng.integers(1, 4)) * 1024 * 1024), 9)
    parts.insert(place, (kind, content))


def _header(parts: list[Chunk], place: int, rng: np.random.Generator) -> None:
    """Another size, depth, colour type or interlacing than the pixels have."""
    for number, (kind, content) in enumerate(parts):
        if kind == b"IHDR" and len(content) == 13:
            values = list(struct.unpack(">IIBBBBB", content))
            field = int(rng.choice([0, 1, 2, 3, 4, 5, 6, 6, 3]))
            sizes = (0, 1, 31, 32, 33, 200, 1999, 2001, 65_535, 2**31 - 1, 2**32 - 1)
            small = (0, 1, 2, 3, 4, 5, 6, 7, 8, 16, 255)
            values[field] = int(rng.choice(sizes if field < 2 else small))
            parts[number] = kind, struct.pack(">IIBBBBB", *values)


def _pixels(parts: list[Chunk], place: int, rng: np.random.Generator) -> None:
    """Change the unpacked scan lines (filter bytes among them), pack them again."""
    packed = b"".join(content for kind, content in parts if kind == b"IDAT")
    try:
        lines = bytearray(zlib.decompress(packed))
    except zlib.error:
        return
    for _ in range(min(len(lines), int(rng.integers(1, 50)))):
        lines[int(rng.integers(len(lines)))] = int(rng.integers(256))
    if rng.random() < 0.4:
        lines = lines[: int(rng.integers(len(lines) + 1))] if rng.random() < 0.6 else lines + bytes(100_000)
    kept = [part for part in parts if part[0] != b"IDAT"]
    kept.insert(max(1, len(kept) - 1), (b"IDAT", zlib.compress(bytes(lines))))
    parts[:] = kept


MUTATIONS = {
    "chunk bytes": _on_chunks(_bytes), "chunk length": _on_chunks(_length), "chunk removed": _on_chunks(_remove),
    "chunk twice": _on_chunks(_twice), "chunks swapped": _on_chunks(_swap), "strange chunk": _on_chunks(_strange),
    "header field": _on_chunks(_header), "pixels repacked": _on_chunks(_pixels),
}  # fmt: skip
