"""The finding labeler: a report's text in, the 14 CheXpert findings out. Rules only: no network, no weights.

A report is cut into sentences, a sentence into clauses. Each mention of a finding in a clause gets a label from
the cues of negation and doubt around it, as far as their scope reaches; statements such as "heart size is normal"
are read as subject and predicate. Over a report the strongest label wins: present, then uncertain, then absent.
The classes and the rule for No Finding are CheXpert's (Irvin et al., 2019); phrases and cues are this project's
(`model.labeler_rules`), measured in docs/labeler.md.
"""

from __future__ import annotations

import re
from functools import lru_cache
from typing import Final, Literal, NamedTuple, cast

from model import labeler_rules as rules

Label = Literal["present", "absent", "uncertain"]

FINDINGS: Final[tuple[str, ...]] = (
    "Enlarged Cardiomediastinum",
    "Cardiomegaly",
    "Lung Opacity",
    "Lung Lesion",
    "Edema",
    "Consolidation",
    "Pneumonia",
    "Atelectasis",
    "Pneumothorax",
    "Pleural Effusion",
    "Pleural Other",
    "Fracture",
    "Support Devices",
    "No Finding",
)

_NO_FINDING: Final = "No Finding"
_RANK: Final[dict[Label | None, int]] = {None: 0, "absent": 1, "uncertain": 2, "present": 3}
_STATEMENT_GAP: Final = 90  # characters between a subject and the predicate after it
_PREDICATE_FIRST_GAP: Final = 45  # "normal size and contour of the heart"

_DROPPED = re.compile(r"[,()\[\]{}\"'*:]")
_SENTENCE_END = re.compile(r"(?<=[^\d\s])\.(?=[^\W\d])|\.(?=\s|$)|[;?!]")
_SPACES = re.compile(r"\s+")
_WORD = re.compile(r"[a-z]")


class _Statement(NamedTuple):
    findings: tuple[str, ...]
    subject: re.Pattern[str]
    predicate: re.Pattern[str]  # one named group a label


_MENTIONS: Final = {name: re.compile("|".join(phrases)) for name, phrases in rules.PHRASES.items()}
_STATEMENTS: Final = tuple(
    _Statement(
        findings,
        re.compile(subject),
        re.compile("|".join(f"(?P<{label}>{pattern})" for label, pattern in predicates)),
    )
    for findings, subject, predicates in rules.STATEMENTS
)
_NEUTRAL = re.compile(rules.NEUTRAL)
_BREAK = re.compile(rules.BREAK)
_NEGATED_BEFORE = re.compile(rules.NEGATED_BEFORE)
_NEGATED_AFTER = re.compile(rules.NEGATED_AFTER)
_DOUBT_BEFORE = re.compile(rules.DOUBT_BEFORE)
_DOUBT_AFTER = re.compile(rules.DOUBT_AFTER)
_ALTERNATIVES = re.compile(rules.ALTERNATIVES)
_NEGATION_STOP = re.compile(rules.NEGATION_STOP)
_DOUBT_STOP = re.compile(rules.DOUBT_STOP)
_LEFT_STOP = re.compile(rules.LEFT_STOP)
_STATEMENT_STOP = re.compile(rules.STATEMENT_STOP)
_NOT = re.compile(r"\b(?:not|no|without|nor)\b")


def label_report(text: str) -> dict[str, Label | None]:
    """Label one report, in any case, cased and punctuated or lower-case with " . " between sentences.

    Returns all 14 keys of `FINDINGS`: "present", "absent", "uncertain", or None where the report says nothing.
    No Finding is "present" or None; None too for a text without words.
    """
    labels: dict[str, Label | None] = dict.fromkeys(FINDINGS)
    text = text.lower()
    for sentence in _SENTENCE_END.split(_DROPPED.sub(" ", text)):
        for name, label in _label_sentence(_SPACES.sub(" ", sentence).strip()):
            if _RANK[label] > _RANK[labels[name]]:
                labels[name] = label
    disease = [label for name, label in labels.items() if name not in (_NO_FINDING, "Support Devices")]
    if _WORD.search(text) and not any(label in ("present", "uncertain") for label in disease):
        labels[_NO_FINDING] = "present"
    return labels


@lru_cache(maxsize=1 << 16)
def _label_sentence(sentence: str) -> tuple[tuple[str, Label], ...]:
    """The labels that one normalised sentence gives, a finding as often as it is mentioned."""
    found: list[tuple[str, Label]] = []
    for clause in _BREAK.split(_NEUTRAL.sub("~", sentence)):
        found += _statements(clause)
        found += _mentions(clause)
    return tuple(found)


