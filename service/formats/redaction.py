"""How redacted and unknown words of a report are shown."""

from __future__ import annotations

import re

from model.text.tokenizer import UNK

REDACTED = "[redacted]"
UNKNOWN = "[unknown word]"
_ARCHIVE_MARK = re.compile(r"x{4,}(?:\s+x{4,})*", re.IGNORECASE)


def mark_redactions(text: str) -> str:
    """Replace the archive's redaction marks (``xxxx``, any case) and ``<unk>`` by readable words.

    Without this, a redaction that the model has learnt would look like a mistake of the draft.
    Imported models may write ``<unk>``.
    """
    return _ARCHIVE_MARK.sub(REDACTED, text).replace(UNK, UNKNOWN)
