"""Mutations of image files that reach deep into the decoders, as hypothesis strategies.

A changed byte in a PNG is caught by its checksum, and in most JPEG headers by the first check. So
PNG chunks and JPEG segments are also taken apart, changed, and joined with correct checksums and
lengths; the pixels of a PNG are changed unpacked.
"""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Callable, Iterator

import pydicom
from hypothesis import strategies as st

from benchmarks.fuzzing.inputs import Input, endlessly
from benchmarks.fuzzing.seeds import seeds
from benchmarks.raw_http import study_request

Edit = Callable[[st.DrawFn, bytes], bytes]
Part = tuple[bytes, bytes]  # type of chunk or segment, content
PNG, JPEG = b"\x89PNG\r\n\x1a\n", b"\xff\xd8"
_FORMATS = (*["png"] * 5, *["jpeg"] * 4, "mpo", "gif", "tiff", "webp", "bmp", *["dicom"] * 4)
_EXTREMES = (b"\xff\xff\xff\xff", b"\0\0\0\0", b"\x7f\xff\xff\xff", b"\x80\0\0\0", b"\0\1\0\0", b"\xff\xff", b"\0\1")
_BOMB = b"Comment\0\0" + zlib.compress(bytes(3 * 2**20), 9)  # a text that unpacks to megabytes
_SEQUENCE = b"\x40\0\x75\xa3SQ\0\0\xff\xff\xff\xff\xfe\xff\0\xe0\xff\xff\xff\xff"  # explicit VR, undefined lengths
_CHUNKS = (b"tRNS", b"gAMA", b"iCCP", b"zTXt", b"iTXt", b"tEXt", b"acTL", b"fcTL", b"fdAT", b"eXIf", b"PLTE", b"cHRM",
           b"sRGB", b"pHYs", b"IHDR", b"IEND", b"IDAT", b"quux", b"QUUX")  # fmt: skip
_DICOM_VALUES: dict[str, tuple[object, ...]] = {
    **dict.fromkeys(
        ("Rows", "Columns", "BitsAllocated", "BitsStored", "HighBit", "SamplesPerPixel", "PixelRepresentation",
         "PlanarConfiguration", "NumberOfFrames"),
        (None, 0, 1, 2, 7, 8, 12, 16, 31, 32, 33, 2000, 65_535),
    ),
    "PhotometricInterpretation": (None, "", "RGB", "YBR_FULL_422", "PALETTE COLOR", "MONOCHROME1", "MONOCHROME3"),
    "WindowWidth": ("0", "-1", "1e400", "nan", "\\", "400"), "WindowCenter": ("", "inf", "1e309", "40"),
    "RescaleSlope": ("0", "nan", "1e308", "2"), "VOILUTFunction": ("SIGMOID", "LINEAR_EXACT", "x"),
    "SpecificCharacterSet": ("ISO_IR 192", "nonsense", "\\ISO 2022 IR 87"), "PixelData": (None, b"", b"\0" * 100),
    "ViewPosition": ("PA", "LL", "", "\u017f"), "Modality": (None, "CR", "MR"),
}  # fmt: skip


# --- of any bytes -----------------------------------------------------------------------------------------------------


def _offset(draw: st.DrawFn, data: bytes) -> int:
    """Anywhere after the signature of a whole file, so that its decoder is reached."""
    return draw(st.integers(8 if len(data) > 200 else 0, len(data)))


def _seed(draw: st.DrawFn) -> str:
    kind = draw(st.sampled_from(_FORMATS))
    return draw(st.sampled_from(sorted(name for name in seeds() if name.split()[0] == kind)))


