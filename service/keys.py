"""API keys: where they come from, what they may look like, and their comparison in constant time."""

from __future__ import annotations

import hashlib
import hmac
import re
from collections.abc import Iterable
from pathlib import Path

MIN_KEY_LENGTH = 16
_MAX_FILE_BYTES = 64 * 1024
_PRINTABLE = re.compile(r"[\x21-\x7e]+")  # what an HTTP header carries unchanged


def check_key(key: str, *, least: int = MIN_KEY_LENGTH) -> None:
    """Refuse a key that is easily guessed, shorter than ``least``, or that no header can carry.

    Raises:
        ValueError: says what is wrong, without the key.
    """
    if len(key) < least:
        raise ValueError(
            f"a key of {len(key)} characters; at least {least} are needed. Make one with: openssl rand -hex 32"
        )
    if not _PRINTABLE.fullmatch(key):
        raise ValueError("a key may hold letters, digits and punctuation of ASCII only, no blanks")


def read_keys(path: Path, *, least: int = MIN_KEY_LENGTH) -> list[str]:
    """Keys of a file: one a line, each of ``least`` characters; blank lines and lines that begin with # are skipped.

    Raises:
        ValueError: the file cannot be read, holds no key or a wrong one; says which line, never the key.
    """
    try:
        with path.open("rb") as file:
            data = file.read(_MAX_FILE_BYTES + 1)
    except OSError as error:
        raise ValueError(f"the file it names cannot be read: {error.strerror}") from error
    if len(data) > _MAX_FILE_BYTES:
        raise ValueError(f"the file it names is larger than {_MAX_FILE_BYTES:,} bytes; it should hold one key a line")
    try:
        lines = data.decode("utf-8-sig").splitlines()
    except UnicodeDecodeError:
        raise ValueError("the file it names is no text; it should hold one key a line") from None
    keys = []
    for number, line in enumerate(map(str.strip, lines), 1):
        if line and not line.startswith("#"):
            try:
                check_key(line, least=least)
            except ValueError as error:
                raise ValueError(f"line {number} of the file it names: {error}") from None
            keys.append(line)
    if not keys:
        raise ValueError("the file it names holds no key; write one a line")
    return keys


class Keys:
    """The keys of a service, as digests. Falsy where there is none."""

    def __init__(self, keys: Iterable[str] = ()) -> None:
        self._digests = tuple(_digest(key) for key in keys)

    def __bool__(self) -> bool:
        return bool(self._digests)

    def __repr__(self) -> str:
        return f"Keys({len(self._digests)})"

    def accept(self, offered: Iterable[str]) -> bool:
        """Whether one of the `offered` keys is one of these; takes as long whichever it is, or if none is."""
        accepted = False
        for key in offered:
            digest = _digest(key)
            for mine in self._digests:
                accepted |= hmac.compare_digest(digest, mine)
        return accepted


def _digest(key: str) -> bytes:
    return hashlib.sha256(key.encode("utf-8", "surrogateescape")).digest()
