"""Identities of the images that came as DICOM: read only for a structured report, and only what it needs.

pydicom's ``dcmread`` inflates a deflated file whole, however large that is; here the header alone is read, within
bounds, and nothing of it reaches a log or an error.
"""

from __future__ import annotations

import io
import zlib
from collections.abc import Mapping
from typing import TYPE_CHECKING

from starlette.concurrency import run_in_threadpool

from model.images import is_dicom
from service.formats.study import KEYWORDS, SourceImage, Study

if TYPE_CHECKING:
    from pydicom import Dataset

_META_AT = 132  # after the preamble and DICM
_LAST = 0x00200010  # StudyID, the last of the wanted tags
_MOST_INFLATED = 2**20


async def study_of(images: Mapping[str, bytes], *, identified: bool) -> Study:
    """The study of an upload.

    Args:
        images: field name -> file.
        identified: whether to read who the DICOM files are of, without which no structured report can be written.
    """
    if not identified:
        return Study(tuple(images))
    files = [data for data in images.values() if is_dicom(data)]
    sources = await run_in_threadpool(lambda: tuple(source_image(data) for data in files))
    return Study(tuple(images), sources)


def source_image(data: bytes) -> SourceImage:
    """The identity of a DICOM file; nothing is known where its header cannot be read."""
    try:
        return SourceImage.from_dataset(_header(data))
    except Exception:  # pydicom raises many kinds on damaged headers; the drafting pipeline says what is wrong
        return SourceImage()


def _header(data: bytes) -> Dataset:
    from pydicom.filereader import read_dataset
    from pydicom.tag import Tag
    from pydicom.uid import UID, DeflatedExplicitVRLittleEndian, ImplicitVRLittleEndian

    file = io.BytesIO(data)
    file.seek(_META_AT)
    meta = read_dataset(file, False, True, stop_when=lambda tag, vr, length: tag >> 16 != 2)
    syntax = UID(str(meta.get("TransferSyntaxUID") or ImplicitVRLittleEndian).strip())
    if syntax == DeflatedExplicitVRLittleEndian:
        file = io.BytesIO(zlib.decompressobj(-zlib.MAX_WBITS).decompress(data[file.tell() :], _MOST_INFLATED))
    return read_dataset(
        file,
        syntax == ImplicitVRLittleEndian,
        syntax.is_little_endian,
        stop_when=lambda tag, vr, length: tag > _LAST,
        specific_tags=[Tag(keyword) for keyword in ("SpecificCharacterSet", *KEYWORDS.values())],
    )
