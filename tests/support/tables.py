"""Markdown tables in the documents."""

from __future__ import annotations

import re


def without_blanks(text: str) -> str:
    """The text without blanks around ``|``: both spellings of a row are right."""
    return re.sub(r" *\| *", "|", text)
