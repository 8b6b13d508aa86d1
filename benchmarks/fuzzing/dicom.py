"""DICOM files of drawn images, right and wrong ones. A service that does not read DICOM must say so, and no more."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
import pydicom
from PIL import Image
from pydicom.dataset import FileDataset, FileMetaDataset
from pydicom.encaps import encapsulate
from pydicom.uid import ExplicitVRLittleEndian, ImplicitVRLittleEndian, JPEGBaseline8Bit, RLELossless

_CLASS = "1.2.840.10008.5.1.4.1.1.1.1"  # Digital X-Ray Image Storage - For Presentation
_NUMBERS = (0, 1, 2, 7, 8, 12, 16, 31, 32, 33, 2000, 65_535)


def make(rng: np.random.Generator) -> bytes:
    """A right file: 8, 12 or 16 bits, either polarity, with a window or none, plain, RLE or JPEG."""
    syntax = (ExplicitVRLittleEndian, ImplicitVRLittleEndian, RLELossless, JPEGBaseline8Bit)[int(rng.integers(4))]
    bits = 8 if syntax == JPEGBaseline8Bit else int(rng.choice([8, 12, 16]))
    side = int(rng.integers(32, 120))
    pixels = rng.integers(0, 2**bits, (side, side + 3)).astype(np.uint8 if bits == 8 else np.uint16)
    dataset = _dataset(pixels, bits, syntax, rng)
    if syntax == JPEGBaseline8Bit:
        file = io.BytesIO()
        Image.fromarray(pixels).save(file, "JPEG")
        dataset.PixelData = encapsulate([file.getvalue()])
        dataset["PixelData"].VR = "OB"
        dataset["PixelData"].is_undefined_length = True
    else:
        dataset.PixelData = pixels.tobytes() + b"\0" * (pixels.nbytes % 2)
        dataset["PixelData"].VR = "OW"
        if syntax == RLELossless:
            dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
            dataset.compress(RLELossless, generate_instance_uid=False)
    return _written(dataset)


def _dataset(pixels: np.ndarray[Any, Any], bits: int, syntax: str, rng: np.random.Generator) -> FileDataset:
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID = pydicom.uid.UID(_CLASS)
    meta.MediaStorageSOPInstanceUID = pydicom.uid.UID("1.2.3.4")
    meta.TransferSyntaxUID = pydicom.uid.UID(syntax)
    dataset = FileDataset("", {}, file_meta=meta, preamble=bytes(128))
    dataset.SOPClassUID, dataset.SOPInstanceUID, dataset.Modality = _CLASS, "1.2.3.4", "DX"
    dataset.PatientName, dataset.ViewPosition = "Phantom^Drawn", ("PA", "AP", "LL", "LATERAL", "")[int(rng.integers(5))]
    dataset.Rows, dataset.Columns = pixels.shape
    dataset.SamplesPerPixel, dataset.PixelRepresentation = 1, 0
    dataset.PhotometricInterpretation = ("MONOCHROME1", "MONOCHROME2")[int(rng.integers(2))]
    dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit = 8 if bits == 8 else 16, bits, bits - 1
    if rng.random() < 0.5:
        dataset.WindowCenter, dataset.WindowWidth = [str(2 ** (bits - 1))] * 2, [str(2**bits)] * 2
    if rng.random() < 0.3:
        dataset.RescaleSlope, dataset.RescaleIntercept = "2", "-5"
    return dataset


def _written(dataset: FileDataset) -> bytes:
    file = io.BytesIO()
    dataset.save_as(file, enforce_file_format=True)
    return file.getvalue()


def _number(data: bytes, rng: np.random.Generator) -> bytes:
    """Another size, depth, number of samples or frames than the pixels have."""
    names = ("Rows", "Columns", "BitsAllocated", "BitsStored", "HighBit", "SamplesPerPixel", "PixelRepresentation",
             "PlanarConfiguration", "NumberOfFrames")  # fmt: skip
    return _changed(data, names[int(rng.integers(len(names)))], int(rng.choice(_NUMBERS)))


def _text(data: bytes, rng: np.random.Generator) -> bytes:
    """A photometric interpretation, window or slope that makes no sense."""
    values = {
        "PhotometricInterpretation": ("", "RGB", "YBR_FULL_422", "PALETTE COLOR", "MONOCHROME3"),
        "WindowWidth": ("0", "-1", "1e400", "nan", "\\"), "WindowCenter": ("", "inf", "1e309"),
        "RescaleSlope": ("0", "nan", "1e308"), "VOILUTFunction": ("SIGMOID", "LINEAR_EXACT", "x"),
        "SpecificCharacterSet": ("ISO_IR 192", "nonsense", "\\ISO 2022 IR 87"),
    }  # fmt: skip
    name = sorted(values)[int(rng.integers(len(values)))]
    return _changed(data, name, values[name][int(rng.integers(len(values[name])))])


def _missing(data: bytes, rng: np.random.Generator) -> bytes:
    """One of the elements that decoding needs is left out."""
    names = ("Rows", "Columns", "BitsAllocated", "PixelData", "PhotometricInterpretation", "SamplesPerPixel")
    return _changed(data, names[int(rng.integers(len(names)))], None)


def _nested(data: bytes, rng: np.random.Generator) -> bytes:
    """Sequences in sequences, deeper than any reader wants to follow by recursion."""
    depth = int(rng.choice([10, 300, 2000]))
    opened = b"\x40\0\x75\xa3SQ\0\0\xff\xff\xff\xff\xfe\xff\0\xe0\xff\xff\xff\xff"  # explicit VR, undefined lengths
    place = data.find(b"\x08\0\x16\0")
    return data[:place] + opened * depth + data[place:]


def _changed(data: bytes, name: str, value: object) -> bytes:
    try:
        dataset = pydicom.dcmread(io.BytesIO(data))
        if value is None:
            del dataset[name]
        else:
            setattr(dataset, name, value)
        return _written(dataset)
    except Exception:  # an earlier mutation, or pydicom refuses to write this one: the file stays as it was
        return data


MUTATIONS = {"number": _number, "text": _text, "element missing": _missing, "nested sequences": _nested}
