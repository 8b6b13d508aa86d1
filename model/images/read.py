"""Image bytes to pixels, for training and serving.

``read_image`` reads PNG, JPEG and DICOM into one 8-bit grey square. Values of more than 8 bits
without a DICOM window are scaled by the minimum and maximum of the image, not by 65,535: 12-bit
data in 16-bit files would become black. The image is not cropped, because a crop could remove
costophrenic angles.
"""

from __future__ import annotations

import io
import warnings
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageOps

from model.images.dicom.header import DicomMetadata
from model.images.dicom.read import is_dicom, luma, read_dicom
from model.images.errors import ImageError
from model.images.limits import DEFAULT_LIMITS, ImageLimits, check_size, too_large
from model.images.structure import JPEG_MAGIC, PNG_MAGIC, check_jpeg, check_png
from model.types import DraftWarning, Pixels, Resample, StudyView, View

EXTENSIONS = (".png", ".jpg", ".jpeg", ".dcm")  # of image files by id, in order of preference

_FORMATS = ("PNG", "JPEG")
_OTHER_FORMATS = {
    b"GIF8": "GIF", b"BM": "BMP", b"II*\0": "TIFF", b"MM\0*": "TIFF", b"%PDF": "PDF", b"RIFF": "WebP",
    b"\xff\x4f\xff\x51": "JPEG 2000", b"\0\0\0\x0cjP  ": "JPEG 2000", b"\xff\x0a": "JPEG XL",
    b"\0\0\0\x0cJXL ": "JPEG XL", b"PK\3\4": "ZIP", b"\x1f\x8b": "gzip",
    b"iVBORw0KGgo": "Base64", b"/9j/": "Base64", b"data:": "Data URL",  # PNG, JPEG
}  # fmt: skip
_THUMBNAIL_QUALITY = 85
_BAND = 256  # rows
warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)  # ImageLimits has a stricter bound


@dataclass(frozen=True)
class Radiograph:
    """One decoded image: ``pixels`` (S, S) or (H, W) uint8, 0 black to 255 white; ``metadata`` for DICOM."""

    pixels: Pixels
    metadata: DicomMetadata | None = None

    @property
    def view(self) -> View | None:
        """The view in the DICOM header, or None."""
        return self.metadata.view if self.metadata else None

    def warnings(self, sent_as: View) -> tuple[DraftWarning, ...]:
        """Warnings about the image, which was sent as ``sent_as``."""
        return tuple(self.metadata.warnings(sent_as)) if self.metadata else ()

    def as_view(self, sent_as: View) -> StudyView:
        """The input of the drafter, for an image that was sent as ``sent_as``."""
        return StudyView(self.pixels, sent_as, self.warnings(sent_as), self.view)


def load_pixels(
    data: bytes, size: int, *, limits: ImageLimits = DEFAULT_LIMITS, resample: Resample = "bicubic"
) -> Pixels:
    """The pixels of ``read_image`` alone; same arguments and errors.

    Returns:
        (S, S) uint8, 0 black to 255 white.
    """
    return read_image(data, size, limits=limits, resample=resample).pixels


def read_image(
    data: bytes, size: int, *, limits: ImageLimits = DEFAULT_LIMITS, resample: Resample = "bicubic",
    keep_aspect: bool = False,
) -> Radiograph:  # fmt: skip
    """Decode one radiograph and resize it to a square.

    Args:
        data: a DICOM file, or PNG or JPEG of any colour mode and EXIF orientation.
        size: S, side of the square in pixels.
        limits: bounds on the size of the image.
        resample: filter of the resize; both are antialiased.
        keep_aspect: no square; the shorter side becomes ``size``, as by torchvision's ``Resize(size)``.

    Raises:
        ImageError: the bytes are not such an image; ``code`` gives the reason.
    """
    image, metadata = _decoded(data, limits)
    if keep_aspect:
        short = min(image.size)
        width, height = (int(size * side / short) for side in image.size)
        return Radiograph(_resized(image, (width, height), Image.Resampling[resample.upper()]), metadata)
    return Radiograph(_resize_to_square(image, size, resample), metadata)


