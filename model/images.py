"""Bytes to pixels: the only image decoder and preprocessor, shared by training and serving.

``load_pixels`` reads PNG, JPEG and (where allowed) DICOM into one 8-bit grey square. Grey values of more than
8 bits are spread from the image's own minimum to its own maximum, never divided by 65,535 (12-bit data in 16-bit
files would come out black). The image is squashed to the square, not cropped: a crop would lose costophrenic angles.
"""

from __future__ import annotations

import io
import warnings
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageOps, UnidentifiedImageError

from model.views import View

Pixels = npt.NDArray[np.uint8]  # (S, S), 0 black .. 255 white

Resample = Literal["bicubic", "bilinear"]

_FORMATS = ("PNG", "JPEG")
_DICOM_MAGIC = b"DICM"


class ImageError(ValueError):
    """An image that cannot be read. ``code`` is stable for programs, the message is for people.

    Codes: ``empty``, ``not_an_image``, ``unsupported_format``, ``truncated``, ``animated``, ``too_small``,
    ``too_large``. The message never holds a file name.
    """

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code


@dataclass(frozen=True)
class ImageLimits:
    """Bounds checked on the header, before any pixel is decoded.

    Attributes:
        min_side: shortest side accepted, in pixels.
        max_pixels: width x height accepted. 64 million covers a 4,300 x 3,500 detector four times over.
    """

    min_side: int = 32
    max_pixels: int = 64_000_000


DEFAULT_LIMITS = ImageLimits()


def load_pixels(
    data: bytes,
    size: int,
    *,
    limits: ImageLimits = DEFAULT_LIMITS,
    allow_dicom: bool = False,
    resample: Resample = "bicubic",
) -> Pixels:
    """Decode one radiograph and squash it to a square.

    Args:
        data: the file's content: PNG or JPEG of any colour mode and EXIF orientation; DICOM if ``allow_dicom``.
        size: S, side of the square in pixels.
        limits: bounds on the size of the image.
        allow_dicom: read DICOM too (needs pydicom).
        resample: filter of the squash; both are antialiased.

    Returns:
        (S, S) uint8, 0 black to 255 white.

    Raises:
        ImageError: the bytes are not such an image; ``code`` says why.
    """
    if not data:
        raise ImageError("empty", "The image is empty (0 bytes). Send a PNG or JPEG file.")
    if is_dicom(data):
        if not allow_dicom:
            raise ImageError(
                "unsupported_format", "DICOM is not read here. Export the image as PNG or JPEG and send that."
            )
        return _squash(_read_dicom(data, limits), size, resample)
    return _squash(_read_raster(data, limits), size, resample)


def is_dicom(data: bytes) -> bool:
    """Whether the bytes start with a DICOM preamble."""
    return data[128:132] == _DICOM_MAGIC


