"""Which studies chose something: val is split once into a half that chooses and a half that reports.

A score on studies that chose an epoch, a decoding setting or a threshold is slightly too high. So each command that
chooses on val records the studies in what it writes, and ``training.evaluate`` compares them with those that it scores.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal, get_args

from training.data.studies import Study

Half = Literal["choose", "report"]
HALVES: tuple[Half, ...] = get_args(Half)
CHOSEN_ON = "chosen_on"  # key of the records, in metrics.json and in ``fitted_on`` of calibration.json
_SEED = 1
_DIGITS = 8  # of the digest of an id
UNRECORDED: Mapping[str, Any] = {"what": "its epoch and settings", "split": "val", "half": None, "n": None}


def half_of(studies: Sequence[Study], half: Half | None) -> list[Study]:
    """The studies of one half; None keeps all.

    The group of a study decides, by a seeded digest, so a study stays in its half whatever other studies there are.

    Raises:
        ValueError: the half is empty.
    """
    if half is None:
        return list(studies)
    chosen = [study for study in studies if HALVES[_digest(f"{_SEED} {study.group}") % 2] == half]
    if studies and not chosen:
        raise ValueError(f"none of {len(studies)} val studies is in the half {half!r}; leave --split-val out")
    return chosen


def selection_record(what: str, dataset: str, half: Half | None, studies: Sequence[Study]) -> dict[str, Any]:
    """What was chosen on which val studies; ids as short digests, so that the record names no study."""
    digests = sorted(f"{_digest(study.study_id):0{_DIGITS}x}" for study in studies)
    return {"what": what, "dataset": dataset, "split": "val", "half": half, "n": len(studies), "ids": "".join(digests)}


def selection_of(
    records: Iterable[Mapping[str, Any]], scored: Sequence[Study], split: str, half: Half | None
) -> dict[str, Any]:
    """The entry ``selection`` of a metrics file: what was chosen on the scored studies, as counts and as a sentence."""
    ids = [f"{_digest(study.study_id):0{_DIGITS}x}" for study in scored]
    found = []
    for record in records:
        known = record.get("ids")
        digests = {known[at : at + _DIGITS] for at in range(0, len(known), _DIGITS)} if known is not None else None
        shared = None if digests is None else sum(one in digests for one in ids)
        if digests is None and split != record["split"]:
            shared = 0  # older bundles chose on val alone
        found.append({**{key: record[key] for key in ("what", "half", "n")}, "of_scored": shared})
    return {"half": half, "chosen_on": found, "statement": _statement(found, len(scored))}


def selection_notes(selection: Mapping[str, Any]) -> list[str]:
    """A note where something was, or may have been, chosen on the scored studies."""
    if all(one["of_scored"] == 0 for one in selection["chosen_on"]):
        return []
    return [f"{selection['statement']}: the scores are slightly too high, and p-values do not cover it"]


def _statement(found: Sequence[Mapping[str, Any]], scored: int) -> str:
    used = [f"{one['what']} ({one['of_scored']} of {scored})" for one in found if one["of_scored"]]
    unknown = [one["what"] for one in found if one["of_scored"] is None]
    parts = [f"chosen on these studies: {', '.join(used)}"] * bool(used)
    parts += [f"probably chosen on these studies: {', '.join(unknown)} (the bundle has no record)"] * bool(unknown)
    return "; ".join(parts) or "nothing of the bundle was chosen on these studies"


def _digest(text: str) -> int:
    """32 bits."""
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[: _DIGITS // 2])