def read_pixels(
    picture: Image.Image | npt.NDArray[Any], size: int, *, limits: ImageLimits = DEFAULT_LIMITS,
    resample: Resample = "bicubic",
) -> Radiograph:  # fmt: skip
    """The radiograph of an image in memory, with the pixels that ``read_image`` gives for its PNG file.

    Args:
        picture: a PIL image; or an array (H, W), (H, W, 3) RGB or (H, W, 4) RGBA. uint8 is taken as
            it is, 0 black to 255 white; other numbers, of (H, W) only, are scaled by minimum and
            maximum.
        size: S, side of the square in pixels.
        limits: bounds on the size of the image.
        resample: filter of the resize.

    Raises:
        ImageError: the image is too small or too large, or its shape or type is not one of these.
    """
    image = picture if isinstance(picture, Image.Image) else _from_array(picture, limits)
    check_size(image.size, limits)
    if image.format != "MPO" and (frames := getattr(image, "n_frames", 1)) > 1:
        raise _animated(frames)
    try:
        grey = _to_grey(ImageOps.exif_transpose(image))
    except OSError as error:  # Pillow reads the pixels of an opened file late
        raise _damaged() from error
    return Radiograph(_resize_to_square(grey, size, resample))


def _from_array(array: npt.NDArray[Any], limits: ImageLimits) -> Image.Image:
    """An array as a PIL image of mode ``L``, ``RGB``, ``RGBA`` or ``F``."""
    kind = f"{array.shape} {array.dtype}"
    is_colour = array.ndim == 3 and array.shape[2] in (3, 4)
    if not is_colour and array.ndim != 2:
        raise ImageError("unsupported_pixels", f"The array is {kind}. Give (H, W), (H, W, 3) or (H, W, 4).")
    check_size((array.shape[1], array.shape[0]), limits)
    if array.dtype == np.uint8:
        return Image.fromarray(np.ascontiguousarray(array))
    if is_colour or array.dtype.kind not in "uif":
        raise ImageError("unsupported_pixels", f"The array is {kind}. Give colours as uint8, grey as numbers.")
    values = array.astype(np.float32)
    if not np.isfinite(values).all():
        raise ImageError("unsupported_pixels", "The array has values that are not finite. Replace them.")
    return Image.fromarray(values)


def thumbnail(data: bytes, longest: int, *, limits: ImageLimits = DEFAULT_LIMITS) -> bytes:
    """A small grey JPEG of a radiograph, in its aspect ratio and without metadata.

    Args:
        data: as for ``read_image``.
        longest: maximum of the longer side in pixels; smaller images are not enlarged.
        limits: bounds on the size of the image.

    Raises:
        ImageError: as ``read_image``.
    """
    image, _ = _decoded(data, limits)
    scale = min(longest / max(image.size), 1.0)
    width, height = (max(round(side * scale), 1) for side in image.size)
    pixels = _resized(image, (width, height), Image.Resampling.BICUBIC)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "JPEG", quality=_THUMBNAIL_QUALITY)
    return file.getvalue()


def _decoded(data: bytes, limits: ImageLimits) -> tuple[Image.Image, DicomMetadata | None]:
    """The image at full size, mode ``L`` or ``F``, and the metadata of a DICOM file."""
    if not data:
        raise ImageError("empty", "The image is empty (0 bytes). Send a PNG, JPEG or DICOM file.")
    return read_dicom(data, limits) if is_dicom(data) else (_read_raster(data, limits), None)


def _read_raster(data: bytes, limits: ImageLimits) -> Image.Image:
    """Decode PNG or JPEG to mode ``L`` (8-bit) or ``F`` (wider, scaled to 0..255)."""
    exif = b""
    if data.startswith(PNG_MAGIC):
        exif = check_png(data, limits)
    elif data.startswith(JPEG_MAGIC):
        frame = check_jpeg(data, limits)
        if frame is not None and frame.precision != 8:
            raise _unsupported(f"JPEG files of {frame.precision} bits, unlike those of 8,")
        if frame is None and check_jpeg(data, limits, jpeg_ls=True):
            raise _unsupported("JPEG-LS files")
    else:
        raise _not_an_image(data)
    try:
        image: Image.Image = Image.open(io.BytesIO(data), formats=_FORMATS)
    except Image.DecompressionBombError as error:
        raise too_large(limits) from error
    except MemoryError:
        raise
    except Exception as error:  # decoders of untrusted bytes raise many types, such as struct.error
        raise _not_an_image(data) from error
    with image:
        check_size(image.size, limits)
        try:
            frames = getattr(image, "n_frames", 1)
            # A camera's JPEG (MPO) may have a second picture, such as a depth map; the first is the photograph.
            if image.format != "MPO" and frames > 1:
                raise _animated(frames)
            if _is_wide_png(data):
                image = _read_wide_png(data, image, exif)
            image.load()
            ImageOps.exif_transpose(image, in_place=True)
            return _to_grey(image)
        except (ImageError, MemoryError):
            raise
        except Exception as error:
            raise _damaged() from error


