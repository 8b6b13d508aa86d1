"""Errors of side, region and degree of drafts, where reference and draft both name a finding as present.

A side agrees if it is equal, so "both" contradicts "left". Regions agree if they share one, or a level of the lungs
("base" and "lower lobe"); "spine" is any part of it. Degrees agree if they are equal, where minimal counts as mild.
What the draft leaves out is missing, what it adds is invented.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any, Final

import numpy as np

from model.text.annotations import DEGREES, annotate_report
from training.scoring.baselines import TrivialRow
from training.scoring.bootstrap import Bootstrap, interval
from training.scoring.metrics import Pair, mean_scores
from training.scoring.ngrams import Floats

FIELDS: Final = ("side", "region", "degree")
OUTCOMES: Final = ("agree", "wrong", "missing", "invented")
OVERALL: Final = "overall"

_LEVELS: Final = {
    "upper lobe": "upper", "upper zone": "upper", "apex": "upper", "middle lobe": "middle", "lingula": "middle",
    "middle zone": "middle", "lower lobe": "lower", "lower zone": "lower", "base": "lower",
    "costophrenic angle": "lower", "retrocardiac": "lower", "perihilar": "hilum",
}  # fmt: skip
_SPINE: Final = frozenset({"thoracic spine", "lumbar spine", "cervical spine"})

Described = Mapping[str, frozenset[str]]  # of each of FIELDS


@lru_cache(maxsize=20_000)
def described_findings(text: str) -> dict[str, Described]:
    """Finding -> sides, regions and the strongest degree of all that a text says of it as present."""
    found: dict[str, dict[str, set[str]]] = {}
    for annotation in annotate_report(text):
        if annotation.presence == "present":
            fields = found.setdefault(annotation.finding, {name: set() for name in FIELDS})
            fields["side"] |= {"left", "right"} if annotation.side == "both" else {annotation.side or ""}
            fields["region"] |= {_LEVELS.get(region, region) for region in annotation.regions}
            fields["region"] |= _SPINE if "spine" in annotation.regions else set()
            fields["degree"] |= {annotation.degree or ""}
    for fields in found.values():
        degree = max(fields["degree"], key=("", *DEGREES).index)
        fields["degree"] = {"mild" if degree == "minimal" else degree}
    return {
        finding: {name: frozenset(values - {""}) for name, values in fields.items()}
        for finding, fields in found.items()
    }


def outcomes(reference: str, prediction: str) -> dict[str, dict[str, int]]:
    """Field -> how many findings that both texts name as present have each of ``OUTCOMES``."""
    truth, guess = described_findings(reference), described_findings(prediction)
    counts = {name: dict.fromkeys(OUTCOMES, 0) for name in FIELDS}
    for finding in truth.keys() & guess.keys():
        for name in FIELDS:
            given, drafted = truth[finding][name], guess[finding][name]
            if given and drafted:
                agrees = bool(given & drafted) if name == "region" else given == drafted
                counts[name]["agree" if agrees else "wrong"] += 1
            elif given or drafted:
                counts[name]["missing" if given else "invented"] += 1
    return counts


def annotation_errors(pairs: Sequence[Pair], bootstrap: Bootstrap | None = None) -> dict[str, Any]:
    """Counts over (reference, draft) pairs.

    Returns:
        ``findings``, the findings that reference and draft both name, and for each of ``FIELDS`` and ``overall`` the
        counts of ``OUTCOMES``, their sum ``compared``, and ``agreement``, the share that agrees (None of none); with
        ``bootstrap`` its interval ``agreement_95``.
    """
    each = [outcomes(*pair) for pair in pairs]
    by_field = {name: np.array([[one[name][key] for key in OUTCOMES] for one in each], np.float64) for name in FIELDS}
    by_field[OVERALL] = np.sum(list(by_field.values()), axis=0)  # (N, outcomes)
    named = sum(len(described_findings(truth).keys() & described_findings(guess).keys()) for truth, guess in pairs)
    table: dict[str, Any] = {"findings": named}
    for name, counts in by_field.items():
        table[name] = _row(dict(zip(OUTCOMES, map(int, counts.sum(axis=0)), strict=True)))
        if bootstrap is not None and len(drawn := _agreement(bootstrap.times[1:] @ counts)):
            table[name]["agreement_95"] = interval(drawn)
    return table


def merged_errors(row: TrivialRow, parts: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The counts of a trivial row: of the variant where more agrees, or the means over its variants."""
    if row.merge == "best":
        return max(parts, key=lambda part: part[OVERALL]["agree"])
    merged: dict[str, Any] = {"findings": sum(part["findings"] for part in parts) / len(parts)}
    for name in (*FIELDS, OVERALL):
        counts = mean_scores([{key: float(part[name][key]) for key in OUTCOMES} for part in parts])
        merged[name] = _row({key: value or 0.0 for key, value in counts.items()})
    return merged


def _row(counts: Mapping[str, float]) -> dict[str, Any]:
    compared = sum(counts.values())
    return {"compared": compared, **counts, "agreement": counts["agree"] / compared if compared else None}


def _agreement(counts: Floats) -> Floats:
    """(D', ) share that agrees, from counts (D, outcomes), without the draws that compare nothing."""
    compared = counts.sum(axis=1)
    found: Floats = counts[compared > 0, 0] / compared[compared > 0]
    return found


# --- the reward of SCST -----------------------------------------------------------------------------------------------

MOST: Final = 3.0  # limit of a draft's gain, so that one long list of findings does not outweigh the other parts


def annotation_gain(reference: str, text: str) -> float:
    """Fields that agree minus those that contradict, within ``MOST``; what is missing or invented counts nothing.

    With equal weights, a right finding (``finding_gain``, less than 1) on the wrong side is worth less than none.
    """
    counts = outcomes(reference, text).values()
    return float(np.clip(sum(one["agree"] - one["wrong"] for one in counts), -MOST, MOST))