def flip_bits(draw: st.DrawFn, data: bytes) -> bytes:
    """Change up to eight bits."""
    out = bytearray(data)
    for bit in draw(st.lists(st.integers(0, max(0, 8 * len(data) - 1)), min_size=1, max_size=8)) if data else ():
        out[bit // 8] ^= 1 << bit % 8
    return bytes(out)


def cut(draw: st.DrawFn, data: bytes) -> bytes:
    """Cut the end off."""
    return data[: _offset(draw, data)]


def insert(draw: st.DrawFn, data: bytes) -> bytes:
    """Insert bytes."""
    at = _offset(draw, data)
    return data[:at] + draw(st.binary(min_size=1, max_size=100)) + data[at:]


def splice(draw: st.DrawFn, data: bytes) -> bytes:
    """Go on with another part of this file, or of another one."""
    other = draw(st.sampled_from([data, seeds()[_seed(draw)]]))
    return data[: _offset(draw, data)] + other[_offset(draw, other) :]


def write_extreme(draw: st.DrawFn, data: bytes) -> bytes:
    """Write a length or count that no file has."""
    at, value = _offset(draw, data), draw(st.sampled_from(_EXTREMES))
    return data[:at] + value + data[at + len(value) :]


ANY: tuple[Edit, ...] = (flip_bits, cut, insert, splice, write_extreme)


# --- of PNG, JPEG and DICOM -------------------------------------------------------------------------------------------


def split(data: bytes) -> list[Part]:
    """Chunks of a PNG, its pixels unpacked in one ``IDAT``; or segments of a JPEG, what follows the last as ``b""``."""
    parts: list[Part] = []
    at = len(PNG) if data.startswith(PNG) else len(JPEG)
    if data.startswith(PNG):
        while at + 12 <= len(data):
            length = int.from_bytes(data[at : at + 4])
            parts.append((data[at + 4 : at + 8], data[at + 8 : at + 8 + length]))
            at += 12 + length
        pixels = b"".join(content for kind, content in parts if kind == b"IDAT")
        try:
            pixels = zlib.decompress(pixels)
        except zlib.error:
            return parts
        first = next((n for n, (kind, _) in enumerate(parts) if kind == b"IDAT"), len(parts))
        return [*parts[:first], (b"IDAT", pixels), *(part for part in parts[first:] if part[0] != b"IDAT")]
    while at + 4 <= len(data) and data[at] == 0xFF and data[at - 2 : at] != b"\xff\xda":
        length = max(2, int.from_bytes(data[at + 2 : at + 4]))
        parts.append((data[at : at + 2], data[at + 4 : at + 2 + length]))
        at += 2 + length
        if parts[-1][0] == b"\xff\xda":  # start of scan: coded pixels follow
            break
    return [*parts, (b"", data[at:])]


def join(parts: list[Part], signature: bytes) -> bytes:
    """A PNG or JPEG of these parts, with correct lengths and checksums."""
    out = signature
    for kind, content in parts:
        if signature == JPEG:
            out += kind + (struct.pack(">H", min(len(content) + 2, 0xFFFF)) if kind else b"") + content
        else:
            content = zlib.compress(content, 1) if kind == b"IDAT" else content
            out += struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))
    return out


def edit_parts(draw: st.DrawFn, data: bytes) -> bytes:
    """Change, drop, repeat, move or add a chunk or segment."""
    signature = PNG if data.startswith(PNG) else JPEG
    parts = split(data) or [(b"", b"")]
    at, to = (draw(st.integers(0, len(parts) - 1)) for _ in range(2))
    kind, content = parts[at]
    how = draw(st.sampled_from(["change", "change", "change", "drop", "repeat", "move", "rename", "add", "add"]))
    if how == "change":
        parts[at] = kind, draw(st.sampled_from((*ANY, write_extreme, write_extreme)))(draw, content)
    elif how == "drop":
        del parts[at]
    elif how in ("repeat", "move"):
        parts.insert(to, parts[at] if how == "repeat" else parts.pop(at))
    elif how == "rename":
        parts[at] = _kind(draw, signature), content
    else:
        exif = (b"eXIf" if signature == PNG else b"\xff\xe1", _exif(draw))
        bomb = (draw(st.sampled_from([b"zTXt", b"iCCP"])) if signature == PNG else b"\xff\xfe", _BOMB)
        other = (_kind(draw, signature), draw(st.binary(max_size=64)))
        parts.insert(to, draw(st.sampled_from([exif, bomb, other])))
    return join(parts, signature)


