"""Minimum Bayes risk (MBR) decoding, ``consensus`` in the configuration: the report with the highest expected reward.

Of all reports that the sentences of the candidates can form, MBR decoding takes the one with the
highest reward on average over the reports that the study may have (Kumar and Byrne 2004, "Minimum
Bayes-Risk Decoding for Statistical Machine Translation"). The average runs over the training cases,
weighted by a softmax over the cosines of their text embeddings with the study's image embedding.
The weights depend on the images: with equal weights for all studies, one constant report would be
best for all of them.

The reward is that of self-critical training (CIDEr-D, BLEU-4 and named findings) and ROUGE-L with
the candidates. CIDEr-D is a mean of cosines, so its expectation is, except for clipping, the
CIDEr-D against the mean of the cases' normalised n-gram vectors. One mean per length class keeps
the length penalty.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from functools import lru_cache
from itertools import islice
from typing import Final, NamedTuple

import numpy as np

from model.config import ConsensusConfig, LanguageConfig
from model.decoding.mbr_table import Expectation, Floats, Ints
from model.text.statements import Claim, contradict

Sentence = tuple[int, ...]  # token ids, the full stop included
_COMPARED: Final = 24  # reports compared by ROUGE-L, and candidates that they are compared with
_BETA2: Final = 1.2**2  # weight of recall in ROUGE-L, as in pycocoevalcap
_SHARPNESS: Final = 4.0  # of the candidates' weights, by expected CIDEr-D


class Reading(NamedTuple):
    """What one sentence says.

    Attributes:
        present: indices of the findings that it names as present.
        absent: of those that it names as absent.
        claims: states of organs.
        rank: position of its organ in a report.
    """

    present: frozenset[int]
    absent: frozenset[int]
    claims: frozenset[Claim] = frozenset()
    rank: int = 0


Reader = Callable[[Sentence], Reading]


class MbrSearch:
    """Finds the report with the highest expected reward for one study by local search over sentences.

    Args:
        expectation: of the study.
        findings: (F,) probability of each finding by the classifier of the model, or None.
        read: what a sentence says.
        config: weights of the reward and bounds of the search.
        language: whether reports are consistent about organs, and ordered by organ.
        unscored: token id that the reward ignores (``Tokenizer.comma_id``); 0 for none.
    """

    def __init__(
        self, expectation: Expectation, findings: Floats | None, read: Reader, config: ConsensusConfig,
        language: LanguageConfig = LanguageConfig(),  # noqa: B008 - immutable
        unscored: int = 0,
    ) -> None:  # fmt: skip
        self._unscored = unscored
        self._expectation, self._config, self._language = expectation, config, language
        self._read = lru_cache(maxsize=None)(read)
        probabilities = expectation.findings
        if findings is not None:
            probabilities = (1 - config.classifier_weight) * probabilities + config.classifier_weight * findings
        self._gains = config.finding * (probabilities - config.finding_threshold)

    def compose(self, candidates: Sequence[Sequence[Sentence]], longest: int) -> tuple[tuple[Sentence, ...], float]:
        """Start from the best candidate and improve it one sentence at a time: remove, insert or replace.

        All sentences come from the candidates. No sentence may contradict another (absent in one,
        present in the other) or repeat it (all its findings are named already): two wordings of one
        fact would raise the expectation, but add no information. Such sentences are first removed
        from the candidates.

        Args:
            candidates: reports, one or more.
            longest: maximum number of tokens of a report.

        Returns:
            The report and its reward.
        """
        distinct = list(dict.fromkeys(self._ordered(self._drop_inconsistent(candidate)) for candidate in candidates))
        peers = self._peers(distinct)
        rewards = self._rewards(distinct, peers)
        best, reward = distinct[int(rewards.argmax())], float(rewards.max())
        pool = self._pool(candidates)
        for _ in range(self._config.max_edits):
            neighbours = dict.fromkeys(map(self._ordered, _neighbours(best, pool)))
            options = [
                option for option in neighbours if sum(map(len, option)) <= longest and self._is_consistent(option)
            ]
            if not options:
                break
            rewards = self._rewards(options, peers)
            if rewards.max() <= reward + 1e-6:
                break
            best, reward = options[int(rewards.argmax())], float(rewards.max())
        return best, reward

    def _pool(self, candidates: Sequence[Sequence[Sentence]]) -> list[Sentence]:
        """The sentences that may be inserted: the most frequent ones, and some of each credible finding."""
        votes = Counter(sentence for candidate in candidates for sentence in dict.fromkeys(candidate))
        frequent = [sentence for sentence, _ in votes.most_common()]
        pool = frequent[: self._config.sentence_pool]
        for finding in np.flatnonzero(self._gains > 0).tolist():
            naming = (sentence for sentence in frequent if finding in self._read(sentence).present)
            pool += islice(naming, self._config.sentences_per_finding)
        return list(dict.fromkeys(pool))

    def _rewards(self, reports: Sequence[Sequence[Sentence]], peers: tuple[Ints, Floats] | None) -> Floats:
        """Expected rewards of reports, (N,)."""
        cider, bleu = self._expectation.scores(self._padded(reports))
        named = np.array(
            [sum(self._gains[finding] for finding in self._present(report)) for report in reports], np.float32
        )
        rewards: Floats = self._config.cider * cider + self._config.bleu4 * bleu + named
        if peers is not None:
            texts, weights = peers
            best = np.argsort(-rewards, kind="stable")[:_COMPARED]
            agreement = rouge_l(self._padded([reports[row] for row in best]), texts) @ weights
            bonus = np.zeros_like(rewards)  # 0 for the others, whose reward is lower anyway
            bonus[best] = self._config.rouge * agreement
            rewards = rewards + bonus
        return rewards

    def _peers(self, candidates: Sequence[Sequence[Sentence]]) -> tuple[Ints, Floats] | None:
        """The candidates that reports are compared with by ROUGE-L, (M, T), and their weights (M,)."""
        if not self._config.rouge:
            return None
        cider = self._expectation.scores(self._padded(candidates))[0]
        best = np.argsort(-cider, kind="stable")[:_COMPARED]
        weights = np.exp(_SHARPNESS * (cider[best] - cider[best[0]]))
        return self._padded([candidates[row] for row in best]), (weights / weights.sum()).astype(np.float32)

    def _padded(self, reports: Sequence[Sequence[Sentence]]) -> Ints:
        """The scored words of reports, (N, T), padded with 0."""
        flat = [[word for sentence in report for word in sentence if word != self._unscored] for report in reports]
        tokens = np.zeros((len(flat), max(map(len, flat), default=0) or 1), np.int64)
        for row, words in enumerate(flat):
            tokens[row, : len(words)] = words
        return tokens

    def _drop_inconsistent(self, report: Sequence[Sentence]) -> tuple[Sentence, ...]:
        """Remove the sentences that contradict or repeat an earlier one."""
        kept: tuple[Sentence, ...] = ()
        for sentence in dict.fromkeys(report):
            if self._is_consistent((*kept, sentence)):
                kept = (*kept, sentence)
        return kept

    def _present(self, report: Iterable[Sentence]) -> frozenset[int]:
        return frozenset().union(*(self._read(sentence).present for sentence in report))

    def _ordered(self, report: tuple[Sentence, ...]) -> tuple[Sentence, ...]:
        if not self._language.ordered:
            return report
        return tuple(sorted(report, key=lambda sentence: self._read(sentence).rank))

    def _is_consistent(self, report: Sequence[Sentence]) -> bool:
        """Whether no sentence contradicts or repeats another."""
        readings = [self._read(sentence) for sentence in report]
        present = frozenset().union(*(one.present for one in readings))
        absent = frozenset().union(*(one.absent for one in readings))
        if present & absent or _repeats([(one.present, one.absent) for one in readings]):
            return False
        return not self._language.consistent or not contradict(frozenset().union(*(one.claims for one in readings)))


def _repeats(extracted: Sequence[tuple[frozenset[int], frozenset[int]]]) -> bool:
    """Whether a sentence that names findings, as present or absent, adds none to another sentence."""
    return any(
        (present or absent) and row != other and present <= extracted[other][0] and absent <= extracted[other][1]
        for row, (present, absent) in enumerate(extracted)
        for other in range(len(extracted))
    )


def rouge_l(texts: Ints, references: Ints) -> Floats:
    """ROUGE-L of texts (N, T) against references (M, U), ids padded with 0 -> (N, M)."""
    shape = (len(texts), len(references))
    common = np.zeros(
        (references.shape[1] + 1, *shape), np.int16
    )  # longest common subsequence of the words so far and each prefix
    for word in texts.T:
        same = (word[:, None, None] == references[None]) & (word > 0)[:, None, None]  # (N, M, U)
        longer = np.zeros_like(common)
        for position in range(references.shape[1]):
            longer[position + 1] = np.where(
                same[..., position], common[position] + 1, np.maximum(common[position + 1], longer[position])
            )
        common = longer
    found = common[-1].astype(np.float32)
    precision = found / np.maximum((texts > 0).sum(1)[:, None], 1)
    recall = found / np.maximum((references > 0).sum(1)[None], 1)
    score: Floats = (1 + _BETA2) * precision * recall / np.maximum(recall + _BETA2 * precision, 1e-9)
    return score.astype(np.float32)


def _neighbours(report: tuple[Sentence, ...], pool: Sequence[Sentence]) -> Iterable[tuple[Sentence, ...]]:
    for position in range(len(report)):
        if len(report) > 1:
            yield report[:position] + report[position + 1 :]
    for sentence in pool:
        if sentence in report:
            continue
        for position in range(len(report) + 1):
            yield (*report[:position], sentence, *report[position:])
            if position < len(report):
                yield (*report[:position], sentence, *report[position + 1 :])
