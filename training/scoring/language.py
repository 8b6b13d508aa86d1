"""Faults of language in drafts: word combinations of no training report, comparisons, fragments, contradictions."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import pairwise

from model.text.statements import claims, contradict, is_fragment, refers_to_prior
from model.text.tokenizer import END_OF_SENTENCE, clean_report

LANGUAGE = (
    "unattested_sentences", "drafts_with_unattested_pair", "drafts_with_comparison", "drafts_with_fragment",
    "drafts_with_contradiction",
)  # fmt: skip
"""Names of the shares, 0 to 1, lower is better: the first of all sentences, the others of all drafts."""

Words = tuple[str, ...]


def language_faults(drafts: Sequence[str], train: Iterable[str]) -> dict[str, float]:
    """The shares of ``LANGUAGE``: a sentence is unattested if no training report has one of its word trigrams.

    Trigrams and pairs count from the full stop before a sentence to the one after it.

    Raises:
        ValueError: there is no draft, or no training report.
    """
    known: set[Words] = set()
    for report in train:
        for sentence in _sentences(report):
            known |= {*pairwise(sentence), *_trigrams(sentence)}
    if not known or not drafts:
        raise ValueError("drafts and training reports are needed")
    sentences = [_sentences(draft) for draft in drafts]
    everything = [sentence for draft in sentences for sentence in draft]
    texts = [[" ".join(sentence[1:-1]) for sentence in draft] for draft in sentences]
    broken = sum(not known.issuperset(_trigrams(sentence)) for sentence in everything)
    faulty = (
        sum(any(not known.issuperset(pairwise(sentence)) for sentence in draft) for draft in sentences),
        sum(any(map(refers_to_prior, draft)) for draft in texts),
        sum(any(map(is_fragment, draft)) for draft in texts),
        sum(contradict(frozenset().union(*map(claims, draft))) for draft in texts),
    )
    shares = (broken / max(len(everything), 1), *(count / len(drafts) for count in faulty))
    return dict(zip(LANGUAGE, shares, strict=True))


def _sentences(report: str) -> list[Words]:
    """Words of each sentence of a cleaned report, between full stops."""
    parts = clean_report(report).split(END_OF_SENTENCE)
    return [(END_OF_SENTENCE, *words, END_OF_SENTENCE) for part in parts if (words := part.split())]


def _trigrams(sentence: Words) -> Iterable[Words]:
    return zip(sentence, sentence[1:], sentence[2:], strict=False)
