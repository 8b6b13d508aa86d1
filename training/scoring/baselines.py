"""The trivial rows that stand beside every system: constant, most frequent, random, nearest.

The constant is one report for every study, put together from training sentences by a greedy search on validation
references. The search needs a scorer that is far faster than ``pycocoevalcap`` and equal to it: ``ConstantScorer``. The
rows themselves are scored like any system.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

from model.text.tokenizer import END_OF_SENTENCE, clean_report_r2gen
from training.scoring.metrics import Scores, mean_scores
from training.scoring.protocol import comparable_reference

CANDIDATES = 100  # the most frequent training sentences; the constant is made of these
RANDOM_SEEDS = (1, 2, 3)

Words = Sequence[str]
Sentences = tuple[tuple[str, ...], ...]
Objective = Callable[[Words], float]

_ORDERS = 4  # n-grams of 1 to 4 words
_BETA = 1.2  # of ROUGE-L
_SIGMA = 6.0  # of CIDEr's length penalty, in words
_TINY, _SMALL = 1e-15, 1e-9  # of pycocoevalcap's BLEU
_LEAST_GAIN = 1e-9


@dataclass(frozen=True)
class TrivialRow:
    """Texts of one trivial row: ``variants[v][i]`` is what variant v says about study i.

    ``merge`` says how the variants' figures become the row: ``best`` takes the higher figure of each (the constant:
    one text chosen for BLEU-4 + ROUGE-L, one for CIDEr), ``mean`` their mean (random: one variant a seed).
    """

    variants: Mapping[str, Sequence[str]]
    merge: Literal["best", "mean"] = "mean"

    def merged(self, rows: Sequence[Scores]) -> Scores:
        """The row's figures from those of its variants, in the same order."""
        return mean_scores(rows) if self.merge == "mean" else best_scores(rows)


def best_scores(rows: Sequence[Scores]) -> Scores:
    """Figure by figure maximum of rows; None where a row lacks the figure."""
    columns = {name: [row[name] for row in rows] for name in rows[0]}
    return {
        name: max(known) if len(known := [v for v in values if v is not None]) == len(values) else None
        for name, values in columns.items()
    }


def trivial_rows(
    train: Sequence[str], chosen_on: Sequence[str], count: int, vocabulary: frozenset[str]
) -> dict[str, TrivialRow]:
    """The rows that need no image: ``constant``, ``most_frequent``, ``random``.

    Args:
        train: training reports as the source holds them.
        chosen_on: reports on which the constant is chosen: those of the validation split, whatever split is scored.
        count: number of studies to write about.
        vocabulary: of the comparable row.

    Raises:
        ValueError: no reports.
    """
    if not train:
        raise ValueError("trivial rows need training reports; none were given")
    scorer = ConstantScorer([comparable_reference(report, vocabulary) for report in chosen_on])
    sentences = frequent_sentences(train, vocabulary)
    objectives: dict[str, Objective] = {
        "bleu_rouge": lambda words: scorer.bleu4(words) + scorer.rouge_l(words),
        "cider": scorer.cider,
    }
    constants = {name: [choose_constant(sentences, objective)] * count for name, objective in objectives.items()}
    draws = {f"seed_{seed}": np.random.default_rng(seed).integers(0, len(train), count) for seed in RANDOM_SEEDS}
    return {
        "constant": TrivialRow(constants, merge="best"),
        "most_frequent": TrivialRow({"most_frequent": [most_frequent(train, vocabulary)] * count}),
        "random": TrivialRow({name: [train[row] for row in rows] for name, rows in draws.items()}),
    }


def most_frequent(train: Sequence[str], vocabulary: frozenset[str]) -> str:
    """The training report that occurs most often as a comparable string; the first of several."""
    prepared = [comparable_reference(report, vocabulary) for report in train]
    return train[prepared.index(Counter(prepared).most_common(1)[0][0])]


