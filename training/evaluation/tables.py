"""The one writer of tables, for a terminal, Markdown and HTML, and the format of the numbers in them."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

TITLES = {
    "BLEU_1": "BLEU-1", "BLEU_2": "BLEU-2", "BLEU_3": "BLEU-3", "BLEU_4": "BLEU-4", "ROUGE_L": "ROUGE-L",
    "label_f1_micro": "label F1 (micro)", "label_f1_macro": "label F1 (macro)", "no_finding_f1": "No Finding F1",
    "mean_length": "mean length",
}  # fmt: skip
NO_VALUE = "–"


@dataclass(frozen=True)
class Table:
    """A table of strings. The page's HTML template reads ``head`` and ``rows``; the methods write the other forms."""

    head: Sequence[str]  # empty strings for a table without header
    rows: Sequence[Sequence[str]]
    left: int = 1  # so many columns, from the first one, are aligned left; the others hold numbers

    def text(self) -> str:
        """Aligned columns, for a terminal."""
        lines = [self.head, *self.rows] if any(self.head) else self.rows
        widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
        return "\n".join("  ".join(self._aligned(line, widths)).rstrip() for line in lines)

    def markdown(self, escape: Callable[[str], str] = str) -> str:
        """A Markdown table; ``escape`` is applied to every cell."""
        rule = ["---" if column < self.left else "---:" for column in range(len(self.head))]
        lines = [[escape(cell) for cell in line] for line in (self.head, *self.rows)]
        return "\n".join(f"| {' | '.join(line)} |" for line in (lines[0], rule, *lines[1:]))

    def _aligned(self, line: Sequence[str], widths: Sequence[int]) -> list[str]:
        return [
            cell.ljust(width) if column < self.left else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(line, widths, strict=True))
        ]


def title(metric: str) -> str:
    return TITLES.get(metric, metric)


def number(value: float | None, digits: int = 3, *, sign: bool = False) -> str:
    """.376, 1.204, −.012, 27.3 (one digit from 10 on), +.012 with ``sign``; a dash for None and NaN."""
    if value is None or math.isnan(value):
        return NO_VALUE
    text = f"{value:.{1 if abs(value) >= 10 else digits}f}"
    text = re.sub(r"^(-?)0\.", r"\1.", text).replace("-", "−")
    return f"+{text}" if sign and value >= 0 else text


def with_ends(value: float | None, ends: Sequence[float] | None) -> str:
    """``.43 (.24 to .54)``; the value alone without an interval."""
    return number(value) + (f" ({unbroken(interval(ends))})" if ends else "")


def unbroken(text: str) -> str:
    """The text with spaces at which no line breaks."""
    return text.replace(" ", "\N{NO-BREAK SPACE}")


def percent(share: float | None) -> str:
    """97.5%; empty for None."""
    return "" if share is None else f"{share:.1%}"


def interval(ends: Sequence[float] | None, *, sign: bool = False) -> str:
    """``.24 to .54``; empty for None."""
    return "" if ends is None else f"{number(ends[0], sign=sign)} to {number(ends[1], sign=sign)}"
