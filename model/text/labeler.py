"""The rule-based finding labeler: the 14 CheXpert findings of a report's text.

A report is split into sentences, and these into clauses. Each mention of a finding in a clause gets
a label from the cues of negation and doubt whose scope includes it; statements such as "X is
normal" or "an enlarged X" are parsed as subject and predicate. The strongest label of a report
counts: present, then uncertain, then absent.

The classes and the rule for No Finding are from CheXpert (Irvin et al., AAAI 2019); the phrases and
cues are this project's (`model.text.labeler_rules`). docs/labeler.md has the evaluation.

    python -m model.text.labeler reports.csv --column report --out labels.csv
"""

from __future__ import annotations

import csv
import io
import re
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Final, NamedTuple, TextIO, cast

from model.command_line import CommandParser
from model.files import write_atomic
from model.text import labeler_rules as rules
from model.types import Label

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

NO_FINDING: Final = "No Finding"
SCORED_FINDINGS: Final = tuple(name for name in FINDINGS if name != NO_FINDING)  # the 13 of the label F1
RANK: Final[dict[Label | None, int]] = {None: 0, "absent": 1, "uncertain": 2, "present": 3}
_REACH_AFTER: Final = 90  # characters from a subject to its predicate: "the heart, … and … are normal"
_REACH_BEFORE: Final = 45  # from a predicate to the subject after it: "normal size and contour of the heart"

_APOSTROPHES = re.compile("['’\"]")
_PUNCTUATION = re.compile(r"[,()\[\]{}*:]")
_COMMA = re.compile(r",(?=([^,.;?!]{0,200}))")
_HEDGED = " ¦ "  # a comma whose hedge does not reach back
_LIST = re.compile(r"\b(?:and|or|nor)\b")
SENTENCE_END: Final = re.compile(r"(?<=[^\d\s])\.(?=[^\W\d])|\.(?=\s|$)|[;?!]")
SPACES: Final = re.compile(r"\s+")
# the maximum length of a sentence bounds the time for a malicious text
LONG: Final = re.compile(r".{1,1000}(?: |$)|.{1000}")
HAS_WORD: Final = re.compile(r"[a-z]")
_NOT = re.compile(r"\b(?:not|no|without|nor)\b")
_VERB = re.compile(r"\b(?:is|are|appears?)\b")

NEUTRAL: Final = re.compile(rules.NEUTRAL)
BREAK: Final = re.compile(rules.BREAK)
_NEGATED_BEFORE = re.compile(rules.NEGATED_BEFORE)
_NEGATED_AFTER = re.compile(rules.NEGATED_AFTER)
_DOUBT_BEFORE = re.compile(rules.DOUBT_BEFORE)
_DOUBT_AFTER = re.compile(rules.DOUBT_AFTER)
_ALTERNATIVES = re.compile(rules.ALTERNATIVES)
_NEGATION_STOP = re.compile(rules.NEGATION_STOP)
_DOUBT_STOP = re.compile(rules.DOUBT_STOP)
_LEFT_STOP = re.compile(rules.LEFT_STOP)
_HEDGE_LEFT_STOP = re.compile(f"{rules.LEFT_STOP}|{_HEDGED.strip()}")
_STATEMENT_STOP = re.compile(rules.STATEMENT_STOP)

_MENTIONS: Final = tuple((name, re.compile("|".join(phrases))) for name, phrases in rules.PHRASES.items())
_HINTS: Final = tuple((name, re.compile("|".join(phrases))) for name, phrases in rules.HINTS.items())
_STATEMENTS: Final = tuple(
    (
        finding,
        re.compile(subject),
        re.compile("|".join(f"(?P<{label}>{pattern})" for label, pattern in predicates.items())),
    )
    for finding, subject, predicates in rules.STATEMENTS
)


def label_report(text: str, *, use_cache: bool = True) -> dict[str, Label | None]:
    """Label one report: cased with punctuation, or lower-case tokens with " . " between the sentences.

    Returns all 14 keys of `FINDINGS`: "present", "absent", "uncertain", or None if not mentioned.
    No Finding is "present" if no other finding except Support Devices is present or uncertain and
    the text has words, else None.

    Raises:
        TypeError: ``text`` is no string, such as the NaN of an empty cell.
    """
    if not isinstance(text, str):
        raise TypeError(f"a report is a {type(text).__name__}; give a string, '' where there is no report")
    read = _label_sentence if use_cache else _label_sentence.__wrapped__
    labels: dict[str, Label | None] = dict.fromkeys(FINDINGS)
    text = text.lower()
    for pattern, replacement in REPLACED:
        text = pattern.sub(replacement, text)
    for sentence in SENTENCE_END.split(text):
        for piece in LONG.findall(SPACES.sub(" ", sentence).strip()):
            for finding, label in read(piece):
                if RANK[label] > RANK[labels[finding]]:
                    labels[finding] = label
    disease = [label for name, label in labels.items() if name not in (NO_FINDING, "Support Devices")]
    if HAS_WORD.search(text) and "present" not in disease and "uncertain" not in disease:
        labels[NO_FINDING] = "present"
    return labels


