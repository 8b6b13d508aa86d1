"""Structural limits: files that would take much work are refused before any decoder, ordinary ones are read."""

from __future__ import annotations

import io
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageFile
from PIL.PngImagePlugin import PngInfo
from pydicom.pixels.decoders.base import Decoder, get_decoder
from pydicom.uid import UID

from model.images import ImageError, ImageLimits, load_pixels, read_image
from model.images.dicom.jpeg_2000 import check_jpeg_2000
from service.formats.dicom_source import source_image
from tests.support import hostile_images as hostile
from tests.support.dicom import dataset, encapsulated, refused

MIB = hostile.MIB
S = 32


@pytest.fixture(autouse=True)
def no_decoder(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Fails a test of refusals that reaches Pillow's parser or any decoder."""
    if "refuses" not in request.node.name:
        return

    def reached(*args: object, **kwargs: object) -> object:
        raise AssertionError("a decoder was reached")

    monkeypatch.setattr(Image, "open", reached)
    monkeypatch.setattr(ImageFile.ImageFile, "load", reached)
    monkeypatch.setattr(Decoder, "as_array", reached)


def refused_quickly(data: bytes, most_s: float = 1.0) -> ImageError:
    """The error of a file that must be refused in ``most_s`` seconds of CPU time."""
    began = time.thread_time()
    error = refused(data)
    assert time.thread_time() - began < most_s
    return error


# --- refusals -------------------------------------------------------------------------------------------------------

REFUSED: dict[str, tuple[Callable[[], bytes], str]] = {
    "JPEG of 6,000 scans": (lambda: hostile.progressive_jpeg(512, 6_000), "100 scans"),
    "JPEG of 40 scans of many blocks": (lambda: hostile.progressive_jpeg(8_000, 40), "blocks in all scans"),
    **{
        f"JPEG with {name}": (lambda flood=flood: hostile.flooded_jpeg(flood, 9 * MIB), words)
        for (name, flood), words in zip(
            hostile.JPEG_FLOODS.items(),
            (
                *("1,000 segments", "1,000 segments", "bytes between segments", "bytes between segments"),
                *("bytes between segments", "bytes of metadata", "bytes of tables", "1,000 segments"),
                "bytes of metadata",
            ),
            strict=True,
        )
    },
    "JPEG with an EXIF block of 65,000 entries": (lambda: hostile.exif_jpeg(65_000), "entries"),
    "JPEG with an MPF block of 5,000 entries": (
        lambda: hostile.flooded_jpeg(hostile.segment(0xE2, b"MPF\0" + hostile.exif(5_000)), 70_000),
        "entries",
    ),
    **{
        f"PNG with {name}": (lambda flood=flood: hostile.flooded_png(flood, 9 * MIB), words)
        for (name, flood), words in zip(
            hostile.PNG_FLOODS.items(),
            (
                *("1,000 chunks besides pixels", "65,536 chunks", "1,000 chunks besides pixels"),
                *("compressed texts", "compressed texts", "bytes of metadata"),
            ),
            strict=True,
        )
    },
    "PNG with chunks after the pixels": (
        lambda: hostile.flooded_png(hostile.chunk(b"teSt"), MIB, after=True),
        "1,000 chunks besides pixels",
    ),
    "PNG with an EXIF block of 65,000 entries": (
        lambda: hostile.png(64, before=hostile.chunk(b"eXIf", hostile.exif(65_000))),
        "entries",
    ),
    "DICOM with a JPEG of 6,000 scans": (
        lambda: hostile.jpeg_dicom(hostile.progressive_jpeg(512, 6_000), 512),
        "100 scans",
    ),
    "DICOM with JPEG 2000 of small precincts": (
        lambda: hostile.jpeg_2000_dicom(hostile.jpeg_2000(8_000, precinct=1), 8_000),
        "packets and code-blocks",
    ),
    "DICOM with JPEG 2000 of many layers": (
        lambda: hostile.jpeg_2000_dicom(hostile.jpeg_2000(512, layers=65_535, tile=64), 512),
        "packets and code-blocks",
    ),
    "DICOM with JPEG 2000 of small blocks": (
        lambda: hostile.jpeg_2000_dicom(hostile.jpeg_2000(8_000, block=2), 8_000),
        "packets and code-blocks",
    ),
    "DICOM with JPEG 2000 of small tiles": (
        lambda: hostile.jpeg_2000_dicom(hostile.jpeg_2000(4_000, tile=2), 4_000),
        "packets and code-blocks",
    ),
    "DICOM with a sequence of 100,000 items": (lambda: hostile.many_items(800_000), "1,000 items in a sequence"),
    "DICOM with an offset table of 100,000 frames": (
        lambda: hostile.fragmented_dicom(0, 100_000),
        "bytes in its offset table",
    ),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_refuses_file_that_takes_too_much_work(kind: str) -> None:
    make, words = REFUSED[kind]
    error = refused_quickly(make())
    assert (error.code, words in str(error)) == ("too_complex", True), error


def test_refuses_many_fragments() -> None:
    assert refused_quickly(hostile.fragmented_dicom(100_000)).code == "truncated"


@pytest.mark.parametrize("make", [hostile.long_code, hostile.long_name])
def test_refuses_dicom_texts_of_many_values(make: Callable[[int], bytes]) -> None:
    data = make(2 * MIB)
    began = time.thread_time()
    with pytest.raises(ImageError, match="over"):
        read_image(data, S) if make is hostile.long_code else source_image(data)
    assert time.thread_time() - began < 1


def test_long_palette_is_not_expanded() -> None:
    error = refused_quickly(hostile.long_palette(1_000))
    assert (error.code, "262,144 entries" in str(error)) == ("too_complex", True), error


def test_refuses_declared_pixels_before_decoding() -> None:
    assert refused_quickly(hostile.progressive_jpeg(8_192, 2)).code == "too_large"


@pytest.mark.parametrize("name", [name for name in hostile.JPEG_FLOODS if "full" not in name])
def test_refuses_flood_of_32_mib_within_a_second(name: str) -> None:
    assert refused_quickly(hostile.flooded_jpeg(hostile.JPEG_FLOODS[name], 32 * MIB)).code == "too_complex"


# --- ordinary files -------------------------------------------------------------------------------------------------


def saved(image: Image.Image, kind: str = "PNG", **options: Any) -> bytes:
    """The file of an image by Pillow."""
    out = io.BytesIO()
    image.save(out, kind, **options)
    return out.getvalue()


NOISE = Image.fromarray(np.random.default_rng(0).integers(0, 256, (900, 1_000), np.uint8))


def test_reads_progressive_jpeg_of_ten_and_of_a_hundred_scans() -> None:
    progressive = saved(NOISE.convert("RGB"), "JPEG", progressive=True)
    assert progressive.count(b"\xff\xda") == 10
    assert load_pixels(progressive, S).std() > 1
    assert load_pixels(hostile.progressive_jpeg(512, 100), S).shape == (S, S)


def test_reads_jpeg_with_profile_comments_and_fill() -> None:
    plain = saved(NOISE, "JPEG")
    data = saved(NOISE, "JPEG", icc_profile=bytes(2 * MIB), comment=bytes(60_000), exif=exif_of_camera())
    filled = data[:2] + b"\xff" * 100 + data[2:]
    for other in (data, filled):
        np.testing.assert_array_equal(load_pixels(other, S), load_pixels(plain, S))


def exif_of_camera() -> bytes:
    exif = Image.Exif()
    for tag in range(0x9000, 0x9100):
        exif[tag] = "x" * 100
    return exif.tobytes()


def test_reads_png_of_many_pieces_and_texts() -> None:
    plain = saved(NOISE)
    pieces = io.BytesIO()
    texts = PngInfo()
    for number in range(60):
        texts.add_text(f"key{number}", "value " * 1_000, zip=True)
    NOISE.save(pieces, "PNG", pnginfo=texts)
    cut = in_pieces(pieces.getvalue(), 64)
    assert cut.count(b"IDAT") > 10_000
    np.testing.assert_array_equal(load_pixels(cut, S), load_pixels(plain, S))


def in_pieces(data: bytes, size: int) -> bytes:
    """A PNG by Pillow with its pixels cut into chunks of ``size`` bytes."""
    start, end = data.index(b"IDAT") - 4, data.rindex(b"IEND") - 4
    pixels, at = b"", start
    while at < end:
        length = int.from_bytes(data[at : at + 4])
        pixels += data[at + 8 : at + 8 + length]
        at += 12 + length
    pieces = [hostile.chunk(b"IDAT", pixels[at : at + size]) for at in range(0, len(pixels), size)]
    return data[:start] + b"".join(pieces) + data[end:]


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"tile_size": (128, 128), "progression": "RPCL"},
        {"num_resolutions": 8, "codeblock_size": (32, 32), "precinct_size": (128, 128)},
        {"quality_layers": [80, 40, 20, 10, 5, 1], "irreversible": True},
    ],
)
def test_reads_jpeg_2000_of_ordinary_structure(options: dict[str, Any]) -> None:
    frame = saved(NOISE, "JPEG2000", no_jp2=True, **options)
    header = check_jpeg_2000(frame, ImageLimits(jpeg_2000_blocks=10_000))
    assert header is not None
    assert (header.columns, header.rows, header.samples, header.precision) == (1_000, 900, 1, 8)
    assert load_pixels(encapsulated(dataset(np.asarray(NOISE)), hostile.JPEG_2000, frame), S).std() > 1


