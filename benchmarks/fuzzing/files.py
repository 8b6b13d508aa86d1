"""Image files of every kind the service may be sent, and mutations of them that decoders follow for a while.

A flipped bit in a PNG is caught by its checksum, and in most JPEG headers by the first look. So chunks and segments are
taken apart, changed, and put together with right checksums and lengths.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator, Mapping

import numpy as np
import numpy.typing as npt
from PIL import Image

from benchmarks.fuzzing import dicom, jpeg, png
from benchmarks.fuzzing.inputs import Input
from benchmarks.raw_http import study_request

Mutation = Callable[[bytes, np.random.Generator], bytes]


def scene(rng: np.random.Generator, top: int = 255) -> npt.NDArray[np.float64]:
    """(H, W) in [0, top]: a gradient with a bright disc and some noise, 32 to 160 pixels a side."""
    height, width = (int(side) for side in rng.integers(32, 160, 2))
    y, x = np.mgrid[0:height, 0:width]
    disc = (x - width * rng.random()) ** 2 + (y - height * rng.random()) ** 2 < (0.2 * width) ** 2
    grey = np.where(disc, 0.9, 0.1 + 0.5 * y / height) + rng.normal(0, 0.02, (height, width))
    return np.clip(grey, 0, 1) * top


def _picture(mode: str, rng: np.random.Generator) -> Image.Image:
    grey = Image.fromarray(scene(rng).astype(np.uint8))
    return grey if mode == "L" else grey.convert(mode)


def _saved(mode: str, kind: str, **options: object) -> Callable[[np.random.Generator], bytes]:
    def make(rng: np.random.Generator) -> bytes:
        file = io.BytesIO()
        _picture(mode, rng).save(file, kind, **options)
        return file.getvalue()

    return make


def _png_16(rng: np.random.Generator) -> bytes:
    file = io.BytesIO()
    Image.fromarray(scene(rng, 4095).astype(np.uint16)).save(file, "PNG")
    return file.getvalue()


def _palette(rng: np.random.Generator) -> bytes:
    file = io.BytesIO()
    _picture("P", rng).save(file, "PNG", transparency=bytes(rng.integers(0, 256, 200, dtype=np.uint8)))
    return file.getvalue()


def _frames(kind: str) -> Callable[[np.random.Generator], bytes]:
    def make(rng: np.random.Generator) -> bytes:
        file = io.BytesIO()
        first = _picture("L", rng)
        first.save(file, kind, save_all=True, append_images=[first.transpose(Image.Transpose.ROTATE_180)])
        return file.getvalue()

    return make


def _exif(rng: np.random.Generator) -> bytes:
    exif = Image.Exif()
    exif[0x0112] = int(rng.integers(0, 300))  # Orientation; 1..8 are right
    exif[0x010E] = "a" * int(rng.integers(0, 2000))
    file = io.BytesIO()
    kind = ("JPEG", "PNG")[int(rng.integers(2))]
    _picture("L", rng).save(file, kind, exif=exif)
    return file.getvalue()


MAKERS: dict[str, Callable[[np.random.Generator], bytes]] = {
    "png 1-bit": _saved("1", "PNG"),
    "png 8-bit": _saved("L", "PNG"),
    "png 16-bit": _png_16,
    "png palette": _palette,
    "png rgb": _saved("RGB", "PNG"),
    "png rgba": _saved("RGBA", "PNG"),
    "png grey with alpha": _saved("LA", "PNG"),
    "png animated": _frames("PNG"),
    "jpeg": _saved("L", "JPEG", quality=80),
    "jpeg rgb progressive": _saved("RGB", "JPEG", progressive=True, optimize=True),
    "jpeg cmyk": _saved("CMYK", "JPEG"),
    "jpeg restarts": _saved("RGB", "JPEG", restart_marker_rows=1, subsampling=2),
    "exif": _exif,
    "mpo": _frames("MPO"),
    "gif": _saved("P", "GIF"),
    "gif animated": _frames("GIF"),
    "tiff": _saved("L", "TIFF"),
    "webp": _saved("RGB", "WEBP"),
    "bmp": _saved("L", "BMP"),
    "dicom": dicom.make,
}


def original(kind: str, number: int) -> bytes:
    """An unharmed file of one of ``MAKERS``; same number, same file."""
    return MAKERS[kind](np.random.default_rng([number, 11]))


def mutated_file(number: int) -> tuple[str, bytes]:
    """What was done, and the file; same number, same file. One in twenty is left whole."""
    rng = np.random.default_rng([number, 12])
    kind = sorted(MAKERS)[int(rng.integers(len(MAKERS)))]
    data = MAKERS[kind](rng)
    if rng.random() < 0.05:
        return f"{kind}, whole", data
    steps = []
    for _ in range(int(rng.integers(1, 4))):
        mutations = {**_ANY, **_mutations(data)}
        name = sorted(mutations)[int(rng.integers(len(mutations)))]
        steps.append(name)
        data = mutations[name](data, rng)
    return f"{kind}: {', '.join(steps)}", data


def _mutations(data: bytes) -> Mapping[str, Mutation]:
    """Those that know the file's format, chosen by what it is by now."""
    if data.startswith(png.SIGNATURE):
        return png.MUTATIONS
    if data.startswith(b"\xff\xd8"):
        return jpeg.MUTATIONS
    return dicom.MUTATIONS if data[128:132] == b"DICM" else {}


def inputs(seed: int) -> Iterator[Input]:
    """Endless requests with a mutated file in one view or both; same seed, same requests."""
    number = seed * 1_000_003
    while True:
        done, data = mutated_file(number)
        views = (("frontal",), ("lateral",), ("frontal", "lateral"))[number % 3]
        request = study_request({**dict.fromkeys(views, data), "beam_size": b"1"})
        yield Input("files", f"mutated_file({number}) in {' and '.join(views)}: {done}", request)
        number += 1


# --- mutations of any bytes -------------------------------------------------------------------------------------------


def _place(data: bytes, rng: np.random.Generator) -> int:
    return int(rng.integers(len(data))) if data else 0


def _flip(data: bytes, rng: np.random.Generator) -> bytes:
    out = bytearray(data)
    for _ in range(int(rng.integers(1, 6))):
        if out:
            out[_place(data, rng)] ^= 1 << int(rng.integers(8))
    return bytes(out)


def _cut(data: bytes, rng: np.random.Generator) -> bytes:
    return data[: _place(data, rng)]


def _insert(data: bytes, rng: np.random.Generator) -> bytes:
    place = _place(data, rng)
    return data[:place] + rng.bytes(int(rng.integers(1, 100))) + data[place:]


def _repeat(data: bytes, rng: np.random.Generator) -> bytes:
    start, stop = sorted((_place(data, rng), _place(data, rng)))
    return data[:stop] + data[start : start + 10_000] + data[stop:]


def _extremes(data: bytes, rng: np.random.Generator) -> bytes:
    """Write a length or count that no file has."""
    value = (b"\xff\xff\xff\xff", b"\0\0\0\0", b"\x7f\xff\xff\xff", b"\x80\0\0\0", b"\xff\xff", b"\0\1")
    place, chosen = _place(data, rng), value[int(rng.integers(len(value)))]
    return data[:place] + chosen + data[place + len(chosen) :]


_ANY: dict[str, Mutation] = {
    "bits flipped": _flip, "cut short": _cut, "bytes inserted": _insert, "a part repeated": _repeat,
    "an extreme number": _extremes,
}  # fmt: skip