def _kind(draw: st.DrawFn, signature: bytes) -> bytes:
    if signature == PNG:
        return draw(st.sampled_from(_CHUNKS))
    return bytes([0xFF, draw(st.sampled_from([0xE1, 0xE1, *range(0xC0, 0xFF)]))])


def _exif(draw: st.DrawFn) -> bytes:
    """An EXIF block whose entries have any type and count, or pointers that lead nowhere or in circles."""
    tags, counts = (
        st.sampled_from([0x0112, 0x0112, 0x8769, 0x8825, 0x0100, 0xA005]),
        st.sampled_from([0, 1, 1000, 2**32 - 1]),
    )
    values = st.sampled_from([0, 1, 6, 8, 9, 2**31, 2**32 - 1])
    entries = draw(st.lists(st.tuples(tags, st.integers(0, 14), counts, values), max_size=5))
    count = draw(st.sampled_from([len(entries), 65_535]))
    order = draw(st.sampled_from([b"II*\0", b"II*\0", b"MM\0*", b"X\0*\0"]))
    packed = [struct.pack("<HHII", *entry) for entry in entries]
    return b"".join(
        [b"Exif\0\0", order, b"\x08\0\0\0", struct.pack("<H", count), *packed, struct.pack("<I", draw(values))]
    )


def set_dicom_value(draw: st.DrawFn, data: bytes) -> bytes:
    """Give an element a value that contradicts the pixels, or remove it."""
    name = draw(st.sampled_from(sorted(_DICOM_VALUES)))
    value = draw(st.sampled_from(_DICOM_VALUES[name]))
    try:
        dataset = pydicom.dcmread(io.BytesIO(data))
        if value is None:
            del dataset[name]
        else:
            setattr(dataset, name, value)
        file = io.BytesIO()
        dataset.save_as(file, enforce_file_format=True)
        return file.getvalue()
    except Exception:  # broken by an earlier edit, or pydicom refuses the value: the file stays as it was
        return data


def nest_sequences(draw: st.DrawFn, data: bytes) -> bytes:
    """Sequences in sequences, deeper than a recursive reader can follow."""
    at = data.find(b"\x08\0\x16\0")
    return data[:at] + _SEQUENCE * draw(st.sampled_from([10, 300, 2000])) + data[at:]


def edits_for(data: bytes) -> tuple[Edit, ...]:
    """Edits that fit the format of a file."""
    if data.startswith((PNG, JPEG)):
        return (*ANY, *[edit_parts] * len(ANY) * 2)
    if data[128:132] == b"DICM":
        return (*ANY, *[set_dicom_value] * len(ANY) * 2, nest_sequences)
    return ANY


@st.composite
def files(draw: st.DrawFn, edits: tuple[int, ...] = (0, 1, 1, 1, 1, 1, 1, 2, 2, 3)) -> tuple[str, bytes]:
    """A seed after some edits, and what was done to it."""
    name = _seed(draw)
    data = seeds()[name]
    for _ in range(draw(st.sampled_from(edits))):
        edit = draw(st.sampled_from(edits_for(data)))
        name += f", {edit.__name__}"
        data = edit(draw, data)
    return name, data


def inputs(seed: int) -> Iterator[Input]:
    """Endless requests with a mutated file in one view or both; same seed, same requests."""
    views = st.sampled_from((("frontal",), ("lateral",), ("frontal", "lateral")))
    for origin, ((done, data), names) in endlessly(st.tuples(files(), views), seed):
        request = study_request({**dict.fromkeys(names, data), "beam_size": b"1"})
        yield Input("files", f"{origin}: {done} in {' and '.join(names)}", request)