def _statements(clause: str) -> list[tuple[str, Label]]:
    """Subject and predicate: "the heart is not enlarged", "normal heart size", "clear lungs"."""
    found: list[tuple[str, Label]] = []
    for statement in _STATEMENTS:
        for subject in statement.subject.finditer(clause):
            label = _predicate(statement.predicate, clause, subject)
            if label:
                found += [(name, label) for name in statement.findings]
    return found


def _predicate(predicates: re.Pattern[str], clause: str, subject: re.Match[str]) -> Label | None:
    after = predicates.search(clause, subject.end())
    if after and after.start() - subject.end() <= _STATEMENT_GAP:
        gap = clause[subject.end() : after.start()]
        if not _STATEMENT_STOP.search(gap):
            return _said(after, gap)
    before = None
    for before in predicates.finditer(clause, 0, subject.start()):
        pass
    if before and subject.start() - before.end() <= _PREDICATE_FIRST_GAP:
        gap = clause[before.end() : subject.start()]
        if not _STATEMENT_STOP.search(gap) and not re.search(r"\b(?:is|are|appears?)\b", gap):
            return _said(before, clause[: before.start()])
    return None


def _said(predicate: re.Match[str], context: str) -> Label | None:
    label = cast(Label, predicate.lastgroup)
    if _NOT.search(context):
        return "absent" if label == "present" else None
    if label == "present" and _DOUBT_BEFORE.search(context):
        return "uncertain"
    return label


def _mentions(clause: str) -> list[tuple[str, Label]]:
    """Every phrase of every finding in the clause, with what the cues around it say."""
    hits = [
        _Hit(found.start(), found.end(), name)
        for name, pattern in _MENTIONS.items()
        for found in pattern.finditer(clause)
    ]
    if not hits:
        return []
    negated = _Scope(clause, _NEGATED_BEFORE, _NEGATION_STOP, _NEGATED_AFTER)
    doubted = _Scope(clause, _DOUBT_BEFORE, _DOUBT_STOP, _DOUBT_AFTER)
    asserted = [hit for hit in hits if not negated.reaches(hit)]
    alternatives = _alternatives(clause, asserted)
    labels: list[tuple[str, Label]] = [(hit.finding, "absent") for hit in hits if hit not in asserted]
    for hit in asserted:
        unsure = hit in alternatives or doubted.reaches(hit)
        labels.append((hit.finding, "uncertain" if unsure else "present"))
    return labels


class _Hit(NamedTuple):
    start: int
    end: int
    finding: str


class _Scope:
    """The cues of one kind in one clause, and which mentions they reach."""

    def __init__(
        self, clause: str, before: re.Pattern[str], stop: re.Pattern[str], after: re.Pattern[str]
    ) -> None:
        self._clause = clause
        self._stop = stop
        self._before = [cue.span() for cue in before.finditer(clause)]
        self._after = [cue.start() for cue in after.finditer(clause)]

    def reaches(self, hit: _Hit) -> bool:
        for start, end in self._before:
            if end <= hit.start and not self._stop.search(self._clause, end, hit.start):
                return True
            if hit.start <= start and end <= hit.end:  # "mediastinum is not widened"
                return True
        return any(
            start >= hit.end and not _LEFT_STOP.search(self._clause, hit.end, start) for start in self._after
        )


def _alternatives(clause: str, hits: list[_Hit]) -> set[_Hit]:
    """The mentions on either side of "or" and "versus", where they name different findings.

    A lung opacity stays: what is seen is an opacity whichever reading is right ("scarring or atelectasis").
    """
    doubted: set[_Hit] = set()
    for word in _ALTERNATIVES.finditer(clause):
        left_end = max((hit.end for hit in hits if hit.end <= word.start()), default=-1)
        right_start = min((hit.start for hit in hits if hit.start >= word.end()), default=-1)
        left = {hit for hit in hits if hit.start < left_end <= hit.end}
        right = {hit for hit in hits if hit.start <= right_start < hit.end}
        if word.group() == "or" and (
            not left or not right or {hit.finding for hit in left} & {hit.finding for hit in right}
        ):
            continue  # "nodules or masses", "right or left"
        doubted |= {hit for hit in left | right if hit.finding != "Lung Opacity"}
    return doubted
