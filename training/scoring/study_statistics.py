"""What each study adds to the metrics: n-gram counts of BLEU, common subsequences of ROUGE-L, findings.

The bootstrap, the reward of self-critical training and the search for the constant report all build on these. The
formulas are those of ``pycocoevalcap``, with one reference for each study (Papineni et al. 2002,
"BLEU"; Lin 2004, "ROUGE").
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from model.text.labeler import FINDINGS, NO_FINDING, SCORED_FINDINGS
from model.text.tokenizer import END_OF_SENTENCE
from training.scoring.cider import CiderD
from training.scoring.metrics import Pair, present_findings
from training.scoring.ngrams import ORDERS, Floats

METRICS = (
    "BLEU_1", "BLEU_2", "BLEU_3", "BLEU_4", "ROUGE_L", "CIDEr", "label_f1_micro", "label_f1_macro", "no_finding_f1",
    "mean_length",
)  # fmt: skip
SCORED = [FINDINGS.index(name) for name in SCORED_FINDINGS]
_NO_FINDING = FINDINGS.index(NO_FINDING)
_TINY, _SMALL = 1e-15, 1e-9  # of pycocoevalcap's BLEU
_BETA2 = 1.2**2  # weight of recall in ROUGE-L

Ngram = tuple[str, ...]


# --- BLEU -------------------------------------------------------------------------------------------------------------


def ngrams(words: Sequence[str]) -> Counter[Ngram]:
    """How often a text holds each n-gram of 1 to 4 words."""
    words = tuple(words)
    return Counter(words[i : i + n] for n in range(1, ORDERS + 1) for i in range(len(words) - n + 1))


def bleu_counts(reference: str, prediction: str) -> list[float]:
    """(10,) words of the prediction, of the reference, n-grams of the prediction and those that match, by order."""
    words, truth = prediction.split(), reference.split()
    shared = ngrams(words) & ngrams(truth)
    matched = [0] * ORDERS
    for ngram, times in shared.items():
        matched[len(ngram) - 1] += times
    return [len(words), len(truth), *(max(0, len(words) - n) for n in range(ORDERS)), *matched]


def bleu(counts: Floats) -> Floats:
    """BLEU-1 to BLEU-4, (…, 4), of counts (…, 10): of one study, or summed over the studies of a corpus."""
    ratio = (counts[..., 0] + _TINY) / (counts[..., 1] + _SMALL)
    brevity = np.exp(np.minimum(0.0, 1 - 1 / ratio))
    precision = (counts[..., 2 + ORDERS :] + _TINY) / (counts[..., 2 : 2 + ORDERS] + _SMALL)
    found: Floats = np.cumprod(precision, axis=-1) ** (1 / np.arange(1, ORDERS + 1)) * brevity[..., None]
    return found


def sentence_bleu4(pairs: Sequence[Pair]) -> Floats:
    """(N,) BLEU-4 of each prediction alone; 0 for an empty one."""
    counts = np.array([bleu_counts(*pair) for pair in pairs], np.float64)
    return np.where(counts[:, 0] > 0, bleu(counts)[:, -1], 0.0)


# --- ROUGE-L ----------------------------------------------------------------------------------------------------------


class CommonSubsequences:
    """Longest common subsequences of a text with R references (bit-parallel: Hyyrö 2004).

    All references lie in one long bit vector, each followed by a guard bit that takes its carry.
    """

    def __init__(self, references: Sequence[Sequence[str]]) -> None:
        positions: dict[str, list[int]] = {}
        self._starts: list[int] = []
        self._words, bits = 0, 0
        for words in references:
            self._starts.append(bits)
            for position, word in enumerate(words, bits):
                positions.setdefault(word, []).append(position)
            self._words |= ((1 << len(words)) - 1) << bits
            bits += len(words) + 1
        self._bytes = -(-bits // 8)
        self._matches = {word: sum(1 << position for position in found) for word, found in positions.items()}
        self._lengths = np.array([len(words) for words in references], np.float64)

    def lengths(self, words: Sequence[str]) -> Floats:
        """(R,) length of the longest common subsequence with each reference."""
        free = self._words
        for word in words:
            hit = free & self._matches.get(word, 0)
            free = ((free + hit) | (free - hit)) & self._words
        taken = np.frombuffer((self._words & ~free).to_bytes(self._bytes, "little"), np.uint8)
        return np.add.reduceat(np.unpackbits(taken, bitorder="little"), self._starts, dtype=np.float64)

    def rouge_l(self, words: Sequence[str]) -> Floats:
        """(R,) ROUGE-L of a text against each reference; 0 for a text without words."""
        common = self.lengths(words)
        recall, precision = common / self._lengths, common / max(len(words), 1)
        found: Floats = (1 + _BETA2) * precision * recall / np.where(common > 0, recall + _BETA2 * precision, 1.0)
        return found


# --- all of it --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class PerStudyStatistics:
    """What each of N studies adds to the metrics of a row.

    ``bleu`` (N, 10): as ``bleu_counts``. ``scores`` (N, 3): ROUGE-L, CIDEr, words without ".".
    ``findings`` (3, N, 14): findings named rightly, wrongly, and missed.
    """

    bleu: Floats
    scores: Floats
    findings: Floats

    @classmethod
    def of(cls, pairs: Sequence[Pair]) -> PerStudyStatistics:
        """Of (reference, prediction) strings, prepared as for ``training.scoring.metrics.score``."""
        references, predictions = zip(*pairs, strict=True)
        rouge = [CommonSubsequences([reference.split()]).rouge_l(text.split())[0] for reference, text in pairs]
        cider = CiderD(references).scores(predictions, range(len(pairs)))
        words = [sum(word != END_OF_SENTENCE for word in text.split()) for text in predictions]
        findings = ([present_findings(text) for text in texts] for texts in (references, predictions))
        return cls(
            np.array([bleu_counts(*pair) for pair in pairs], np.float64),
            np.stack([rouge, cider, np.array(words, np.float64)], axis=1),
            _confusion(*findings),
        )

    @classmethod
    def of_findings(cls, truth: Sequence[frozenset[str]], guess: Sequence[frozenset[str]]) -> PerStudyStatistics:
        """Of findings alone, for sets without reference texts: only the label metrics are meaningful."""
        return cls(np.zeros((len(truth), 2 + 2 * ORDERS)), np.zeros((len(truth), 3)), _confusion(truth, guess))

    def metrics(self, times: Floats) -> dict[str, Floats]:
        """Each of ``METRICS`` for D draws: times (D, N), how often a draw holds each study -> (D,)."""
        by_order = bleu(times @ self.bleu)
        found = {f"BLEU_{n + 1}": by_order[:, n] for n in range(ORDERS)}
        means = times @ self.scores / times.sum(axis=1, keepdims=True)
        found |= {"ROUGE_L": means[:, 0], "CIDEr": means[:, 1]}
        right, wrong, missed = (times @ counts for counts in self.findings)  # (D, 14) each
        each = _f1(right, wrong, missed)
        supported = (right + missed)[:, SCORED] > 0
        found["label_f1_micro"] = _f1(*(counts[:, SCORED].sum(axis=1) for counts in (right, wrong, missed)))
        found["label_f1_macro"] = (each[:, SCORED] * supported).sum(axis=1) / np.maximum(supported.sum(axis=1), 1)
        found["no_finding_f1"] = each[:, _NO_FINDING]
        found["mean_length"] = means[:, 2]
        return {name: found[name] for name in METRICS}


def finding_vectors(present: Sequence[frozenset[str]]) -> Floats:
    """(N, 14) 1 for each of ``FINDINGS`` that a set holds, else 0."""
    return np.array([[float(name in found) for name in FINDINGS] for found in present])


def _confusion(truth: Sequence[frozenset[str]], guess: Sequence[frozenset[str]]) -> Floats:
    """(3, N, 14) findings named rightly, wrongly, and missed."""
    there, named = finding_vectors(truth), finding_vectors(guess)
    return np.stack([there * named, named * (1 - there), there * (1 - named)])


def _f1(right: Floats, wrong: Floats, missed: Floats) -> Floats:
    """0 where no finding was named and none was present."""
    total = 2 * right + wrong + missed
    found: Floats = np.divide(2 * right, total, out=np.zeros_like(total), where=total > 0)
    return found
