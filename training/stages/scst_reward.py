"""The reward of SCST: weighted CIDEr-D, sentence BLEU-4, correct findings, and their sides, regions
and degrees against a study's report.

Strings are those of the comparable row of the evaluation, cut where cross-entropy cuts its targets:
bos, words and eos together are ``max_length`` tokens at most, and eos is removed first. The end
token is therefore part of drafts and references that end within that length, and of the document
frequencies, which are those of the training reports. A draft without it scores lower against a
reference that has it; against a reference that was cut, a draft that breaks off there scores lower.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import numpy as np
import numpy.typing as npt

from model.text.labeler import NO_FINDING
from model.text.tokenizer import EOS
from training.config import RewardConfig
from training.protocols import IU_XRAY, Protocol
from training.scoring.annotation_errors import annotation_gain
from training.scoring.cider import CiderD
from training.scoring.metrics import present_findings
from training.scoring.protocol import comparable_prediction, comparable_reference, comparable_vocabulary
from training.scoring.study_statistics import sentence_bleu4

Floats = npt.NDArray[np.float64]

FINDING_COST = 0.2  # about half of the label F1 that can be reached


class Reward:
    """Rewards of drafts of training studies against their ``reports``, as the source holds them.

    ``max_length`` is that of the model: the longest report in tokens, bos included.
    """

    def __init__(
        self, reports: Sequence[str], weights: RewardConfig, *, max_length: int, protocol: Protocol = IU_XRAY
    ) -> None:
        vocabulary = comparable_vocabulary(reports, protocol)
        self._most = max_length - 1  # bos takes one token
        self._protocol = protocol
        self._references = [
            comparable_reference(report, vocabulary, self._most, protocol=protocol) for report in reports
        ]
        ended = [len(reference.split()) < self._most for reference in self._references]  # a token is left for eos
        self._cider = CiderD(_closed(self._references, ended))
        self._weights = weights

    def __call__(self, drafts: Sequence[str], ended: Sequence[bool], rows: Sequence[int]) -> dict[str, Floats]:
        """Score B drafts, tokens joined by spaces, against the report of the study in each of ``rows``.

        ``ended``: whether each draft has its end token.

        Returns:
            ``reward`` and its parts before weighting, (B,) each: ``cider`` 0 to 10, ``bleu4`` 0 to 1, ``label_f1`` as
            ``finding_gain``, ``annotations`` as ``annotation_gain``. Parts of weight 0 are left out.
        """
        texts = [comparable_prediction(draft, self._most, protocol=self._protocol) for draft in drafts]
        closed = _closed(texts, ended)
        references = [self._references[row] for row in rows]
        parts: dict[str, Floats] = {}
        if self._weights.cider:
            parts["cider"] = self._cider.scores(closed, rows)
        if self._weights.bleu4:
            parts["bleu4"] = sentence_bleu4(list(zip(references, texts, strict=True)))
        if self._weights.label_f1:
            pairs = zip(references, texts, strict=True)
            parts["label_f1"] = np.array([finding_gain(reference, text) for reference, text in pairs])
        if self._weights.annotations:
            pairs = zip(references, texts, strict=True)
            parts["annotations"] = np.array([annotation_gain(reference, text) for reference, text in pairs])
        weighted = [getattr(self._weights, name) * values for name, values in parts.items()]
        return {"reward": np.sum(weighted, axis=0), **parts}


def _closed(texts: Sequence[str], ended: Sequence[bool]) -> list[str]:
    return [f"{text} {EOS}" if end else text for text, end in zip(texts, ended, strict=True)]


def finding_gain(reference: str, text: str) -> float:
    """What the findings that a text names as present add to micro-F1; No Finding is left out.

    Each correct finding is worth 1 and each named one costs ``FINDING_COST``: on average a finding
    is worth naming where its probability is above that cost. Micro-F1 is largest with a threshold
    at half of the best F1 (Lipton et al. 2014, "Optimal Thresholding of Classifiers to Maximize F1
    Measure"). A reward of plain agreement would favour drafts without findings, since most studies
    have none.
    """
    expected, named = _findings(reference), _findings(text)
    return len(expected & named) - FINDING_COST * len(named)


@lru_cache(maxsize=20_000)
def _findings(text: str) -> frozenset[str]:
    return present_findings(text) - {NO_FINDING}
