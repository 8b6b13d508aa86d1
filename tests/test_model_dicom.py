"""DICOM pixels: every transfer syntax gives the same greys; other files are rejected."""

from __future__ import annotations

import builtins

import imagecodecs
import numpy as np
import pytest
from pydicom.dataset import Dataset
from pydicom.uid import UID

from model.images import ImageLimits, load_pixels, read_image
from model.images.dicom import codecs as dicom_codecs
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
    S,
    codes,
    compressed,
    dataset,
    dicom,
    encapsulated,
    encode,
    film,
    greys,
    jpeg,
    png,
    refused,
)

# --- transfer syntaxes ----------------------------------------------------------------------------------------------

NATIVE = ["1.2.840.10008.1.2", "1.2.840.10008.1.2.1", "1.2.840.10008.1.2.1.99", "1.2.840.10008.1.2.2"]
JPEG_LS = "1.2.840.10008.1.2.4.80"
JPEG_2000 = "1.2.840.10008.1.2.4.90"
LOSSLESS = ["1.2.840.10008.1.2.5", JPEG_2000, JPEG_LS]


@pytest.mark.parametrize("stored", [8, 10, 12, 16])
@pytest.mark.parametrize("syntax", NATIVE)
def test_uncompressed_syntaxes_give_equal_greys(syntax: str, stored: int) -> None:
    window = {"WindowCenter": 2 ** (stored - 1), "WindowWidth": 2 ** (stored - 1)}
    values = film(97, 81, stored)  # odd: bytes are padded
    read, expected = (greys(dicom(values, stored=stored, syntax=one, **window)) for one in (syntax, NATIVE[1]))
    np.testing.assert_array_equal(read, expected)


@pytest.mark.parametrize("stored", [8, 12, 16])
@pytest.mark.parametrize("syntax", LOSSLESS)
def test_lossless_syntaxes_give_equal_greys(syntax: str, stored: int) -> None:
    values = film(97, 81, stored)
    read = greys(compressed(dataset(values, stored=stored), syntax))
    np.testing.assert_array_equal(read, greys(dicom(values, stored=stored)))


@pytest.mark.parametrize("syntax", LOSSLESS)
def test_lossless_syntaxes_of_signed_values_give_equal_greys(syntax: str) -> None:
    values = film().astype(np.int16) - 2000
    read = greys(compressed(dataset(values, stored=13), syntax))
    np.testing.assert_allclose(read, greys(dicom(values, stored=13)), atol=1e-3)


@pytest.mark.parametrize("stored", [8, 12, 16])
@pytest.mark.parametrize("syntax", [JPEG_PROCESS_14, JPEG_LOSSLESS, HTJ2K, HTJ2K_RPCL, HTJ2K_LOSSY])
def test_lossless_syntaxes_of_imagecodecs_give_equal_greys(syntax: str, stored: int) -> None:
    """imagecodecs writes HTJ2K in one order of packets only, whatever the syntax."""
    values = film(97, 81, stored)
    if syntax in (JPEG_PROCESS_14, JPEG_LOSSLESS):  # SV1 predicts by the left neighbour only
        predictor = 1 if syntax == JPEG_LOSSLESS else 4
        frame = imagecodecs.jpeg8_encode(values, lossless=True, predictor=predictor, bitspersample=stored)
    else:
        frame = imagecodecs.htj2k_encode(values, reversible=True)
    read = greys(encapsulated(dataset(values, stored=stored), syntax, frame))
    np.testing.assert_array_equal(read, greys(dicom(values, stored=stored)))


EIGHT, TWELVE = film(bits=8), film()
LOSSY = {
    "JPEG": encapsulated(dataset(EIGHT), JPEG_BASELINE, jpeg(EIGHT)),
    "JPEG extended of 8 bits": encapsulated(dataset(EIGHT), JPEG_EXTENDED, jpeg(EIGHT)),
    "JPEG 2000": compressed(dataset(EIGHT), "1.2.840.10008.1.2.4.91", j2k_cr=[4]),
    "JPEG-LS": compressed(dataset(EIGHT), "1.2.840.10008.1.2.4.81", jls_error=3),
    "JPEG extended of 12 bits": encapsulated(
        dataset(TWELVE, stored=12), JPEG_EXTENDED, imagecodecs.jpeg8_encode(TWELVE, 95, bitspersample=12)
    ),
    "HTJ2K of 12 bits": encapsulated(
        dataset(TWELVE, stored=12), HTJ2K_LOSSY, imagecodecs.htj2k_encode(TWELVE, 0.001, reversible=False)
    ),
}


@pytest.mark.parametrize("kind", LOSSY)
def test_lossy_syntaxes_give_nearly_equal_greys(kind: str) -> None:
    plain = dicom(TWELVE, stored=12) if "12 bits" in kind else dicom(EIGHT)
    assert 0 < np.abs(greys(LOSSY[kind]) - greys(plain)).mean() < 2


def test_names_unsupported_transfer_syntaxes() -> None:
    made = dataset(film(bits=8))
    error = refused(encapsulated(made, "1.2.840.10008.1.2.4.100", b"video"))
    assert error.code == "unsupported_transfer_syntax"
    assert "MPEG2 Main Profile" in str(error)
    assert "Explicit VR Little Endian" in str(error)
    private = dicom(film(bits=8)).replace(b"1.2.840.10008.1.2.1\0", b"1.2.3.4.5.6.7.8.9.0\0", 1)
    error = refused(private)
    assert (error.code, "1.2.3" in str(error)) == ("unsupported_transfer_syntax", False)


