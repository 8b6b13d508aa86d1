"""Readable marks for redacted and unknown words of a report."""

from __future__ import annotations

import re

from model.text.tokenizer import UNK

REDACTED = "[redacted]"
UNKNOWN = "[unknown word]"
_ARCHIVE_MARK = re.compile(r"x{4,}(?:\s+x{4,})*", re.IGNORECASE)


def mark_redactions(text: str) -> str:
    """Replace the archive's redaction marks (``xxxx``, any case) and ``<unk>`` by readable words.

    A model learns the redaction marks of its training texts; imported models may write ``<unk>``.
    """
    return _ARCHIVE_MARK.sub(REDACTED, text).replace(UNK, UNKNOWN)
