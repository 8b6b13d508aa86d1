"""Hostile image files: little to send, much to decode.

Each function makes one file; ``HOSTILE`` maps a name to the file at full size, for benchmarks.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Callable
from functools import partial

from pydicom.dataset import Dataset

from tests.support.dicom import JPEG_BASELINE, dataset, dicom, encapsulated, encode, film, jpeg

MIB = 2**20
RLE, JPEG_2000 = "1.2.840.10008.1.2.5", "1.2.840.10008.1.2.4.90"
LONGEST_RUN = 2**15 - 1  # blocks without coefficients that one code skips

# --- JPEG -----------------------------------------------------------------------------------------------------------


def segment(marker: int, payload: bytes = b"") -> bytes:
    """A JPEG segment."""
    return struct.pack(">BBH", 0xFF, marker, len(payload) + 2) + payload


def entropy(bits: str) -> bytes:
    """Entropy-coded data: padded by ones, 0xFF stuffed."""
    bits += "1" * (-len(bits) % 8)
    return int(bits, 2).to_bytes(len(bits) // 8).replace(b"\xff", b"\xff\x00")


def progressive_jpeg(side: int, scans: int) -> bytes:
    """A grey progressive JPEG; each scan skips all blocks by runs, 95 bytes for 8,000 x 8,000 pixels."""
    blocks = (-(-side // 8)) ** 2
    one_code = bytes([1, *[0] * 15])  # a Huffman table with the single code "0"
    empty_scan = segment(0xDA, bytes([1, 1, 0, 1, 63, 0])) + entropy(("0" + "1" * 14) * -(-blocks // LONGEST_RUN))
    return b"".join((
        b"\xff\xd8",
        segment(0xDB, bytes([0, *[1] * 64])),
        segment(0xC2, struct.pack(">BHHBBBB", 8, side, side, 1, 1, 0x11, 0)),
        segment(0xC4, bytes([0x00]) + one_code + bytes([0])),
        segment(0xC4, bytes([0x10]) + one_code + bytes([0xE0])),  # 0xE0: a run of blocks, its length in 14 bits
        segment(0xDA, bytes([1, 1, 0, 0, 0, 0])) + entropy("0" * blocks),
        empty_scan * (scans - 1),
        b"\xff\xd9",
    ))  # fmt: skip


JPEG_FLOODS = {
    "empty APP5": segment(0xE5),
    "empty comments": segment(0xFE),
    "fill": b"\xff",
    "zeros": b"\0",
    "restart markers": b"\xff\xd0",
    "full APP5": segment(0xE5, bytes(65_533)),
    "quantisation tables": segment(0xDB, bytes([0, *[1] * 64]) * 1_000),
    "end markers": b"\xff\xd9",
    "Photoshop resources": segment(0xED, b"Photoshop 3.0\0" + struct.pack(">4sHHL", b"8BIM", 1, 0, 0) * 5_400),
}


def flooded_jpeg(flood: bytes, size: int) -> bytes:
    """A JPEG of 96 x 80 pixels with ``size`` bytes of a flood after its first segment."""
    picture = jpeg(film(bits=8))
    return picture[:20] + flood * (size // len(flood)) + picture[20:]


def exif(entries: int, *, size: int = 65_000) -> bytes:
    """An EXIF block whose entries each have a value of ``size`` bytes, at the same offset."""
    directory = b"".join(struct.pack("<HHLL", tag, 1, size, 8) for tag in range(1, entries + 1))
    return b"II*\0" + struct.pack("<LH", 8, entries) + directory


def exif_jpeg(entries: int) -> bytes:
    """A JPEG with an EXIF block of so many entries in one segment after another."""
    block = exif(entries)
    parts = [block[at : at + 65_000] for at in range(0, len(block), 65_000)]
    picture = jpeg(film(bits=8))
    return picture[:2] + b"".join(segment(0xE1, b"Exif\0\0" + part) for part in parts) + picture[2:]


# --- PNG ------------------------------------------------------------------------------------------------------------


def chunk(kind: bytes, data: bytes = b"") -> bytes:
    """A PNG chunk."""
    return struct.pack(">L", len(data)) + kind + data + struct.pack(">L", zlib.crc32(kind + data))


def png(side: int, colour_type: int = 6, *, before: bytes = b"", pieces: int = 0, after: bytes = b"") -> bytes:
    """A black PNG of 8 bits per sample.

    Args:
        side: of the square, in pixels.
        colour_type: 0 grey, 2 RGB, 4 grey with alpha, 6 RGBA.
        before, after: chunks before and after the pixels.
        pieces: bytes of each IDAT chunk; 0 for one chunk.
    """
    samples = {0: 1, 2: 3, 4: 2, 6: 4}[colour_type]
    deflate = zlib.compressobj(9)
    row = bytes(1 + side * samples)
    pixels = b"".join(deflate.compress(row) for _ in range(side)) + deflate.flush()
    pieces = pieces or len(pixels)
    return b"".join((
        b"\x89PNG\r\n\x1a\n",
        chunk(b"IHDR", struct.pack(">LLBBBBB", side, side, 8, colour_type, 0, 0, 0)),
        before,
        *(chunk(b"IDAT", pixels[at : at + pieces]) for at in range(0, len(pixels), pieces)),
        after,
        chunk(b"IEND"),
    ))  # fmt: skip


PNG_FLOODS = {
    "empty chunks": chunk(b"teSt"),
    "empty pixel chunks": chunk(b"IDAT"),
    "texts": chunk(b"tEXt", b"a\0b"),
    "text bombs": chunk(b"zTXt", b"a\0\0" + zlib.compress(bytes(MIB))),
    "profile bombs": chunk(b"iCCP", b"a\0\0" + zlib.compress(bytes(MIB))),
    "large chunks": chunk(b"teSt", bytes(MIB)),
}


def declared_png(side: int) -> bytes:
    """A PNG that declares side x side grey pixels and has none."""
    header = chunk(b"IHDR", struct.pack(">LLBBBBB", side, side, 8, 0, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND")


def flooded_png(flood: bytes, size: int, *, after: bool = False) -> bytes:
    """A PNG of 64 x 64 pixels with ``size`` bytes of a flood before or after its pixels."""
    flood *= size // len(flood)
    return png(64, 0, before=b"" if after else flood, after=flood if after else b"")


# --- DICOM ----------------------------------------------------------------------------------------------------------


def jpeg_dicom(frame: bytes, side: int) -> bytes:
    """A DICOM file with a JPEG frame of side x side grey pixels."""
    return encapsulated(_header(side), JPEG_BASELINE, frame)


def jpeg_2000(
    side: int, *, tile: int = 0, levels: int = 5, layers: int = 1, block: int = 6, precinct: int = 15
) -> bytes:
    """A JPEG 2000 codestream without packets; block and precinct are exponents of 2."""
    tile = tile or side
    precincts = bytes([precinct * 17] * (levels + 1))
    return b"".join((
        b"\xff\x4f",
        segment(0x51, struct.pack(">H8LHBBB", 0, side, side, 0, 0, tile, tile, 0, 0, 1, 7, 1, 1)),
        segment(0x52, struct.pack(">BBHBBBBBB", 1, 2, layers, 0, levels, block - 2, block - 2, 0, 1) + precincts),
        segment(0x5C, bytes([0x40, *[0x40] * (3 * levels + 1)])),
        segment(0x90, struct.pack(">HLBB", 0, 14, 0, 1)),
        b"\xff\x93\xff\xd9",
    ))  # fmt: skip


def jpeg_2000_dicom(frame: bytes, side: int) -> bytes:
    """A DICOM file with a JPEG 2000 frame of side x side grey pixels."""
    return encapsulated(_header(side), JPEG_2000, frame)


def rle_dicom(side: int, run: bytes, size: int) -> bytes:
    """A DICOM file whose run-length frame repeats one code up to ``size`` bytes."""
    return encapsulated(_header(side), RLE, struct.pack("<16L", 1, 64, *[0] * 14) + run * (size // len(run)))


def fragmented_dicom(fragments: int, offsets: int = 0) -> bytes:
    """A DICOM file with empty fragments before its frame, and a number of entries in its offset table."""
    data = jpeg_dicom(jpeg(film(64, 64, 8)), 64)
    start = data.index(b"\xfe\xff\x00\xe0", data.rindex(b"\xe0\x7f\x10\x00"))
    table = struct.pack("<HHL", 0xFFFE, 0xE000, 4 * offsets) + bytes(4 * offsets)
    return data[:start] + table + struct.pack("<HHL", 0xFFFE, 0xE000, 0) * fragments + data[start + 8 :]


def element(group: int, number: int, vr: bytes, value: bytes) -> bytes:
    """An element in explicit VR with a long length field."""
    return struct.pack("<HH2sHL", group, number, vr, 0, len(value)) + value


def long_palette(segments: int) -> bytes:
    """A DICOM file with a segmented palette, each segment of 6 bytes a ramp of 65,535 entries."""
    made = dataset(film(64, 64, 8), photometric="PALETTE COLOR")
    for colour in ("Red", "Green", "Blue"):
        setattr(made, f"{colour}PaletteColorLookupTableDescriptor", [256, 0, 16])
        table = struct.pack("<3H", 0, 1, 0) + struct.pack("<6H", 1, 65_535, 9, 1, 65_535, 0) * (segments // 2)
        setattr(made, f"Segmented{colour}PaletteColorLookupTableData", table)
    return encode(made)


def many_items(size: int) -> bytes:
    """A DICOM file with a VOI LUT sequence of empty items."""
    items = struct.pack("<HHL", 0xFFFE, 0xE000, 0) * (size // 8)
    return _before_pixels(element(0x0028, 0x3010, b"SQ", items))


def long_code(size: int) -> bytes:
    """A DICOM file whose view code consists of empty texts."""
    code = element(0x0008, 0x0102, b"UC", b"SCT") + element(0x0008, 0x0100, b"UC", b"\\" * size)
    parts = ((0xE000, 0xFFFFFFFF, code), (0xE00D, 0, b""), (0xE0DD, 0, b""))
    sequence = struct.pack("<HH2sHL", 0x0054, 0x0220, b"SQ", 0, 0xFFFFFFFF)
    for number, length, value in parts:
        sequence += struct.pack("<HHL", 0xFFFE, number, length) + value
    return _before_pixels(sequence)


def long_name(size: int) -> bytes:
    """A DICOM file whose patient name consists of empty names."""
    data = dicom(film(64, 64, 8), syntax="1.2.840.10008.1.2", PatientName="A^B^")
    at = data.index(b"\x10\x00\x10\x00\x04\0\0\0A^B^") + 4
    return data[:at] + struct.pack("<L", size) + b"\\" * size + data[at + 8 :]


def _before_pixels(elements: bytes) -> bytes:
    data = dicom(film(64, 64, 8))
    at = data.rindex(b"\xe0\x7f\x10\x00")
    return data[:at] + elements + data[at:]


def _header(side: int) -> Dataset:
    made = dataset(film(64, 64, 8))
    made.Rows = made.Columns = side
    return made


# --- at full size ---------------------------------------------------------------------------------------------------


HOSTILE: dict[str, Callable[[], bytes]] = {
    "JPEG of 6,000 scans": partial(progressive_jpeg, 8_000, 6_000),
    **{f"JPEG, 32 MiB of {name}": partial(flooded_jpeg, flood, 32 * MIB) for name, flood in JPEG_FLOODS.items()},
    "JPEG, EXIF block of 65,000 entries": partial(exif_jpeg, 65_000),
    **{f"PNG, 32 MiB of {name}": partial(flooded_png, flood, 32 * MIB) for name, flood in PNG_FLOODS.items()},
    "PNG, 32 MiB of chunks after the pixels": partial(flooded_png, chunk(b"teSt"), 32 * MIB, after=True),
    "PNG, RGBA of 8,000 x 8,000": partial(png, 8_000),
    "PNG of 30,000 x 30,000": partial(declared_png, 30_000),
    "DICOM, JPEG of 6,000 scans": lambda: jpeg_dicom(progressive_jpeg(8_000, 6_000), 8_000),
    "DICOM, empty JPEG 2000": lambda: jpeg_2000_dicom(jpeg_2000(8_000), 8_000),
    "DICOM, JPEG 2000 of 1-pixel precincts": lambda: jpeg_2000_dicom(jpeg_2000(8_000, precinct=1), 8_000),
    "DICOM, JPEG 2000 of 65,535 layers": lambda: jpeg_2000_dicom(jpeg_2000(8_000, tile=512, layers=65_535), 8_000),
    "DICOM, 32 MiB of run-length literals": partial(rle_dicom, 5_000, b"\0\0", 32 * MIB),
    "DICOM, 32 MiB of run-length runs": partial(rle_dicom, 8_000, b"\x81\0", 32 * MIB),
    "DICOM, 4 million fragments": partial(fragmented_dicom, 4_000_000),
    "DICOM, palette of 40,000 ramps": partial(long_palette, 40_000),
    "DICOM, 260,000 items": partial(many_items, 2 * MIB - 64),
    "DICOM, code of 8 million texts": partial(long_code, 8 * MIB - 64),
    "DICOM, 8 million patient names": partial(long_name, 8 * MIB - 64),
    "DICOM, 8 million offsets": partial(fragmented_dicom, 0, 8_000_000),
}
