"""Which sentences a draft may hold: those that a training report holds word for word.

A language model joins the halves of two sentences where they share a few words ("there is no
effusion is basilar airspace disease"). Decoding therefore continues with attested words only, those
that complete a 4-gram of a sentence of a training report, and of what results MBR decoding takes
whole attested sentences only.

The training reports are known by hashes: of bigrams and 4-grams, and of sentences. A sentence's
hash has 20 bits only, so that it does not identify a sentence: with S hashes, S of 2**20 other word
sequences collide (about one in 270 for the shipped bundle), and so may pass.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import lru_cache

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from model.decoding.mbr_table import FACTOR, Ints, MbrTable, ngram_keys
from model.text.tokenizer import END_OF_SENTENCE, Tokenizer

Keys = npt.NDArray[np.int64]
_CONTEXT = 3  # words that decide which may follow
_BITS = 20
MOST_WORDS = 4096  # of a vocabulary
_MOST_CONTINUATIONS = 2**28


def attested_keys(tokens: Ints, stop: int) -> Keys:
    """Sorted hashes of the bigrams and 4-grams of all sentences of texts: (N, T) ids padded with 0 -> (A,)."""
    rows = [[stop] * _CONTEXT + sentence for words in tokens.tolist() for sentence in _sentences(words, stop)]
    padded = np.zeros((len(rows), max(_CONTEXT + 1, *map(len, rows))), np.int64)
    for row, words in enumerate(rows):
        padded[row, : len(words)] = words
    keys = ngram_keys(padded)[[1, _CONTEXT]]
    found: Keys = np.unique(keys[keys != 0])
    return found


def sentence_keys(tokens: Ints, stop: int) -> npt.NDArray[np.int32]:
    """Sorted hashes of the complete sentences of texts: (N, T) ids padded with 0 -> (S,), 0 to 2**20 - 1."""
    texts = (_sentences(words, stop) for words in tokens.tolist())
    keys = {_sentence_key(sentence) for text in texts for sentence in text if sentence[-1] == stop}
    return np.array(sorted(keys), np.int32)


def _sentences(words: Sequence[int], stop: int) -> list[list[int]]:
    """The sentences of a text padded with 0, full stops included; the last one may have none."""
    sentences: list[list[int]] = [[]]
    for word in words:
        if word == 0:
            break
        sentences[-1].append(word)
        if word == stop:
            sentences.append([])
    return [sentence for sentence in sentences if sentence]


def _sentence_key(sentence: Iterable[int]) -> int:
    state = 0
    for word in sentence:
        state = ((state ^ (state >> 29)) + word + 1) * int(FACTOR) % 2**64
    return state >> (64 - _BITS)


class AttestedText:
    """The allowed continuations of every attested context of three words, over a vocabulary of V words.

    A context begins with its sentence; full stops fill it up.

    Args:
        keys: (A,) what ``attested_keys`` returned.
        sentences: (S,) what ``sentence_keys`` returned.
        tokenizer: of the model.
        suppressed: ids that must not be generated; no path leads to a word that only they continue.

    Raises:
        ValueError: no sentence is attested, or the vocabulary or the number of contexts is too large for tables in
            memory.
    """

    def __init__(
        self, keys: Keys, sentences: npt.NDArray[np.int32], tokenizer: Tokenizer, suppressed: Sequence[int]
    ) -> None:
        self._keys, self._stop = keys, tokenizer.id_of(END_OF_SENTENCE)
        self._sentences = frozenset(sentences.tolist())
        self._size = size = len(tokenizer)
        if size > MOST_WORDS:
            raise ValueError(f"attested decoding takes {MOST_WORDS:,} words at most, the vocabulary has {size:,}")
        words = np.arange(size)
        follows = np.stack([self._known(np.column_stack([np.full(size, word), words])) for word in words])  # (V, V)
        follows[:, list(suppressed)] = False
        ngrams = self._reachable(follows)
        contexts, row = np.unique(self._codes(ngrams[:, :_CONTEXT]), return_inverse=True)
        if len(contexts) * size > _MOST_CONTINUATIONS:
            raise ValueError(
                f"attested decoding takes {_MOST_CONTINUATIONS // size:,} trigrams at most, not {len(contexts):,}"
            )
        following = _rows(contexts, self._codes(self._context(ngrams[:, 1:])))
        leads_on = _leads_to_an_end(row, ngrams[:, _CONTEXT] == self._stop, following, len(contexts))
        allowed = np.zeros((len(contexts) + 1, size), np.bool_)  # the last row: a context that no report has
        allowed[row[leads_on], ngrams[leads_on, _CONTEXT]] = True
        begins = _rows(contexts, self._codes(np.full((1, _CONTEXT), self._stop)))[0]
        if not allowed[begins].any():
            raise ValueError("no attested sentence is free of suppressed words; set decoding.language.attested false")
        allowed[begins, tokenizer.eos_id] = True
        allowed[-1, self._stop] = True
        self._contexts, self._allowed = contexts, torch.from_numpy(allowed)

    def _reachable(self, follows: npt.NDArray[np.bool_]) -> Ints:
        """The attested 4-grams that texts can hold, (M, 4), of words that follow each other (V, V)."""
        level = np.full((1, _CONTEXT), self._stop, np.int64)
        seen, found = self._codes(level), []
        while len(level):
            row, word = np.nonzero(follows[level[:, -1]])
            ngrams = np.column_stack([level[row], word])
            ngrams = ngrams[self._known(ngrams)]
            found.append(ngrams)
            reached, first = np.unique(self._codes(self._context(ngrams[:, 1:])), return_index=True)
            new = ~np.isin(reached, seen)
            level = self._context(ngrams[first[new], 1:])
            seen = np.union1d(seen, reached)
        return np.concatenate(found)

    def _context(self, words: Ints) -> Ints:
        """The last three words of texts, (N, 3), with full stops for what is before the sentence."""
        context = words.copy()
        for position in reversed(range(_CONTEXT - 1)):
            context[context[:, position + 1] == self._stop, position] = self._stop
        return context

    def _codes(self, contexts: Ints) -> Ints:
        """(N, 3) ids -> (N,) one number for each."""
        return (contexts[:, 0] * self._size + contexts[:, 1]) * self._size + contexts[:, 2]

    def continuations(self, history: Tensor, length: int) -> Tensor:
        """Allowed next words of texts: (N, >= length) ids -> (N, V) bool on the CPU."""
        stops = torch.full((len(history), _CONTEXT), self._stop)
        words = torch.cat([stops, history[:, max(length - _CONTEXT, 0) : length].cpu()], dim=1)[:, -_CONTEXT:]
        words = torch.where(words == 0, self._stop, words)  # a text that has ended
        rows = _rows(self._contexts, self._codes(self._context(words.numpy())))
        return self._allowed[torch.from_numpy(rows)]

    def holds(self, sentence: Sequence[int]) -> bool:
        """Whether a training report has a sentence, the full stop included, apart from collisions of hashes."""
        padded = [*[self._stop] * _CONTEXT, *sentence]
        ngrams = np.lib.stride_tricks.sliding_window_view(padded, _CONTEXT + 1)
        return _sentence_key(sentence) in self._sentences and bool(self._known(ngrams).all())

    def _known(self, ngrams: Ints) -> npt.NDArray[np.bool_]:
        """(M, n) ids, n 2 or 4 -> (M,)."""
        n = ngrams.shape[1]
        keys = ngram_keys(ngrams.astype(np.int64))[n - 1, :, 0]
        indices = np.minimum(np.searchsorted(self._keys, keys), len(self._keys) - 1)
        known: npt.NDArray[np.bool_] = self._keys[indices] == keys
        return known


def _rows(contexts: Ints, codes: Ints) -> Ints:
    """Indices in sorted ``contexts`` (C,) of codes (N,); C for one that is not there."""
    rows = np.minimum(np.searchsorted(contexts, codes), len(contexts) - 1)
    return np.where(contexts[rows] == codes, rows, len(contexts))


def _leads_to_an_end(row: Ints, ends: npt.NDArray[np.bool_], following: Ints, contexts: int) -> npt.NDArray[np.bool_]:
    """Which 4-grams, from context ``row`` to ``following`` (M,), lead to one that ends a sentence."""
    while True:
        alive = np.zeros(contexts + 1, np.bool_)
        alive[row[ends]] = True
        more = ends | alive[following]
        if (more == ends).all():
            return ends
        ends = more


@lru_cache(maxsize=4)
def attested_text(table: MbrTable, tokenizer: Tokenizer, suppressed: tuple[int, ...]) -> AttestedText:
    """The continuations and sentences that the training reports of a table attest.

    Raises:
        ValueError: the table was made without them.
    """
    if not len(table.attested) or not len(table.sentences):
        raise ValueError(
            "this bundle's consensus.safetensors has no attested sentences; make them with python -m "
            "training.tune_decoding --clean-language --write-bundle, or set decoding.language.attested to false"
        )
    return AttestedText(table.attested, table.sentences, tokenizer, suppressed)
