"""DICOM pixels and values: every transfer syntax reads alike, and greys are what the standard's formulas say."""

from __future__ import annotations

import builtins
import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydicom.dataset import Dataset
from pydicom.uid import UID

from model.images import DEFAULT_LIMITS, ImageError, ImageLimits, load_pixels, read_image
from model.images.dicom import codecs as dicom_codecs
from model.images.dicom.read import read_dicom
from model.types import View
from tests.support.dicom import (
    CR,
    HTJ2K,
    HTJ2K_LOSSY,
    HTJ2K_RPCL,
    JPEG_BASELINE,
    JPEG_EXTENDED,
    JPEG_LOSSLESS,
    JPEG_PROCESS_14,
    SC,
    compressed,
    dataset,
    dicom,
    encapsulated,
    encode,
    film,
    jpeg,
    jpeg_lossless,
    lut,
    png,
)

S = 64
ALL_VALUES = np.arange(4096, dtype=np.uint16).reshape(64, 64)  # every 12-bit value once


def greys(data: bytes) -> np.ndarray:
    """(H, W) before the squash."""
    image, _ = read_dicom(data, DEFAULT_LIMITS)
    return np.asarray(image, dtype=np.float64)


def codes(data: bytes) -> list[str]:
    return [warning.code for warning in read_image(data, S).warnings(View.FRONTAL)]


def refused(data: bytes, limits: ImageLimits = DEFAULT_LIMITS) -> ImageError:
    with pytest.raises(ImageError) as caught:
        read_image(data, S, limits=limits)
    assert str(caught.value).endswith(".")
    return caught.value


# --- VOI: PS3.3 C.11.2.1.2 and C.11.2.1.3, written out as the standard has them ------------------------------------


def standard(function: str, x: float, c: float, w: float) -> float:
    low, high = 0.0, 255.0
    if function == "LINEAR":
        if x <= c - 0.5 - (w - 1) / 2:
            return low
        if x > c - 0.5 + (w - 1) / 2:
            return high
        return ((x - (c - 0.5)) / (w - 1) + 0.5) * (high - low) + low
    if function == "LINEAR_EXACT":
        if x <= c - w / 2:
            return low
        if x > c + w / 2:
            return high
        return ((x - c) / w + 0.5) * (high - low) + low
    return (high - low) / (1 + math.exp(min(-4 * (x - c) / w, 700))) + low


@pytest.mark.parametrize("function", ["LINEAR", "LINEAR_EXACT", "SIGMOID"])
@pytest.mark.parametrize(
    ("center", "width"), [(2048, 4096), (1700, 800), (100.5, 1), (3000, 2.5), (-50, 900), (4090, 60)]
)
@pytest.mark.parametrize(("slope", "intercept"), [(1, 0), (0.5, -100), (-1, 4095)])
def test_windows_follow_the_standard(
    function: str, center: float, width: float, slope: float, intercept: float
) -> None:
    tags = {"VOILUTFunction": function, "RescaleSlope": slope, "RescaleIntercept": intercept}
    read = greys(dicom(ALL_VALUES, stored=12, WindowCenter=center, WindowWidth=width, **tags))
    expected = [standard(function, float(x) * slope + intercept, center, width) for x in ALL_VALUES.ravel()]
    if len(set(expected)) > 1:
        np.testing.assert_allclose(read.ravel(), expected, atol=1e-3)


def test_of_several_windows_the_first_is_taken() -> None:
    several = greys(dicom(film(), stored=12, WindowCenter=[1700, 100], WindowWidth=[3200, 50]))
    np.testing.assert_array_equal(several, greys(dicom(film(), stored=12, WindowCenter=1700, WindowWidth=3200)))
    assert np.abs(several - greys(dicom(film(), stored=12))).max() > 5


@pytest.mark.parametrize(
    ("center", "width", "function"),
    [(2000, 0.5, "LINEAR"), (2000, 0, "SIGMOID"), (2000, -3, "LINEAR_EXACT"), (9e4, 2, "")],
)
def test_a_window_that_shows_nothing_is_ignored_and_said(center: float, width: float, function: str) -> None:
    data = dicom(film(), stored=12, WindowCenter=center, WindowWidth=width, VOILUTFunction=function)
    np.testing.assert_array_equal(greys(data), greys(dicom(film(), stored=12)))
    assert codes(data) == ["window_ignored"]