@pytest.mark.parametrize("syntax", [JPEG_LOSSLESS, dicom_codecs.JPEG_EXTENDED])
def test_names_missing_codec(monkeypatch: pytest.MonkeyPatch, syntax: str) -> None:
    monkeypatch.setitem(dicom_codecs.PLUGINS, syntax, "absent")
    error = refused(encapsulated(dataset(film(), stored=12), syntax, b"frame"))
    assert error.code == "unsupported_transfer_syntax"
    assert "'.[dicom-codecs]' in the source tree" in str(error)
    assert UID(syntax).name in str(error)


# --- colour ---------------------------------------------------------------------------------------------------------


def colours() -> np.ndarray:
    grey = film(bits=8)
    return np.dstack([grey, grey[::-1], 255 - grey])


def planes(made: Dataset) -> bytes:
    made.PlanarConfiguration = 1
    made.PixelData = np.ascontiguousarray(np.moveaxis(colours(), 2, 0)).tobytes()
    return encode(made)


def test_colour_equals_the_png_of_the_same_colours() -> None:
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


def test_palette_equals_the_png_of_its_colours() -> None:
    values = film(bits=8)
    made = dataset(values, photometric="PALETTE COLOR", sop_class=SC)
    for name, entries in (("Red", np.arange(256)), ("Green", np.arange(256)[::-1]), ("Blue", np.full(256, 7))):
        setattr(made, f"{name}PaletteColorLookupTableDescriptor", [256, 0, 16])
        setattr(made, f"{name}PaletteColorLookupTableData", (entries * 257).astype("<u2").tobytes())
    shown = np.dstack([values, 255 - values, np.full_like(values, 7)])
    assert np.abs(load_pixels(encode(made), S).astype(int) - load_pixels(png(shown), S)).max() <= 1


def test_segmented_palette_equals_the_whole_one() -> None:
    values = film(bits=8)
    ramp = [0, 1, 0, 1, 127, 127, 0, 128, *range(128, 256)]
    repeated = [0, 16, *range(16), 2, 1, 0, 0, 0, 224, *[7] * 224]  # the second segment repeats the first
    for segments, entries in ((ramp, [*range(256)]), (repeated, [*range(16), *range(16), *[7] * 224])):
        read = []
        for prefix, table in (("Segmented", segments), ("", entries)):
            made = dataset(values, photometric="PALETTE COLOR", sop_class=SC)
            for name in ("Red", "Green", "Blue"):
                setattr(made, f"{name}PaletteColorLookupTableDescriptor", [256, 0, 16])
                setattr(made, f"{prefix}{name}PaletteColorLookupTableData", np.array(table, "<u2").tobytes())
            read.append(greys(encode(made)))
        np.testing.assert_array_equal(*read)


# --- rejected files -------------------------------------------------------------------------------------------------


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
def test_rejects_wrong_files_with_a_specific_code(kind: str) -> None:
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
    """A file with a header of 96 x 80 and a frame of another size."""
    made = dataset(values)
    compressed(made, syntax)
    made.Rows, made.Columns = 80, 96
    return encode(made)


@pytest.mark.parametrize("kind", FRAMES)
def test_does_not_decode_a_frame_larger_than_the_header(kind: str) -> None:
    assert len(greys(FRAMES[kind](film(bits=8)))) == 80
    error = refused(FRAMES[kind](film(1000, 1200, bits=8)))
    assert error.code == "truncated"
    assert "1000 x 1200" in str(error) or kind == "RLE"


def test_refuses_more_pixels_than_the_limit() -> None:
    assert refused(dicom(film(), stored=12), ImageLimits(max_pixels=7000)).code == "too_large"


def test_decoding_writes_no_file(monkeypatch: pytest.MonkeyPatch) -> None:
    files = [
        dicom(film(), stored=12, syntax="1.2.840.10008.1.2.1.99"),
        *(compressed(dataset(film(), stored=12), syntax) for syntax in ("1.2.840.10008.1.2.5", JPEG_2000)),
        encapsulated(dataset(film(bits=8)), JPEG_BASELINE, jpeg(film(bits=8))),
    ]
    before = [read_image(data, S).pixels for data in files]

    def forbidden(*args: object, **kwargs: object) -> object:
        raise AssertionError(f"opened {args}")

    monkeypatch.setattr(builtins, "open", forbidden)
    for data, pixels in zip(files, before, strict=True):
        np.testing.assert_array_equal(read_image(data, S).pixels, pixels)


def test_reads_secondary_capture_of_highdicom() -> None:
    highdicom = pytest.importorskip("highdicom")
    values = film()
    capture = highdicom.sc.SCImage(
        pixel_array=values, photometric_interpretation="MONOCHROME2", bits_allocated=16, coordinate_system="PATIENT",
        study_instance_uid="1.2.3", series_instance_uid="1.2.3.4", series_number=1, sop_instance_uid="1.2.3.4.5",
        instance_number=1, manufacturer="none", patient_orientation=("L", "F"),
    )  # fmt: skip
    np.testing.assert_array_equal(greys(encode(capture)), greys(dicom(values, sop_class=CR)))
    assert codes(encode(capture)) == []
