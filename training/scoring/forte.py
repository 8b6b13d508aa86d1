"""FORTE with its published word lists and its published counting.

Feature-oriented radiology task evaluation (Li et al. 2025, "Towards a holistic framework for multimodal LLM in 3D brain
CT radiology report generation", Nature Communications 16:2258). The counting is that of ``FORTE.py`` in the paper's
repository: a key matches as a substring of the text in lower case, so the blank that begins it makes it match at the
start of words; keys that share a list of synonyms count once; a category that both texts leave out has no score, and
one that a single text leaves out has a recall or a precision only. The paper pairs sentences before it counts; whole
reports are compared here. ``training.scoring.keyword_f1`` counts otherwise, with lists of this project.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Final

import numpy as np
from pydantic import AfterValidator, Field, TypeAdapter, ValidationError

from model.files import file_sha256
from training.scoring.bootstrap import Bootstrap, interval
from training.scoring.keyword_f1 import AVERAGE, KEY_WORDS
from training.scoring.metrics import Pair, mean_scores
from training.scoring.ngrams import Floats

CATEGORIES: Final = tuple(KEY_WORDS)
PARTS: Final = ("precision", "recall", "f1")


def _has_a_letter(key: str) -> str:
    if not key.strip():
        raise ValueError("a key word is blank, and would match every text")
    return key


_Key = Annotated[str, AfterValidator(_has_a_letter)]
_Synonyms = Annotated[dict[_Key, list[_Key]], Field(min_length=1)]
_LISTS: Final = TypeAdapter(dict[str, _Synonyms])


@dataclass(frozen=True)
class ForteKeywords:
    """Category -> key word -> its synonyms, itself included; the name and the digest of the file that holds them."""

    name: str
    sha256: str
    lists: Mapping[str, Mapping[str, Sequence[str]]] = field(repr=False)


def read_forte_keywords(path: Path) -> ForteKeywords:
    """Read ``FORTE_CXR.json`` of the paper's repository, or lists in its form.

    Raises:
        ValueError: the file has another form.
    """
    try:
        lists = _LISTS.validate_json(path.read_bytes())
    except ValidationError as error:
        first = error.errors()[0]
        where = " → ".join(map(repr, first["loc"])) or "the file"
        raise ValueError(f"--forte-keywords {path}: {where}: {first['msg']}; give FORTE_CXR.json of the paper's "
                         "repository, or category → key word → [synonyms]") from error  # fmt: skip
    if set(lists) != set(CATEGORIES):
        raise ValueError(f"--forte-keywords {path}: its categories are {', '.join(lists) or 'none'}; FORTE has "
                         f"{', '.join(CATEGORIES)}")  # fmt: skip
    return ForteKeywords(path.name, file_sha256(path), lists)


def precision_recall(
    reference: str, prediction: str, synonyms: Mapping[str, Sequence[str]]
) -> tuple[float | None, float | None]:
    """Precision and recall of one report in one category; None: the category is left out of that mean."""
    truth, guess = ({_group(key, synonyms)[0] for key in _found(text, synonyms)} for text in (reference, prediction))
    if not truth or not guess:
        return (0.0 if guess else None), (0.0 if truth else None)
    named = frozenset().union(*(_group(key, synonyms)[1] for key in guess))
    hits = len(truth & named)
    return hits / len(guess), hits / len(truth)


def _found(text: str, synonyms: Mapping[str, Sequence[str]]) -> set[str]:
    """The keys that a text holds, each with the one leading blank that the published code gives it."""
    padded = f" {text.lower()} "
    return {f" {key.strip()}" for key in synonyms if key in padded}


def _group(key: str, synonyms: Mapping[str, Sequence[str]]) -> tuple[str, frozenset[str]]:
    """The first key word whose synonyms hold ``key``, and those synonyms; ``key`` alone where none does."""
    for word, group in synonyms.items():
        if key in group:
            return word, frozenset(group)
    return key, frozenset({key})


def forte(pairs: Sequence[Pair], keywords: ForteKeywords, bootstrap: Bootstrap | None = None) -> dict[str, Any]:
    """Mean precision and recall of each category over the reports that have them, F1 of these means, and averages.

    Category -> ``precision``, ``recall``, ``f1``, the numbers of reports in the means, ``precision_n`` and
    ``recall_n``, and with ``bootstrap`` the interval ``f1_95``.
    """
    times = np.ones((1, len(pairs))) if bootstrap is None else bootstrap.times  # (1 + draws, N)
    table: dict[str, dict[str, Any]] = {}
    for category in CATEGORIES:
        lists = keywords.lists[category]
        scores = np.array([precision_recall(*pair, lists) for pair in pairs], np.float64)  # (N, 2), NaN for None
        counted = ~np.isnan(scores)
        held = times @ counted
        means = np.divide(times @ np.nan_to_num(scores), held, out=np.full(held.shape, np.nan), where=held > 0)
        f1 = _f1(*means.T)
        precision, recall = (None if np.isnan(value) else float(value) for value in means[0])
        row = {"precision": precision, "recall": recall, "f1": None if np.isnan(f1[0]) else float(f1[0])}
        counts = dict(zip(("precision_n", "recall_n"), map(int, counted.sum(axis=0)), strict=True))
        table[category] = {**row, **counts}
        drawn = f1[1:][~np.isnan(f1[1:])]  # a draw without a report that counts has no F1
        if len(drawn):
            table[category]["f1_95"] = interval(drawn)
    average = mean_scores([{name: row[name] for name in PARTS} for row in table.values()])
    return {**table, AVERAGE: average}


def _f1(precision: Floats, recall: Floats) -> Floats:
    """(D,) harmonic means; NaN where one of the two is."""
    total = precision + recall
    found: Floats = np.divide(2 * precision * recall, total, out=total.copy(), where=total > 0)
    return found