def _animated(frames: int) -> ImageError:
    return ImageError("animated", f"The image has {frames} frames. Send a single still image.")


def _damaged() -> ImageError:
    return ImageError("truncated", "The image file is cut short or damaged. Export it again and resend it.")


def _is_wide_png(data: bytes) -> bool:
    """Whether a PNG has 16 bits per sample and colour or alpha. Pillow would reduce it to 8 bits."""
    return data.startswith(PNG_MAGIC) and data[12:16] == b"IHDR" and data[24] == 16 and data[25] in (2, 4, 6)


def _read_wide_png(data: bytes, header: Image.Image, exif: bytes) -> Image.Image:
    """A PNG of ``_is_wide_png`` as grey, mode ``F``, with its metadata; transparent pixels become black."""
    import imagecodecs

    values: npt.NDArray[np.uint16] = imagecodecs.png_decode(data)  # (H, W, C)
    transparent = header.info.get("transparency")  # one colour
    grey = np.empty(values.shape[:2], np.float32)
    for top in range(0, len(values), _BAND):
        band, out = values[top : top + _BAND], grey[top : top + _BAND]
        out[:] = luma(band[..., :3], 65535) if band.shape[2] > 2 else band[..., 0]
        if band.shape[2] in (2, 4):
            out *= band[..., -1] / np.float32(65535)
        elif transparent is not None:
            out[(band == transparent).all(axis=2)] = 0
    image = Image.fromarray(grey)
    image.info = header.info | ({"exif": b"Exif\0\0" + exif} if exif else {})
    return image


def _not_an_image(data: bytes) -> ImageError:
    if data.startswith((PNG_MAGIC, JPEG_MAGIC)):
        return _damaged()
    kind = next((kind for magic, kind in _OTHER_FORMATS.items() if data.startswith(magic)), "")
    if data[4:8] == b"ftyp":
        kind = "AVIF, HEIC or video"
    if kind:
        return _unsupported(f"{kind} files")
    return ImageError("not_an_image", f"These {len(data):,} bytes are not an image. Send a PNG, JPEG or DICOM file.")


def _unsupported(what: str) -> ImageError:
    return ImageError("unsupported_format", f"{what} are not supported. Send a PNG, JPEG or DICOM file.")


def _to_grey(image: Image.Image) -> Image.Image:
    """Any Pillow mode to ``L``, or ``F`` scaled to 0..255 for more than 8 bits."""
    if image.mode.startswith("I") or image.mode == "F":
        return _min_max(np.array(image, dtype=np.float32))
    if image.mode in ("1", "L", "RGB") and "transparency" not in image.info:
        return image.convert("L")
    grey = Image.new("L", image.size)
    for top in range(0, image.height, _BAND):  # by bands, because RGBA has 4 bytes per pixel
        band = image.crop((0, top, image.width, min(top + _BAND, image.height)))
        grey.paste(_band_to_grey(band), (0, top))
    return grey


def _band_to_grey(image: Image.Image) -> Image.Image:
    """Colours, palettes and transparency to ``L``; transparent pixels become black."""
    if image.mode in ("P", "L", "LA", "La", "RGB", "RGBA", "RGBa", "PA"):
        rgba = image.convert("RGBA")  # keeps the transparency of a palette
        image = Image.alpha_composite(Image.new("RGBA", rgba.size, (0, 0, 0, 255)), rgba)
    elif image.mode == "CMYK":
        image = image.convert("RGB")
    return image.convert("L")


def _min_max(values: npt.NDArray[np.float32]) -> Image.Image:
    """Scale grey values to 0..255, in place; a constant image becomes black."""
    low, high = float(values.min()), float(values.max())
    values -= low
    values *= np.float32(255.0 / (high - low) if high > low else 0.0)
    return Image.fromarray(values)


def _resize_to_square(image: Image.Image, size: int, resample: Resample) -> Pixels:
    """Resize with antialiasing to ``(size, size)``, ignoring the aspect ratio.

    Bilinear is bit-equal to torchvision's ``Resize((size, size))`` of a PIL image; bicubic may
    shrink in two steps.
    """
    return _resized(image, (size, size), Image.Resampling[resample.upper()])


def _resized(image: Image.Image, size: tuple[int, int], resample: Image.Resampling) -> Pixels:
    """(height, width) uint8 of an image reduced to (width, height)."""
    gap = 3.0 if image.mode == "L" and resample is Image.Resampling.BICUBIC else None
    resized = image.resize(size, resample, reducing_gap=gap)
    return np.clip(np.rint(np.asarray(resized, dtype=np.float32)), 0, 255).astype(np.uint8)
