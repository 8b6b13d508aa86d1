"""One known picture in every combination of DICOM's pixel options is drawn right, or refused by name."""

from __future__ import annotations

import shutil
import struct
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import imagecodecs
import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from pydicom.dataset import Dataset
from pydicom.uid import RLELossless

from tests.support.dicom import (
    JPEG_BASELINE,
    JPEG_EXTENDED,
    JPEG_LOSSLESS,
    dataset,
    encapsulated,
    encode,
    greys,
    jpeg,
    lut,
    refused,
)

JPEG_LS, JPEG_LS_NEAR, JPEG_2000, JPEG_2000_LOSSY = (f"1.2.840.10008.1.2.4.{number}" for number in (80, 81, 90, 91))
Y, X = np.mgrid[0:40, 0:64]
PICTURE = (X / 63 + Y / 39) / 2 * 0.8 + 0.2 * (np.hypot(X - 20, Y - 15) < 9)  # 0..1
PICTURE = (PICTURE - PICTURE.min()) / np.ptp(PICTURE)
OVERLAY = (Y % 8 < 2).astype(np.uint16)
RUBBISH = np.random.default_rng(0).integers(0, 2**16, PICTURE.shape).astype(np.uint16)


@dataclass(frozen=True)
class Options:
    """How the picture is stored.

    Attributes:
        stored: BitsStored.
        allocated: BitsAllocated, 8 only if 8 bits are stored.
        signed: two's complement around 0.
        high: content of the bits beyond BitsStored: zero, sign, overlay or rubbish.
        codec: native, RLE, baseline, lossless, LS or 2000.
        precise: whether the codestream states BitsStored, which needs zero high bits.
        colour: three equal samples per pixel.
        planar: PlanarConfiguration.
        voi: window, LUT, shallow (a LUT that uses 8 of its 16 bits) or none.
        inverted: MONOCHROME1.
    """

    stored: int = 12
    allocated: int = 16
    signed: bool = False
    high: str = "zero"
    codec: str = "native"
    precise: bool = False
    colour: bool = False
    planar: int = 0
    voi: str = "none"
    inverted: bool = False

    @property
    def is_refused(self) -> bool:
        """Whether the header contradicts the codec, or the codec has no colour space."""
        if self.codec == "baseline":
            return self.signed or (self.stored > 8 and self.voi != "none")
        return self.codec == "lossless" and self.colour


def words(options: Options) -> np.ndarray:
    """(H, W) unsigned words of BitsAllocated that hold the picture."""
    picture = 1 - PICTURE if options.inverted else PICTURE
    values = np.rint(picture * (2**options.stored - 1)).astype(int) - options.signed * 2 ** (options.stored - 1)
    mask = 2**options.stored - 1
    high = {"zero": 0, "sign": values, "overlay": OVERLAY.astype(int) << options.stored, "rubbish": RUBBISH.astype(int)}
    packed = (values & mask) | (np.asarray(high[options.high]) & ~mask)
    return (packed & (2**options.allocated - 1)).astype(np.uint8 if options.allocated == 8 else np.uint16)


def add_voi(made: Dataset, options: Options) -> None:
    """A window or lookup table of the full range."""
    low = -options.signed * 2 ** (options.stored - 1)
    if options.voi == "window":
        made.WindowCenter, made.WindowWidth = low + 2 ** (options.stored - 1), 2**options.stored
    elif options.voi != "none":
        depth, most = (16, 1023) if options.voi == "shallow" else (options.stored, 2**options.stored - 1)
        made.VOILUTSequence = [lut(np.rint(np.linspace(0, most, 2**options.stored)), low, depth)]


