"""Which words may follow in a sentence: those that complete a word trigram of some training report.

The training reports are known by hashes of their bigrams and trigrams only. A sentence counts from
the full stop before it, so its first words are checked too, and trigrams do not cross sentences.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from model.decoding.mbr_table import Ints, MbrTable, ngram_keys
from model.text.tokenizer import END_OF_SENTENCE, Tokenizer

Keys = npt.NDArray[np.int64]
_MOST_WORDS, _MOST_CONTINUATIONS = 4096, 2**28


def attested_keys(tokens: Ints, stop: int) -> Keys:
    """Sorted hashes of the bigrams and trigrams of all sentences of texts: (N, T) ids padded with 0 -> (A,)."""
    rows = []
    for words in tokens.tolist():
        sentence = [stop]
        for word in words:
            if word == 0:
                break
            sentence.append(word)
            if word == stop:
                rows.append(sentence)
                sentence = [stop]
        rows.append(sentence)
    keys = ngram_keys(_padded(rows))[1:3]
    found: Keys = np.unique(keys[keys != 0])
    return found


def _padded(rows: Sequence[Sequence[int]]) -> Ints:
    padded = np.zeros((len(rows), max(3, *map(len, rows))), np.int64)
    for row, words in enumerate(rows):
        padded[row, : len(words)] = words
    return padded


class AttestedText:
    """The allowed continuations of every pair of words of a vocabulary of V words.

    Args:
        keys: (A,) what ``attested_keys`` returned.
        tokenizer: of the model.
        suppressed: ids that must not be generated; a context that only they continue falls back to
            the bigrams of its last word.

    Raises:
        ValueError: the vocabulary or the number of bigrams is too large for tables in memory.
    """

    def __init__(self, keys: Keys, tokenizer: Tokenizer, suppressed: Sequence[int]) -> None:
        self._keys, self._stop, self._bos = keys, tokenizer.id_of(END_OF_SENTENCE), tokenizer.bos_id
        size = len(tokenizer)
        if size > _MOST_WORDS:
            raise ValueError(f"attested decoding takes {_MOST_WORDS:,} words at most, the vocabulary has {size:,}")
        words = np.arange(size)
        follows = np.stack([self._known(np.column_stack([np.full(size, word), words])) for word in words])  # (V, V)
        follows[:, list(suppressed)] = False
        pairs = np.argwhere(follows)
        if len(pairs) * size > _MOST_CONTINUATIONS:
            raise ValueError(
                f"attested decoding takes {_MOST_CONTINUATIONS // size:,} bigrams at most, not {len(pairs):,}"
            )
        choices = follows[pairs[:, 1]]  # (P, V) by bigram
        row, third = np.nonzero(choices)
        allowed = np.zeros_like(choices)
        allowed[row, third] = self._known(np.column_stack([pairs[row], third]))
        dead = ~allowed.any(1)
        allowed[dead] = choices[dead]
        allowed[~allowed.any(1), self._stop] = True
        begins = follows[self._stop].copy()
        begins[tokenizer.eos_id] = True
        unknown = np.zeros(size, np.bool_)  # a context that no report has: end the sentence
        unknown[self._stop] = True
        table = np.full((size, size), len(pairs) + 1, np.int32)
        table[pairs[:, 0], pairs[:, 1]] = np.arange(len(pairs))
        table[:, self._stop] = len(pairs)
        self._row = torch.from_numpy(table)
        self._allowed = torch.from_numpy(np.vstack([allowed, begins, unknown]))

    def continuations(self, history: Tensor, length: int) -> Tensor:
        """Allowed next words of texts: (N, >= length) ids -> (N, V) bool on the CPU."""
        stops = torch.full((len(history), 2), self._stop)
        context = torch.cat([stops, history[:, max(length - 2, 0) : length].cpu()], dim=1)[:, -2:]
        context = torch.where(context == 0, self._stop, context)  # a text that has ended
        return self._allowed[self._row[context[:, 0], context[:, 1]]]

    def holds(self, sentence: Sequence[int]) -> bool:
        """Whether some training report has every trigram of a sentence, the full stops around it included."""
        return bool(self._known(np.lib.stride_tricks.sliding_window_view([self._stop, *sentence], 3)).all())

    def _known(self, ngrams: Ints) -> npt.NDArray[np.bool_]:
        """(M, n) ids, n 2 or 3 -> (M,)."""
        n = ngrams.shape[1]
        keys = ngram_keys(ngrams.astype(np.int64))[n - 1, :, 0]
        indices = np.minimum(np.searchsorted(self._keys, keys), len(self._keys) - 1)
        known: npt.NDArray[np.bool_] = self._keys[indices] == keys
        return known


@lru_cache(maxsize=4)
def attested_text(table: MbrTable, tokenizer: Tokenizer, suppressed: tuple[int, ...]) -> AttestedText:
    """The continuations that the training reports of a table attest.

    Raises:
        ValueError: the table was made without them.
    """
    if not len(table.attested):
        raise ValueError(
            "this bundle's consensus.safetensors has no attested trigrams; make them with python -m "
            "training.tune_decoding --clean-language --write-bundle, or set decoding.language.attested to false"
        )
    return AttestedText(table.attested, tokenizer, suppressed)
