"""Numbers of words and n-grams, as arrays, for texts that are split at spaces.

Words have numbers, and so do the n-grams of the references and documents. A trie maps the number of an n-gram and of
the next word to the number of the longer n-gram. It is stored as a double array (Aoe 1989): a step takes two look-ups,
and the second confirms the first, so no n-gram is mistaken for another. N-grams outside the trie share one number: they
weigh the same and match nothing. How often each of them occurs in a text is counted on the words.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import chain, repeat
from typing import Final

import numpy as np
import numpy.typing as npt

Ints = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]
_Spell = Callable[[int], str | None]  # the word at a position

ORDERS: Final = 4  # n-grams of 1 to 4 words
_STOP = "\n"  # closes each text, as word number 0; no text split at spaces contains it
_BYTES = 16  # of a word that needs no dictionary look-up
_MASKS = np.array([b"\xff" * size for size in range(_BYTES + 1)] + [b""], f"S{_BYTES}").view("<u8").reshape(-1, 2)
_WINDOW = 64  # positions tried at once for a row of the trie


@dataclass(frozen=True)
class Texts:
    """B texts one after the other, each closed by a 0; P positions."""

    words: Ints  # (P + 3,) numbers, a different one for each unknown word; three more 0 at the end
    text: Ints  # (P,)
    starts: Ints  # (B,)
    lengths: Ints  # (B,) words + 1; pycocoevalcap counts pairs of words, which gives the same differences


class NgramNumbers:
    """The n-grams of ``texts`` by number, below ``size``; 0 stands for the end of a text, one number for all others."""

    def __init__(self, texts: Sequence[str]) -> None:
        self._words: Final = _Words(chain.from_iterable(map(str.split, texts)))
        self._base, self._check = _trie(self._words.flatten(texts), self._words.unknown)
        self.size: Final[int] = self._base.size

    def flatten(self, texts: Sequence[str]) -> Texts:
        """The numbers of all words of other texts."""
        return self._words.flatten(texts)

    def numbers(self, flat: Texts) -> Ints:
        """(4, P) number of the n-gram of each order that begins at each position; 0 past the end of the text."""
        words = np.minimum(flat.words, self._words.unknown)
        numbers = np.empty((ORDERS, flat.text.size), np.int64)
        prefix = numbers[0] = words[: flat.text.size]
        for n in range(1, ORDERS):
            last = words[n : n + prefix.size]
            slot = self._base.take(prefix) + last
            known = self._check.take(slot) == prefix
            numbers[n] = np.where(known, slot, self._words.unknown) * ((prefix > 0) & (last > 0))
            prefix = numbers[n]
        return numbers

    @staticmethod
    def counts(flat: Texts) -> Floats:
        """(4, P) how often the text holds the n-gram of each order that begins at each position.

        A repeated n-gram begins with a repeated (n-1)-gram and ends with a repeated word, so each order reads only the
        positions that the order before found repeated. Sorting groups equal n-grams.
        """
        times = np.ones((ORDERS, flat.text.size))
        keys = np.sort(pack(flat.words[: flat.text.size], np.arange(flat.text.size)))
        words, at = high(keys), low(keys)
        again = np.zeros(at.size + 1, np.bool_)  # whether a position equals the one before it in ``at``
        again[1:-1] = (words[1:] == words[:-1]) & (flat.text[at[1:]] == flat.text[at[:-1]])
        group = np.zeros(flat.words.size, np.int64)  # of repeated words, from 1
        for n in range(ORDERS):
            several = again[:-1] | again[1:]
            at, which = at[several], np.cumsum(~again[:-1][several], dtype=np.int64)
            times[n, at] = np.bincount(which)[which]
            if n == 0:
                group[at] = which
            if n == ORDERS - 1 or not at.size:
                break
            last = group[at + n + 1]
            keys, at = pack(which, last)[last > 0], at[last > 0]
            order = np.argsort(keys)
            keys, at = keys[order], at[order]
            again = np.zeros(at.size + 1, np.bool_)
            again[1:-1] = keys[1:] == keys[:-1]
        return times


class _Words:
    """Numbers of words. A dictionary holds all of them; 0 is the end of a text.

    A dictionary look-up for every word would take half the time of a score. Printable ASCII is therefore read as bytes:
    a word of up to 16 letters is two integers. Their hash gives a position in a table of numbers, and the number gives
    back the two integers, which confirm it. Words that are not found in this way go to the dictionary.
    """

    def __init__(self, words: Iterable[str]) -> None:
        every = dict.fromkeys(chain((None,), words))
        self._numbers: Final[dict[str | None, int]] = {word: number for number, word in enumerate(every)}
        self.unknown: Final = len(every)  # unknown words have this number or one above
        spelled = [_STOP, *(word if _short(word) else "" for word in self._numbers if word is not None), ""]
        self._spelled: Final = np.array(spelled, f"S{_BYTES}").view("<u8").reshape(-1, 2).T.copy()  # (2, unknown + 1)
        self._bits: Final = (16 * self.unknown).bit_length()
        self._table: Final = np.zeros(1 << self._bits, np.int64)
        short = np.flatnonzero(self._spelled.any(0))[::-1]  # reversed: of several words at one position the first stays
        self._table[self._positions(self._spelled[:, short])] = short

    def flatten(self, texts: Sequence[str]) -> Texts:
        """The numbers of all words of ``texts``."""
        numbers, spell = self._by_bytes(texts) or self._by_dictionary(texts)
        new: dict[str | None, int] = {}
        for position in np.flatnonzero(numbers == self.unknown).tolist():
            word = spell(position)
            known = self._numbers.get(word)
            numbers[position] = new.setdefault(word, self.unknown + len(new)) if known is None else known
        stops = np.flatnonzero(numbers == 0)
        sizes = np.diff(stops, prepend=-1)
        words = np.append(numbers, np.zeros(ORDERS - 1, np.int64))
        return Texts(words, np.repeat(np.arange(sizes.size), sizes), stops - sizes + 1, sizes)

    def _by_dictionary(self, texts: Sequence[str]) -> tuple[Ints, _Spell]:
        words: list[str | None] = list(chain.from_iterable((*text.split(), None) for text in texts))
        numbers = np.fromiter(map(self._numbers.get, words, repeat(self.unknown)), np.int64, len(words))
        return numbers, lambda position: words[position]

    def _by_bytes(self, texts: Sequence[str]) -> tuple[Ints, _Spell] | None:
        """None where a text holds other characters than printable ASCII."""
        joined = f" {_STOP} ".join((*texts, ""))
        raw = np.frombuffer(joined.encode("ascii", "replace") + bytes(_BYTES), np.uint8)
        if not joined.isascii() or np.count_nonzero(raw < ord(" ")) != len(texts) + _BYTES:
            return None
        ends = np.flatnonzero(raw == ord(" "))
        begins = np.append(0, ends[:-1] + 1)
        if not (sizes := ends - begins).all():  # two spaces in a row
            begins, sizes = begins[sizes > 0], sizes[sizes > 0]
        spelled = np.ndarray(raw.size - _BYTES, f"V{_BYTES}", raw, strides=(1,))[begins].view("<u8").reshape(-1, 2)
        spelled = (spelled & _MASKS.take(np.minimum(sizes, _BYTES + 1), 0)).T
        numbers = self._table.take(self._positions(spelled))
        numbers[(self._spelled.take(numbers, 1) != spelled).any(0)] = self.unknown
        return numbers, lambda position: joined[begins[position] : begins[position] + sizes[position]]

    def _positions(self, spelled: npt.NDArray[np.uint64]) -> Ints:
        mixed = spelled[0] * np.uint64(0x9E3779B97F4A7C15) ^ spelled[1] * np.uint64(0xC2B2AE3D27D4EB4F)
        positions: Ints = (mixed >> np.uint64(64 - self._bits)).astype(np.int64)
        return positions


def _short(word: str) -> bool:
    """Whether a word can be read as bytes."""
    return len(word) <= _BYTES and all("!" <= character <= "~" for character in word)


def _trie(flat: Texts, unknown: int) -> tuple[Ints, Ints]:
    """The double array: the n-gram p with word w behind it is number base[p] + w if check there is p."""
    base, check = np.zeros(unknown + 1, np.int64), np.full(unknown + 1, -1)
    prefix = flat.words[: flat.text.size].copy()
    alive: npt.NDArray[np.bool_] = prefix > 0
    for n in range(1, ORDERS):
        last = flat.words[n : n + prefix.size]
        alive &= last > 0
        keys, which = np.unique(pack(prefix[alive], last[alive]), return_inverse=True)
        slots = base.size + _displaced(high(keys), low(keys))
        base[high(keys)] = slots - low(keys)
        grown = slots.max(initial=base.size - 1) + 1 - base.size
        base, check = np.append(base, np.zeros(grown, np.int64)), np.append(check, np.full(grown, -1))
        check[slots] = high(keys)
        prefix[alive] = slots[which]
    return base, np.append(check, np.full(unknown + 1, -1))


def _displaced(rows: Ints, columns: Ints) -> Ints:
    """(K,) slots of the K entries of a sparse table, sorted by row: a row keeps its distances, no slot is used twice.

    Rows of several entries are stored first, where they fit; rows of one entry fill the gaps (Tarjan and Yao 1979,
    "Storing a Sparse Table").
    """
    first = np.flatnonzero(np.diff(rows, prepend=-1))
    sizes = np.diff(first, append=rows.size)
    slots, steps = np.zeros(rows.size, np.int64), columns - np.repeat(columns[first], sizes)
    taken, at = np.zeros(_WINDOW, np.bool_), 0
    for row in np.argsort(-sizes, kind="stable")[: np.count_nonzero(sizes > 1)].tolist():
        entries = slice(first[row], first[row] + sizes[row])
        while True:
            tried = at + np.arange(_WINDOW)[:, None] + steps[entries]  # (window, entries)
            if tried[-1, -1] >= taken.size:
                taken = np.append(taken, np.zeros(tried[-1, -1], np.bool_))
            fits = ~taken[tried].any(1)
            if fits.any():
                break
            at += _WINDOW
        slots[entries] = tried[fits.argmax()]
        taken[slots[entries]] = True
    single = first[sizes == 1]
    slots[single] = np.flatnonzero(~np.append(taken, np.zeros(single.size, np.bool_)))[: single.size]
    return slots


def pack(high: Ints, low: Ints) -> Ints:
    """Two numbers below 2**31 in one, which sorts by both; nothing is lost."""
    return (high << 32) | low


def high(packed: Ints) -> Ints:
    return packed >> 32


def low(packed: Ints) -> Ints:
    return packed & 0xFFFFFFFF
