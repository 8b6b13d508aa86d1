"""The error of a refused image."""

from __future__ import annotations


class ImageError(ValueError):
    """An image that cannot be read. ``code`` is stable for programs, the message is for people.

    Codes of any image: ``empty``, ``not_an_image``, ``unsupported_format``, ``truncated``,
    ``animated``, ``too_small``, ``too_large``, ``too_complex``. Further codes of DICOM:
    ``unsupported_transfer_syntax``, ``not_a_radiograph``, ``for_processing``, ``no_pixels``,
    ``unsupported_pixels``. The message contains no file name and no free text of the file.
    """

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code
