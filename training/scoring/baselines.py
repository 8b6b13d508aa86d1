"""Trivial baselines that every system is compared with: constant, most frequent, random, nearest.

The constant is one report for every study: training sentences, chosen by a greedy search on validation references. The
search needs a scorer that is far faster than ``pycocoevalcap`` and gives equal values: ``ConstantScorer``. The rows
themselves are scored like any system.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from model.text.tokenizer import END_OF_SENTENCE
from training.protocols import IU_XRAY, Protocol
from training.scoring.cider import CiderD
from training.scoring.metrics import Scores, mean_scores, merge_scores
from training.scoring.ngrams import ORDERS
from training.scoring.protocol import comparable_reference
from training.scoring.study_statistics import CommonSubsequences, Ngram, bleu, ngrams

CANDIDATES = 100  # the most frequent training sentences; the constant is made of these
RANDOM_SEEDS = (1, 2, 3)

Words = Sequence[str]
Sentences = tuple[tuple[str, ...], ...]
Objective = Callable[[Words], float]

_LEAST_GAIN = 1e-9


@dataclass(frozen=True)
class TrivialRow:
    """Texts of one trivial row: ``variants[v][i]`` is the text of variant v for study i.

    ``merge`` decides how the scores of the variants become the row: ``best`` takes the higher value of each metric (the
    constant: one text chosen for BLEU-4 + ROUGE-L, one for CIDEr), ``mean`` the mean (random: one variant a seed).
    """

    variants: Mapping[str, Sequence[str]]
    merge: Literal["best", "mean"] = "mean"

    def merged(self, rows: Sequence[Scores]) -> Scores:
        return mean_scores(rows) if self.merge == "mean" else merge_scores(rows, max)


def trivial_rows(
    train: Sequence[str],
    chosen_on: Sequence[str],
    count: int,
    vocabulary: frozenset[str],
    protocol: Protocol = IU_XRAY,
) -> dict[str, TrivialRow]:
    """The rows that need no image, for ``count`` studies: ``constant``, ``most_frequent``, ``random``.

    ``chosen_on`` are the reports on which the constant is chosen: those of the validation split, for every scored
    split.

    Raises:
        ValueError: no training reports.
    """
    if not train:
        raise ValueError("trivial rows need training reports; none were given")
    scorer = ConstantScorer([comparable_reference(report, vocabulary, protocol=protocol) for report in chosen_on])
    sentences = frequent_sentences(train, vocabulary, protocol=protocol)
    objectives: dict[str, Objective] = {
        "bleu_rouge": lambda words: scorer.bleu4(words) + scorer.rouge_l(words),
        "cider": scorer.cider,
    }
    constants = {name: [choose_constant(sentences, objective)] * count for name, objective in objectives.items()}
    draws = {f"seed_{seed}": np.random.default_rng(seed).integers(0, len(train), count) for seed in RANDOM_SEEDS}
    return {
        "constant": TrivialRow(constants, merge="best"),
        "most_frequent": TrivialRow({"most_frequent": [most_frequent(train, vocabulary, protocol)] * count}),
        "random": TrivialRow({name: [train[row] for row in rows] for name, rows in draws.items()}),
    }


def most_frequent(train: Sequence[str], vocabulary: frozenset[str], protocol: Protocol = IU_XRAY) -> str:
    """The training report whose comparable string is most frequent; of several the first."""
    prepared = [comparable_reference(report, vocabulary, protocol=protocol) for report in train]
    return train[prepared.index(Counter(prepared).most_common(1)[0][0])]


def frequent_sentences(
    train: Sequence[str], vocabulary: frozenset[str], limit: int = CANDIDATES, *, protocol: Protocol = IU_XRAY
) -> Sentences:
    """The most frequent sentences of cleaned training reports that the vocabulary covers, each closed by "."."""
    counts: Counter[tuple[str, ...]] = Counter()
    for report in train:
        for sentence in " ".join(protocol.clean(report).split()).split(END_OF_SENTENCE):
            words = tuple(sentence.split())
            if words and vocabulary.issuperset(words):
                counts[(*words, END_OF_SENTENCE)] += 1
    return tuple(sentence for sentence, _ in counts.most_common(limit))


def choose_constant(sentences: Sentences, objective: Objective) -> str:
    """The best report of some of ``sentences`` that a greedy search finds. Deterministic; no sentence occurs twice.

    Each step takes the change that gains most: insert a sentence at any position, replace one, or drop one. The search
    ends when no change gains.
    """
    chosen: Sentences = ()
    best = -math.inf
    while True:
        value, _, change = max(
            ((objective([word for sentence in option for word in sentence]), -number, option)
             for number, option in enumerate(_changes(chosen, sentences))),
            default=(-math.inf, 0, chosen),
        )  # fmt: skip
        if value <= best + _LEAST_GAIN:
            return " ".join(word for sentence in chosen for word in sentence)
        chosen, best = change, value


def _changes(chosen: Sentences, sentences: Sentences) -> Iterator[Sentences]:
    unused = [sentence for sentence in sentences if sentence not in chosen]
    for at in range(len(chosen) + 1):
        for sentence in unused:
            yield (*chosen[:at], sentence, *chosen[at:])
    for at in range(len(chosen)):
        for sentence in unused:
            yield (*chosen[:at], sentence, *chosen[at + 1 :])
        yield (*chosen[:at], *chosen[at + 1 :])


class ConstantScorer:
    """BLEU-4, ROUGE-L and CIDEr of one text against all references, as ``pycocoevalcap`` computes them, but fast."""

    def __init__(self, references: Sequence[str]) -> None:
        split = [reference.split() for reference in references]
        if not split or not all(split):
            raise ValueError("a constant report needs references, each with words; the split may be empty")
        self._count, self._total = len(split), sum(map(len, split))
        self._subsequences, self._cider = CommonSubsequences(split), CiderD(references)
        self._held: dict[Ngram, list[int]] = {}  # how often each reference that holds the n-gram does
        for words in split:
            for ngram, times in ngrams(words).items():
                self._held.setdefault(ngram, []).append(times)
        self._matches: dict[tuple[Ngram, int], int] = {}

    def bleu4(self, words: Words) -> float:
        matched = [0] * ORDERS
        for ngram, times in ngrams(words).items():
            matched[len(ngram) - 1] += self._matched(ngram, times)
        written = [self._count * max(0, len(words) - n) for n in range(ORDERS)]
        return float(bleu(np.array([self._count * len(words), self._total, *written, *matched], np.float64))[-1])

    def rouge_l(self, words: Words) -> float:
        return float(self._subsequences.rouge_l(words).mean())

    def cider(self, words: Words) -> float:
        """Mean CIDEr, with document frequencies of the references."""
        return float(self._cider.against_all(" ".join(words)).mean())

    def _matched(self, ngram: Ngram, times: int) -> int:
        """Matches over all references of an n-gram that occurs ``times`` times in the text; cached."""
        found = self._matches.get((ngram, times))
        if found is None:
            found = self._matches[ngram, times] = sum(min(times, held) for held in self._held.get(ngram, ()))
        return found
