"""Refuses texts that the cleaning would destroy: it keeps the letters a to z and digits, and splits words at others."""

from __future__ import annotations

import logging
import unicodedata
from collections import Counter
from collections.abc import Iterable

log = logging.getLogger("training")

FEW = 5  # damaged words that are accepted in any collection of texts
SHARE = 0.02  # of all words; English with some foreign names stays below, other languages of Europe above
_EXAMPLES = 5


def check_letters(texts: Iterable[str], what: str) -> None:
    """Warn of words with letters outside ASCII, with examples; ``what`` names the texts.

    Raises:
        ValueError: these are more than ``FEW`` words and ``SHARE`` of all, or more than half of them.
    """
    total, damaged = 0, Counter[str]()
    for text in texts:
        words = text.split()
        total += len(words)
        if not text.isascii():
            damaged.update(word for word in words if is_damaged(word))
    count = damaged.total()
    if not count:
        return
    examples = ", ".join(f"{word[:20]!r} ({times})" for word, times in damaged.most_common(_EXAMPLES))
    message = (
        f"{count} of {total} words of {what} hold letters outside a to z, at which this project's cleaning splits or "
        f"removes words: {examples}"
    )
    if 2 * count > total or count > max(FEW, SHARE * total):
        raise ValueError(f"{message}. Write them in ASCII, or translate the texts: cleaning and labeler read English")
    log.warning("%s", message)


def is_damaged(word: str) -> bool:
    """Whether a word has a letter, or a mark on a letter, outside ASCII; signs such as ° and – damage nothing."""
    return any(not char.isascii() and unicodedata.category(char)[0] in "LM" for char in word)
