"""CIDEr-D of many texts against cached references, as ``pycocoevalcap`` computes it.

Vedantam, Zitnick and Parikh 2015, "CIDEr: Consensus-based Image Description Evaluation" (arXiv:1411.5726), with the
clipping and the length penalty of CIDEr-D. What depends on the references alone is computed once. Texts are scored many
at a time, as arrays.
"""

from __future__ import annotations

from collections.abc import Sequence
from operator import index
from typing import Final

import numpy as np

from training.scoring.ngrams import ORDERS, Floats, Ints, NgramNumbers, Texts, high, low, pack

_SIGMA = 6.0  # of the length penalty, in words
_SCALE = 10.0  # the score of a text that equals its reference
_CHUNK = 128  # texts scored at once: their arrays fit the processor's cache


class CiderD:
    """CIDEr-D against known references. Instances are immutable; threads may share them.

    ``documents`` give the document frequencies; by default the references do, as in ``pycocoevalcap``.

    Raises:
        ValueError: no texts, or a text without words.
    """

    def __init__(self, references: Sequence[str], documents: Sequence[str] | None = None) -> None:
        _check(references, "references")
        if documents is not None:
            _check(documents, "documents")
        texts = [*references, *(documents or ())]
        counted = len(references) if documents is None else len(documents)
        self._ngrams: Final = NgramNumbers(texts)
        flat = self._ngrams.flatten(texts)
        numbers = self._ngrams.numbers(flat)  # (4, P)

        document = flat.text - (len(texts) - counted)
        held = np.unique(pack(document[document >= 0], numbers[:, document >= 0]))
        frequency = np.bincount(low(held), minlength=self._ngrams.size)
        idf = np.log(float(counted)) - np.log(np.maximum(frequency, 1.0))
        self._idf2: Final = idf**2  # by n-gram; 0 for number 0, the end of a text, which each document holds

        known = flat.text < len(references)
        lists = flat.text[known] * ORDERS + np.arange(ORDERS)[:, None]
        held, times = np.unique(pack(lists, numbers[:, known]), return_counts=True)
        squares = np.bincount(high(held), times**2 * self._idf2[low(held)]).astype(np.float64)
        self._norms: Final = _norms(squares.reshape(len(references), ORDERS))  # (R, 4)
        self._lengths: Final = flat.lengths[: len(references)]  # (R,)
        held, times = held[low(held) > 0], times[low(held) > 0]
        owner = high(held) // ORDERS
        self._held: Final = low(held)  # n-grams of one reference after the other,
        self._times: Final = times.astype(np.min_scalar_type(times.max()))  # how often it holds each, and
        self._starts: Final = np.searchsorted(owner, np.arange(len(references) + 1))  # where they begin
        order = np.argsort(self._held, kind="stable")  # the same by n-gram
        self._postings: Final = owner[order], self._times[order]
        self._posting_starts: Final = np.searchsorted(self._held[order], np.arange(self._ngrams.size + 1))

    def __len__(self) -> int:
        return self._lengths.size

    def scores(self, texts: Sequence[str], rows: Sequence[int] | Ints) -> Floats:
        """CIDEr-D of B texts, each against the reference of its row: (B,) float64, 0 to 10; 0 for an empty text.

        Raises:
            ValueError: not as many rows as texts, or a row that is no reference.
        """
        if len(texts) != len(rows):
            raise ValueError(f"{len(texts)} texts came with {len(rows)} rows; give each text its reference")
        items = np.fromiter(map(index, rows), np.int64, len(rows))
        if wrong := items[(items < 0) | (items >= len(self))].tolist():
            raise ValueError(f"row {wrong[0]} is out of range; the {len(self)} references are counted from 0")
        scores = np.zeros(items.size)
        for at in range(0, items.size, _CHUNK):
            scores[at : at + _CHUNK] = self._chunk(texts[at : at + _CHUNK], items[at : at + _CHUNK])
        return scores

    def against_all(self, text: str) -> Floats:
        """(R,) CIDEr-D of one text against every reference."""
        flat, numbers, times, weights, norms = self._read([text])
        starts = self._posting_starts[numbers]
        sizes = self._posting_starts[numbers + 1] - starts  # (4, P) references that hold each n-gram
        at = _ranges(starts.ravel(), sizes.ravel())
        found, times = self._postings[1][at], np.repeat(times, sizes.ravel())
        shared = np.minimum(times, found) * found / times * np.repeat(weights, sizes.ravel())
        cell = np.repeat(np.arange(ORDERS), sizes.sum(1)) * len(self) + self._postings[0][at]
        dots = np.bincount(cell, shared, ORDERS * len(self)).reshape(ORDERS, len(self))
        return self._combined((dots / self._norms.T).T / norms, flat.lengths, slice(None))

    def _chunk(self, texts: Sequence[str], rows: Ints) -> Floats:
        flat, numbers, times, weights, norms = self._read(texts)
        found = self._found(rows, numbers, flat.text)
        shared = np.minimum(times, found) * found / times * weights
        dots = np.add.reduceat(shared, flat.starts, axis=1).T  # (B, 4)
        return self._combined(dots / (norms * self._norms[rows]), flat.lengths, rows)

    def _read(self, texts: Sequence[str]) -> tuple[Texts, Ints, Floats, Floats, Floats]:
        """The texts; by order and position the number, count and weight of an n-gram (4, P); norms (B, 4)."""
        flat = self._ngrams.flatten(texts)
        numbers, times = self._ngrams.numbers(flat), self._ngrams.counts(flat)
        weights = self._idf2.take(numbers)
        # an n-gram that occurs c times is read c times, and each time adds c * idf2
        return flat, numbers, times, weights, _norms(np.add.reduceat(times * weights, flat.starts, axis=1).T)

    def _combined(self, cosines: Floats, lengths: Ints, rows: Ints | slice) -> Floats:
        penalty = np.exp(-((lengths - self._lengths[rows]) ** 2) / (2 * _SIGMA**2))
        scores: Floats = _SCALE * (cosines.mean(1) * penalty)
        return scores

    def _found(self, rows: Ints, numbers: Ints, text: Ints) -> Ints:
        """(4, P) how often the reference of a text holds each n-gram of the text."""
        distinct, row = np.unique(rows, return_inverse=True)
        starts = self._starts[distinct]
        sizes = self._starts[distinct + 1] - starts
        at = _ranges(starts, sizes)
        column = np.zeros(self._ngrams.size, np.int32)  # of a table of counts; 0 for what none of the references holds
        column[self._held[at]] = np.arange(1, at.size + 1)  # an n-gram of several references keeps one of their columns
        offset = np.arange(distinct.size) * (at.size + 1)  # a row for each reference
        table = np.zeros(distinct.size * (at.size + 1), self._times.dtype)
        table[np.repeat(offset, sizes) + column[self._held[at]]] = self._times[at]
        found: Ints = table.take(column.take(numbers) + offset[row][text])
        return found


def _norms(squares: Floats) -> Floats:
    """Lengths of vectors; 1 where it is 0, since nothing is divided there."""
    return np.sqrt(np.where(squares > 0, squares, 1.0))


def _ranges(starts: Ints, sizes: Ints) -> Ints:
    """The integers of the ranges ``starts`` to ``starts + sizes``, one range after the other."""
    found: Ints = np.arange(sizes.sum()) + np.repeat(starts - np.cumsum(sizes) + sizes, sizes)
    return found


def _check(texts: Sequence[str], name: str) -> None:
    if not len(texts):
        raise ValueError(f"{name} is empty; CIDEr needs one text or more")
    for number, text in enumerate(texts):
        if not text.split():
            raise ValueError(f"{name}[{number}] is {text!r}, a text without words; leave such texts out")
