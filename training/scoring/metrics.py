"""Corpus metrics of drafts against reports, by the scorers of ``pycocoevalcap`` and this project's finding labeler.

Strings are prepared (``training.scoring.protocol``) and split at spaces. PTBTokenizer is not used: it would drop the
"." and change BLEU. Metrics are shares, except CIDEr (0 to 10) and ``mean_length`` (words without ".").
"""

from __future__ import annotations

import logging
import os
import shutil
import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import lru_cache
from typing import Any

from pycocoevalcap.bleu.bleu import Bleu
from pycocoevalcap.cider.cider import Cider
from pycocoevalcap.meteor.meteor import Meteor
from pycocoevalcap.rouge.rouge import Rouge

from model.text.labeler import FINDINGS, NO_FINDING, SCORED_FINDINGS, label_report
from model.text.tokenizer import END_OF_SENTENCE
from training.protocols import IU_XRAY, Protocol
from training.registries import METRIC_GROUPS
from training.scoring.protocol import comparable_prediction, comparable_reference, comparable_vocabulary

log = logging.getLogger(__name__)

Pair = tuple[str, str]  # reference, prediction
Scores = dict[str, float | None]

METRICS = (
    "BLEU_1", "BLEU_2", "BLEU_3", "BLEU_4", "METEOR", "ROUGE_L", "CIDEr",
    "label_f1_micro", "label_f1_macro", "no_finding_f1", "distinct", "mean_length",
)  # fmt: skip
_NOTHING = "qqq"  # replaces an empty text for METEOR, which accepts none; it matches no word
_DECIMAL_POINTS = (
    "-Duser.language=en -Duser.language.format=en -Duser.country=US -Duser.country.format=US "
    "-Duser.extensions= -Duser.extensions.format="  # such as a numbering system
)


def score(pairs: Sequence[Pair], *, meteor: bool = False, added: bool = True) -> Scores:
    """A value for each of ``METRICS``, and with ``added`` those of the metrics that packages add.

    The pairs are prepared, with one reference each.

    An empty prediction counts in every mean and matches nothing. CIDEr takes document frequencies from these
    references. METEOR needs a Java runtime; it is None, with a warning, if that fails.

    Raises:
        ValueError: no pairs, or a reference without words.
    """
    if not pairs:
        raise ValueError("there is nothing to score: no pair of reference and prediction was given")
    if any(not reference.strip() for reference, _ in pairs):
        raise ValueError("a reference has no words; leave studies without findings text out before scoring")
    scores: Scores = {}
    for name in METRIC_GROUPS.names() if added else METRIC_GROUPS.built_in():
        if name == "meteor" and not meteor:
            scores["METEOR"] = None
            continue
        found = METRIC_GROUPS.get(name)(pairs)
        values = found if isinstance(found, Mapping) else {name: found}
        if taken := set(values) & set(scores):
            raise ValueError(f"metric group {name!r} returns {sorted(taken)[0]}, which another group returns too; "
                             "rename it in its package")  # fmt: skip
        scores |= values
    return scores


# --- the groups of ``training.registries.METRIC_GROUPS``; input: the pairs that ``score`` takes ----------------------


def bleu(pairs: Sequence[Pair]) -> Scores:
    """BLEU-1 to BLEU-4."""
    values, _ = Bleu(4).compute_score(*_by_number(pairs), verbose=0)
    return {f"BLEU_{n}": float(value) for n, value in enumerate(values, 1)}


def rouge(pairs: Sequence[Pair]) -> Scores:
    """ROUGE-L."""
    return {"ROUGE_L": float(Rouge().compute_score(*_by_number(pairs))[0])}


def cider(pairs: Sequence[Pair]) -> Scores:
    """CIDEr, with document frequencies of these references."""
    return {"CIDEr": float(Cider().compute_score(*_by_number(pairs))[0])}


def findings(pairs: Sequence[Pair]) -> Scores:
    """F1 of findings; see ``label_scores``."""
    reference, predicted = ([present_findings(pair[side]) for pair in pairs] for side in (0, 1))
    return {**label_scores(reference, predicted)}


def variety(pairs: Sequence[Pair]) -> Scores:
    """Share of distinct texts, and their mean number of words without "."."""
    texts = [prediction for _, prediction in pairs]
    return {
        "distinct": len(set(texts)) / len(texts),
        "mean_length": sum(word != END_OF_SENTENCE for text in texts for word in text.split()) / len(texts),
    }


def _by_number(pairs: Sequence[Pair]) -> tuple[dict[int, list[str]], dict[int, list[str]]]:
    """References and predictions as the scorers of ``pycocoevalcap`` take them."""
    return ({i: [pair[0]] for i, pair in enumerate(pairs)}, {i: [pair[1]] for i, pair in enumerate(pairs)})


# --- findings ---------------------------------------------------------------------------------------------------------


def present_findings(text: str) -> frozenset[str]:
    """Findings that the labeler reads as present, No Finding included."""
    return frozenset(name for name, label in label_report(text).items() if label == "present")


