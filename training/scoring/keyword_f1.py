"""F1 of the key words of a report, after FORTE, for chest radiographs.

FORTE (feature-oriented radiology task evaluation; Li et al. 2025, "Towards a holistic framework for multimodal LLM in
3D brain CT radiology report generation", Nature Communications 16:2258) sorts the key words of a report into degree,
landmark, feature and impression and takes the F1 of each category. Its lists are for the head. ``key_words.toml`` holds
lists for the chest, written for this project. A key word stands for its synonyms and counts once in a study.

Like FORTE this reads words, not statements: "no effusion" names an effusion. The paper therefore scores a second time
without the sentences that contain a negation, and so does ``keyword_f1`` with ``negated=False``.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Final

from model.text.tokenizer import END_OF_SENTENCE
from training.scoring.metrics import Pair, Scores, mean_scores, precision_recall_f1

AVERAGE: Final = "average"  # of the four categories

KEY_WORDS: Final[Mapping[str, Mapping[str, str]]] = tomllib.loads(
    Path(__file__).with_name("key_words.toml").read_text(encoding="utf-8")
)  # category -> key word -> pattern

_COMPILED: Final = {
    category: {word: re.compile(rf"(?<![\w-])(?:{pattern})(?![\w-])") for word, pattern in words.items()}
    for category, words in KEY_WORDS.items()
}
_NEGATION: Final = re.compile(
    r"\b(?:no|not|without|none|never|neither|nor|negative|absent|absence|free of|clear of|cannot|excluded)\b"
)


def key_words(text: str, *, negated: bool = True) -> dict[str, frozenset[str]]:
    """Category -> the key words that a text names; without ``negated`` sentences with a negation are left out.

    The text is in lower case, its sentences closed by `` . `` (``training.scoring.protocol``).
    """
    sentences = text.split(f" {END_OF_SENTENCE}")
    kept = [sentence for sentence in sentences if negated or not _NEGATION.search(sentence)]
    found = [_of_sentence(sentence) for sentence in kept]
    return {name: frozenset().union(*(one[name] for one in found)) for name in KEY_WORDS}


@lru_cache(maxsize=1 << 14)
def _of_sentence(sentence: str) -> dict[str, frozenset[str]]:
    """Cached, because reports repeat sentences; callers must not change the result."""
    return {
        category: frozenset(word for word, pattern in words.items() if pattern.search(sentence))
        for category, words in _COMPILED.items()
    }


def keyword_f1(pairs: Sequence[Pair], *, negated: bool = True) -> dict[str, Scores]:
    """Micro precision, recall and F1 of each category's key words, pooled over studies, and the mean of the four.

    Category -> ``precision``, ``recall``, ``f1`` and ``support``, the number of key words in the references.
    """
    read = [[key_words(text, negated=negated) for text in pair] for pair in pairs]
    table: dict[str, Scores] = {}
    for category in KEY_WORDS:
        both = [(truth[category], guess[category]) for truth, guess in read]
        hits, wrong, missed = (
            sum(map(len, sets)) for sets in zip(*((t & g, g - t, t - g) for t, g in both), strict=True)
        )
        precision, recall, f1 = precision_recall_f1(hits, wrong, missed)
        table[category] = {"precision": precision, "recall": recall, "f1": f1, "support": float(hits + missed)}
    support = sum(row["support"] or 0.0 for row in table.values())
    return {**table, AVERAGE: {**mean_scores(list(table.values())), "support": support}}
