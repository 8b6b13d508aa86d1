"""Consensus decoding: of the reports that the model's own sentences can make, the one with the highest expected reward.

A report is scored before its study's true report is known, so the best one can do is to write what agrees most, on
average, with the reports that this study may have (minimum Bayes risk: Kumar and Byrne 2004, "Minimum Bayes-Risk
Decoding for Statistical Machine Translation"). The average is over the training cases, each weighed by a softmax over
the cosines of its text embedding with the study's image embedding. Where all studies weigh the cases alike, one
constant report is best for all of them; what the images tell is what moves the weights.

The reward is that of self-critical training: CIDEr-D, BLEU-4 and named findings. CIDEr-D is a mean of cosines, so its
expectation is that of a report with the mean of the cases' normalised n-gram vectors; only clipping is lost. The length
penalty is kept by holding those means apart by length.

No report text is needed for it. N-grams are stored as hashes, only those of several training reports, and the vectors
of the cases as coordinates in the few directions in which they differ most (latent semantic analysis: Deerwester et al.
1990), which keeps what many reports say and drops what one says.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, fields
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Final, Self

import numpy as np
import numpy.typing as npt
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

from model.config import ConsensusConfig
from model.files import install_file

Ints = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float32]
Sentence = tuple[int, ...]  # token ids, the full stop included

ORDERS: Final = 4
LENGTHS: Final = np.arange(5, 60, 2, dtype=np.float32)  # centres of the length classes, in words
_SIGMA2: Final = 2 * 6.0**2  # of CIDEr-D's length penalty
_FACTOR: Final = np.uint64(0x9E3779B97F4A7C15)
_COMPARED: Final = 24  # reports compared word by word, and candidates that they are compared with
_BETA2: Final = 1.2**2  # weight of recall in ROUGE-L, as pycocoevalcap has it
_SHARPNESS: Final = 4.0  # of the candidates' weights, by expected CIDEr-D
_LEAST: Final = 1e-3  # stands for no match in the geometric mean of BLEU

FindingExtractor = Callable[[Sentence], tuple[frozenset[int], frozenset[int]]]
"""Findings, by their place, that a sentence names as present and as absent."""


def ngram_keys(tokens: Ints) -> npt.NDArray[np.int64]:
    """Hashes of the n-grams that begin at each place of texts: (N, T) ids padded with 0 -> (4, N, T).

    0 where the text ends before the n-gram does.
    """
    keys = np.zeros((ORDERS, *tokens.shape), np.int64)
    words = tokens.astype(np.uint64)
    running = (words + np.uint64(1)) * _FACTOR
    inside = tokens > 0
    keys[0] = np.where(inside, _settled(running, 1), 0)
    for n in range(1, min(ORDERS, tokens.shape[1])):
        running = (running[:, :-1] ^ (running[:, :-1] >> np.uint64(29))) * _FACTOR + words[:, n:] + np.uint64(1)
        inside = inside[:, :-1] & (tokens[:, n:] > 0)
        keys[n, :, : running.shape[1]] = np.where(inside, _settled(running, n + 1), 0)
    return keys


def _settled(running: npt.NDArray[np.uint64], order: int) -> npt.NDArray[np.int64]:
    mixed = (running ^ (running >> np.uint64(32))) * _FACTOR
    return ((mixed >> np.uint64(3)) * np.uint64(4) + np.uint64(order - 1)).astype(np.int64) | 1 << 62


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


@dataclass(frozen=True)
class MbrTable:
    """What the training cases say: N cases, G phrases, R directions, F findings, E embedding width.

    Attributes:
        keys: (G,) sorted hashes of the phrases.
        order: (G,) words of each, less one.
        idf: (G + 1,) log inverse document frequency; the last is that of any other phrase.
        basis: (R, G) directions, orthonormal; in whole steps.
        vectors: (N, E) text embeddings of the cases, unit length; in whole steps.
        coordinates: (N, R) their normalised CIDEr vectors in the basis; in whole steps.
        basis_step: (R, 1) what a step of each direction is worth.
        coordinate_step: (1, R) what a step along each direction is worth.
        norms: (N, 4) lengths of those vectors before normalising, by order.
        lengths: (N,) words.
        findings: (N, F) 1 where the report names the finding as present.
        frequent: (C,) places of phrases that many reports hold. Their weight in a CIDEr vector is next to nothing, so
            the vectors do not tell where they stand.
        holds: (N, C) 1 where the report holds it.
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

    def save(self, path: Path) -> None:
        """Write a safetensors file, whole or not at all.

        Raises:
            OSError: it cannot be written.
        """
        beside = path.with_name(path.name + ".tmp")
        try:
            save_file({field.name: np.ascontiguousarray(getattr(self, field.name)) for field in fields(self)}, beside)
        except SafetensorError as error:
            raise OSError(f"{path} cannot be written ({error}); free space there and start again") from error
        beside.chmod(0o644)
        install_file(beside, path)

    @classmethod
    def load(cls, path: Path) -> Self:
        """Read what ``save`` wrote.

        Raises:
            ValueError: not such a file.
        """
        try:
            content = load_file(path)
            return cls(**{field.name: content[field.name] for field in fields(cls)})
        except (SafetensorError, KeyError, OSError) as error:
            raise ValueError(f"{path.name} is no consensus table ({error}); restore it from its source") from error

    def find(self, keys: npt.NDArray[np.int64]) -> Ints:
        """Places of phrases; G for one that is not here."""
        places = np.minimum(np.searchsorted(self.keys, keys), len(self.keys) - 1)
        return np.where(self.keys[places] == keys, places, len(self.keys))

    def expect(self, study: Floats, temperature: float) -> Expectation:
        """What a study's report may say: ``study`` (E,) unit image embedding, ``temperature`` of the softmax."""
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
    """What one study's report may say.

    Attributes:
        table: the phrases.
        cosine: (G + 1, L) expected part of each phrase in a normalised CIDEr vector, by length class.
        share: (G + 1,) probability of each phrase.
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
        phrases = NgramCounts.of(tokens)
        places = self.table.find(phrases.key)
        weight = phrases.count * self.table.idf[places]
        slot = phrases.text * ORDERS + phrases.order
        cells = len(tokens) * ORDERS
        words = (tokens > 0).sum(1)
        penalty = np.exp(-((words[:, None] - LENGTHS) ** 2) / _SIGMA2)  # (N, L)
        gained = weight * (self.cosine[places] * penalty[phrases.text]).sum(1)
        norm = np.sqrt(np.bincount(slot, weight**2, cells))
        cosine = np.bincount(slot, gained, cells) / np.maximum(norm, 1e-9)
        cider = 10 * cosine.reshape(-1, ORDERS).mean(1)

        matched = np.bincount(slot, self.share[places], cells)
        written = np.bincount(slot, phrases.count, cells)
        precision = np.log(np.maximum(matched, _LEAST) / np.maximum(written, 1)).reshape(-1, ORDERS).mean(1)
        brevity = np.minimum(0.0, 1 - self.length / np.maximum(words, 1))
        return cider.astype(np.float32), np.exp(precision + brevity).astype(np.float32)


class MbrSearch:
    """Finds the report with the highest expected reward for one study.

    Args:
        expectation: of the study.
        findings: (F,) probability of each finding by the pretrained head, or None.
        extract: findings that a sentence names.
        config: weights of the reward and bounds of the search.
    """

    def __init__(
        self, expectation: Expectation, findings: Floats | None, extract: FindingExtractor, config: ConsensusConfig
    ) -> None:
        self._expectation, self._config = expectation, config
        self._extract = lru_cache(maxsize=None)(extract)
        chances = expectation.findings
        if findings is not None:
            chances = (1 - config.classifier_weight) * chances + config.classifier_weight * findings
        self._gains = config.finding * (chances - config.finding_threshold)

    def compose(self, candidates: Sequence[Sequence[Sentence]], longest: int) -> tuple[tuple[Sentence, ...], float]:
        """The best candidate, then improved a sentence at a time: left out, put in, or put in another's place.

        Sentences come from the candidates alone, and none stands beside one that it contradicts or repeats: that names
        as absent what it names as present, or names all its findings already. Saying the same in two wordings would
        please an expectation over wordings, and no reader. Candidates lose such sentences first.

        Args:
            candidates: reports, one or more.
            longest: most tokens of a report.

        Returns:
            The report and its reward.
        """
        distinct = list(dict.fromkeys(self._consistent(candidate) for candidate in candidates))
        peers = self._peers(distinct)
        rewards = self._rewards(distinct, peers)
        best, reward = distinct[int(rewards.argmax())], float(rewards.max())
        votes = Counter(sentence for candidate in candidates for sentence in dict.fromkeys(candidate))
        pool = [sentence for sentence, _ in votes.most_common(self._config.sentence_pool)]
        for _ in range(self._config.max_edits):
            options = [
                option
                for option in _neighbours(best, pool)
                if sum(map(len, option)) <= longest and self._is_consistent(option)
            ]
            if not options:
                break
            rewards = self._rewards(options, peers)
            if rewards.max() <= reward + 1e-6:
                break
            best, reward = options[int(rewards.argmax())], float(rewards.max())
        return best, reward

    def _rewards(self, reports: Sequence[Sequence[Sentence]], peers: tuple[Ints, Floats] | None) -> Floats:
        """Expected rewards of reports, (N,)."""
        cider, bleu = self._expectation.scores(_padded(reports))
        named = np.array([sum(self._gains[place] for place in self._present(report)) for report in reports], np.float32)
        rewards: Floats = self._config.cider * cider + self._config.bleu4 * bleu + named
        if peers is not None:
            texts, weights = peers
            best = np.argsort(-rewards, kind="stable")[:_COMPARED]
            agreement = rouge_l(_padded([reports[place] for place in best]), texts) @ weights
            bonus = np.zeros_like(rewards)  # the others, already behind, stay there
            bonus[best] = self._config.rouge * agreement
            rewards = rewards + bonus
        return rewards

    def _peers(self, candidates: Sequence[Sequence[Sentence]]) -> tuple[Ints, Floats] | None:
        """The candidates that reports are compared with word by word, (M, T), and their weights (M,)."""
        if not self._config.rouge:
            return None
        cider = self._expectation.scores(_padded(candidates))[0]
        best = np.argsort(-cider, kind="stable")[:_COMPARED]
        weights = np.exp(_SHARPNESS * (cider[best] - cider[best[0]]))
        return _padded([candidates[place] for place in best]), (weights / weights.sum()).astype(np.float32)

    def _consistent(self, report: Sequence[Sentence]) -> tuple[Sentence, ...]:
        """The report without the sentences that contradict or repeat one before them."""
        kept: tuple[Sentence, ...] = ()
        for sentence in dict.fromkeys(report):
            if self._is_consistent((*kept, sentence)):
                kept = (*kept, sentence)
        return kept

    def _present(self, report: Iterable[Sentence]) -> frozenset[int]:
        return frozenset().union(*(self._extract(sentence)[0] for sentence in report))

    def _is_consistent(self, report: Sequence[Sentence]) -> bool:
        """Whether no sentence contradicts or repeats another."""
        readings = [self._extract(sentence) for sentence in report]
        present = frozenset().union(*(reading[0] for reading in readings))
        absent = frozenset().union(*(reading[1] for reading in readings))
        return not present & absent and not _repeats(readings)


def _repeats(readings: Sequence[tuple[frozenset[int], frozenset[int]]]) -> bool:
    """Whether a sentence that names findings, as present or absent, says no more of them than one other sentence."""
    return any(
        (present or absent) and place != other and present <= readings[other][0] and absent <= readings[other][1]
        for place, (present, absent) in enumerate(readings)
        for other in range(len(readings))
    )


def rouge_l(texts: Ints, references: Ints) -> Floats:
    """ROUGE-L of texts (N, T) against references (M, U), ids padded with 0 -> (N, M)."""
    shape = (len(texts), len(references))
    common = np.zeros((references.shape[1] + 1, *shape), np.int16)  # of the words so far and each start of a reference
    for word in texts.T:
        same = (word[:, None, None] == references[None]) & (word > 0)[:, None, None]  # (N, M, U)
        longer = np.zeros_like(common)
        for place in range(references.shape[1]):
            longer[place + 1] = np.where(
                same[..., place], common[place] + 1, np.maximum(common[place + 1], longer[place])
            )
        common = longer
    found = common[-1].astype(np.float32)
    precision = found / np.maximum((texts > 0).sum(1)[:, None], 1)
    recall = found / np.maximum((references > 0).sum(1)[None], 1)
    score: Floats = (1 + _BETA2) * precision * recall / np.maximum(recall + _BETA2 * precision, 1e-9)
    return score.astype(np.float32)


def _neighbours(report: tuple[Sentence, ...], pool: Sequence[Sentence]) -> Iterable[tuple[Sentence, ...]]:
    for place in range(len(report)):
        if len(report) > 1:
            yield report[:place] + report[place + 1 :]
    for sentence in pool:
        if sentence in report:
            continue
        for place in range(len(report) + 1):
            yield (*report[:place], sentence, *report[place:])
            if place < len(report):
                yield (*report[:place], sentence, *report[place + 1 :])


def _padded(reports: Sequence[Sequence[Sentence]]) -> Ints:
    flat = [[token for sentence in report for token in sentence] for report in reports]
    tokens = np.zeros((len(flat), max(map(len, flat), default=0) or 1), np.int64)
    for row, words in enumerate(flat):
        tokens[row, : len(words)] = words
    return tokens