def label_scores(reference: Iterable[frozenset[str]], predicted: Iterable[frozenset[str]]) -> dict[str, float]:
    """F1 of findings named as present in each report and, in the same order, in each draft.

    ``label_f1_micro`` pools the 13 findings without No Finding; ``label_f1_macro`` is the mean over those of them that
    some reference names; ``no_finding_f1`` is that of No Finding. 0 if neither side names a finding.
    """
    hits, wrong, missed = _count(reference, predicted)

    def f1(names: Sequence[str]) -> float:
        right = sum(hits[name] for name in names)
        return precision_recall_f1(right, sum(wrong[name] for name in names), sum(missed[name] for name in names))[2]

    supported = [name for name in SCORED_FINDINGS if hits[name] + missed[name]]
    return {
        "label_f1_micro": f1(SCORED_FINDINGS),
        "label_f1_macro": sum(f1([name]) for name in supported) / max(len(supported), 1),
        "no_finding_f1": f1([NO_FINDING]),
    }


def label_table(pairs: Sequence[Pair]) -> dict[str, dict[str, float]]:
    """Precision, recall and F1 of "present" for each of the 14 findings.

    ``prevalence`` and ``predicted`` are the shares of references and of drafts that name it.
    """
    hits, wrong, missed = _count(*([present_findings(pair[side]) for pair in pairs] for side in (0, 1)))
    table = {}
    for name in FINDINGS:
        precision, recall, f1 = precision_recall_f1(hits[name], wrong[name], missed[name])
        prevalence, predicted = ((hits[name] + others[name]) / len(pairs) for others in (missed, wrong))
        table[name] = {"precision": precision, "recall": recall, "f1": f1, "prevalence": prevalence,
                       "predicted": predicted}  # fmt: skip
    return table


def precision_recall_f1(hits: int, wrong: int, missed: int) -> tuple[float, float, float]:
    """From counts; 0 instead of a division by zero."""
    precision, recall = hits / max(hits + wrong, 1), hits / max(hits + missed, 1)
    return precision, recall, 2 * hits / max(2 * hits + wrong + missed, 1)


def _count(
    reference: Iterable[frozenset[str]], predicted: Iterable[frozenset[str]]
) -> tuple[dict[str, int], dict[str, int], dict[str, int]]:
    """True positives, false positives and false negatives of each finding."""
    hits, wrong, missed = (dict.fromkeys(FINDINGS, 0) for _ in range(3))
    for truth, guess in zip(reference, predicted, strict=True):
        for counts, names in ((hits, truth & guess), (wrong, guess - truth), (missed, truth - guess)):
            for name in names:
                counts[name] += 1
    return hits, wrong, missed


def comparable_pairs(pairs: Iterable[Pair], train_reports: Iterable[str], protocol: Protocol = IU_XRAY) -> list[Pair]:
    """The strings of the comparable row of (report of the source, draft as tokens or text); ``train_reports`` give the
    vocabulary.
    """
    vocabulary = comparable_vocabulary(train_reports, protocol)
    return [
        (comparable_reference(report, vocabulary, protocol=protocol), comparable_prediction(draft, protocol=protocol))
        for report, draft in pairs
    ]


def validation_scores(pairs: Sequence[Pair]) -> dict[str, float]:
    """All of ``METRICS`` except METEOR, in about a second for 300 prepared pairs; for validation during training."""
    return {name: value for name, value in score(pairs, added=False).items() if value is not None}


def merge_scores(rows: Sequence[Scores], merge: Callable[[Sequence[float]], float]) -> Scores:
    """``merge`` of each metric over rows; None if a row lacks the metric."""
    columns = {name: [value for row in rows if (value := row[name]) is not None] for name in rows[0]}
    return {name: merge(values) if len(values) == len(rows) else None for name, values in columns.items()}


def mean_scores(rows: Sequence[Scores]) -> Scores:
    """Mean of each metric over rows; None if a row lacks the metric."""
    return merge_scores(rows, lambda values: sum(values) / len(values))


# --- METEOR: a Java program that stays open between rows -------------------------------------------------------------


def meteor_available() -> bool:
    """Whether a Java runtime is on the path."""
    return shutil.which("java") is not None


@lru_cache(maxsize=1)
def _meteor_process() -> Any:
    """The program. It prints numbers as Java's locale does, and ``_JAVA_OPTIONS`` overrides every other locale."""
    os.environ["_JAVA_OPTIONS"] = f"{os.environ.get('_JAVA_OPTIONS', '')} {_DECIMAL_POINTS}"
    meteor = Meteor()
    meteor.lock = threading.RLock()  # compute_score keeps it after an error, and __del__ waits for it
    return meteor


def meteor(pairs: Sequence[Pair]) -> Scores:
    """METEOR; None without a Java runtime."""
    return {"METEOR": _meteor_score(*_by_number(pairs))}


def _meteor_score(references: Mapping[int, list[str]], predictions: Mapping[int, list[str]]) -> float | None:
    if not meteor_available():
        log.warning("METEOR is left out: it needs a Java runtime (java) on the path, and there is none")
        return None
    filled = {i: [text if text.strip() else _NOTHING for text in texts] for i, texts in predictions.items()}
    try:
        return float(_meteor_process().compute_score(references, filled)[0])
    except (OSError, ValueError) as error:
        _meteor_process.cache_clear()
        log.warning("METEOR is left out: the Java program failed (%s: %s)", type(error).__name__, error)
        return None
