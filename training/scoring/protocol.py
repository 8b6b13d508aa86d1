"""The two ways a report and a draft become strings to score (docs/evaluation.md).

*Comparable*: the rule of the published tables of a protocol (R2Gen, Chen et al. 2020, and later work), so that scores
can be compared with them, whatever the bundle's vocabulary is. *Full*: this project's cleaning; nothing is cut or
replaced.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

from model.text.tokenizer import END_OF_SENTENCE, UNK, clean_report
from training.protocols import IU_XRAY, Protocol


def describe(protocol: Protocol) -> str:
    """Both ways in one line, for ``metrics.json``."""
    return (
        f"system: published {protocol.title} cleaning, words seen fewer than {protocol.min_count} times in training "
        f"are <unk>, cut to {protocol.max_ids} ids; system_full: own cleaning, uncut, no <unk>; scorers of "
        "pycocoevalcap on strings split at spaces"
    )


_SENTENCE_END = re.compile(r"[.?!;]+(?=\s|$)")
_DROPPED = re.compile(r"""[.,?;*!%^&_+():=@\[\]{}"/\\']""")  # as the published cleaning, but <unk> survives


def comparable_vocabulary(train_reports: Iterable[str], protocol: Protocol = IU_XRAY) -> frozenset[str]:
    """Words that the published rule keeps: seen often enough in the cleaned training reports."""
    return protocol.frequent(train_reports)


def comparable_reference(
    report: str, vocabulary: frozenset[str], most: int | None = None, *, protocol: Protocol = IU_XRAY
) -> str:
    """A report as the published code scores against it; words outside the vocabulary become ``<unk>``.

    ``[bos] + words + [eos]`` is cut and bos and eos are dropped: ``most`` words remain, "." counted; None: those of
    the protocol.
    """
    words = protocol.clean(report).split()[: protocol.max_words if most is None else most]
    return " ".join(word if word in vocabulary else UNK for word in words)


def comparable_prediction(text: str, most: int | None = None, *, protocol: Protocol = IU_XRAY) -> str:
    """A draft as the published code scores it: lower case, sentences closed by `` . ``, at most ``most`` words.

    Accepts tokens joined by spaces ("the heart is normal . no effusion .") and served findings ("The heart is normal.
    No effusion."). Words outside the published vocabulary stay: they cannot match a reference.
    """
    words: list[str] = []
    for sentence in _SENTENCE_END.split(text.lower()):
        found = [kept for word in sentence.split() if (kept := _DROPPED.sub("", word))]
        if found:
            words += [*found, END_OF_SENTENCE]
    return " ".join(words[: protocol.max_words if most is None else most])


def full_reference(report: str) -> str:
    """A whole report under this project's cleaning."""
    return clean_report(report)


def full_prediction(text: str) -> str:
    """A whole draft under this project's cleaning; accepts tokens joined by spaces and served findings."""
    return clean_report(text)