def test_half_a_window_is_none() -> None:
    data = dicom(film(), stored=12, WindowWidth=200)
    np.testing.assert_array_equal(greys(data), greys(dicom(film(), stored=12)))
    assert codes(data) == []


@pytest.mark.parametrize(("first", "bits"), [(0, 12), (500, 10), (-20, 8), (1000, 16)])
def test_the_voi_lut_goes_before_the_window(first: int, bits: int) -> None:
    entries = np.sqrt(np.linspace(0, 1, 3000)) * (2**bits - 1)
    made = dataset(ALL_VALUES, stored=12, WindowCenter=10, WindowWidth=5, VOILUTSequence=[lut(entries, first, bits)])
    expected = [
        entries.astype(int)[min(max(int(x) - first, 0), 2999)] * 255 / (2**bits - 1) for x in ALL_VALUES.ravel()
    ]
    np.testing.assert_allclose(greys(encode(made)).ravel(), expected, atol=1e-3)


def test_lut_entries_of_one_byte_each() -> None:
    item = lut(np.zeros(1), 0, 8)
    item.LUTDescriptor = [4096, 0, 8]
    item.LUTData = (np.arange(4096) // 16).astype(np.uint8).tobytes()
    read = greys(dicom(ALL_VALUES, stored=12, VOILUTSequence=[item]))
    np.testing.assert_allclose(read.ravel(), np.arange(4096) // 16, atol=1e-3)


def test_the_modality_lut_goes_before_the_window() -> None:
    entries = np.arange(4096)[::-1] * 2
    made = dataset(
        ALL_VALUES, stored=12, WindowCenter=4000, WindowWidth=3000, ModalityLUTSequence=[lut(entries, 0, 13)]
    )
    expected = [standard("LINEAR", float(entries[x]), 4000, 3000) for x in ALL_VALUES.ravel()]
    np.testing.assert_allclose(greys(encode(made)).ravel(), expected, atol=1e-3)


def test_a_lut_shorter_than_it_says_is_damage() -> None:
    item = lut(np.arange(100), 0, 12)
    item.LUTDescriptor = [4096, 0, 12]
    assert refused(dicom(film(), stored=12, VOILUTSequence=[item])).code == "truncated"


def test_a_slope_of_zero_is_refused() -> None:
    error = refused(dicom(film(), stored=12, RescaleSlope=0, RescaleIntercept=5))
    assert (error.code, "RescaleSlope" in str(error)) == ("unsupported_pixels", True)


# --- polarity -------------------------------------------------------------------------------------------------------


def test_monochrome1_is_inverted_last() -> None:
    window = {"WindowCenter": 1000, "WindowWidth": 1500, "RescaleSlope": 0.5, "RescaleIntercept": 3}
    plain = greys(dicom(ALL_VALUES, stored=12, **window))
    inverted = greys(dicom(ALL_VALUES, stored=12, photometric="MONOCHROME1", **window))
    np.testing.assert_allclose(inverted, 255 - plain, atol=1e-3)


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 4000), st.integers(1, 4095), st.integers(0, 2**32 - 1))
def test_a_negative_and_its_inverse_give_the_same_pixels(low: int, span: int, seed: int) -> None:
    high = min(low + span, 4095)
    values = np.random.default_rng(seed).integers(low, high + 1, (40, 36)).astype(np.uint16)
    negative = load_pixels(dicom(values, stored=12, photometric="MONOCHROME1"), S)
    np.testing.assert_array_equal(negative, load_pixels(dicom((4095 - values).astype(np.uint16), stored=12), S))


@pytest.mark.parametrize(
    ("photometric", "shape", "inverted", "doubt"),
    [
        ("MONOCHROME2", "IDENTITY", False, []),
        ("MONOCHROME1", "INVERSE", True, []),  # as DX demands: the same thing said twice, not done twice
        ("MONOCHROME2", "INVERSE", True, ["contradictory_polarity"]),
        ("MONOCHROME1", "IDENTITY", True, ["contradictory_polarity"]),
        ("MONOCHROME1", "", True, []),
    ],
)
def test_presentation_lut_shape(photometric: str, shape: str, inverted: bool, doubt: list[str]) -> None:
    data = dicom(ALL_VALUES, stored=12, photometric=photometric, PresentationLUTShape=shape)
    assert bool(greys(data)[0, 0] > 250) is inverted
    assert codes(data) == doubt


# --- stored values --------------------------------------------------------------------------------------------------


