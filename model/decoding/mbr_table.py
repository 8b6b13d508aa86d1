"""The table of training cases for MBR decoding, and the report statistics expected from it.

It holds no report text. N-grams that occur in several training reports are stored as hashes; the
CIDEr vectors of the cases are stored as coordinates in the few directions in which they differ most
(latent semantic analysis: Deerwester et al. 1990), which keeps what many reports share and drops
what only one contains.
"""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from functools import cached_property
from pathlib import Path
from typing import Final, Self

import numpy as np
import numpy.typing as npt
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

from model.files import install_file
from model.text.labeler import FINDINGS

Ints = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float32]

ORDERS: Final = 4
LENGTHS: Final = np.arange(5, 60, 2, dtype=np.float32)  # centres of the length classes, in words
_SIGMA2: Final = 2 * 6.0**2  # of CIDEr-D's length penalty
FACTOR: Final = np.uint64(0x9E3779B97F4A7C15)
_LEAST: Final = 1e-3  # replaces zero matches in the geometric mean of BLEU


def ngram_keys(tokens: Ints) -> npt.NDArray[np.int64]:
    """Hashes of the n-grams that begin at each position of texts: (N, T) ids padded with 0 -> (4, N, T).

    0 where the n-gram would exceed the text.
    """
    keys = np.zeros((ORDERS, *tokens.shape), np.int64)
    words = tokens.astype(np.uint64)
    running = (words + np.uint64(1)) * FACTOR
    inside = tokens > 0
    keys[0] = np.where(inside, _mixed(running, 1), 0)
    for n in range(1, min(ORDERS, tokens.shape[1])):
        running = (running[:, :-1] ^ (running[:, :-1] >> np.uint64(29))) * FACTOR + words[:, n:] + np.uint64(1)
        inside = inside[:, :-1] & (tokens[:, n:] > 0)
        keys[n, :, : running.shape[1]] = np.where(inside, _mixed(running, n + 1), 0)
    return keys


def _mixed(running: npt.NDArray[np.uint64], order: int) -> npt.NDArray[np.int64]:
    hashed = (running ^ (running >> np.uint64(32))) * FACTOR
    return ((hashed >> np.uint64(3)) * np.uint64(4) + np.uint64(order - 1)).astype(np.int64) | 1 << 62


def without_word(tokens: Ints, word: int) -> Ints:
    """Texts without one word: (N, T) ids padded with 0 -> (N, T)."""
    dropped = tokens == word
    order = np.argsort(dropped, axis=1, kind="stable")
    kept: Ints = np.take_along_axis(np.where(dropped, 0, tokens), order, axis=1)
    return kept


