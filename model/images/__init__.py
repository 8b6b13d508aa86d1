"""Image bytes to grey pixels: the only decoder and preprocessor."""

from model.images.dicom.read import is_dicom, view_in_header
from model.images.errors import ImageError
from model.images.limits import DEFAULT_LIMITS, ImageLimits
from model.images.read import EXTENSIONS, Radiograph, load_pixels, read_image, read_pixels, thumbnail

__all__ = [
    "DEFAULT_LIMITS",
    "EXTENSIONS",
    "ImageError",
    "ImageLimits",
    "Radiograph",
    "is_dicom",
    "load_pixels",
    "read_image",
    "read_pixels",
    "thumbnail",
    "view_in_header",
]