def test_without_a_window_it_reads_as_the_png_of_the_same_values() -> None:
    np.testing.assert_array_equal(load_pixels(dicom(film(), stored=12), S), load_pixels(png(film()), S))
    eight = film(bits=8)
    close = load_pixels(dicom(eight, sop_class=SC), S).astype(int) - load_pixels(png(eight), S)
    assert np.abs(close).max() <= 1  # 8 bits are not spread; the PNG is reduced in two steps


def test_signed_values() -> None:
    signed = ALL_VALUES.astype(np.int16) - 2048
    np.testing.assert_allclose(greys(dicom(signed, stored=12)), greys(dicom(ALL_VALUES, stored=12)), atol=1e-3)
    window = {"WindowCenter": 0, "WindowWidth": 400}
    expected = [standard("LINEAR", float(x), 0, 400) for x in signed.ravel()]
    np.testing.assert_allclose(greys(dicom(signed, stored=12, **window)).ravel(), expected, atol=1e-3)


@pytest.mark.parametrize(("stored", "high"), [(12, 11), (12, 15), (10, 12), (9, 8), (7, 14)])
def test_bits_beside_the_value_are_no_part_of_it(stored: int, high: int) -> None:
    values = (ALL_VALUES >> (12 - min(stored, 12))).astype(np.uint16)
    shift = high + 1 - stored
    overlay = np.random.default_rng(0).integers(0, 2**16, values.shape)
    mask = (2**stored - 1) << shift
    packed = ((values.astype(int) << shift) | (overlay & ~mask & 0xFFFF)).astype(np.uint16)
    np.testing.assert_allclose(
        greys(dicom(packed, stored=stored, HighBit=high)), greys(dicom(values, stored=stored)), atol=1e-3
    )


def test_one_bit() -> None:
    bits = np.random.default_rng(0).integers(0, 2, (40, 48)).astype(np.uint8)
    made = dataset(bits, sop_class=SC)
    made.BitsAllocated = made.BitsStored = 1
    made.HighBit = 0
    made.PixelData = np.packbits(bits.ravel(), bitorder="little").tobytes()
    np.testing.assert_array_equal(greys(encode(made)), bits * 255.0)


@pytest.mark.parametrize(("value", "limit"), [(0, None), (4095, None), (3900, 4095), (4095, 3900)])
def test_padding_does_not_drive_the_greys(value: int, limit: int | None) -> None:
    values = film() // 4 + 1000
    padded = values.copy()
    padded[:, :7] = value
    tags: dict[str, Any] = {"PixelPaddingValue": value} | ({} if limit is None else {"PixelPaddingRangeLimit": limit})
    read = greys(dicom(padded, stored=12, **tags))
    low, high = values[:, 7:].min(), values[:, 7:].max()
    np.testing.assert_allclose(read[:, 7:], (values[:, 7:] - low) * 255.0 / (high - low), atol=1e-3)
    assert set(np.unique(read[:, :7])) <= {0.0, 255.0}


def test_negative_padding_of_signed_values_in_implicit_vr() -> None:
    values = film().astype(np.int16) - 1000
    values[:, :9] = -2000
    made = dataset(values, syntax="1.2.840.10008.1.2", PixelPaddingValue=-2000)
    assert np.ptp(greys(encode(made))[:, 9:]) == pytest.approx(255, abs=1e-3)


# --- transfer syntaxes ----------------------------------------------------------------------------------------------

NATIVE = ["1.2.840.10008.1.2", "1.2.840.10008.1.2.1", "1.2.840.10008.1.2.1.99", "1.2.840.10008.1.2.2"]
JPEG_LS = "1.2.840.10008.1.2.4.80"
CODECS = dicom_codecs.is_available(JPEG_LS)
NO_CODECS = "needs pip install imagecodecs"
needs_codecs = pytest.mark.skipif(not CODECS, reason=NO_CODECS)
JPEG_2000 = "1.2.840.10008.1.2.4.90"
LOSSLESS = ["1.2.840.10008.1.2.5", JPEG_2000, pytest.param(JPEG_LS, marks=needs_codecs)]


@pytest.mark.parametrize("stored", [8, 10, 12, 16])
@pytest.mark.parametrize("syntax", NATIVE)
def test_uncompressed_syntaxes_read_alike(syntax: str, stored: int) -> None:
    window = {"WindowCenter": 2 ** (stored - 1), "WindowWidth": 2 ** (stored - 1)}
    values = film(97, 81, stored)  # odd: bytes are padded
    np.testing.assert_array_equal(
        greys(dicom(values, stored=stored, syntax=syntax, **window)), greys(dicom(values, stored=stored, **window))
    )