def frequent_sentences(train: Sequence[str], vocabulary: frozenset[str], limit: int = CANDIDATES) -> Sentences:
    """The most frequent sentences of the cleaned training reports, each closed by ".", all words in the vocabulary."""
    counts: Counter[tuple[str, ...]] = Counter()
    for report in train:
        for sentence in " ".join(clean_report_r2gen(report).split()).split(END_OF_SENTENCE):
            words = tuple(sentence.split())
            if words and vocabulary.issuperset(words):
                counts[(*words, END_OF_SENTENCE)] += 1
    return tuple(sentence for sentence, _ in counts.most_common(limit))


def choose_constant(sentences: Sentences, objective: Objective) -> str:
    """The report of some of ``sentences`` that a greedy search finds best.

    Each step takes the one change that gains most: a sentence added at any place, put in the place of another, or
    dropped. It ends where no change gains. Deterministic; no sentence stands twice.
    """
    chosen: Sentences = ()
    best = -math.inf
    while True:
        value, _, change = max(
            ((objective([word for sentence in option for word in sentence]), -place, option)
             for place, option in enumerate(_changes(chosen, sentences))),
            default=(-math.inf, 0, chosen),
        )  # fmt: skip
        if value <= best + _LEAST_GAIN:
            return " ".join(word for sentence in chosen for word in sentence)
        chosen, best = change, value


def _changes(chosen: Sentences, sentences: Sentences) -> Iterator[Sentences]:
    unused = [sentence for sentence in sentences if sentence not in chosen]
    for place in range(len(chosen) + 1):
        for sentence in unused:
            yield (*chosen[:place], sentence, *chosen[place:])
    for place in range(len(chosen)):
        for sentence in unused:
            yield (*chosen[:place], sentence, *chosen[place + 1 :])
        yield (*chosen[:place], *chosen[place + 1 :])


