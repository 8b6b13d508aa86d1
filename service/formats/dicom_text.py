"""Decodes person names of DICOM files, also where the file declares no character set, or a wrong one.

A wrong name is worse than none: bytes that can be read in several ways give None.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterator, Sequence

from pydicom.charset import CODES_TO_ENCODINGS, convert_encodings, decode_bytes
from pydicom.valuerep import PN_DELIMS

_ESCAPE = b"\x1b"
_IR_58 = "\x1b$)A"  # pydicom leaves it in the text
_LATIN_1 = ("iso8859", "latin_1")
_CHINESE = ("gb18030", "gbk", "gb2312")
_NO_ASCII_WORD = re.compile(r"(?<!\w)[^\W\x00-\x7f]{2,}(?!\w)")  # Latin-1 names have no such words, other bytes do
_MOST_SETS = 8


def decode_name(raw: bytes, character_set: str | Sequence[str] | None) -> str | None:
    """The text of a PN value, or None.

    Args:
        raw: the value.
        character_set: SpecificCharacterSet.
    """
    raw = raw.rstrip(b" \0")
    if raw.isascii() and _ESCAPE not in raw:
        return raw.decode("ascii").strip()
    names = [character_set] if isinstance(character_set, str) else list(character_set or [])[:_MOST_SETS]
    declared = convert_encodings([str(name).strip() for name in names])
    if _ESCAPE in raw:
        encodings = [declared[0], *dict.fromkeys(CODES_TO_ENCODINGS.values())]
        text = decode_bytes(raw, encodings, PN_DELIMS).replace(_IR_58, "")
        return text.strip() if _plausible(text) else None
    return next((text.strip() for text in _readings(raw, declared) if _plausible(text)), None)


def _readings(raw: bytes, declared: Sequence[str]) -> Iterator[str]:
    """The possible texts of a value without escape sequences, the most certain one first."""
    utf_8 = _decode(raw, "utf-8")
    first = declared[0].lower()
    has_long_sequences = all(ord(character) < 0x80 or ord(character) >= 0x800 for character in utf_8)
    if first in (*_LATIN_1, "utf8", "utf-8") or (first in _CHINESE and has_long_sequences):
        yield utf_8  # by chance, neither Latin-1 nor two-byte names look like it
    for encoding in declared:
        text = _decode(raw, encoding)
        if encoding.lower() not in _LATIN_1 or _looks_latin(text):
            yield text
    yield utf_8
    latin = _decode(raw, "latin_1")
    if first.startswith("utf") and _looks_latin(latin):
        yield latin


def _decode(raw: bytes, encoding: str) -> str:
    try:
        return raw.decode(encoding)
    except (UnicodeError, LookupError):
        return ""


def _looks_latin(text: str) -> bool:
    letters = all(character.isascii() or character.isalpha() for character in text)
    return letters and _NO_ASCII_WORD.search(text) is None


def _plausible(text: str) -> bool:
    return bool(text) and text.isprintable() and not any(unicodedata.category(each) in ("Co", "So") for each in text)