@pytest.mark.parametrize("stored", [8, 12, 16])
@pytest.mark.parametrize("syntax", LOSSLESS)
def test_lossless_syntaxes_read_alike(syntax: str, stored: int) -> None:
    values = film(97, 81, stored)
    read = greys(compressed(dataset(values, stored=stored), syntax))
    np.testing.assert_array_equal(read, greys(dicom(values, stored=stored)))


@pytest.mark.parametrize("syntax", LOSSLESS)
def test_signed_compressed_values(syntax: str) -> None:
    values = film().astype(np.int16) - 2000
    read = greys(compressed(dataset(values, stored=13), syntax))
    np.testing.assert_allclose(read, greys(dicom(values, stored=13)), atol=1e-3)


def test_jpeg_lossless_where_its_codec_is_installed() -> None:
    values = film()
    data = encapsulated(dataset(values), JPEG_LOSSLESS, jpeg_lossless(values))
    if not CODECS:
        assert "dicom-codecs" in str(refused(data))
        pytest.skip(NO_CODECS)
    np.testing.assert_array_equal(greys(data), greys(dicom(values)))


@needs_codecs
@pytest.mark.parametrize("stored", [8, 12, 16])
@pytest.mark.parametrize("syntax", [JPEG_PROCESS_14, JPEG_LOSSLESS, HTJ2K, HTJ2K_RPCL, HTJ2K_LOSSY])
def test_syntaxes_of_the_extra_that_pydicom_cannot_write(syntax: str, stored: int) -> None:
    """HTJ2K in the encoder's one order of packets, which .202 would have RPCL; .203 may be reversible, too."""
    imagecodecs = pytest.importorskip("imagecodecs")
    values = film(97, 81, stored)
    if syntax in (JPEG_PROCESS_14, JPEG_LOSSLESS):  # process 14 may predict by any neighbour, SV1 by the left one
        predictor = 1 if syntax == JPEG_LOSSLESS else 4
        frame = imagecodecs.jpeg8_encode(values, lossless=True, predictor=predictor, bitspersample=stored)
    else:
        frame = imagecodecs.htj2k_encode(values, reversible=True)
    read = greys(encapsulated(dataset(values, stored=stored), syntax, frame))
    np.testing.assert_array_equal(read, greys(dicom(values, stored=stored)))


@pytest.mark.parametrize("stored", [8, 12, 16])
def test_jpeg_2000_needs_no_extra(monkeypatch: pytest.MonkeyPatch, stored: int) -> None:
    monkeypatch.setitem(dicom_codecs.PLUGINS, JPEG_2000, ("pillow",))  # as where the extra is not installed
    values = film(97, 81, stored)
    read = greys(compressed(dataset(values, stored=stored), JPEG_2000))
    np.testing.assert_array_equal(read, greys(dicom(values, stored=stored)))


def test_jpeg_extended_of_8_bits_needs_no_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(dicom_codecs.PLUGINS, JPEG_EXTENDED, ("pillow",))  # as where the extra is not installed
    values = film(bits=8)
    read = greys(encapsulated(dataset(values), JPEG_EXTENDED, jpeg(values)))
    assert 0 < np.abs(read - greys(dicom(values))).mean() < 2


@needs_codecs
def test_lossy_syntaxes_of_12_bits_read_nearly_alike() -> None:
    imagecodecs = pytest.importorskip("imagecodecs")
    values = film()
    frames = {
        JPEG_EXTENDED: imagecodecs.jpeg8_encode(values, 95, bitspersample=12),
        HTJ2K_LOSSY: imagecodecs.htj2k_encode(values, 0.001, reversible=False),
    }
    plain = greys(dicom(values, stored=12))
    for syntax, frame in frames.items():
        read = greys(encapsulated(dataset(values, stored=12), syntax, frame))
        assert 0 < np.abs(read - plain).mean() < 2, syntax


def test_lossy_syntaxes_read_nearly_alike() -> None:
    values = film(bits=8)
    plain = greys(dicom(values))
    made = {
        "JPEG": encapsulated(dataset(values), JPEG_BASELINE, jpeg(values)),
        "JPEG 2000": compressed(dataset(values), "1.2.840.10008.1.2.4.91", j2k_cr=[4]),
    }
    if CODECS:
        made["JPEG-LS"] = compressed(dataset(values), "1.2.840.10008.1.2.4.81", jls_error=3)
    for kind, data in made.items():
        assert 0 < np.abs(greys(data) - plain).mean() < 2, kind


