"""Bytes of a DICOM file to its few elements that matter, with bounds on memory and work; nothing is decoded here.

pydicom parses, but out of a reader that counts: a file of millions of tiny elements, of sequences nested without end or
of compressed nothing costs no more than an honest one. Elements that nobody asks for are skipped, names among them.
"""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from pydicom import config
from pydicom.datadict import keyword_for_tag
from pydicom.dataset import Dataset
from pydicom.filereader import read_dataset
from pydicom.tag import BaseTag, Tag
from pydicom.uid import (
    UID,
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
)

from model.images.errors import ImageError

config.settings.reading_validation_mode = config.IGNORE  # its warnings would quote what may be a name

PREAMBLE, MAGIC = 128, b"DICM"
_UNDEFINED = 0xFFFFFFFF
_PIXEL_DATA = 0x7FE00010
_PIXEL_TAGS = {0x7FE00008: "FloatPixelData", 0x7FE00009: "DoubleFloatPixelData", _PIXEL_DATA: "PixelData"}

_MOST_READS = 50_000  # a header takes hundreds; each element one to three
_MOST_VALUE = 8 * 2**20  # bytes of a value in a header
_MOST_INFLATED = 16 * 2**20  # bytes of a deflated header
_MOST_INFLATED_EARLY = 2**20  # bytes of one in which only its first groups are looked at
_SLACK = 64 * 1024  # bytes of padding that may follow the pixels

_SEQUENCES = ("ModalityLUTSequence", "VOILUTSequence", "ViewCodeSequence", "AnatomicRegionSequence")
_PALETTES = tuple(
    f"{segmented}{colour}PaletteColorLookupTableData"
    for segmented in ("", "Segmented")
    for colour in ("Red", "Green", "Blue")
)
_PLAIN = (
    *("SOPClassUID", "Modality", "BodyPartExamined", "ViewPosition", "PatientOrientation", "PresentationIntentType"),
    *("SamplesPerPixel", "PhotometricInterpretation", "PlanarConfiguration", "NumberOfFrames", "Rows", "Columns"),
    *("BitsAllocated", "BitsStored", "HighBit", "PixelRepresentation", "PixelPaddingValue", "PixelPaddingRangeLimit"),
    *("RescaleSlope", "RescaleIntercept", "WindowCenter", "WindowWidth", "VOILUTFunction", "PresentationLUTShape"),
    *(f"{colour}PaletteColorLookupTableDescriptor" for colour in ("Red", "Green", "Blue")),
)
_META = ("TransferSyntaxUID", "MediaStorageSOPClassUID")
_HEADER = (*_PLAIN, *_PALETTES, *_SEQUENCES)
_MOST_BYTES: dict[int, int] = {
    **{int(Tag(name)): 1024 for name in ("SpecificCharacterSet", *_META, *_PLAIN)},
    **{int(Tag(name)): 2**18 for name in _PALETTES},
    **{int(Tag(name)): 2**21 for name in _SEQUENCES},
}


@dataclass(frozen=True)
class PixelElement:
    """The bytes of PixelData: fragments with their item headers where ``encapsulated``."""

    value: bytes
    vr: str
    encapsulated: bool


class DicomFile:
    """A DICOM file in memory: its header at once, its pixels when asked for.

    Attributes:
        syntax: transfer syntax.
        header: the wanted elements before the pixels.
        pixel_keyword: PixelData or one of its kin; None where there is none.
        cut_short: whether the header ends in the middle of an element.
    """

    def __init__(self, data: bytes) -> None:
        """Read the header.

        Raises:
            ImageError: ``truncated``; other exceptions are pydicom's and mean the same.
        """
        opened = _ParsedPreamble(data, _MOST_INFLATED)
        self.syntax, self._body, self._inflater = opened.syntax, opened.body, opened.inflater
        reader = opened.reader
        self.header = _read(reader, self.syntax, _HEADER, lambda tag: tag in _PIXEL_TAGS)
        self._pixels_at = reader.tell()
        if "SOPClassUID" not in self.header and opened.meta.get("MediaStorageSOPClassUID"):
            self.header.SOPClassUID = str(opened.meta.MediaStorageSOPClassUID)
        self.pixel_keyword = _PIXEL_TAGS.get(self._tag_at(self._pixels_at))
        self.cut_short = self.pixel_keyword is None and (reader.short or reader.tell() != len(self._body))

    @property
    def little_endian(self) -> bool:
        """Byte order."""
        return _little_endian(self.syntax)

    def pixels(self, expected: int) -> PixelElement:
        """The bytes of the pixels.

        Args:
            expected: length in bytes of native pixels; a deflated file is inflated that far and no further.

        Raises:
            ImageError: ``truncated``; other exceptions are pydicom's and mean the same.
        """
        if self._inflater is not None:
            missing = self._pixels_at + expected + _SLACK - len(self._body)
            if missing > 0:
                self._body += self._inflater.decompress(self._inflater.unconsumed_tail, missing)
        reader = _Reader(self._body)
        reader.seek(self._pixels_at)
        found = _read(reader, self.syntax, ("PixelData",), lambda tag: tag > _PIXEL_DATA, like=self.header)
        if "PixelData" not in found:  # fragments without an end
            raise ImageError("truncated", "The DICOM pixel data is cut short. Export the image again and resend it.")
        element: Any = found.get_item("PixelData")  # a raw one: it is no sequence
        return PixelElement(element.value or b"", element.VR or "OW", element.length == _UNDEFINED)

    def _tag_at(self, place: int) -> int:
        if len(self._body) < place + 4:
            return 0
        group, element = struct.unpack_from("<HH" if self.little_endian else ">HH", self._body, place)
        return int(group << 16 | element)