def _keep_hedge(comma: re.Match[str]) -> str:
    """Replace a comma by ``_HEDGED`` if what follows hedges a finding of its own: "atelectasis, cannot exclude edema".

    A list keeps its hedge: "edema, atelectasis or effusion cannot be excluded".
    """
    following = BREAK.split(SPACES.sub(" ", _PUNCTUATION.sub(" ", comma[1])))[0]
    hedge = _DOUBT_AFTER.search(following)
    if hedge is None or _LIST.search(following, 0, hedge.start()):
        return ","
    is_active = _DOUBT_BEFORE.match(following, hedge.start())  # "cannot exclude X", not "cannot be excluded"
    hedged = following if is_active else following[: hedge.start()]
    patterns = (pattern for _, pattern in (*_MENTIONS, *_HINTS))
    return _HEDGED if any(pattern.search(hedged) for pattern in patterns) else ","


REPLACED: Final[tuple[tuple[re.Pattern[str], str | Callable[[re.Match[str]], str]], ...]] = (
    (_APOSTROPHES, ""), (_COMMA, _keep_hedge), (_PUNCTUATION, " "),
)  # fmt: skip
"""Replacements in a lower-case text, in this order, before it is split into sentences."""


@lru_cache(maxsize=1 << 15)
def _label_sentence(sentence: str) -> tuple[tuple[str, Label], ...]:
    """Label of every mention of a finding in one normalised sentence. Cached, because sentences repeat."""
    clauses = BREAK.split(NEUTRAL.sub("~", sentence))
    return tuple((mention.finding, mention.label) for clause in clauses for mention in mentions(clause))


class Mention(NamedTuple):
    """A finding, or the subject of a statement about it, at [start, end) of a clause, with its label."""

    start: int
    end: int
    finding: str
    label: Label
    predicate: tuple[int, int] | None = None  # of a statement


def mentions(clause: str) -> Iterator[Mention]:
    """Every mention of a finding in a clause as ``_label_sentence`` splits them."""
    yield from _statements(clause)
    yield from labelled(clause, (*_MENTIONS, *_HINTS))


def _statements(clause: str) -> Iterator[Mention]:
    """Labels by subject and predicate: "the heart, again, is not enlarged", "an enlarged heart"."""
    for finding, subjects, predicates in _STATEMENTS:
        for subject in subjects.finditer(clause):
            found = _predicate(predicates, clause, subject.start(), subject.end())
            if found and (label := _label_of(*found)):
                yield Mention(subject.start(), subject.end(), finding, label, found[0].span())


def _predicate(
    predicates: re.Pattern[str], clause: str, start: int, end: int
) -> tuple[re.Match[str], str] | None:  # fmt: skip
    """The first predicate after the subject at [start, end), else the last before it; and its context."""
    after = predicates.search(clause, end)
    if after and after.start() - end <= _REACH_AFTER:
        gap = clause[end : after.start()]
        if not _STATEMENT_STOP.search(gap):
            return after, gap
    before = list(predicates.finditer(clause, 0, start))
    if before and start - before[-1].end() <= _REACH_BEFORE:
        gap = clause[before[-1].end() : start]
        if not _STATEMENT_STOP.search(gap) and not _VERB.search(gap):
            return before[-1], clause[: before[-1].start()]
    return None


def _label_of(predicate: re.Match[str], context: str) -> Label | None:
    label = cast(Label, predicate.lastgroup)
    if _NOT.search(context):
        return "absent" if label == "present" else None
    if label == "present" and _DOUBT_BEFORE.search(context):
        return "uncertain"
    return label


class _Hit(NamedTuple):
    """A phrase of a finding at [start, end) of a clause."""

    start: int
    end: int
    finding: str
    weak: bool  # a hint rather than the finding itself


def labelled(clause: str, phrases: Iterable[tuple[str, re.Pattern[str]]]) -> Iterator[Mention]:
    """Every phrase in the clause with its label by the cues around it; phrases of ``_HINTS`` are weak."""
    hits = sorted(
        _Hit(found.start(), found.end(), finding, (finding, pattern) in _HINTS)
        for finding, pattern in phrases
        for found in pattern.finditer(clause)
    )
    if not hits:
        return
    negated = _Scope(clause, _NEGATED_BEFORE, _NEGATION_STOP, _NEGATED_AFTER, _LEFT_STOP)
    doubted = _Scope(clause, _DOUBT_BEFORE, _DOUBT_STOP, _DOUBT_AFTER, _HEDGE_LEFT_STOP)
    asserted = [hit for hit in hits if not negated.reaches(hit)]
    alternatives = _alternatives(clause, asserted)
    for hit in hits:
        label: Label = "present"
        if hit not in asserted:
            label = "absent"
        elif hit.weak or hit in alternatives or doubted.reaches(hit):
            label = "uncertain"
        yield Mention(hit.start, hit.end, hit.finding, label)


