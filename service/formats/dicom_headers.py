"""Identities of the images that came as DICOM: read only for a structured report, and only what it needs.

The header alone is read, within the bounds of the drafting path's reader, and nothing of it reaches a log or an error.
"""

from __future__ import annotations

from collections.abc import Mapping

from starlette.concurrency import run_in_threadpool

from model.images.dicom.parse import read_elements
from model.images.read import ImageError, is_dicom
from service.formats.dicom_source import KEYWORDS, SourceImage, Study
from service.web.problems import Problem


async def study_of(images: Mapping[str, bytes], *, identified: bool) -> Study:
    """The study of an upload.

    Args:
        images: field name -> file.
        identified: whether to read who the DICOM files are of, without which no structured report can be written.

    Raises:
        Problem: ``truncated``, 422; the header of a file is beyond the bounds of one. Drafting would refuse it, too.
    """
    if not identified:
        return Study(tuple(images))
    files = {field: data for field, data in images.items() if is_dicom(data)}
    return Study(tuple(images), await run_in_threadpool(_sources, files))


def _sources(files: Mapping[str, bytes]) -> tuple[SourceImage, ...]:
    found = []
    for field, data in files.items():
        try:
            found.append(source_image(data))
        except ImageError as error:
            raise Problem(error.code, str(error), field=field) from error
    return tuple(found)


def source_image(data: bytes) -> SourceImage:
    """The identity of a DICOM file; nothing is known where its header is damaged.

    Raises:
        ImageError: ``truncated``; the header is beyond the bounds of one.
    """
    try:
        return SourceImage.from_dataset(read_elements(data, ("SpecificCharacterSet", *KEYWORDS.values())))
    except ImageError:
        raise
    except Exception:  # pydicom raises many kinds on damaged headers; the drafting pipeline says what is wrong
        return SourceImage()