def _read_raster(data: bytes, limits: ImageLimits) -> Image.Image:
    """Decode PNG or JPEG to mode ``L`` (8-bit) or ``F`` (wider grey, scaled to 0..255)."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # our own limit is checked below
        try:
            image = Image.open(io.BytesIO(data), formats=_FORMATS)
        except Image.DecompressionBombError as error:
            raise ImageError("too_large", _too_large(None, limits)) from error
        except (UnidentifiedImageError, OSError, ValueError, SyntaxError) as error:
            raise _not_an_image(data) from error
        with image:
            _check_size(image.size, limits)
            # A camera's JPEG may carry a second picture (a depth or gain map); its first one is the photograph.
            if image.format != "MPO" and getattr(image, "n_frames", 1) > 1:
                raise ImageError(
                    "animated",
                    f"The image has {getattr(image, 'n_frames', 1)} frames. Send a single still image.",
                )
            try:
                image.load()
                return _to_grey(ImageOps.exif_transpose(image))
            except (OSError, ValueError, SyntaxError, EOFError) as error:
                raise ImageError(
                    "truncated", "The image file is cut short or damaged. Export it again and resend it."
                ) from error


def _not_an_image(data: bytes) -> ImageError:
    if data[:8] == b"\x89PNG\r\n\x1a\n" or data[:3] == b"\xff\xd8\xff":
        return ImageError("truncated", "The image file is cut short or damaged. Export it again and resend it.")
    kinds = {b"GIF8": "GIF", b"BM": "BMP", b"II*\0": "TIFF", b"MM\0*": "TIFF", b"%PDF": "PDF", b"RIFF": "WebP"}
    for magic, kind in kinds.items():
        if data.startswith(magic):
            return ImageError("unsupported_format", f"{kind} files are not read. Send a PNG or JPEG file.")
    return ImageError("not_an_image", f"These {len(data):,} bytes are not an image. Send a PNG or JPEG file.")


def _check_size(size: tuple[int, int], limits: ImageLimits) -> None:
    width, height = size
    if width * height > limits.max_pixels:
        raise ImageError("too_large", _too_large(size, limits))
    if min(width, height) < limits.min_side:
        raise ImageError(
            "too_small",
            f"The image is {width} x {height} pixels; at least {limits.min_side} on each side are needed. "
            "Send the radiograph itself, not an icon or thumbnail.",
        )


def _too_large(size: tuple[int, int] | None, limits: ImageLimits) -> str:
    what = f"is {size[0]:,} x {size[1]:,} pixels" if size else "has too many pixels"
    return f"The image {what}; at most {limits.max_pixels:,} pixels are read. Send it at a lower resolution."


def _to_grey(image: Image.Image) -> Image.Image:
    """Any Pillow mode to ``L``, or ``F`` scaled to 0..255 for grey of more than 8 bits."""
    if image.mode.startswith("I") or image.mode == "F":
        return _min_max(np.asarray(image, dtype=np.float32))
    if image.mode == "P" or (
        image.mode in ("L", "LA", "RGB") and "transparency" in image.info
    ):  # a palette may hold transparency; RGBA keeps both
        image = image.convert("RGBA")
    if image.mode in ("LA", "La", "RGBA", "RGBa", "PA"):  # transparent means nothing was exposed there: black
        rgba = image.convert("RGBA")
        black = Image.new("RGBA", rgba.size, (0, 0, 0, 255))
        image = Image.alpha_composite(black, rgba)
    if image.mode == "CMYK":
        image = image.convert("RGB")
    return image.convert("L")


def _min_max(values: npt.NDArray[np.float32]) -> Image.Image:
    """Spread grey values over 0..255; a constant image becomes black."""
    low, high = float(values.min()), float(values.max())
    scale = 255.0 / (high - low) if high > low else 0.0
    return Image.fromarray((values - low) * np.float32(scale))


def _squash(image: Image.Image, size: int, resample: Resample) -> Pixels:
    """Resize with antialiasing to ``(size, size)``, whatever the aspect ratio.

    Bilinear is torchvision's ``Resize((size, size))`` of a PIL image to the bit; bicubic may shrink in two steps.
    """
    if resample == "bilinear":
        resized = image.resize((size, size), Image.Resampling.BILINEAR)
    else:
        resized = image.resize((size, size), Image.Resampling.BICUBIC, reducing_gap=3.0 if image.mode == "L" else None)
    return np.clip(np.rint(np.asarray(resized, dtype=np.float32)), 0, 255).astype(np.uint8)


# --- DICOM ------------------------------------------------------------------------------------------------------


def _read_dicom(data: bytes, limits: ImageLimits) -> Image.Image:
    """Modality LUT, then VOI LUT or window, then MONOCHROME1 inversion last."""
    dataset = _dicom_dataset(data)
    _check_size((int(dataset.get("Columns", 0)), int(dataset.get("Rows", 0))), limits)
    frames = int(dataset.get("NumberOfFrames", 1) or 1)
    if frames > 1:
        raise ImageError("animated", f"The DICOM object has {frames} frames. Send a single image.")
    from pydicom.pixels.processing import apply_modality_lut, apply_voi_lut

    try:
        values = apply_voi_lut(apply_modality_lut(dataset.pixel_array, dataset), dataset, index=0)
    except Exception as error:  # pydicom and its codecs raise many kinds; all mean the pixels cannot be read
        raise ImageError("truncated", f"The DICOM pixel data cannot be decoded: {type(error).__name__}.") from error
    grey = np.asarray(values, dtype=np.float32)
    if grey.ndim == 3:
        grey = grey.mean(axis=-1)
    if str(dataset.get("PhotometricInterpretation", "")) == "MONOCHROME1":
        grey = grey.max() - grey
    return _min_max(grey)


def _dicom_dataset(data: bytes, *, stop_before_pixels: bool = False):  # type: ignore[no-untyped-def]
    try:
        import pydicom
    except ImportError as error:
        raise ImageError("unsupported_format", "Reading DICOM needs pydicom: pip install pydicom.") from error
    try:
        return pydicom.dcmread(io.BytesIO(data), stop_before_pixels=stop_before_pixels)
    except Exception as error:
        raise ImageError("truncated", f"The DICOM file cannot be read: {type(error).__name__}.") from error


def dicom_view(data: bytes) -> View | None:
    """View of a DICOM file from ViewPosition (0018,5101): PA/AP frontal, LL/RL/LATERAL lateral, else None."""
    if not is_dicom(data):
        return None
    position = str(_dicom_dataset(data, stop_before_pixels=True).get("ViewPosition", "")).strip().upper()
    if position in {"PA", "AP"}:
        return View.FRONTAL
    if position in {"LL", "RL", "LAT", "LATERAL"}:
        return View.LATERAL
    return None
