"""Image files written by Pillow and the DICOM samples of pydicom, and a strategy that mutates them."""

from __future__ import annotations

import functools
import io
import re
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
from hypothesis import strategies as st
from PIL import Image, PngImagePlugin
from pydicom.data.data_manager import DATA_ROOT
from pydicom.uid import DigitalXRayImageStorageForPresentation

PATIENT = "Fuzzed^Patient"  # in DICOM samples; must not appear in a log
LARGEST_SAMPLE = 50_000  # bytes
PNG = b"\x89PNG\r\n\x1a\n"
_TAGS = ((0x0112, 3, 1, 6), (0x8769, 4, 1, 8), (0x8825, 4, 1, 8), (0x010E, 2, 999, 30))  # pointers in circles
_EXIF = b"Exif\0\0II*\0\x08\0\0\0\4\0" + b"".join(struct.pack("<HHII", *tag) for tag in _TAGS) + b"\x08\0\0\0"
_BOMB = PngImagePlugin.PngInfo()
_BOMB.add_text("Comment", "\0" * 3 * 2**20, zip=True)
_PILLOW: tuple[tuple[str, str, dict[str, Any]], ...] = (
    ("png", "1", {}), ("png", "L", {}), ("png", "I;16", {}), ("png", "P", {"transparency": bytes(range(200))}),
    ("png", "RGB", {}), ("png", "RGBA", {}), ("png", "LA", {}), ("png", "L", {"exif": _EXIF}),
    ("png", "L", {"save_all": True}), ("png", "L", {"pnginfo": _BOMB}), ("png", "L", {"icc_profile": bytes(3 * 2**20)}),
    ("jpeg", "L", {"quality": 80}), ("jpeg", "RGB", {"progressive": True, "optimize": True}), ("jpeg", "CMYK", {}),
    ("jpeg", "RGB", {"restart_marker_rows": 1, "subsampling": 2}), ("jpeg", "L", {"exif": _EXIF}),
    ("png", "RGB", {"exif": _EXIF}), ("jpeg", "RGB", {"exif": _EXIF}),
    ("mpo", "L", {"save_all": True}), ("gif", "P", {}), ("gif", "L", {"save_all": True}), ("tiff", "L", {}),
    ("webp", "RGB", {}), ("bmp", "L", {}),
)  # fmt: skip
_SEQUENCE = b"\x40\0\x75\xa3SQ\0\0\xff\xff\xff\xff\xfe\xff\0\xe0\xff\xff\xff\xff"  # undefined lengths
_STRUCTURE = re.compile(  # where PNG chunks, JPEG segments, EXIF blocks and DICOM elements begin
    rb"IHDR|PLTE|tRNS|iCCP|zTXt|acTL|fcTL|eXIf|IDAT|IEND|\xff[\xc0-\xfe]|Exif|II\*|[\2\x08\x28]\0..[A-Z]{2}", re.DOTALL
)
_EXTREMES = (b"\xff\xff\xff\xff", b"\0\0\0\0", b"\x7f\xff\xff\xff", b"\x80\0\0\0", b"\0\1\0\0", b"\xff\xff", b"\0\1")


def picture(number: int) -> Image.Image:
    """A gradient with a bright disc and some noise, 32 to 160 pixels a side, 8-bit grey."""
    rng = np.random.default_rng([number, 11])
    height, width = (int(side) for side in rng.integers(32, 160, 2))
    y, x = np.mgrid[0:height, 0:width]
    disc = (x - width * rng.random()) ** 2 + (y - height * rng.random()) ** 2 < (0.2 * width) ** 2
    grey = np.where(disc, 0.9, 0.1 + 0.5 * y / height) + rng.normal(0, 0.02, (height, width))
    return Image.fromarray((np.clip(grey, 0, 1) * 255).astype(np.uint8))


def png(number: int) -> bytes:
    """A PNG that the service accepts."""
    return _saved(picture(number), "png")


def _saved(image: Image.Image, kind: str, **options: Any) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


@functools.cache
def seeds() -> dict[str, bytes]:
    """All files by name; its first word is the format. DICOM samples with pixels become radiographs."""
    found = {}
    for number, (kind, mode, options) in enumerate(_PILLOW):
        pages = {"append_images": [picture(number)]} if "save_all" in options else {}
        image = picture(number + 1).convert(mode)
        found[f"{kind} {number}"] = _saved(image, kind, **options, **pages)
    for path in sorted(Path(DATA_ROOT).rglob("*.dcm")):
        if path.stat().st_size <= LARGEST_SAMPLE:
            found[f"dicom {path.stem}"] = _as_radiograph(path.read_bytes())
    sample = next(data for name, data in found.items() if name.startswith("dicom") and b"\x08\0\x16\0" in data)
    at = sample.index(b"\x08\0\x16\0")
    return {**found, "dicom nested sequences": sample[:at] + _SEQUENCE * 2000 + sample[at:], **_hostile()}