def file_of(options: Options) -> bytes:
    """The DICOM file."""
    packed = words(options)
    pixels = np.dstack([packed] * 3) if options.colour else packed
    photometric = "RGB" if options.colour else "MONOCHROME1" if options.inverted else "MONOCHROME2"
    made = dataset(pixels, stored=options.stored, photometric=photometric)
    made.PixelRepresentation = int(options.signed)
    add_voi(made, options)
    bits = options.stored if options.precise and options.high == "zero" else options.allocated
    made.PlanarConfiguration = options.planar
    if options.codec == "native" and options.colour and options.planar:
        made.PixelData = np.ascontiguousarray(np.moveaxis(pixels, 2, 0)).tobytes()
    if options.codec == "native":
        return encode(made)
    if options.codec == "RLE":
        return encapsulated(made, RLELossless, run_lengths(pixels))
    coded = pixels.astype(np.uint8) if bits == 8 else pixels
    if options.codec == "baseline":
        eight = (pixels >> (options.stored - 8) & 255).astype(np.uint8)
        return encapsulated(made, JPEG_BASELINE, jpeg(eight, **({"keep_rgb": True} if options.colour else {})))
    if options.codec == "lossless":
        frame = imagecodecs.jpeg8_encode(coded, lossless=True, predictor=1, bitspersample=bits)
        return encapsulated(made, JPEG_LOSSLESS, frame)
    if options.codec == "LS":
        return encapsulated(made, JPEG_LS, imagecodecs.jpegls_encode(coded))
    signed = options.high == "sign" and options.signed and not options.colour
    return encapsulated(
        made, JPEG_2000, jpeg_2000(coded.view(f"i{coded.itemsize}") if signed else coded, bits, mct=False)
    )


def run_lengths(values: np.ndarray) -> bytes:
    """An RLE frame; pydicom's encoder damages 8 bits stored in 16."""
    samples = np.atleast_3d(values)
    segments = [
        imagecodecs.packbits_encode(np.ascontiguousarray(samples[..., sample] >> 8 * byte & 255).astype(np.uint8))
        for sample in range(samples.shape[2])
        for byte in reversed(range(values.itemsize))
    ]
    starts = 64 + np.cumsum([0, *map(len, segments[:-1])])
    return struct.pack("<16L", len(segments), *starts, *[0] * (15 - len(segments))) + b"".join(segments)


def jpeg_2000(values: np.ndarray, bits: int, **options: Any) -> bytes:
    """A reversible codestream."""
    frame: bytes = imagecodecs.jpeg2k_encode(
        values, level=0, codecformat="j2k", reversible=True, bitspersample=bits, **options
    )
    return frame


@st.composite
def combinations(draw: st.DrawFn) -> Options:
    """Any combination of the options that DICOM can express."""
    stored = draw(st.integers(8, 16))
    signed = draw(st.booleans())
    colour = not signed and draw(st.booleans())
    return Options(
        stored=stored,
        allocated=draw(st.sampled_from([8, 16])) if stored == 8 else 16,
        signed=signed,
        high=draw(st.sampled_from(["zero", "sign", "overlay", "rubbish"])),
        codec=draw(st.sampled_from(["native", "RLE", "baseline", "lossless", "LS", "2000"])),
        precise=draw(st.booleans()),
        colour=colour,
        planar=draw(st.integers(0, 1)),
        voi=draw(st.sampled_from(["window", "LUT", "shallow", "none"])),
        inverted=not colour and draw(st.booleans()),
    )


@settings(max_examples=500, deadline=None, derandomize=True, database=None)
@given(combinations())
@example(Options(signed=True, codec="LS", voi="window"))
@example(Options(signed=True, codec="lossless", voi="window"))
@example(Options(high="overlay", codec="2000", voi="window"))
@example(Options(stored=8, allocated=8, codec="baseline", colour=True, planar=1))
def test_picture_is_drawn_or_refused_by_name(options: Options) -> None:
    data = file_of(options)
    if options.is_refused:
        error = refused(data)
        assert error.code in ("unsupported_pixels", "unsupported_transfer_syntax")
        assert "JPEG" in str(error)
    else:
        drawn = greys(data)
        assert np.corrcoef(drawn.ravel(), PICTURE.ravel())[0, 1] >= 0.999
        assert np.ptp(drawn) > 225


