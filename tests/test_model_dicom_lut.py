"""The greyscale pipeline of DICOM equals the formulas of the standard, and pydicom."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydicom.dataelem import RawDataElement
from pydicom.pixels.processing import apply_modality_lut, apply_voi_lut
from pydicom.tag import Tag

from model.images import load_pixels, read_image
from model.types import View
from tests.support.dicom import ALL_VALUES, SC, S, codes, dataset, dicom, encode, film, greys, lut, png, refused

# --- VOI: the formulas of PS3.3 C.11.2.1.2 and C.11.2.1.3 ---------------------------------------------------------


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


def test_uses_the_first_of_several_windows() -> None:
    several = greys(dicom(film(), stored=12, WindowCenter=[1700, 100], WindowWidth=[3200, 50]))
    np.testing.assert_array_equal(several, greys(dicom(film(), stored=12, WindowCenter=1700, WindowWidth=3200)))
    assert np.abs(several - greys(dicom(film(), stored=12))).max() > 5


@pytest.mark.parametrize(
    ("center", "width", "function"),
    [(2000, 0.5, "LINEAR"), (2000, 0, "SIGMOID"), (2000, -3, "LINEAR_EXACT"), (9e4, 2, "")],
)
def test_ignores_windows_that_show_nothing_with_a_warning(center: float, width: float, function: str) -> None:
    data = dicom(film(), stored=12, WindowCenter=center, WindowWidth=width, VOILUTFunction=function)
    np.testing.assert_array_equal(greys(data), greys(dicom(film(), stored=12)))
    assert codes(data) == ["window_ignored"]


def test_ignores_window_without_center() -> None:
    data = dicom(film(), stored=12, WindowWidth=200)
    np.testing.assert_array_equal(greys(data), greys(dicom(film(), stored=12)))
    assert codes(data) == []


@pytest.mark.parametrize(("first", "bits"), [(0, 12), (500, 10), (-20, 8), (1000, 16)])
def test_voi_lut_replaces_the_window(first: int, bits: int) -> None:
    entries = np.sqrt(np.linspace(0, 1, 3000)) * (2**bits - 1)
    made = dataset(ALL_VALUES, stored=12, WindowCenter=10, WindowWidth=5, VOILUTSequence=[lut(entries, first, bits)])
    expected = [
        entries.astype(int)[min(max(int(x) - first, 0), 2999)] * 255 / (2**bits - 1) for x in ALL_VALUES.ravel()
    ]
    np.testing.assert_allclose(greys(encode(made)).ravel(), expected, atol=1e-3)


@pytest.mark.parametrize(("depth", "most"), [(16, 1023), (16, 4095), (12, 2047), (8, 4095), (8, 65535), (10, 1024)])
def test_spreads_voi_lut_that_does_not_use_its_stated_depth(depth: int, most: int) -> None:
    entries = np.rint(np.linspace(0, most, 4096))
    data = dicom(ALL_VALUES, stored=12, VOILUTSequence=[lut(entries, 0, depth)])
    np.testing.assert_allclose(greys(data).ravel(), entries * 255 / most, atol=1e-3)
    assert codes(data) == ["voi_lut_depth"]
    message = read_image(data, S).warnings(View.FRONTAL)[0].message
    assert f"says {depth} bits, but its entries go to {most}" in message


@pytest.mark.parametrize(("depth", "most"), [(16, 65535), (16, 40000), (12, 4095), (12, 2048), (8, 255)])
def test_voi_lut_of_its_stated_depth_is_used_as_is(depth: int, most: int) -> None:
    entries = np.rint(np.linspace(0, most, 4096))
    data = dicom(ALL_VALUES, stored=12, VOILUTSequence=[lut(entries, 0, depth)])
    np.testing.assert_allclose(greys(data).ravel(), entries * 255 / (2**depth - 1), atol=1e-3)
    assert codes(data) == []


def test_reads_lut_entries_of_one_byte() -> None:
    item = lut(np.zeros(1), 0, 8)
    item.LUTDescriptor = [4096, 0, 8]
    item.LUTData = (np.arange(4096) // 16).astype(np.uint8).tobytes()
    read = greys(dicom(ALL_VALUES, stored=12, VOILUTSequence=[item]))
    np.testing.assert_allclose(read.ravel(), np.arange(4096) // 16, atol=1e-3)


def with_text(name: str, text: bytes, syntax: str, **tags: Any) -> bytes:
    """A file with an element of any bytes."""
    made = dataset(ALL_VALUES, stored=12, syntax=syntax, **tags)
    made[name] = RawDataElement(Tag(name), "DS", len(text), text + b" " * (len(text) % 2), 0, False, True)
    return encode(made)


@pytest.mark.parametrize("syntax", ["1.2.840.10008.1.2", "1.2.840.10008.1.2.1"])
@pytest.mark.parametrize(
    "text",
    [b"3500,0", b"3500\\", b"\\3500", b"3500\\400", b"3500\0\0", b" 3500 ", b"+3,5E+03", b"3500.00000000000000001"],
)
def test_reads_decimal_strings_as_real_files_have_them(text: bytes, syntax: str) -> None:
    data = with_text("WindowWidth", text, syntax, WindowCenter=2048)
    np.testing.assert_array_equal(greys(data), greys(dicom(ALL_VALUES, stored=12, WindowCenter=2048, WindowWidth=3500)))
    assert codes(data) == []


@pytest.mark.parametrize("text", [b"1,5", b"1.5\\"])
def test_reads_rescale_slopes_as_real_files_have_them(text: bytes) -> None:
    window = {"WindowCenter": 3000, "WindowWidth": 2000}
    data = with_text("RescaleSlope", text, "1.2.840.10008.1.2.1", **window)
    np.testing.assert_array_equal(greys(data), greys(dicom(ALL_VALUES, stored=12, RescaleSlope=1.5, **window)))


@pytest.mark.parametrize("text", [b"nan", b"1.024,5", b"wide", b"\xff1"])
def test_rejects_decimal_strings_that_are_no_numbers(text: bytes) -> None:
    error = refused(with_text("WindowWidth", text, "1.2.840.10008.1.2.1", WindowCenter=2048))
    assert (error.code, "WindowWidth" in str(error)) == ("truncated", True)


def test_applies_the_modality_lut_before_the_window() -> None:
    entries = np.arange(4096)[::-1] * 2
    made = dataset(
        ALL_VALUES, stored=12, WindowCenter=4000, WindowWidth=3000, ModalityLUTSequence=[lut(entries, 0, 13)]
    )
    expected = [standard("LINEAR", float(entries[x]), 4000, 3000) for x in ALL_VALUES.ravel()]
    np.testing.assert_allclose(greys(encode(made)).ravel(), expected, atol=1e-3)


def test_rejects_lut_that_is_too_short() -> None:
    item = lut(np.arange(100), 0, 12)
    item.LUTDescriptor = [4096, 0, 12]
    assert refused(dicom(film(), stored=12, VOILUTSequence=[item])).code == "truncated"


def test_rejects_rescale_slope_of_zero() -> None:
    error = refused(dicom(film(), stored=12, RescaleSlope=0, RescaleIntercept=5))
    assert (error.code, "RescaleSlope" in str(error)) == ("unsupported_pixels", True)


# --- pydicom ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("signed", [False, True])
@pytest.mark.parametrize("rescale", [{}, {"RescaleSlope": 2, "RescaleIntercept": -300}])
@pytest.mark.parametrize(
    "voi",
    [
        *(
            {"WindowCenter": 900, "WindowWidth": 700, "VOILUTFunction": name}
            for name in ("LINEAR", "LINEAR_EXACT", "SIGMOID")
        ),
        {"VOILUTSequence": [lut(np.arange(0, 4096, 2), 100, 12)]},
        {"VOILUTSequence": [lut(np.arange(0, 4096, 2), -200, 12)]},
    ],
)
def test_agrees_with_pydicom(signed: bool, rescale: dict[str, float], voi: dict[str, Any]) -> None:
    values = ALL_VALUES.astype(np.int16) - 2048 if signed else ALL_VALUES
    made = dataset(values, stored=12, **rescale, **voi)
    modality = apply_modality_lut(values, made)
    shown = apply_voi_lut(modality.astype(np.int64) if "VOILUTSequence" in voi else modality, made).astype(np.float64)
    if "VOILUTSequence" in voi:
        low, high = 0.0, 4095.0
    else:  # pydicom's windows have the range of the rescaled stored values
        low, high = (float(value) for value in (modality.min(), modality.max()))
    np.testing.assert_allclose(greys(encode(made)), 255 * (shown - low) / (high - low), atol=1e-3)


# --- polarity -------------------------------------------------------------------------------------------------------


def test_monochrome1_is_inverted_last() -> None:
    window = {"WindowCenter": 1000, "WindowWidth": 1500, "RescaleSlope": 0.5, "RescaleIntercept": 3}
    plain = greys(dicom(ALL_VALUES, stored=12, **window))
    inverted = greys(dicom(ALL_VALUES, stored=12, photometric="MONOCHROME1", **window))
    np.testing.assert_allclose(inverted, 255 - plain, atol=1e-3)


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 4000), st.integers(1, 4095), st.integers(0, 2**32 - 1))
def test_negative_and_its_inverse_give_equal_pixels(low: int, span: int, seed: int) -> None:
    high = min(low + span, 4095)
    values = np.random.default_rng(seed).integers(low, high + 1, (40, 36)).astype(np.uint16)
    negative = load_pixels(dicom(values, stored=12, photometric="MONOCHROME1"), S)
    np.testing.assert_array_equal(negative, load_pixels(dicom((4095 - values).astype(np.uint16), stored=12), S))


@pytest.mark.parametrize(
    ("photometric", "shape", "inverted", "warned"),
    [
        ("MONOCHROME2", "IDENTITY", False, []),
        ("MONOCHROME1", "INVERSE", True, []),  # as DX requires: inverted once
        ("MONOCHROME2", "INVERSE", True, ["contradictory_polarity"]),
        ("MONOCHROME1", "IDENTITY", True, ["contradictory_polarity"]),
        ("MONOCHROME1", "", True, []),
    ],
)
def test_presentation_lut_shape_inverts_once(photometric: str, shape: str, inverted: bool, warned: list[str]) -> None:
    data = dicom(ALL_VALUES, stored=12, photometric=photometric, PresentationLUTShape=shape)
    assert bool(greys(data)[0, 0] > 250) is inverted
    assert codes(data) == warned


# --- stored values --------------------------------------------------------------------------------------------------


def test_without_window_equals_the_png_of_the_same_values() -> None:
    np.testing.assert_array_equal(load_pixels(dicom(film(), stored=12), S), load_pixels(png(film()), S))
    eight = film(bits=8)
    close = load_pixels(dicom(eight, sop_class=SC), S).astype(int) - load_pixels(png(eight), S)
    assert np.abs(close).max() <= 1  # 8 bits are not spread; the PNG is reduced in two steps


def test_reads_signed_values() -> None:
    signed = ALL_VALUES.astype(np.int16) - 2048
    np.testing.assert_allclose(greys(dicom(signed, stored=12)), greys(dicom(ALL_VALUES, stored=12)), atol=1e-3)
    window = {"WindowCenter": 0, "WindowWidth": 400}
    expected = [standard("LINEAR", float(x), 0, 400) for x in signed.ravel()]
    np.testing.assert_allclose(greys(dicom(signed, stored=12, **window)).ravel(), expected, atol=1e-3)


@pytest.mark.parametrize(("stored", "high"), [(12, 11), (12, 15), (10, 12), (9, 8), (7, 14)])
def test_ignores_bits_outside_of_the_stored_value(stored: int, high: int) -> None:
    values = (ALL_VALUES >> (12 - min(stored, 12))).astype(np.uint16)
    shift = high + 1 - stored
    overlay = np.random.default_rng(0).integers(0, 2**16, values.shape)
    mask = (2**stored - 1) << shift
    packed = ((values.astype(int) << shift) | (overlay & ~mask & 0xFFFF)).astype(np.uint16)
    np.testing.assert_allclose(
        greys(dicom(packed, stored=stored, HighBit=high)), greys(dicom(values, stored=stored)), atol=1e-3
    )


def test_reads_one_bit_images() -> None:
    bits = np.random.default_rng(0).integers(0, 2, (40, 48)).astype(np.uint8)
    made = dataset(bits, sop_class=SC)
    made.BitsAllocated = made.BitsStored = 1
    made.HighBit = 0
    made.PixelData = np.packbits(bits.ravel(), bitorder="little").tobytes()
    np.testing.assert_array_equal(greys(encode(made)), bits * 255.0)


@pytest.mark.parametrize(("value", "limit"), [(0, None), (4095, None), (3900, 4095), (4095, 3900)])
def test_padding_does_not_change_the_greys(value: int, limit: int | None) -> None:
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