class ConstantScorer:
    """BLEU-4, ROUGE-L and CIDEr of one text against many references, as ``pycocoevalcap`` computes them.

    What depends on the references alone is computed once: which of them hold an n-gram, and with what weight; for
    ROUGE-L one long bit vector (bit-parallel longest common subsequence, Hyyrö 2004, all references side by side).

    Args:
        references: prepared strings, split at spaces.

    Raises:
        ValueError: no references, or one without words.
    """

    def __init__(self, references: Sequence[str]) -> None:
        split = [reference.split() for reference in references]
        if not split or not all(split):
            raise ValueError("a constant report needs references, each with words; the split may be empty")
        self._lengths = np.array([len(words) for words in split], np.float64)
        self._count, self._total = len(split), float(self._lengths.sum())
        self._cached: dict[tuple[tuple[str, ...], int], _Ngram] = {}
        self._prepare_ngrams(split)
        self._prepare_bits(split)

    def bleu4(self, words: Words) -> float:
        """Corpus BLEU-4."""
        correct = [0.0] * _ORDERS
        for ngram, times in _ngrams(words).items():
            correct[len(ngram) - 1] += self._ngram(ngram, times).clipped
        score = 1.0
        for n in range(_ORDERS):
            score *= (correct[n] + _TINY) / (self._count * max(0, len(words) - n) + _SMALL)
        ratio = (self._count * len(words) + _TINY) / (self._total + _SMALL)
        penalty = math.exp(1 - 1 / ratio) if ratio < 1 else 1.0
        return math.pow(score, 1 / _ORDERS) * penalty

    def rouge_l(self, words: Words) -> float:
        """Mean ROUGE-L."""
        if not words:
            return 0.0
        common = self._common(words)
        recall, precision = common / self._lengths, common / len(words)
        with np.errstate(invalid="ignore"):
            f = (1 + _BETA**2) * precision * recall / (recall + _BETA**2 * precision)
        return float(np.where(common > 0, f, 0.0).mean())

    def cider(self, words: Words) -> float:
        """Mean CIDEr, document frequencies from the references; "length" counts bigrams, as in pycocoevalcap."""
        dots = np.zeros((_ORDERS, self._count))
        squares = [0.0] * _ORDERS
        for ngram, times in _ngrams(words).items():
            n, known = len(ngram) - 1, self._ngram(ngram, times)
            squares[n] += known.square
            if known.cosine is not None:
                dots[n] += known.cosine
        for n, square in enumerate(squares):
            dots[n] /= math.sqrt(square) or 1.0
        apart = max(0, len(words) - 1) - np.maximum(self._lengths - 1, 0)
        return float((dots.mean(0) * np.exp(-(apart**2) / (2 * _SIGMA**2))).mean() * 10)

    # -- n-grams ---------------------------------------------------------------------------------------------------

    def _prepare_ngrams(self, split: Sequence[Words]) -> None:
        """n-gram -> rows that hold it and how often; norm of each reference by order, 1 where it is 0."""
        gathered: dict[tuple[str, ...], tuple[list[int], list[int]]] = {}
        for row, words in enumerate(split):
            for ngram, times in _ngrams(words).items():
                rows, found = gathered.setdefault(ngram, ([], []))
                rows.append(row)
                found.append(times)
        self._postings = {
            ngram: (np.array(rows, np.int64), np.array(found, np.float64)) for ngram, (rows, found) in gathered.items()
        }
        squares = np.zeros((_ORDERS, self._count))
        for ngram, (held, often) in self._postings.items():
            squares[len(ngram) - 1, held] += (often * self._idf(len(held))) ** 2
        self._norms = np.sqrt(np.where(squares > 0, squares, 1.0))

    def _idf(self, documents: int) -> float:
        return math.log(self._count) - math.log(max(1, documents))

    def _ngram(self, ngram: tuple[str, ...], times: int) -> _Ngram:
        """What an n-gram contributes that stands ``times`` times in the text; remembered."""
        known = self._cached.get((ngram, times))
        if known is None:
            rows, found = self._postings.get(ngram, (None, None))
            if rows is None or found is None:
                known = _Ngram(0.0, (times * self._idf(0)) ** 2, None)
            else:
                idf, shared = self._idf(len(rows)), np.minimum(found, times)
                cosine = np.zeros(self._count)
                cosine[rows] = shared * found * idf**2 / self._norms[len(ngram) - 1, rows]
                known = _Ngram(float(shared.sum()), (times * idf) ** 2, cosine)
            self._cached[ngram, times] = known
        return known

    # -- longest common subsequence --------------------------------------------------------------------------------

    def _prepare_bits(self, split: Sequence[Words]) -> None:
        """A bit for each word of each reference, and behind each reference a guard that swallows its carry."""
        places: dict[str, list[int]] = {}
        self._starts: list[int] = []
        self._words, bits = 0, 0
        for words in split:
            self._starts.append(bits)
            for place, word in enumerate(words, bits):
                places.setdefault(word, []).append(place)
            self._words |= ((1 << len(words)) - 1) << bits
            bits += len(words) + 1
        self._bytes = -(-bits // 8)
        self._matches = {word: sum(1 << place for place in found) for word, found in places.items()}

    def _common(self, words: Words) -> npt.NDArray[np.float64]:
        """(N,) length of the longest common subsequence with each reference."""
        free = self._words
        for word in words:
            hit = free & self._matches.get(word, 0)
            free = ((free + hit) | (free - hit)) & self._words
        taken = np.frombuffer((self._words & ~free).to_bytes(self._bytes, "little"), np.uint8)
        return np.add.reduceat(np.unpackbits(taken, bitorder="little"), self._starts, dtype=np.float64)


@dataclass(frozen=True)
class _Ngram:
    """BLEU's clipped matches over all references, the square of its tf-idf, and its share of each cosine (N,)."""

    clipped: float
    square: float
    cosine: npt.NDArray[np.float64] | None


def _ngrams(words: Words) -> Counter[tuple[str, ...]]:
    words = tuple(words)
    return Counter(words[i : i + n] for n in range(1, _ORDERS + 1) for i in range(len(words) - n + 1))
