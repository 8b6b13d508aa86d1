"""API keys: their format, and their comparison in constant time."""

from __future__ import annotations

import hashlib
import hmac
import re
from collections.abc import Iterable

MIN_KEY_LENGTH = 16
_PRINTABLE = re.compile(r"[\x21-\x7e]+")  # characters that an HTTP header carries unchanged


def check_key(key: str, *, min_length: int = MIN_KEY_LENGTH) -> None:
    """Refuse a key that is too short or that an HTTP header cannot contain.

    Raises:
        ValueError: the reason, without the key.
    """
    if len(key) < min_length:
        raise ValueError(
            f"a key of {len(key)} characters; at least {min_length} are needed. Make one with: openssl rand -hex 32"
        )
    if not _PRINTABLE.fullmatch(key):
        raise ValueError("a key may have only letters, digits and punctuation of ASCII, no blanks")


class Keys:
    """The API keys of a service, as digests. Falsy if there are none."""

    def __init__(self, keys: Iterable[str] = ()) -> None:
        self._digests = tuple(_digest(key) for key in keys)

    def __bool__(self) -> bool:
        return bool(self._digests)

    def __repr__(self) -> str:
        return f"Keys({len(self._digests)})"

    def accept(self, offered: Iterable[str]) -> bool:
        """Whether one of the ``offered`` keys is valid; the comparison takes the same time for every key."""
        accepted = False
        for key in offered:
            digest = _digest(key)
            for valid in self._digests:
                accepted |= hmac.compare_digest(digest, valid)
        return accepted


def _digest(key: str) -> bytes:
    return hashlib.sha256(key.encode("utf-8", "surrogateescape")).digest()
