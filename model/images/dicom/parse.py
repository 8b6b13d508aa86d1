"""Reads the needed elements of a DICOM file with limits on memory and work; does not decode pixels.

pydicom parses from a counting reader, so that millions of tiny elements, deeply nested sequences
and deflate bombs cost no more than a normal file. Other elements, such as names, are skipped.
"""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
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
from model.images.limits import check_counts

config.settings.reading_validation_mode = config.IGNORE  # its warnings quote values, which may be names

PREAMBLE, MAGIC = 128, b"DICM"
_UNDEFINED = 0xFFFFFFFF
_PIXEL_DATA = 0x7FE00010
_PIXEL_TAGS = {0x7FE00008: "FloatPixelData", 0x7FE00009: "DoubleFloatPixelData", _PIXEL_DATA: "PixelData"}

_MOST_READS = 50_000  # a normal header takes hundreds: one to three per element
_MOST_VALUE = 8 * 2**20  # bytes of a value in a header
_MOST_INFLATED = 16 * 2**20  # bytes of a deflated header
_MOST_INFLATED_EARLY = 2**20  # bytes of a deflated header of which only the first groups are read
_MOST_ITEMS = 1_000  # items of a sequence, nested ones included
_ITEMS = b"\xfe\xff\x00\xe0", b"\xff\xfe\xe0\x00"  # the tag of an item in both byte orders
_DELIMITER = b"\xfe\xff\xdd\xe0"  # the tag that ends the fragments
_MOST_FRAGMENTS = 20_000  # items of compressed pixels
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
_MOST_BYTES: dict[int, int] = {  # of a needed element; of others 1,024, because pydicom splits texts slowly
    **{int(Tag(name)): 2**18 for name in _PALETTES},
    **{int(Tag(name)): 2**16 for name in _SEQUENCES},
    int(Tag("ModalityLUTSequence")): 2**18,
    int(Tag("VOILUTSequence")): 2**21,
    _PIXEL_DATA: 2**32,
}


@dataclass(frozen=True)
class PixelElement:
    """The bytes of PixelData; if ``encapsulated``, fragments with their item headers.

    ``delimited`` is false for fragments without the delimiter that ends them: the last ones may
    be missing.
    """

    value: bytes
    vr: str
    encapsulated: bool
    delimited: bool = True


class DicomFile:
    """A DICOM file in memory. The constructor reads the header, ``pixels`` the pixels.

    Attributes:
        syntax: transfer syntax.
        states_syntax: whether the file states it; the encoding of the header is found otherwise.
        header: the needed elements before the pixels.
        pixel_keyword: PixelData, FloatPixelData, DoubleFloatPixelData or None.
        cut_short: whether the header ends in the middle of an element.
    """

    def __init__(self, data: bytes) -> None:
        """Read the header.

        Raises:
            ImageError: ``truncated``; exceptions of pydicom mean the same.
        """
        opened = _ParsedPreamble(data, _MOST_INFLATED)
        self.syntax, self._body, self._inflater = opened.syntax, opened.body, opened.inflater
        self.states_syntax = bool(opened.meta.get("TransferSyntaxUID"))
        reader = opened.reader
        self.header = _read(reader, self.syntax, _HEADER, lambda tag: tag in _PIXEL_TAGS)
        self._pixels_at = reader.tell()
        if "SOPClassUID" not in self.header and opened.meta.get("MediaStorageSOPClassUID"):
            self.header.SOPClassUID = str(opened.meta.MediaStorageSOPClassUID)
        self.pixel_keyword = _PIXEL_TAGS.get(self._tag_at(self._pixels_at))
        self.cut_short = self.pixel_keyword is None and (reader.short or reader.tell() != len(self._body))

    @property
    def little_endian(self) -> bool:
        """Whether the byte order is little endian."""
        return _little_endian(self.syntax)

    def pixels(self, expected: int) -> PixelElement:
        """The bytes of the pixels.

        Args:
            expected: length in bytes of uncompressed pixels; a deflated file is inflated no
                further.

        Raises:
            ImageError: ``truncated``; exceptions of pydicom mean the same.
        """
        if self._inflater is not None:
            missing = self._pixels_at + expected + _SLACK - len(self._body)
            if missing > 0:
                self._body += self._inflater.decompress(self._inflater.unconsumed_tail, missing)
        start = self._pixels_at + (8 if self.header.original_encoding[0] else 12)
        if self._body[start - 4 : start] == b"\xff\xff\xff\xff":
            return _read_fragments(self._body, start)
        reader = _Reader(self._body)
        reader.seek(self._pixels_at)
        found = _read(reader, self.syntax, ("PixelData",), lambda tag: tag > _PIXEL_DATA, like=self.header)
        if "PixelData" not in found:
            raise ImageError("truncated", "The DICOM pixel data is cut short. Export the image again and resend it.")
        element: Any = found.get_item("PixelData")  # raw: not a sequence
        return PixelElement(element.value or b"", element.VR or "OW", encapsulated=False)

    def _tag_at(self, offset: int) -> int:
        if len(self._body) < offset + 4:
            return 0
        group, element = struct.unpack_from("<HH" if self.little_endian else ">HH", self._body, offset)
        return int(group << 16 | element)


def read_elements(data: bytes, names: Sequence[str]) -> Dataset:
    """The named elements of a file, read up to the last one, within the limits of a header.

    Raises:
        ImageError: ``truncated``; exceptions of pydicom mean the same.
    """
    opened = _ParsedPreamble(data, _MOST_INFLATED_EARLY)
    last = max(int(Tag(name)) for name in names)
    return _read(opened.reader, opened.syntax, names, lambda tag: tag > last)