@pytest.mark.parametrize("kind", ["uint8", "uint16", "colour"])
def test_run_lengths_decode_as_by_pydicom(kind: str) -> None:
    values = np.asarray(NOISE).copy()
    values[::2] = 7
    values = np.dstack([values] * 3) if kind == "colour" else values.astype(kind) * (257 if kind == "uint16" else 1)
    made = dataset(values, photometric="RGB" if kind == "colour" else "MONOCHROME2")
    made.compress(UID(hostile.RLE), encoding_plugin="pydicom", generate_instance_uid=False)
    decoder = get_decoder(UID(hostile.RLE))
    ours, expected = (decoder.as_array(made, decoding_plugin=name)[0] for name in ("imagecodecs", "pydicom"))
    np.testing.assert_array_equal(ours, expected)


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA"])
def test_bands_read_as_the_whole_image(mode: str) -> None:
    image = NOISE.convert("RGB").convert(mode)
    if "A" in mode:
        image.putalpha(NOISE.transpose(Image.Transpose.ROTATE_180))
    options: dict[str, Any] = {"transparency": 7} if mode in ("L", "P") else {}
    black = Image.new("RGBA", image.size, (0, 0, 0, 255))
    whole = Image.open(io.BytesIO(saved(image, **options)))
    expected = Image.alpha_composite(black, whole.convert("RGBA")).convert("L")
    np.testing.assert_array_equal(load_pixels(saved(image, **options), 900), load_pixels(saved(expected), 900))
