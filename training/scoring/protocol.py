"""The two ways a report and a draft become strings to score (docs/evaluation.md).

*Comparable*: the rule of the published IU X-Ray tables (R2Gen, Chen et al. 2020, and later work), so that scores can
be compared with them for any vocabulary of a bundle. *Full*: this project's cleaning, nothing cut, nothing replaced.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable

from model.text.tokenizer import END_OF_SENTENCE, UNK, clean_report, clean_report_r2gen

COMPARABLE_IDS = 60  # bos, words and eos of a report, as published for IU X-Ray
COMPARABLE_WORDS = COMPARABLE_IDS - 1  # bos takes one id; a longer report loses eos first
MIN_COUNT = 3
PROTOCOL = (
    "system: published IU X-Ray cleaning, words seen fewer than 3 times in training are <unk>, cut to 60 ids; "
    "system_full: own cleaning, uncut, no <unk>; scorers of pycocoevalcap on strings split at spaces"
)

_SENTENCE_END = re.compile(r"[.?!;]+(?=\s|$)")
_DROPPED = re.compile(r"""[.,?;*!%^&_+():=@\[\]{}"/\\']""")  # as the published cleaning, but <unk> survives


def comparable_vocabulary(train_reports: Iterable[str]) -> frozenset[str]:
    """Words that the published rule keeps: seen at least three times in the cleaned training reports."""
    counts = Counter(word for report in train_reports for word in clean_report_r2gen(report).split())
    return frozenset(word for word, count in counts.items() if count >= MIN_COUNT)


def comparable_reference(report: str, vocabulary: frozenset[str], most: int = COMPARABLE_WORDS) -> str:
    """A report as the published code scores against it; words outside the vocabulary become ``<unk>``.

    ``[bos] + words + [eos]`` is cut to 60 ids and bos and eos are dropped: ``most`` words remain, "." counted.
    """
    words = clean_report_r2gen(report).split()[:most]
    return " ".join(word if word in vocabulary else UNK for word in words)


def comparable_prediction(text: str, most: int = COMPARABLE_WORDS) -> str:
    """A draft as the published code scores it: lower case, sentences closed by `` . ``, at most ``most`` words.

    Accepts tokens joined by spaces ("the heart is normal . no effusion .") and served findings ("The heart is normal.
    No effusion."). Words outside the published vocabulary stay: they cannot match a reference.
    """
    words: list[str] = []
    for sentence in _SENTENCE_END.split(text.lower()):
        found = [kept for word in sentence.split() if (kept := _DROPPED.sub("", word))]
        if found:
            words += [*found, END_OF_SENTENCE]
    return " ".join(words[:most])


def full_reference(report: str) -> str:
    """A whole report under this project's cleaning."""
    return clean_report(report)


def full_prediction(text: str) -> str:
    """A whole draft under this project's cleaning; accepts tokens joined by spaces and served findings."""
    return clean_report(text)
