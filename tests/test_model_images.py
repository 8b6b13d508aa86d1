"""The image reader: values of valid images, a specific error code for each kind of invalid file."""

from __future__ import annotations

import base64
import io
import struct
import zlib
from collections.abc import Callable
from typing import Any

import imagecodecs
import numpy as np
import pytest
from PIL import Image

from model.images import ImageError, ImageLimits, load_pixels, thumbnail
from tests.support.service import encode, png_claiming

S = 64


def ramp(width: int = 96, height: int = 80) -> np.ndarray:
    """Dark at the left, bright at the right, with a bright upper left corner that shows orientation."""
    image = np.tile(np.linspace(0, 200, width), (height, 1))
    image[:20, :20] = 255
    return image.astype(np.uint8)


def jpeg(image: Image.Image, **options: Any) -> bytes:
    return encode(image, "JPEG", quality=95, **options)


GREY = Image.fromarray(ramp())
EXPECTED = load_pixels(encode(GREY), S)


def close(pixels: np.ndarray, tolerance: float = 3.0) -> bool:
    return bool(np.abs(pixels.astype(float) - EXPECTED.astype(float)).mean() < tolerance)


def test_resizes_grey_png_to_a_square_without_crop() -> None:
    assert EXPECTED.shape == (S, S)
    assert EXPECTED.dtype == np.uint8
    assert EXPECTED[2, 2] > 240  # the corner mark is still there
    assert EXPECTED[S // 2, 2] < 20
    assert EXPECTED[S // 2, -3] > 180


BROKEN_EXIF = bytes.fromhex(  # an orientation that is not an integer: Pillow raises struct.error
    "4578696600004949"
    "2a00080000000500"
    "05a00a0001000000"
    "0600000005a00900"
    "0000000001000000"
    "1201060001000000"
    "0600000012010900"
    "ffffffff08000000"
    "69870b00e8030000"
    "0800000000000000"
)


def test_rejects_broken_exif_block() -> None:
    with pytest.raises(ImageError) as caught:
        load_pixels(encode(Image.new("L", (40, 40), 90), "JPEG", exif=BROKEN_EXIF), 32)
    assert caught.value.code == "truncated"


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "LA", "P", "CMYK"])
def test_colour_modes_equal_the_grey_image(mode: str) -> None:
    image = {"P": GREY.quantize(256), "CMYK": GREY.convert("RGB").convert("CMYK")}.get(mode) or GREY.convert(mode)
    data = jpeg(image) if mode == "CMYK" else encode(image)
    assert close(load_pixels(data, S))


