"""CIDEr-D of many drafts against cached references: the reward of self-critical sequence training.

Vedantam, Zitnick and Parikh 2015, "CIDEr: Consensus-based Image Description Evaluation" (arXiv:1411.5726), with the
clipping and the length penalty of its CIDEr-D, as ``pycocoevalcap`` computes them: equal document frequencies give
equal scores. What depends on the references alone is prepared once; drafts are handled many at a time, as arrays.

Words have numbers, and so has each n-gram of the references and documents. A trie leads from the number of an n-gram
and that of the next word to the number of the longer n-gram. It is stored as a double array (Aoe 1989): a step is two
look-ups, the second of which confirms the first, so that no n-gram is ever taken for another. Those outside the trie
share one number, since they weigh the same and match nothing; how often each stands in a draft is counted on the words.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import chain, repeat
from operator import index
from typing import Final, cast

import numpy as np
import numpy.typing as npt

Ints = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]
Token = str | int
Text = str | Sequence[Token]  # a string is split at spaces; a sequence holds words or token ids as they are
_Spell = Callable[[int], Token | None]  # the token at a place

_ORDERS = 4  # n-grams of 1 to 4 words
_SIGMA = 6.0  # of the length penalty, in words
_SCALE = 10.0  # what a draft scores that equals its reference
_STOP = "\n"  # stands behind each text, as word number 0; no text split at spaces holds it
_BYTES = 16  # of a word that is not looked up in a dictionary
_MASKS = np.array([b"\xff" * size for size in range(_BYTES + 1)] + [b""], f"S{_BYTES}").view("<u8").reshape(-1, 2)
_PART = 128  # drafts handled at once, so that their arrays stay in the processor's cache
_WINDOW = 64  # places tried at once for a row of the trie


class CiderD:
    """CIDEr-D against references known beforehand. An instance does not change; threads may share it.

    Args:
        references: one or more of each item.
        documents: items whose references give the document frequencies, and whose number they are compared with; in
            training those of the training split. ``references`` where not given, as in ``pycocoevalcap``.
        end: a token put behind each hypothesis, reference and document, by which the score sees where a report ends.
            Without it self-critical training learns to break off within a sentence. None puts nothing there.

    Raises:
        ValueError: no items, an item without references, a reference without words, or an ``end`` that is not one
            word.
    """

    def __init__(
        self,
        references: Sequence[Sequence[Text]],
        documents: Sequence[Sequence[Text]] | None = None,
        *,
        end: Token | None = None,
    ) -> None:
        if isinstance(end, str) and len(end.split()) != 1:
            raise ValueError(f"end is {end!r}; it must be one word, such as '<eos>', or None")
        self._tail: Final = () if end is None else (end,)
        texts, items = _checked(references, "references")
        counted, counted_items = (texts, items) if documents is None else _checked(documents, "documents")
        every = texts if documents is None else texts + counted
        self._words: Final = _Words(chain(self._tail, *map(_split, every)))
        flat = self._words.flatten(every, self._tail)
        self._base, self._check = _trie(flat, self._words.unknown)
        numbers = self._numbers(flat)  # (4, P)

        place = flat.text - (len(every) - len(counted))  # among the documents' texts
        held = np.unique(_pack(counted_items[place[place >= 0]], numbers[:, place >= 0]))
        frequency = np.bincount(_low(held), minlength=self._base.size)
        idf = np.log(counted_items[-1] + 1.0) - np.log(np.maximum(frequency, 1.0))
        self._idf2: Final = idf**2  # by number of the n-gram; 0 for number 0, the end of a text, which each item holds

        own = flat.text < len(texts)
        lists = flat.text[own] * _ORDERS + np.arange(_ORDERS)[:, None]
        held, times = np.unique(_pack(lists, numbers[:, own]), return_counts=True)
        squares = np.bincount(_high(held), times**2 * self._idf2[_low(held)]).astype(np.float64)
        self._norms: Final = _norms(squares.reshape(len(texts), _ORDERS))  # (R, 4)
        self._lengths: Final = flat.lengths[: len(texts)]  # (R,)
        held, times = held[_low(held) > 0], times[_low(held) > 0]
        self._held: Final = _low(held)  # n-grams of one reference after the other,
        self._times: Final = times.astype(np.min_scalar_type(times.max()))  # how often it holds each, and
        self._starts: Final = np.searchsorted(_high(held) // _ORDERS, np.arange(len(texts) + 1))  # where they begin
        self._first: Final = np.searchsorted(items, np.arange(len(references) + 1))  # first reference of each item

    def __len__(self) -> int:
        """Number of items."""
        return self._first.size - 1

    def scores(self, hypotheses: Sequence[Text], rows: Sequence[int] | Ints) -> Floats:
        """CIDEr-D of each hypothesis against the references of its item.

        Args:
            hypotheses: B drafts; an empty one scores 0.
            rows: their items, B; several hypotheses may share one.

        Returns:
            (B,) float64, 0 to 10.

        Raises:
            ValueError: not as many rows as hypotheses, or a row that is no item.
        """
        if len(hypotheses) != len(rows):
            raise ValueError(f"{len(hypotheses)} hypotheses came with {len(rows)} rows; give each hypothesis its item")
        items = np.fromiter(map(index, rows), np.int64, len(rows))
        if wrong := items[(items < 0) | (items >= len(self))].tolist():
            raise ValueError(f"row {wrong[0]} is out of range; the {len(self)} items are counted from 0")
        scores = np.zeros(items.size)
        for at in range(0, items.size, _PART):
            scores[at : at + _PART] = self._part(hypotheses[at : at + _PART], items[at : at + _PART])
        return scores

    def _part(self, hypotheses: Sequence[Text], items: Ints) -> Floats:
        flat = self._words.flatten(hypotheses, self._tail)
        numbers, times = self._numbers(flat), _times(flat)  # (4, P)
        idf2 = self._idf2.take(numbers)
        norms = _norms(np.add.reduceat(times * idf2, flat.starts, axis=1).T)  # (B, 4): each of c times adds c * idf2

        first = self._first[items]
        several = self._first[items + 1] - first  # (B,) references
        total = np.zeros(items.size)
        for nth in range(several.max()):
            reference = first + np.minimum(nth, several - 1)
            found = self._found(reference, numbers, flat.text)
            shared = np.minimum(times, found) * found / times * idf2
            dots = np.add.reduceat(shared, flat.starts, axis=1).T  # (B, 4)
            cosine = (dots / (norms * self._norms[reference])).mean(1)
            penalty = np.exp(-((flat.lengths - self._lengths[reference]) ** 2) / (2 * _SIGMA**2))
            total += np.where(nth < several, cosine * penalty, 0.0)
        return _SCALE * total / several

    def _numbers(self, flat: _Flat) -> Ints:
        """(4, P) number of the n-gram of each order that begins at each place; 0 where the text is too short."""
        words = np.minimum(flat.words, self._words.unknown)
        numbers = np.empty((_ORDERS, flat.text.size), np.int64)
        prefix = numbers[0] = words[: flat.text.size]
        for n in range(1, _ORDERS):
            last = words[n : n + prefix.size]
            slot = self._base.take(prefix) + last
            known = self._check.take(slot) == prefix
            numbers[n] = np.where(known, slot, self._words.unknown) * ((prefix > 0) & (last > 0))
            prefix = numbers[n]
        return numbers

    def _found(self, reference: Ints, numbers: Ints, text: Ints) -> Ints:
        """(4, P) how often the reference of a draft holds each n-gram of the draft."""
        distinct, row = np.unique(reference, return_inverse=True)
        starts = self._starts[distinct]
        sizes = self._starts[distinct + 1] - starts
        at = np.arange(sizes.sum()) + np.repeat(starts - np.cumsum(sizes) + sizes, sizes)
        column = np.zeros(self._base.size, np.int32)  # of a table of counts; 0 for what none of the references holds
        column[self._held[at]] = np.arange(1, at.size + 1)  # of several for one n-gram any will do
        offset = np.arange(distinct.size) * (at.size + 1)  # a row for each reference
        table = np.zeros(distinct.size * (at.size + 1), self._times.dtype)
        table[np.repeat(offset, sizes) + column[self._held[at]]] = self._times[at]
        found: Ints = table.take(column.take(numbers) + offset[row][text])
        return found


@dataclass(frozen=True)
class _Flat:
    """B texts behind each other, each closed by a 0; P places."""

    words: Ints  # (P + 3,) numbers, those of unknown words apart; three more 0 at the end
    text: Ints  # (P,)
    starts: Ints  # (B,)
    lengths: Ints  # (B,) words and one more; pycocoevalcap counts neighbouring pairs, which differ by as many


class _Words:
    """Numbers of words. A dictionary holds them all, 0 being that of the end of a text.

    To look every word up in it takes half the time of a score. Strings of printable ASCII are therefore read as bytes:
    a word of up to 16 is two integers. They say where in a table its number stands, if it stands there, and the number
    says which two integers it belongs to. What is not found so goes to the dictionary.
    """

    def __init__(self, tokens: Iterable[Token]) -> None:
        every = dict.fromkeys(chain((None,), tokens))
        self._numbers: Final[dict[Token | None, int]] = {token: number for number, token in enumerate(every)}
        self.unknown: Final = len(every)  # words that are not here have this number or one above
        spelled = [_STOP, *(token if _short(token) else "" for token in self._numbers if token is not None), ""]
        self._spelled: Final = np.array(spelled, f"S{_BYTES}").view("<u8").reshape(-1, 2).T.copy()  # (2, unknown + 1)
        self._bits: Final = (16 * self.unknown).bit_length()
        self._table: Final = np.zeros(1 << self._bits, np.int64)
        short = np.flatnonzero(self._spelled.any(0))[::-1]  # so that of several at one place the first stays
        self._table[self._places(self._spelled[:, short])] = short

    def flatten(self, texts: Sequence[Text], tail: Sequence[Token]) -> _Flat:
        """``texts`` with ``tail`` behind each."""
        numbers, spell = self._by_bytes(texts, tail) or self._by_dictionary(texts, tail)
        strange: dict[Token | None, int] = {}
        for place in np.flatnonzero(numbers == self.unknown).tolist():
            token = spell(place)
            known = self._numbers.get(token)
            numbers[place] = strange.setdefault(token, self.unknown + len(strange)) if known is None else known
        stops = np.flatnonzero(numbers == 0)
        sizes = np.diff(stops, prepend=-1)
        words = np.append(numbers, np.zeros(_ORDERS - 1, np.int64))
        return _Flat(words, np.repeat(np.arange(sizes.size), sizes), stops - sizes + 1, sizes)

    def _by_dictionary(self, texts: Sequence[Text], tail: Sequence[Token]) -> tuple[Ints, _Spell]:
        tokens = list(chain.from_iterable((*_split(text), *tail, None) for text in texts))
        numbers = np.fromiter(map(self._numbers.get, tokens, repeat(self.unknown)), np.int64, len(tokens))
        return numbers, lambda place: tokens[place]

    def _by_bytes(self, texts: Sequence[Text], tail: Sequence[Token]) -> tuple[Ints, _Spell] | None:
        """None where the texts are not of the kind."""
        if not all(isinstance(text, str) for text in (*texts, *tail)):
            return None
        joined = " ".join(("", *cast(Sequence[str], tail), _STOP, "")).join((*cast(Sequence[str], texts), ""))
        raw = np.frombuffer(joined.encode("ascii", "replace") + bytes(_BYTES), np.uint8)
        if not joined.isascii() or np.count_nonzero(raw < ord(" ")) != len(texts) + _BYTES:
            return None  # characters besides our own might split words as well
        ends = np.flatnonzero(raw == ord(" "))
        begins = np.append(0, ends[:-1] + 1)
        if not (sizes := ends - begins).all():  # two spaces behind each other
            begins, sizes = begins[sizes > 0], sizes[sizes > 0]
        spelled = np.ndarray(raw.size - _BYTES, f"V{_BYTES}", raw, strides=(1,))[begins].view("<u8").reshape(-1, 2)
        spelled = (spelled & _MASKS.take(np.minimum(sizes, _BYTES + 1), 0)).T
        numbers = self._table.take(self._places(spelled))
        numbers[(self._spelled.take(numbers, 1) != spelled).any(0)] = self.unknown
        return numbers, lambda place: joined[begins[place] : begins[place] + sizes[place]]

    def _places(self, spelled: npt.NDArray[np.uint64]) -> Ints:
        mixed = spelled[0] * np.uint64(0x9E3779B97F4A7C15) ^ spelled[1] * np.uint64(0xC2B2AE3D27D4EB4F)
        places: Ints = (mixed >> np.uint64(64 - self._bits)).astype(np.int64)
        return places


def _short(token: Token) -> bool:
    """Whether a token can be read as bytes."""
    return isinstance(token, str) and len(token) <= _BYTES and all("!" <= character <= "~" for character in token)


def _times(flat: _Flat) -> Floats:
    """(4, P) how often the text holds the n-gram of each order that begins at each place.

    An n-gram that stands twice begins with one that stands twice and ends with a word that does, so that each order
    looks at few places. Equal ones come together by sorting.
    """
    times = np.ones((_ORDERS, flat.text.size))
    keys = np.sort(_pack(flat.words[: flat.text.size], np.arange(flat.text.size)))
    words, at = _high(keys), _low(keys)
    again = np.zeros(at.size + 1, np.bool_)  # whether a place holds the same as that before it in ``at``
    again[1:-1] = (words[1:] == words[:-1]) & (flat.text[at[1:]] == flat.text[at[:-1]])
    group = np.zeros(flat.words.size, np.int64)  # of the words that stand twice, from 1
    for n in range(_ORDERS):
        several = again[:-1] | again[1:]
        at, which = at[several], np.cumsum(~again[:-1][several], dtype=np.int64)
        times[n, at] = np.bincount(which)[which]
        if n == 0:
            group[at] = which
        if n == _ORDERS - 1 or not at.size:
            break
        last = group[at + n + 1]
        keys, at = _pack(which, last)[last > 0], at[last > 0]
        order = np.argsort(keys)
        keys, at = keys[order], at[order]
        again = np.zeros(at.size + 1, np.bool_)
        again[1:-1] = keys[1:] == keys[:-1]
    return times


def _trie(flat: _Flat, unknown: int) -> tuple[Ints, Ints]:
    """The double array: the n-gram p with word w behind it is number base[p] + w if check there is p."""
    base, check = np.zeros(unknown + 1, np.int64), np.full(unknown + 1, -1)
    prefix = flat.words[: flat.text.size].copy()
    alive: npt.NDArray[np.bool_] = prefix > 0
    for n in range(1, _ORDERS):
        last = flat.words[n : n + prefix.size]
        alive &= last > 0
        keys, which = np.unique(_pack(prefix[alive], last[alive]), return_inverse=True)
        slots = base.size + _displaced(_high(keys), _low(keys))
        base[_high(keys)] = slots - _low(keys)
        grown = slots.max(initial=base.size - 1) + 1 - base.size
        base, check = np.append(base, np.zeros(grown, np.int64)), np.append(check, np.full(grown, -1))
        check[slots] = _high(keys)
        prefix[alive] = slots[which]
    return base, np.append(check, np.full(unknown + 1, -1))


def _displaced(rows: Ints, columns: Ints) -> Ints:
    """(K,) places for the K entries of a sparse table, sorted by row: those of a row keep their distances, no two meet.

    Rows of many entries come first, each where it fits; those of one fill the gaps (Tarjan and Yao 1979, "Storing a
    Sparse Table").
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


def _checked(items: Sequence[Sequence[Text]], name: str) -> tuple[list[Text], Ints]:
    """All texts, and the item of each."""
    if not len(items):
        raise ValueError(f"{name} has no items; CIDEr needs one or more, each a list of references")
    for number, item in enumerate(items):
        if isinstance(item, str):
            raise ValueError(f"{name}[{number}] is the string {item!r}; put it in a list of references")
        if not len(item):
            raise ValueError(f"{name}[{number}] has no references; leave items without findings text out")
        if not all(map(_split, item)):
            raise ValueError(f"{name}[{number}] is {item!r}, with a text without words; leave such texts out")
    return list(chain.from_iterable(items)), np.repeat(np.arange(len(items)), [len(item) for item in items])


def _split(text: Text) -> list[Token]:
    return [*text.split()] if isinstance(text, str) else [*text]


def _norms(squares: Floats) -> Floats:
    """Lengths of vectors; 1 where it is 0, since nothing is divided there."""
    return np.sqrt(np.where(squares > 0, squares, 1.0))


def _pack(high: Ints, low: Ints) -> Ints:
    """Two numbers below 2**31 in one, which sorts by both; nothing is lost."""
    return (high << 32) | low


def _high(packed: Ints) -> Ints:
    return packed >> 32


def _low(packed: Ints) -> Ints:
    return packed & 0xFFFFFFFF