def find_start(data: bytes) -> int | None:
    """Offset of the meta information, or of the data set without it; None if the bytes are not DICOM.

    Files in the field may lack the preamble, or have one of another length.
    """
    at = PREAMBLE if data[PREAMBLE : PREAMBLE + len(MAGIC)] == MAGIC else data.find(MAGIC, 0, 2 * PREAMBLE)
    if at == PREAMBLE or (at >= 0 and not data[:at].strip(b"\0")):
        return at + len(MAGIC)
    return 0 if _element_encoding(data[:8]) else None


def _element_encoding(head: bytes) -> UID | None:
    """Transfer syntax of a data set by its first 8 bytes; None unless they are an element of group 2 or 8."""
    group, number = head[:2], head[2:4]
    explicit = head[4:6].isalpha() and head[4:6].isupper()
    if group in (b"\2\0", b"\x08\0") and number[1:] == b"\0":
        if explicit:
            return ExplicitVRLittleEndian
        return ImplicitVRLittleEndian if len(head) == 8 and head[6:] == b"\0\0" else None
    return ExplicitVRBigEndian if group == b"\0\x08" and number[:1] == b"\0" and explicit else None


class _ParsedPreamble:
    """A file with its meta information; ``reader`` is at the start of the data set in ``body``."""

    def __init__(self, data: bytes, most_inflated: int) -> None:
        self.body, self.inflater = data, None
        self.reader = _Reader(data, _MOST_VALUE)
        self.reader.seek(find_start(data) or 0)
        self.meta = _read(self.reader, ExplicitVRLittleEndian, _META, lambda tag: tag >> 16 != 2)
        at = self.reader.tell()
        encoding = _element_encoding(data[at : at + 8])
        self.syntax = UID(str(self.meta.get("TransferSyntaxUID") or encoding or ImplicitVRLittleEndian).strip())
        if self.syntax == DeflatedExplicitVRLittleEndian:
            self.inflater = zlib.decompressobj(-zlib.MAX_WBITS)
            self.body = self.inflater.decompress(data[self.reader.tell() :], most_inflated)
            self.reader = _Reader(self.body, _MOST_VALUE)


def _read_fragments(body: bytes, start: int) -> PixelElement:
    """The fragments of a frame, which real files may not delimit, or delimit by zeros."""
    end = start
    for _ in range(_MOST_FRAGMENTS):
        if body[end : end + 4] != _ITEMS[0]:
            return PixelElement(body[start:end], "OB", True, delimited=body[end : end + 4] == _DELIMITER)
        end += 8 + int.from_bytes(body[end + 4 : end + 8], "little")
        if end > len(body):
            raise ImageError("truncated", "The DICOM pixel data is cut short. Export the image again and resend it.")
    raise ImageError("truncated", f"The DICOM pixel data has more than {_MOST_FRAGMENTS:,} fragments.")


def _little_endian(syntax: UID) -> bool:
    return syntax != ExplicitVRBigEndian


def _read(
    reader: _Reader, syntax: UID, names: Iterable[str], stop: Callable[[int], bool], like: Dataset | None = None
) -> Dataset:
    """The named elements from the reader's position to the first top-level tag for which `stop` is true.

    pydicom guesses from the first element whether VRs are explicit, but the length of pixel data
    may look like a VR. `like` is another part of the same file, where the encoding is known.
    """
    implicit = syntax == ImplicitVRLittleEndian if like is None else bool(like.original_encoding[0])
    most = {tag: _MOST_BYTES.get(tag, 1024) for tag in (int(Tag(name)) for name in ("SpecificCharacterSet", *names))}

    def check_length(tag: int, length: int) -> None:
        if length > most.get(tag, length):
            name = keyword_for_tag(tag)
            raise ImageError("truncated", f"The DICOM element {name} has {length:,} bytes, over {most[tag]:,}.")

    def stop_when(of: BaseTag, vr: str | None, length: int) -> bool:
        tag = int(of)  # comparisons of pydicom's tags are slow
        if length != _UNDEFINED:
            check_length(tag, length)
        return stop(tag)

    try:
        found = read_dataset(
            reader,
            implicit,
            _little_endian(syntax),
            stop_when=stop_when,
            specific_tags=[Tag(tag) for tag in most],
            at_top_level=like is None,
        )
    except RecursionError as error:
        raise ImageError("truncated", "The DICOM header is nested too deeply.") from error
    except Exception as error:
        if reader.exhausted:
            raise ImageError("truncated", "The DICOM header is larger than any image needs.") from error
        raise
    for element in found.values():  # pydicom parses raw values later, without the reader's limits
        values = list(_raw_values(element))
        check_length(int(element.tag), sum(map(len, values)))
        if element.tag != _PIXEL_DATA:
            items = {"items in a sequence": sum(value.count(tag) for value in values for tag in _ITEMS)}
            check_counts("DICOM header", items, {"items in a sequence": _MOST_ITEMS})
    return found


def _raw_values(element: Any) -> Iterator[bytes]:
    """The unparsed values of an element and of the items in a sequence."""
    if isinstance(element.value, bytes):
        yield element.value
    elif element.VR == "SQ":
        for item in element.value:
            for nested in item.values():
                yield from _raw_values(nested)


class _Reader(io.BytesIO):
    """Counts its reads, refuses values beyond a size, and records whether the data ended early."""

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
            raise ValueError("a limit of the header was exceeded")
        data = super().read(size)
        if size is not None and len(data) < size and (data or size not in (2, 4, 8)):  # an element may begin there
            self.short = True
        return data
