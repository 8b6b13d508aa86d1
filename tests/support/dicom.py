"""DICOM files for tests, made by pydicom from drawn images."""

from __future__ import annotations

import io
import struct
from typing import Any

import numpy as np
import numpy.typing as npt
import pydicom
import pytest
from PIL import Image
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.encaps import encapsulate
from pydicom.uid import UID, ExplicitVRLittleEndian, generate_uid

from model.images import DEFAULT_LIMITS, ImageError, ImageLimits, read_image
from model.images.dicom.read import read_dicom
from model.types import View

CR = "1.2.840.10008.5.1.4.1.1.1"
DX = "1.2.840.10008.5.1.4.1.1.1.1"
SC = "1.2.840.10008.5.1.4.1.1.7"
ENCODERS = {
    "1.2.840.10008.1.2.5": "pydicom",
    "1.2.840.10008.1.2.4.80": "pyjpegls",
    "1.2.840.10008.1.2.4.81": "pyjpegls",
    "1.2.840.10008.1.2.4.90": "pylibjpeg",
    "1.2.840.10008.1.2.4.91": "pylibjpeg",
}
JPEG_EXTENDED, JPEG_PROCESS_14 = "1.2.840.10008.1.2.4.51", "1.2.840.10008.1.2.4.57"
HTJ2K, HTJ2K_RPCL, HTJ2K_LOSSY = (f"1.2.840.10008.1.2.4.{number}" for number in (201, 202, 203))
JPEG_BASELINE, JPEG_LOSSLESS = "1.2.840.10008.1.2.4.50", "1.2.840.10008.1.2.4.70"

S = 64
ALL_VALUES = np.arange(4096, dtype=np.uint16).reshape(64, 64)  # every 12-bit value once


def codes(data: bytes) -> list[str]:
    """Codes of the warnings about an image."""
    return [warning.code for warning in read_image(data, S).warnings(View.FRONTAL)]


def film(width: int = 96, height: int = 80, bits: int = 12) -> npt.NDArray[Any]:
    """(H, W) values of `bits` bits: a slope from left to right with a bright upper left corner, and a dark bar."""
    most = 2**bits - 1
    values = np.tile(np.linspace(most * 0.05, most * 0.8, width), (height, 1))
    values[: height // 4, : width // 4] = most * 0.98
    values[height // 2 : height // 2 + 5] *= 0.5
    return values.round().astype(np.uint8 if bits <= 8 else np.uint16)


def dataset(
    values: npt.NDArray[Any], *, photometric: str = "MONOCHROME2", stored: int | None = None, sop_class: str = DX,
    syntax: str = ExplicitVRLittleEndian, **tags: Any,
) -> Dataset:  # fmt: skip
    """A DICOM image of `values`, (H, W) or (H, W, 3); further elements by keyword."""
    made = Dataset()
    made.file_meta = FileMetaDataset()
    made.file_meta.TransferSyntaxUID = UID(syntax)
    made.file_meta.MediaStorageSOPClassUID = made.SOPClassUID = UID(sop_class)
    made.file_meta.MediaStorageSOPInstanceUID = made.SOPInstanceUID = generate_uid(entropy_srcs=["film"])
    made.Rows, made.Columns = values.shape[:2]
    made.SamplesPerPixel, made.PhotometricInterpretation = (3 if values.ndim == 3 else 1), photometric
    if values.ndim == 3:
        made.PlanarConfiguration = 0
    made.BitsAllocated = 8 * values.dtype.itemsize
    made.BitsStored = stored or made.BitsAllocated
    made.HighBit, made.PixelRepresentation = made.BitsStored - 1, int(values.dtype.kind == "i")
    made.PixelData = values.astype(values.dtype.newbyteorder(">" if syntax == "1.2.840.10008.1.2.2" else "<")).tobytes()
    made["PixelData"].VR = "OB" if made.BitsAllocated == 8 else "OW"
    for name, value in tags.items():
        setattr(made, name, value)
    return made


def encode(made: Dataset) -> bytes:
    """The file of a data set."""
    out = io.BytesIO()
    pydicom.dcmwrite(out, made, enforce_file_format=True)
    return out.getvalue()


def dicom(values: npt.NDArray[Any], **options: Any) -> bytes:
    """The file of ``dataset``."""
    return encode(dataset(values, **options))


def compressed(made: Dataset, syntax: str, **options: Any) -> bytes:
    """The file of a data set, its pixels compressed by pydicom's encoders."""
    made.compress(UID(syntax), encoding_plugin=ENCODERS[syntax], generate_instance_uid=False, **options)
    return encode(made)


def encapsulated(made: Dataset, syntax: str, frame: bytes) -> bytes:
    """The file of a data set with a compressed frame made elsewhere."""
    made.file_meta.TransferSyntaxUID = UID(syntax)
    made.PixelData = encapsulate([frame])
    made["PixelData"].is_undefined_length = True
    made["PixelData"].VR = "OB"
    return encode(made)


def jpeg(values: npt.NDArray[np.uint8], **options: Any) -> bytes:
    """A baseline JPEG by Pillow."""
    out = io.BytesIO()
    Image.fromarray(values).save(out, "JPEG", quality=95, **options)
    return out.getvalue()


def png(values: npt.NDArray[Any]) -> bytes:
    """A PNG by Pillow."""
    out = io.BytesIO()
    Image.fromarray(values).save(out, "PNG")
    return out.getvalue()


def lut(entries: npt.NDArray[Any], first: int, bits: int) -> Dataset:
    """An item of a lookup table sequence."""
    item = Dataset()
    item.add_new("LUTDescriptor", "SS" if first < 0 else "US", [len(entries) % 2**16, first, bits])
    item.add_new("LUTData", "OW", entries.astype("<u2").tobytes())
    return item


def tiny_elements(data: bytes) -> bytes:
    """A file of explicit VR with half a million private elements of 8 bytes before its first group."""
    start = min(at for tag in (b"\x08\x00\x05\x00CS", b"\x08\x00\x16\x00UI") if (at := data.find(tag)) > 0)
    many = b"".join(struct.pack("<HH2sH", 0x0009, number, b"LO", 0) for number in range(2**16)) * 8
    return data[:start] + many + data[start:]


def greys(data: bytes) -> npt.NDArray[np.float64]:
    """(H, W) greys of a file at full size."""
    image, _ = read_dicom(data, DEFAULT_LIMITS)
    return np.asarray(image, dtype=np.float64)


def refused(data: bytes, limits: ImageLimits = DEFAULT_LIMITS) -> ImageError:
    """The error of a file that must be refused."""
    with pytest.raises(ImageError) as caught:
        read_image(data, 64, limits=limits)
    assert str(caught.value).endswith(".")
    return caught.value
