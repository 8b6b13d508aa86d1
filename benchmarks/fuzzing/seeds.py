"""Image files that the mutations start from: of Pillow, and the DICOM samples of pydicom."""

from __future__ import annotations

import functools
import io
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pydicom
from PIL import Image
from pydicom.data import get_testdata_files
from pydicom.uid import DigitalXRayImageStorageForPresentation

PATIENT = "Fuzzed^Patient"  # in DICOM samples; must not appear in a log
LARGEST = 50_000  # bytes of a sample
_EXIF = Image.Exif()
_EXIF[0x0112], _EXIF[0x010E] = 6, "a" * 500  # Orientation, ImageDescription
_PILLOW: dict[str, tuple[str, str, dict[str, Any]]] = {
    "png 1-bit": ("1", "PNG", {}),
    "png grey": ("L", "PNG", {}),
    "png palette": ("P", "PNG", {"transparency": bytes(range(200))}),
    "png rgb": ("RGB", "PNG", {}),
    "png rgba": ("RGBA", "PNG", {}),
    "png grey with alpha": ("LA", "PNG", {}),
    "png exif": ("L", "PNG", {"exif": _EXIF}),
    "png animated": ("L", "PNG", {"save_all": True}),
    "jpeg": ("L", "JPEG", {"quality": 80}),
    "jpeg rgb progressive": ("RGB", "JPEG", {"progressive": True, "optimize": True}),
    "jpeg cmyk": ("CMYK", "JPEG", {}),
    "jpeg restarts": ("RGB", "JPEG", {"restart_marker_rows": 1, "subsampling": 2}),
    "jpeg exif": ("L", "JPEG", {"exif": _EXIF}),
    "mpo": ("L", "MPO", {"save_all": True}),
    "gif": ("P", "GIF", {}),
    "gif animated": ("L", "GIF", {"save_all": True}),
    "tiff": ("L", "TIFF", {}),
    "webp": ("RGB", "WEBP", {}),
    "bmp": ("L", "BMP", {}),
}


def scene(number: int, top: int = 255) -> npt.NDArray[np.float64]:
    """(H, W) in [0, top]: a gradient with a bright disc and some noise, 32 to 160 pixels a side."""
    rng = np.random.default_rng([number, 11])
    height, width = (int(side) for side in rng.integers(32, 160, 2))
    y, x = np.mgrid[0:height, 0:width]
    disc = (x - width * rng.random()) ** 2 + (y - height * rng.random()) ** 2 < (0.2 * width) ** 2
    grey = np.where(disc, 0.9, 0.1 + 0.5 * y / height) + rng.normal(0, 0.02, (height, width))
    return np.clip(grey, 0, 1) * top


def png(number: int) -> bytes:
    """An 8-bit PNG that the service accepts."""
    return _saved(Image.fromarray(scene(number).astype(np.uint8)), "PNG", {})


@functools.cache
def seeds() -> dict[str, bytes]:
    """All files by name; its first word is the format. DICOM samples with pixels become radiographs."""
    found = {"png 16-bit": _saved(Image.fromarray(scene(0, 4095).astype(np.uint16)), "PNG", {})}
    for number, (name, (mode, kind, options)) in enumerate(_PILLOW.items()):
        picture = Image.fromarray(scene(number).astype(np.uint8))
        if "save_all" in options:
            options = {**options, "append_images": [picture.transpose(Image.Transpose.ROTATE_180)]}
        found[name] = _saved(picture.convert(mode), kind, options)
    for path in sorted(map(Path, get_testdata_files("*.dcm"))):
        data = path.read_bytes()
        if len(data) <= LARGEST:
            found[f"dicom {path.stem}"] = _as_radiograph(data)
    return found


def _as_radiograph(data: bytes) -> bytes:
    """The sample with the modality and class of a radiograph, because the service decodes pixels of no other."""
    try:
        dataset = pydicom.dcmread(io.BytesIO(data))
        if "PixelData" not in dataset:
            return data
        dataset.PatientName, dataset.Modality = PATIENT, "DX"
        dataset.SOPClassUID = DigitalXRayImageStorageForPresentation
        dataset.file_meta.MediaStorageSOPClassUID = dataset.SOPClassUID
        file = io.BytesIO()
        dataset.save_as(file, enforce_file_format=True)
        return file.getvalue()
    except Exception:  # some samples are broken on purpose
        return data


def _saved(picture: Image.Image, kind: str, options: dict[str, Any]) -> bytes:
    file = io.BytesIO()
    picture.save(file, kind, **options)
    return file.getvalue()