def test_transparent_pixels_are_black() -> None:
    rgba = np.dstack([ramp()] * 3 + [np.full((80, 96), 255, np.uint8)])
    rgba[40:, :, 3] = 0
    pixels = load_pixels(encode(Image.fromarray(rgba)), S)
    assert pixels[S * 3 // 4 :].max() < 5
    assert pixels[S // 4].max() > 150


@pytest.mark.parametrize("peak", [4095, 65535, 1000])
def test_stretches_16_bit_grey_from_minimum_to_maximum(peak: int) -> None:
    wide = (ramp().astype(np.float64) / 255 * peak).round().astype(np.uint16)
    assert close(load_pixels(encode(Image.fromarray(wide)), S), 1.5)


def wide_png(channels: int, bits: int, **options: Any) -> bytes:
    """A PNG of 16 bits per sample that uses `bits` of them, with opaque alpha in 2 and 4 channels."""
    grey = (ramp().astype(np.float64) / 255 * (2**bits - 1)).round().astype(np.uint16)
    alpha = [np.full_like(grey, 65535)] * (channels in (2, 4))
    samples = np.dstack([grey] * (channels - len(alpha)) + alpha)
    data: bytes = imagecodecs.png_encode(samples, **options)
    return data


@pytest.mark.parametrize("channels", [1, 2, 3, 4])
@pytest.mark.parametrize("bits", [10, 12, 14, 16])
def test_reads_16_bit_colour_and_alpha_as_16_bit_grey(channels: int, bits: int) -> None:
    assert close(load_pixels(wide_png(channels, bits), S), 1.5)


def test_transparent_pixels_of_16_bits_are_black() -> None:
    grey = np.where(np.arange(64) < 32, 3000, 1000)[None].repeat(64, 0).astype(np.uint16)
    alpha = np.where(np.arange(64) < 48, 65535, 0)[None].repeat(64, 0).astype(np.uint16)
    pixels = load_pixels(imagecodecs.png_encode(np.dstack([grey, alpha])), S)
    assert [int(pixels[9, column]) for column in (9, 40, 55)] == [255, 85, 0]
    keyed = wide_png(3, 12)
    at = keyed.index(b"IDAT") - 4
    key = b"tRNS" + np.array([4095] * 3, ">u2").tobytes()
    pixels = load_pixels(keyed[:at] + struct.pack(">L", 6) + key + struct.pack(">L", zlib.crc32(key)) + keyed[at:], S)
    assert pixels[2, 2] == 0 < EXPECTED[2, 2]


def test_turns_16_bit_colour_by_an_exif_block_after_the_pixels() -> None:
    exif = Image.Exif()
    exif[0x0112] = 3
    chunk = b"eXIf" + exif.tobytes()[6:]
    data = wide_png(3, 12)
    turned = data[:-12] + struct.pack(">L", len(chunk) - 4) + chunk + struct.pack(">L", zlib.crc32(chunk)) + data[-12:]
    assert close(load_pixels(turned, S)[::-1, ::-1], 1.5)


def test_rejects_truncated_16_bit_colour() -> None:
    with pytest.raises(ImageError) as caught:
        load_pixels(wide_png(3, 12)[:-200], S)
    assert caught.value.code == "truncated"


def test_constant_16_bit_grey_is_black() -> None:
    assert load_pixels(encode(Image.fromarray(np.full((64, 64), 700, np.uint16))), S).max() == 0


@pytest.mark.parametrize("orientation", range(1, 9))
def test_applies_exif_orientation(orientation: int) -> None:
    undo = {
        1: [], 2: [Image.Transpose.FLIP_LEFT_RIGHT], 3: [Image.Transpose.ROTATE_180],
        4: [Image.Transpose.FLIP_TOP_BOTTOM], 5: [Image.Transpose.TRANSPOSE], 6: [Image.Transpose.ROTATE_90],
        7: [Image.Transpose.TRANSVERSE], 8: [Image.Transpose.ROTATE_270],
    }[orientation]  # fmt: skip
    stored = GREY
    for step in undo:
        stored = stored.transpose(step)
    exif = Image.Exif()
    exif[0x0112] = orientation
    assert close(load_pixels(jpeg(stored, exif=exif), S))


def test_reads_the_first_picture_of_an_mpo() -> None:
    data = encode(GREY, "MPO", save_all=True, append_images=[Image.new("L", GREY.size)], quality=95)
    assert close(load_pixels(data, S))


def test_reads_one_bit_png() -> None:
    pixels = load_pixels(encode(GREY.point(lambda v: 255 * (v > 100)).convert("1")), S)
    assert pixels[S // 2, 2] == 0
    assert pixels[S // 2, -3] == 255


def _animated(kind: str) -> bytes:
    frames = [Image.fromarray(np.roll(ramp(), shift, 1)) for shift in (0, 5, 9)]
    return encode(frames[0], kind, save_all=True, append_images=frames[1:])


BAD = {
    "empty": b"",
    "not_an_image": b"the patient was seen on Monday",
    "unsupported_format": _animated("GIF"),
    "truncated": encode(GREY)[: len(encode(GREY)) // 2],
    "animated": _animated("PNG"),
    "too_small": encode(Image.new("L", (1, 1))),
    "too_large": png_claiming(30_000, 30_000),
}


@pytest.mark.parametrize("read", [load_pixels, thumbnail])
@pytest.mark.parametrize("code", list(BAD))
def test_rejects_invalid_files_with_a_specific_code(code: str, read: Callable[[bytes, int], object]) -> None:
    with pytest.raises(ImageError) as caught:
        read(BAD[code], S)
    assert caught.value.code == code
    assert str(caught.value).endswith(".")


WIDE = ramp().astype(np.uint16) * 16
OTHER_FORMATS = {
    "JPEG files of 12 bits": imagecodecs.jpeg8_encode(WIDE, 95, bitspersample=12),
    "JPEG files of 16 bits": imagecodecs.jpeg8_encode(WIDE, lossless=True, predictor=1, bitspersample=16),
    "JPEG-LS files": imagecodecs.jpegls_encode(WIDE),
    "JPEG 2000 files": imagecodecs.jpeg2k_encode(WIDE, level=0, codecformat="j2k"),
    "JPEG 2000 files ": imagecodecs.jpeg2k_encode(WIDE, level=0, codecformat="jp2"),
    "AVIF, HEIC or video files": bytes(3) + b"\x20ftypavif" + bytes(60),
    "ZIP files": b"PK\3\4" + bytes(60),
    "Base64 files": base64.encodebytes(encode(GREY)),
    "Base64 files ": base64.b64encode(jpeg(GREY)),
    "Data URL files": b"data:image/png;base64," + base64.b64encode(encode(GREY)),
}


@pytest.mark.parametrize("words", OTHER_FORMATS)
def test_names_other_formats(words: str) -> None:
    with pytest.raises(ImageError, match=words.strip()) as caught:
        load_pixels(OTHER_FORMATS[words], S)
    assert caught.value.code == "unsupported_format"


@pytest.mark.parametrize("keep", [10, 60, 200, -30])
def test_rejects_truncated_jpeg(keep: int) -> None:
    with pytest.raises(ImageError) as caught:
        load_pixels(jpeg(GREY)[:keep], S)
    assert caught.value.code in {"truncated"}


def test_error_names_size_and_limit() -> None:
    with pytest.raises(ImageError, match=r"96 x 80 pixels; at most 1,000"):
        load_pixels(encode(GREY), S, limits=ImageLimits(max_pixels=1000))


def test_thumbnail_keeps_proportions_and_never_enlarges() -> None:
    for size, longest, expected in (((96, 80), 48, (48, 40)), ((80, 96), 48, (40, 48)), ((96, 80), 200, (96, 80)),
                                    ((2000, 40), 100, (100, 2)), ((2000, 33), 10, (10, 1))):  # fmt: skip
        small = Image.open(io.BytesIO(thumbnail(encode(Image.fromarray(ramp(*size))), longest)))
        assert (small.format, small.mode, small.size) == ("JPEG", "L", expected)


def test_thumbnail_is_upright_and_holds_no_metadata() -> None:
    exif = Image.Exif()
    exif[0x0112], exif[0x010E] = 3, "Doe^Jane"  # upside down; ImageDescription
    turned = jpeg(GREY.rotate(180), exif=exif, comment=b"Doe^Jane", icc_profile=b"Doe^Jane")
    data = thumbnail(turned, 48)
    assert b"Doe" not in data
    small = Image.open(io.BytesIO(data))
    assert set(small.info) <= {"jfif", "jfif_version", "jfif_unit", "jfif_density"}
    expected = np.asarray(GREY.resize((48, 40)), float)
    assert np.abs(np.asarray(small, float) - expected).mean() < 5