def test_syntaxes_that_are_not_read_are_named() -> None:
    made = dataset(film(bits=8))
    error = refused(encapsulated(made, "1.2.840.10008.1.2.4.100", b"video"))
    assert error.code == "unsupported_transfer_syntax"
    assert "MPEG2 Main Profile" in str(error)
    assert "Explicit VR Little Endian" in str(error)
    private = dicom(film(bits=8)).replace(b"1.2.840.10008.1.2.1\0", b"1.2.3.4.5.6.7.8.9.0\0", 1)
    error = refused(private)
    assert (error.code, "1.2.3" in str(error)) == ("unsupported_transfer_syntax", False)


@pytest.mark.parametrize("syntax", [JPEG_LOSSLESS, dicom_codecs.JPEG_EXTENDED])
def test_a_missing_codec_is_named(monkeypatch: pytest.MonkeyPatch, syntax: str) -> None:
    monkeypatch.setitem(dicom_codecs.PLUGINS, syntax, ("pillow",))
    error = refused(encapsulated(dataset(film(), stored=12), syntax, b"frame"))
    assert error.code == "unsupported_transfer_syntax"
    assert "cxr-report[dicom-codecs]" in str(error)
    assert UID(syntax).name in str(error)


# --- colour ---------------------------------------------------------------------------------------------------------


def colours() -> np.ndarray:
    grey = film(bits=8)
    return np.dstack([grey, grey[::-1], 255 - grey])


def planes(made: Dataset) -> bytes:
    made.PlanarConfiguration = 1
    made.PixelData = np.ascontiguousarray(np.moveaxis(colours(), 2, 0)).tobytes()
    return encode(made)


def test_colour_reads_as_the_png_of_the_same_colours() -> None:
    expected = load_pixels(png(colours()), S).astype(int)
    made = {
        "RGB": dicom(colours(), photometric="RGB", sop_class=SC),
        "planes": planes(dataset(colours(), photometric="RGB", sop_class=SC)),
        "RLE": compressed(dataset(colours(), photometric="RGB", sop_class=SC), "1.2.840.10008.1.2.5"),
        "16 bits": dicom(colours().astype(np.uint16) * 257, photometric="RGB", sop_class=SC),
    }
    for kind, data in made.items():
        assert np.abs(load_pixels(data, S) - expected).max() <= 1, kind
    lossy = encapsulated(dataset(colours(), photometric="YBR_FULL_422"), JPEG_BASELINE, jpeg(colours(), subsampling=0))
    assert np.abs(load_pixels(lossy, S) - expected).mean() < 2


def test_palettes_read_as_their_colours() -> None:
    values = film(bits=8)
    made = dataset(values, photometric="PALETTE COLOR", sop_class=SC)
    for name, entries in (("Red", np.arange(256)), ("Green", np.arange(256)[::-1]), ("Blue", np.full(256, 7))):
        setattr(made, f"{name}PaletteColorLookupTableDescriptor", [256, 0, 16])
        setattr(made, f"{name}PaletteColorLookupTableData", (entries * 257).astype("<u2").tobytes())
    shown = np.dstack([values, 255 - values, np.full_like(values, 7)])
    assert np.abs(load_pixels(encode(made), S).astype(int) - load_pixels(png(shown), S)).max() <= 1


# --- refusals -------------------------------------------------------------------------------------------------------


def without(name: str) -> bytes:
    made = dataset(film(), stored=12)
    delattr(made, name)
    return encode(made)


def float_pixels() -> bytes:
    made = dataset(film(), stored=12)
    del made.PixelData
    made.FloatPixelData = film().astype(np.float32).tobytes()
    return encode(made)