def read_elements(data: bytes, names: Sequence[str]) -> Dataset:
    """The named elements of a file, which is read no further than the last of them, within the bounds of a header.

    Raises:
        ImageError: ``truncated``; other exceptions are pydicom's and mean the same.
    """
    opened = _ParsedPreamble(data, _MOST_INFLATED_EARLY)
    last = max(int(Tag(name)) for name in names)
    return _read(opened.reader, opened.syntax, names, lambda tag: tag > last)


class _ParsedPreamble:
    """A file with its meta information read; its ``reader`` stands where the data set begins in ``body``."""

    def __init__(self, data: bytes, most_inflated: int) -> None:
        self.body, self.inflater = data, None
        self.reader = _Reader(data, _MOST_VALUE)
        self.reader.seek(PREAMBLE + len(MAGIC))
        self.meta = _read(self.reader, ExplicitVRLittleEndian, _META, lambda tag: tag >> 16 != 2)
        self.syntax = UID(str(self.meta.get("TransferSyntaxUID") or ImplicitVRLittleEndian).strip())
        if self.syntax == DeflatedExplicitVRLittleEndian:
            self.inflater = zlib.decompressobj(-zlib.MAX_WBITS)
            self.body = self.inflater.decompress(data[self.reader.tell() :], most_inflated)
            self.reader = _Reader(self.body, _MOST_VALUE)


def _little_endian(syntax: UID) -> bool:
    return syntax != ExplicitVRBigEndian


def _read(
    reader: _Reader, syntax: UID, names: Iterable[str], stop: Callable[[int], bool], like: Dataset | None = None
) -> Dataset:
    """The named elements from where the reader stands to the first tag of the top level that is to `stop` it.

    pydicom guesses from the first element whether VRs are written out, and the length of pixel data may look like
    one; `like` is a part of the same file for which that is known.
    """
    implicit = syntax == ImplicitVRLittleEndian if like is None else bool(like.original_encoding[0])

    def stop_when(of: BaseTag, vr: str | None, length: int) -> bool:
        tag = int(of)  # pydicom's tags compare in Python
        most = _MOST_BYTES.get(tag)
        if most is not None and most < length != _UNDEFINED:
            name = keyword_for_tag(tag)
            raise ImageError("truncated", f"The DICOM element {name} has {length:,} bytes, over {most:,}.")
        return stop(tag)

    try:
        return read_dataset(
            reader,
            implicit,
            _little_endian(syntax),
            stop_when=stop_when,
            specific_tags=[Tag(name) for name in names],
            at_top_level=like is None,
        )
    except RecursionError as error:
        raise ImageError("truncated", "The DICOM header is nested too deep to be read.") from error
    except Exception as error:
        if reader.exhausted:
            raise ImageError("truncated", "The DICOM header holds more than any image needs.") from error
        raise


class _Reader(io.BytesIO):
    """Bytes that count how often they are read, give no value beyond a size, and remember when they ran out."""

    def __init__(self, data: bytes, most_value: int | None = None) -> None:
        super().__init__(data)
        self._most_value = most_value
        self._reads = 0
        self.exhausted = self.short = False

    def read(self, size: int | None = -1, /) -> bytes:
        self._reads += 1
        self.exhausted = self.exhausted or self._reads > _MOST_READS
        self.exhausted = self.exhausted or (self._most_value is not None and (size or 0) > self._most_value)
        if self.exhausted:
            raise ValueError("the bounds of a header")
        got = super().read(size)
        if size is not None and len(got) < size and (got or size not in (2, 4, 8)):  # where an element may begin
            self.short = True
        return got
