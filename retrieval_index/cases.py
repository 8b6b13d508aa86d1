"""The case store of an index: one JSON line per report, in the order of the vectors."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from model.files import write_atomic
from model.text.labeler import FINDINGS

CASE_ID = r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}"  # safe as a part of a path
MAX_URL_BYTES = 2048
STATES = ("present", "absent", "uncertain", None)
FIELDS = ("case_id", "findings", "labels", "source_url")  # of a line


class CaseFormatError(ValueError):
    """A line of the case file is not a valid case; the message names the file and the line."""


@dataclass(frozen=True)
class Case:
    """One reference case: a training report, or its redistributable parts."""

    case_id: str  # the annotation's study id, "CXR2384_IM-0942"
    findings: str | None = None  # None if texts are not redistributed; `hydrate` adds it
    labels: dict[str, str | None] = field(default_factory=dict)  # finding -> present, absent, uncertain or None
    source_url: str | None = None  # the page that publishes the case
    images: tuple[str, ...] = ()  # views with a small picture; not in case files

    def __post_init__(self) -> None:
        """Raise ValueError, which quotes no text of a report, for a value that `POST /cases` would not accept either.

        Only the characters and the length of the findings are not limited here, because a bundle
        holds its training reports unchanged.
        """
        values: dict[str, object] = vars(self)
        check_case_id(values["case_id"])
        for name in ("findings", "source_url"):
            value = values[name]
            if value is not None and not isinstance(value, str):
                raise ValueError(f"{name} of case {self.case_id} is a {type(value).__name__}; give a string or null")
        if self.findings is not None and not _is_unicode(self.findings):
            raise ValueError(f"findings of case {self.case_id} have half of a surrogate pair; give Unicode text")
        if self.source_url is not None and not is_web_address(self.source_url):
            raise ValueError(
                f"source_url of case {self.case_id} is {_short(self.source_url)}; give an http or https address or null"
            )
        if not isinstance(values["labels"], dict):
            raise ValueError(f"labels of case {self.case_id} are a {type(self.labels).__name__}; give an object")
        for finding, state in self.labels.items():
            if finding not in FINDINGS:
                raise ValueError(
                    f"label {_short(finding)} of case {self.case_id} is unknown; use {', '.join(FINDINGS)}"
                )
            if state not in STATES:
                raise ValueError(
                    f"label {finding!r} of case {self.case_id} is {_short(state)}; "
                    "use present, absent, uncertain or null"
                )

    def with_findings(self, findings: str) -> Case:
        """The case with its text."""
        return replace(self, findings=findings)


def check_case_id(value: object) -> None:
    """Raise ValueError unless `value` can be a case id, which is a part of the path `/cases/{case_id}`."""
    if not isinstance(value, str) or not re.fullmatch(CASE_ID, value):
        raise ValueError(
            f"case_id {_short(value)}: give 1 to 64 letters, digits, dots, hyphens and underscores, "
            "a letter or digit first"
        )


def is_web_address(text: str) -> bool:
    """Whether `text` is an http or https address of printable ASCII, without a user name."""
    try:
        url = urlsplit(text)
        usable = url.scheme in ("http", "https") and url.hostname and url.username is None and url.port != 0
    except ValueError:  # an invalid port or an unclosed bracket
        return False
    return bool(usable) and len(text) <= MAX_URL_BYTES and re.fullmatch(r"[!-~]+", text) is not None


def encode_cases(cases: Iterable[Case]) -> bytes:
    """The cases as JSON lines in UTF-8; equal cases give equal bytes."""
    records = ({name: getattr(case, name) for name in FIELDS} for case in cases)
    return "".join(json.dumps(record, ensure_ascii=False, sort_keys=True) + "\n" for record in records).encode()


def decode_cases(data: bytes, name: str = "cases.jsonl") -> list[Case]:
    """Read JSON lines; `name` is the file's name in messages.

    Raises:
        CaseFormatError: naming the line that is not UTF-8, not JSON, not a case, or repeats an id.
    """
    cases: list[Case] = []
    lines: dict[str, int] = {}
    for number, line in enumerate(data.splitlines(), start=1):
        try:
            case = _case(json.loads(line))
        except RecursionError as error:
            raise CaseFormatError(f"{name}, line {number}: the JSON is nested too deeply") from error
        except ValueError as error:  # JSON and UTF-8 errors are ValueErrors too
            raise CaseFormatError(f"{name}, line {number}: {error}") from error
        if case.case_id in lines:
            raise CaseFormatError(
                f"{name}, line {number}: case {case.case_id} is on line {lines[case.case_id]} already; ids are unique"
            )
        lines[case.case_id] = number
        cases.append(case)
    return cases


def write_cases(path: Path, cases: Iterable[Case]) -> None:
    """Write a case file, atomically."""
    write_atomic(path, encode_cases(cases))


def read_cases(path: Path) -> list[Case]:
    """Read a case file; raises as `decode_cases`."""
    return decode_cases(path.read_bytes(), str(path))


def _case(record: Any) -> Case:
    if not isinstance(record, dict):
        raise ValueError(f"the line is a {type(record).__name__}; expected an object with {', '.join(FIELDS)}")
    if missing := [name for name in FIELDS if name not in record]:
        raise ValueError(f"the case lacks {', '.join(missing)}")
    if unknown := sorted(set(record) - set(FIELDS)):
        raise ValueError(f"the case has the unknown fields {', '.join(unknown)}; known are {', '.join(FIELDS)}")
    return Case(**record)


def _is_unicode(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _short(value: object) -> str:
    """A value for an error message, cut after 80 characters."""
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:80]}…"