BAD: dict[str, tuple[bytes, str, str]] = {
    "frames": (dicom(film(), NumberOfFrames=3), "animated", "3 frames"),
    "negative frames": (dicom(film(), NumberOfFrames=-3), "truncated", "NumberOfFrames"),
    "no pixels": (without("PixelData"), "no_pixels", "no pixel data"),
    "float pixels": (float_pixels(), "unsupported_pixels", "FloatPixelData"),
    "no rows": (without("Rows"), "truncated", "Rows"),
    "no photometric interpretation": (without("PhotometricInterpretation"), "unsupported_pixels", "Photometric"),
    "too large": (dicom(film(), Rows=60000, Columns=60000), "too_large", "60,000 x 60,000"),
    "too small": (dicom(film(30, 40)), "too_small", "30 x 40"),
    "pixels missing": (dicom(film(), Rows=90), "truncated", "need 17,280"),
    "32 bits": (dicom(film().astype(np.uint32)), "unsupported_pixels", "32 bits"),
    "12 allocated": (dicom(film(), BitsAllocated=12, BitsStored=12), "unsupported_pixels", "12 bits allocated"),
    "more stored than allocated": (dicom(film(bits=8), BitsStored=12), "unsupported_pixels", "BitsStored 12"),
    "high bit outside": (dicom(film(), stored=12, HighBit=17), "unsupported_pixels", "HighBit 17"),
    "three greys": (dicom(film(), SamplesPerPixel=3), "unsupported_pixels", "3 samples"),
    "one colour": (dicom(film(bits=8), photometric="RGB"), "unsupported_pixels", "1 samples"),
    "no such photometric": (dicom(film(), photometric="DOE^JANE"), "unsupported_pixels", "MONOCHROME2"),
    "magic alone": (bytes(128) + b"DICM", "no_pixels", ""),
    "a header of nothing": (bytes(128) + b"DICM" + bytes(300), "truncated", ""),
}


@pytest.mark.parametrize("kind", BAD)
def test_bad_files_are_refused_precisely(kind: str) -> None:
    data, code, words = BAD[kind]
    error = refused(data)
    assert error.code == code, error
    assert words in str(error)
    assert "DOE" not in str(error)


FRAMES = {
    "JPEG": lambda values: encapsulated(dataset(film(bits=8)), JPEG_BASELINE, jpeg(values)),
    "JPEG-LS": lambda values: frame_of(values, "1.2.840.10008.1.2.4.80"),
    "JPEG 2000": lambda values: frame_of(values, "1.2.840.10008.1.2.4.90"),
    "RLE": lambda values: frame_of(values, "1.2.840.10008.1.2.5"),
}


def frame_of(values: np.ndarray, syntax: str) -> bytes:
    """A file whose header says 96 x 80 and whose frame is of another size."""
    made = dataset(values)
    compressed(made, syntax)
    made.Rows, made.Columns = 80, 96
    return encode(made)


@pytest.mark.parametrize("kind", [pytest.param(k, marks=needs_codecs) if k == "JPEG-LS" else k for k in FRAMES])
def test_a_frame_larger_than_the_header_says_is_not_decoded(kind: str) -> None:
    assert len(greys(FRAMES[kind](film(bits=8)))) == 80
    error = refused(FRAMES[kind](film(1000, 1200, bits=8)))
    assert error.code == "truncated"
    assert "1000 x 1200" in str(error) or kind == "RLE"


def test_a_limit_of_pixels_is_obeyed() -> None:
    assert refused(dicom(film(), stored=12), ImageLimits(max_pixels=7000)).code == "too_large"


def test_nothing_touches_the_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    files = [
        dicom(film(), stored=12, syntax="1.2.840.10008.1.2.1.99"),
        *(
            compressed(dataset(film(), stored=12), syntax)
            for syntax in ("1.2.840.10008.1.2.5", "1.2.840.10008.1.2.4.90")
        ),
        encapsulated(dataset(film(bits=8)), JPEG_BASELINE, jpeg(film(bits=8))),
    ]
    before = [read_image(data, S).pixels for data in files]

    def forbidden(*args: object, **kwargs: object) -> object:
        raise AssertionError(f"opened {args}")

    monkeypatch.setattr(builtins, "open", forbidden)
    for data, pixels in zip(files, before, strict=True):
        np.testing.assert_array_equal(read_image(data, S).pixels, pixels)


def test_a_secondary_capture_by_highdicom() -> None:
    highdicom = pytest.importorskip("highdicom")
    values = film()
    capture = highdicom.sc.SCImage(
        pixel_array=values, photometric_interpretation="MONOCHROME2", bits_allocated=16, coordinate_system="PATIENT",
        study_instance_uid="1.2.3", series_instance_uid="1.2.3.4", series_number=1, sop_instance_uid="1.2.3.4.5",
        instance_number=1, manufacturer="none", patient_orientation=("L", "F"),
    )  # fmt: skip
    np.testing.assert_array_equal(greys(encode(capture)), greys(dicom(values, sop_class=CR)))
    assert codes(encode(capture)) == []