@dataclass(frozen=True)
class NgramCounts:
    """Distinct n-grams of N texts, text by text: ``text``, ``order`` (0 to 3), ``key`` and ``count``, (M,) each."""

    text: Ints
    order: Ints
    key: npt.NDArray[np.int64]
    count: Floats

    @classmethod
    def of(cls, tokens: Ints) -> Self:
        """(N, T) ids padded with 0."""
        keys = np.sort(ngram_keys(tokens), axis=2)
        first = np.ones(keys.shape, np.bool_)
        first[..., 1:] = keys[..., 1:] != keys[..., :-1]
        starts = np.flatnonzero(first)
        count = np.diff(starts, append=keys.size)
        key = keys.reshape(-1)[starts]
        real = key != 0
        row = starts[real] // tokens.shape[1]
        return cls(row % len(tokens), row // len(tokens), key[real], count[real].astype(np.float32))


@dataclass(frozen=True, eq=False)  # compared by identity
class MbrTable:
    """Statistics of the training cases: N cases, G n-grams, R directions, F findings, E embedding width.

    Attributes:
        keys: (G,) sorted hashes of the n-grams.
        order: (G,) n - 1 of each.
        idf: (G + 1,) log inverse document frequency; the last is for any other n-gram.
        basis: (R, G) orthonormal directions, quantised.
        vectors: (N, E) text embeddings of the cases, unit length, quantised.
        coordinates: (N, R) their normalised CIDEr vectors in the basis, quantised.
        basis_step: (R, 1) quantisation step of each direction.
        coordinate_step: (1, R) quantisation step along each direction.
        norms: (N, 4) lengths of those vectors before normalising, by order.
        lengths: (N,) words.
        findings: (N, F) 1 where the report names the finding as present.
        frequent: (C,) indices of n-grams that many reports contain. Their weight in a CIDEr vector
            is close to 0, so the vectors do not show which reports contain them.
        holds: (N, C) 1 where the report contains it.
        attested: (A,) sorted hashes of the bigrams and 4-grams of all sentences (``model.decoding.attested``); empty
            in tables of 0.2 and older, like ``sentences``.
        sentences: (S,) sorted hashes of all sentences.
    """

    keys: npt.NDArray[np.int64]
    order: npt.NDArray[np.int8]
    idf: Floats
    basis: npt.NDArray[np.int8]
    vectors: npt.NDArray[np.int8]
    coordinates: npt.NDArray[np.int8]
    basis_step: Floats
    coordinate_step: Floats
    norms: Floats
    lengths: npt.NDArray[np.int16]
    findings: npt.NDArray[np.uint8]
    frequent: npt.NDArray[np.int32]
    holds: npt.NDArray[np.uint8]
    attested: npt.NDArray[np.int64] = field(default_factory=lambda: np.zeros(0, np.int64))
    sentences: npt.NDArray[np.int32] = field(default_factory=lambda: np.zeros(0, np.int32))

    def save(self, path: Path) -> None:
        """Write a safetensors file atomically.

        Raises:
            OSError: it cannot be written.
        """
        temporary = path.with_name(path.name + ".tmp")
        try:
            save_file(
                {field.name: np.ascontiguousarray(getattr(self, field.name)) for field in fields(self)}, temporary
            )
        except SafetensorError as error:
            raise OSError(f"{path} cannot be written ({error}); free disk space and start again") from error
        temporary.chmod(0o644)
        install_file(temporary, path)

    @classmethod
    def load(cls, path: Path) -> Self:
        """Read what ``save`` wrote.

        Raises:
            ValueError: the file is not an MBR table.
        """
        try:
            content = load_file(path)
            table = cls(**{field.name: content[field.name] for field in fields(cls) if field.name in content})
            table._check()
        except (SafetensorError, KeyError, OSError, TypeError, ValueError) as error:
            raise ValueError(f"{path.name} is not an MBR table ({error}); restore it from its source") from error
        return table

    def _check(self) -> None:
        """Raise ValueError for an array of another type or shape, or a value out of range."""
        (cases, width), directions, ngrams = self.vectors.shape, len(self.basis), len(self.keys)
        expected = {
            "keys": ("int64", (ngrams,)),
            "order": ("int8", (ngrams,)),
            "idf": ("float32", (ngrams + 1,)),
            "basis": ("int8", (directions, ngrams)),
            "vectors": ("int8", (cases, width)),
            "coordinates": ("int8", (cases, directions)),
            "basis_step": ("float32", (directions, 1)),
            "coordinate_step": ("float32", (1, directions)),
            "norms": ("float32", (cases, ORDERS)),
            "lengths": ("int16", (cases,)),
            "findings": ("uint8", (cases, len(FINDINGS))),
            "frequent": ("int32", (len(self.frequent),)),
            "holds": ("uint8", (cases, len(self.frequent))),
            "attested": ("int64", (len(self.attested),)),
            "sentences": ("int32", (len(self.sentences),)),
        }
        for name, wanted in expected.items():
            array: npt.NDArray[np.generic] = getattr(self, name)
            if (found := (str(array.dtype), array.shape)) != wanted:
                raise ValueError(f"{name} is {found}, expected {wanted}")
            if array.dtype == np.float32 and not np.isfinite(array).all():
                raise ValueError(f"{name} has values that are not finite")
        if not ngrams or not cases or not self.vectors.any(1).all():
            raise ValueError("it is empty, or a vector is zero")
        if not (np.isin(self.order, range(ORDERS)).all() and np.isin(self.frequent, range(ngrams)).all()):
            raise ValueError("order or frequent is out of range")
        if any((np.diff(keys) <= 0).any() for keys in (self.attested, self.sentences)):
            raise ValueError("attested or sentences is not sorted")

    def find(self, keys: npt.NDArray[np.int64]) -> Ints:
        """Indices of n-grams in the table; G for an unknown one."""
        indices = np.minimum(np.searchsorted(self.keys, keys), len(self.keys) - 1)
        return np.where(self.keys[indices] == keys, indices, len(self.keys))

    def expected_statistics(self, study: Floats, temperature: float) -> Expectation:
        """Statistics of a study's report: ``study`` (E,) unit image embedding, ``temperature`` of the softmax."""
        logits = self._vectors @ study / temperature
        weights = np.exp(logits - logits.max())
        weights /= weights.sum()
        by_length = self._classes.T * weights  # (L, N)
        cosine = (by_length @ self._coordinates) @ self._basis  # (L, G)
        held = (weights * self.norms.T) @ self._coordinates @ self._basis  # (4, G)
        share = held[self.order, np.arange(len(self.keys))] / np.maximum(self.idf[:-1], 1e-3)
        share[self.frequent] = weights @ self.holds
        return Expectation(
            self,
            np.append(cosine.T, np.zeros((1, len(LENGTHS)), np.float32), axis=0),
            np.append(share.clip(0, 1), np.float32(0)),
            float(weights @ self.lengths),
            weights @ self.findings,
        )

    @cached_property
    def _vectors(self) -> Floats:
        unit = self.vectors.astype(np.float32)
        scaled: Floats = unit / np.linalg.norm(unit, axis=1, keepdims=True)
        return scaled

    @cached_property
    def _coordinates(self) -> Floats:
        coordinates: Floats = self.coordinates.astype(np.float32) * self.coordinate_step
        return coordinates

    @cached_property
    def _basis(self) -> Floats:
        basis: Floats = self.basis.astype(np.float32) * self.basis_step
        return basis

    @cached_property
    def _classes(self) -> Floats:
        """(N, L) 1 at the length class of each case."""
        nearest = np.abs(self.lengths[:, None] - LENGTHS).argmin(1)
        classes: Floats = np.eye(len(LENGTHS), dtype=np.float32)[nearest]
        return classes


@dataclass(frozen=True)
class Expectation:
    """Expected statistics of the report of one study.

    Attributes:
        table: of the training cases.
        cosine: (G + 1, L) expected component of each n-gram in a normalised CIDEr vector, by length
            class.
        share: (G + 1,) probability of each n-gram.
        length: expected length in words.
        findings: (F,) probability of each finding.
    """

    table: MbrTable
    cosine: Floats
    share: Floats
    length: float
    findings: Floats

    def scores(self, tokens: Ints) -> tuple[Floats, Floats]:
        """Expected CIDEr-D (0 to 10) and an estimate of BLEU-4 (0 to 1) of texts: (N, T) ids padded with 0 -> (N,)."""
        ngrams = NgramCounts.of(tokens)
        indices = self.table.find(ngrams.key)
        weight = ngrams.count * self.table.idf[indices]
        slot = ngrams.text * ORDERS + ngrams.order
        cells = len(tokens) * ORDERS
        words = (tokens > 0).sum(1)
        penalty = np.exp(-((words[:, None] - LENGTHS) ** 2) / _SIGMA2)  # (N, L)
        gained = weight * (self.cosine[indices] * penalty[ngrams.text]).sum(1)
        norm = np.sqrt(np.bincount(slot, weight**2, cells))
        cosine = np.bincount(slot, gained, cells) / np.maximum(norm, 1e-9)
        cider = 10 * cosine.reshape(-1, ORDERS).mean(1)

        matched = np.bincount(slot, self.share[indices], cells)
        written = np.bincount(slot, ngrams.count, cells)
        precision = np.log(np.maximum(matched, _LEAST) / np.maximum(written, 1)).reshape(-1, ORDERS).mean(1)
        brevity = np.minimum(0.0, 1 - self.length / np.maximum(words, 1))
        return cider.astype(np.float32), np.exp(precision + brevity).astype(np.float32)