class _Scope:
    """The cues of one kind in one clause, and their scope."""

    def __init__(
        self, clause: str, before: re.Pattern[str], stop: re.Pattern[str], after: re.Pattern[str],
        left_stop: re.Pattern[str],
    ) -> None:  # fmt: skip
        self._clause = clause
        self._stop, self._left_stop = stop, left_stop
        self._before = [cue.span() for cue in before.finditer(clause)]
        self._after = [cue.start() for cue in after.finditer(clause)]

    def reaches(self, hit: _Hit) -> bool:
        for start, end in self._before:
            if end <= hit.start and not self._stop.search(self._clause, end, hit.start):
                return True
            if hit.start <= start and end <= hit.end:  # inside the phrase: "mediastinum is not widened"
                return True
        return any(
            start >= hit.end and not self._left_stop.search(self._clause, hit.end, start) for start in self._after
        )


def _alternatives(clause: str, hits: list[_Hit]) -> set[_Hit]:
    """The mentions on either side of "versus", and of "or" if the two sides name different findings.

    A lung opacity is excluded, because both alternatives are opacities ("scarring or atelectasis").
    """
    doubted: set[_Hit] = set()
    for word in _ALTERNATIVES.finditer(clause):
        left = _with_overlaps(hits, [hit for hit in hits if hit.end <= word.start()][-1:])
        right = _with_overlaps(hits, [hit for hit in hits if hit.start >= word.end()][:1])
        same = {hit.finding for hit in left} & {hit.finding for hit in right}
        if word.group() == "or" and (same or not left or not right):
            continue  # "nodules or masses", "right or left"
        doubted |= {hit for hit in left | right if hit.finding != "Lung Opacity"}
    return doubted


def _with_overlaps(hits: list[_Hit], nearest: list[_Hit]) -> set[_Hit]:
    """The nearest mentions and those that overlap with them: "mediastinal mass" names two findings."""
    return {hit for near in nearest for hit in hits if hit.start < near.end and hit.end > near.start}


# --- the command ------------------------------------------------------------------------------------------------------


def label_csv(rows: Iterable[str], column: str, out: TextIO) -> None:
    """Copy a CSV and append a column for each of `FINDINGS`: present, absent, uncertain, or empty.

    Args:
        rows: lines of a CSV with a header.
        column: of the reports.
        out: opened with newline="".

    Raises:
        ValueError: the header lacks the column or has that of a finding, a row has another number of cells than the
            header, or the text is no CSV.
    """
    reader, writer = csv.reader(rows, strict=True), csv.writer(out, lineterminator="\n")
    try:
        header = next(reader, [])
        if column not in header:
            found = ", ".join(header) or "it is empty"
            raise ValueError(f"the header has no column {column!r} ({found}); choose one with --column")
        if taken := sorted(set(FINDINGS) & set(header)):
            raise ValueError(f"the header has a column {taken[0]!r} already; rename it or remove it")
        writer.writerow([*header, *FINDINGS])
        position = header.index(column)
        for cells in filter(None, reader):  # without empty lines
            if len(cells) != len(header):
                raise ValueError(f"line {reader.line_num} has {len(cells)} cells, the header {len(header)}; "
                                 "put texts with commas in double quotes")  # fmt: skip
            labels = label_report(cells[position])
            writer.writerow([*cells, *(labels[name] or "" for name in FINDINGS)])
    except csv.Error as error:
        raise ValueError(f"line {reader.line_num}: {error}; save the file as CSV with double quotes") from error


def main(arguments: Sequence[str] | None = None) -> int:
    """Entry point of ``python -m model.text.labeler``; returns the exit code, 2 for unusable input."""
    parser = CommandParser(
        prog="python -m model.text.labeler",
        description="Label the reports of a CSV: adds a column for each finding (present, absent, uncertain or empty).",
    )  # fmt: skip
    parser.add_argument("csv", nargs="?", default="-", help="CSV in UTF-8 with a header; -, the default: stdin")
    parser.add_argument("--column", default="report", help="column of the reports (default: report)")
    parser.add_argument("--out", default="-", help="the CSV to write; -, the default: stdout")
    options = parser.parse_args(arguments)
    try:
        data = sys.stdin.buffer.read() if options.csv == "-" else Path(options.csv).read_bytes()
        out = io.StringIO()
        label_csv(io.StringIO(data.decode("utf-8-sig"), newline=""), options.column, out)
        if options.out == "-":
            sys.stdout.write(out.getvalue())
        else:
            write_atomic(Path(options.out), out.getvalue().encode())
    except OSError as error:
        print(f"{error.filename}: {error.strerror}", file=sys.stderr)
        return 2
    except ValueError as error:
        remedy = "; save the file in UTF-8" if isinstance(error, UnicodeDecodeError) else ""
        print(f"{'stdin' if options.csv == '-' else options.csv}: {error}{remedy}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