@pytest.mark.parametrize("codec", ["native", "RLE", "lossless", "LS", "2000"])
@pytest.mark.parametrize("high", ["zero", "overlay", "rubbish"])
def test_lossless_codecs_give_the_greys_of_the_native_file(codec: str, high: str) -> None:
    for signed in (False, True):
        native = greys(file_of(Options(signed=signed, voi="window")))
        np.testing.assert_array_equal(
            greys(file_of(Options(signed=signed, voi="window", high=high, codec=codec))), native
        )


def test_shifts_compressed_values_of_a_high_bit() -> None:
    values = words(Options())
    made = dataset((values << 4).astype(np.uint16), stored=12, HighBit=15, WindowCenter=2048, WindowWidth=4096)
    native = greys(encode(made))
    np.testing.assert_array_equal(greys(encapsulated(made, JPEG_LS, imagecodecs.jpegls_encode(values << 4))), native)
    plain = encapsulated(made, JPEG_LOSSLESS, imagecodecs.ljpeg_encode(values, bitspersample=12))
    np.testing.assert_array_equal(greys(plain), native)  # the codec dropped the unused low bits


def test_cuts_off_small_overshoot_of_lossy_frames() -> None:
    """Masked, a value just above BitsStored would become black."""
    values = np.where(X < 32, 40, 1023).astype(np.uint16)
    values[5:9] = 1029
    lossy = encapsulated(dataset(values, stored=10), JPEG_EXTENDED, imagecodecs.jpeg8_encode(values, bitspersample=12))
    assert greys(lossy)[:, 40:].min() > 245
    cut = encapsulated(dataset(values, stored=10), JPEG_2000_LOSSY, jpeg_2000(values, 12))
    assert greys(cut)[:, 40:].min() == 255


def test_refuses_lossy_frames_with_values_far_beyond_bits_stored() -> None:
    values = words(Options())
    frame = imagecodecs.jpeg8_encode(values, 95, bitspersample=12)
    error = refused(encapsulated(dataset(values, stored=9), JPEG_EXTENDED, frame))
    assert (error.code, "BitsStored 9" in str(error)) == ("unsupported_pixels", True)


def test_masks_overlays_of_reversible_frames_in_lossy_syntaxes() -> None:
    packed = words(Options(high="overlay"))
    data = encapsulated(dataset(packed, stored=12), JPEG_2000_LOSSY, jpeg_2000(packed, 16))
    np.testing.assert_array_equal(greys(data), greys(file_of(Options())))


def test_refuses_overlays_in_frames_that_lost_bits() -> None:
    packed = words(Options(high="overlay"))
    irreversible = imagecodecs.jpeg2k_encode(packed, level=60, codecformat="j2k", reversible=False)
    near = imagecodecs.jpegls_encode(packed, level=3)
    for frame, syntax in ((irreversible, JPEG_2000_LOSSY), (near, JPEG_LS_NEAR)):
        error = refused(encapsulated(dataset(packed, stored=12), syntax, frame))
        assert (error.code, "lossy frame of 16 bits" in str(error)) == ("unsupported_pixels", True)
    near_plain = encapsulated(
        dataset(words(Options()), stored=12), JPEG_LS_NEAR, imagecodecs.jpegls_encode(words(Options()), level=3)
    )
    assert np.abs(greys(near_plain) - greys(file_of(Options()))).max() < 1


@pytest.mark.skipif(shutil.which("dcmcjpeg") is None, reason="dcmtk is not installed")
@pytest.mark.parametrize("encoder", ["dcmcjpeg", "dcmcjpls", "dcmcrle"])
@pytest.mark.parametrize(("signed", "high"), [(True, "zero"), (True, "sign"), (False, "overlay"), (False, "rubbish")])
def test_files_compressed_by_dcmtk_give_the_greys_of_the_native_file(
    tmp_path: Path, encoder: str, signed: bool, high: str
) -> None:
    native = file_of(Options(signed=signed, high=high, voi="window"))
    (tmp_path / "native.dcm").write_bytes(native)
    subprocess.run([encoder, tmp_path / "native.dcm", tmp_path / "packed.dcm"], check=True)
    np.testing.assert_array_equal(greys((tmp_path / "packed.dcm").read_bytes()), greys(native))