def _hostile(flood_bytes: int = 50_000) -> dict[str, bytes]:
    """Files that take much work to decode, at small size; all are named ``hostile``."""
    from tests.support import hostile_images as hostile

    jpegs = {name: hostile.flooded_jpeg(flood, flood_bytes) for name, flood in hostile.JPEG_FLOODS.items()}
    pngs = {name: hostile.flooded_png(flood, flood_bytes) for name, flood in hostile.PNG_FLOODS.items()}
    files = {
        **jpegs, **pngs,
        "scans": hostile.progressive_jpeg(2000, 500),
        "EXIF": hostile.exif_jpeg(3000),
        "RGBA": hostile.png(1900),
        "JPEG 2000": hostile.jpeg_2000_dicom(hostile.jpeg_2000(1900), 1900),
        "precincts": hostile.jpeg_2000_dicom(hostile.jpeg_2000(1900, precinct=1), 1900),
        "layers": hostile.jpeg_2000_dicom(hostile.jpeg_2000(1900, tile=512, layers=65_535), 1900),
        "runs": hostile.rle_dicom(1900, b"\x81\0", flood_bytes),
        "fragments": hostile.fragmented_dicom(5000, 5000),
    }  # fmt: skip
    return {f"hostile {name}": data for name, data in files.items()}


def _as_radiograph(data: bytes) -> bytes:
    """The sample with the modality and class of a radiograph, because the service decodes pixels of no other."""
    try:
        dataset, file = pydicom.dcmread(io.BytesIO(data)), io.BytesIO()
        if "PixelData" not in dataset:
            return data
        dataset.PatientName, dataset.Modality = PATIENT, "DX"
        dataset.SOPClassUID = dataset.file_meta.MediaStorageSOPClassUID = DigitalXRayImageStorageForPresentation
        dataset.save_as(file, enforce_file_format=True)
        return file.getvalue()
    except Exception:  # some samples are broken on purpose
        return data


@st.composite
def files(draw: st.DrawFn, edits: tuple[int, ...] = (0, 1, 1, 1, 1, 1, 2, 2, 3)) -> tuple[str, bytes]:
    """A seed after some edits, and their names."""
    name = _seed(draw)
    data = seeds()[name]
    for _ in range(draw(st.sampled_from(edits))):
        how = draw(st.sampled_from(["bytes", "bytes", "extreme", "extreme", "drop", "repeat", "cut", "splice"]))
        data, name = _edit(draw, how, data), f"{name}, {how}"
    is_repaired = data.startswith(PNG) and draw(st.integers(0, 3)) > 0
    return name, with_checksums(data) if is_repaired else data


def _seed(draw: st.DrawFn) -> str:
    kind = draw(
        st.sampled_from([*["png"] * 5, *["jpeg"] * 4, "mpo", "gif", "tiff", "webp", "bmp", *["dicom"] * 4, "hostile"])
    )
    return draw(st.sampled_from([name for name in seeds() if name.startswith(kind)]))


def _edit(draw: st.DrawFn, how: str, data: bytes) -> bytes:
    start, stop = sorted((_offset(draw, data), _offset(draw, data)))
    if how in ("bytes", "extreme"):
        new = draw(st.binary(min_size=1, max_size=8) if how == "bytes" else st.sampled_from(_EXTREMES))
        return data[:start] + new + data[start + len(new) :]
    other = seeds()[_seed(draw)] if how == "splice" else b""
    return {
        "cut": data[:stop],
        "drop": data[:start] + data[stop:],
        "repeat": data[:stop] + data[start:],
        "splice": data[:start] + other[_offset(draw, other) :],
    }[how]


def _offset(draw: st.DrawFn, data: bytes) -> int:
    """Any offset; or one near the start of a chunk, segment, element or EXIF block, where lengths and values are."""
    starts = [match.start() for match in _STRUCTURE.finditer(data, 0, 4000)]
    starts += [at for at in (data.find(b"II*\0"),) if at >= 0] * len(starts)
    if draw(st.booleans()) and starts:
        return min(
            len(data), max(0, draw(st.sampled_from(starts)) + draw(st.sampled_from((-4, 0)) | st.integers(-4, 24)))
        )
    return draw(st.integers(min(8, len(data)), len(data)))


def with_checksums(data: bytes) -> bytes:
    """A PNG with correct checksums, as far as its chunks can be followed, so that decoders read the damage."""
    out, at = PNG, len(PNG)
    while at + 12 <= len(data) and (end := at + 8 + int.from_bytes(data[at : at + 4])) + 4 <= len(data):
        out += data[at:end] + zlib.crc32(data[at + 4 : end]).to_bytes(4)
        at = end + 4
    return out + data[at:]
