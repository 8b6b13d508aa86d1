"""A text with the offset that each of its characters had before replacements."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class AlignedText:
    """``text`` and, for each of its characters, its offset in the original."""

    text: str
    offsets: Sequence[int]

    @classmethod
    def lower(cls, original: str) -> AlignedText:
        """The original in lower case; a letter whose lower case has several characters counts for each of them."""
        text = original.lower()
        if len(text) == len(original):
            return cls(text, range(len(text)))
        letters = [letter.lower() for letter in original]
        return cls("".join(letters), [at for at, letter in enumerate(letters) for _ in letter])

    def __getitem__(self, part: slice) -> AlignedText:
        return AlignedText(self.text[part], self.offsets[part])

    def sub(self, pattern: re.Pattern[str], replacement: str | Callable[[re.Match[str]], str]) -> AlignedText:
        """``pattern.sub``; what replaces a match stands where the match began. No match may be empty."""
        texts: list[str] = []
        offsets: list[int] = []
        end = 0
        for match in pattern.finditer(self.text):
            new = replacement if isinstance(replacement, str) else replacement(match)
            texts += self.text[end : match.start()], new
            offsets += self.offsets[end : match.start()]
            offsets += [self.offsets[match.start()]] * len(new)
            end = match.end()
        if not texts:
            return self
        return AlignedText("".join((*texts, self.text[end:])), [*offsets, *self.offsets[end:]])

    def split(self, pattern: re.Pattern[str]) -> list[AlignedText]:
        """``pattern.split``, without groups."""
        ends = [match.span() for match in pattern.finditer(self.text)]
        starts = [0, *(end for _, end in ends)]
        return [
            self[start:end] for start, end in zip(starts, [*(start for start, _ in ends), len(self.text)], strict=True)
        ]

    def findall(self, pattern: re.Pattern[str]) -> list[AlignedText]:
        """``pattern.findall``, without groups."""
        return [self[slice(*match.span())] for match in pattern.finditer(self.text)]

    def strip(self) -> AlignedText:
        """Without spaces at the ends."""
        start = len(self.text) - len(self.text.lstrip())
        return self[start : start + len(self.text.strip())]

    def original(self, start: int, end: int) -> tuple[int, int]:
        """Offsets in the original of the characters at [start, end), which are not none."""
        return self.offsets[start], self.offsets[end - 1] + 1
