"""`cases.jsonl`: round trip, equal bytes for equal cases, malformed lines."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from retrieval_index.cases import Case, CaseFormatError, decode_cases, encode_cases, read_cases, write_cases

CASES = [
    Case(
        "CXR1_IM-0001",
        "Invented text.\u2028 Größe unverändert.",
        {"Edema": "absent", "Fracture": None},
        "https://x.example/1",
    ),
    Case("CXR2_IM-0002", None, {"Edema": "uncertain", "Pneumonia": "present"}, None),
]


def test_cases_round_trip_and_keep_their_order(tmp_path: Path) -> None:
    write_cases(tmp_path / "sub" / "cases.jsonl", CASES)
    assert read_cases(tmp_path / "sub" / "cases.jsonl") == CASES
    assert [path.name for path in (tmp_path / "sub").iterdir()] == ["cases.jsonl"]


def test_bytes_do_not_depend_on_the_order_of_labels() -> None:
    turned = Case("a", labels={"Edema": None, "Fracture": "absent"})
    assert encode_cases([turned]) == encode_cases([Case("a", labels={"Fracture": "absent", "Edema": None})])


def test_case_file_holds_no_images() -> None:
    with_image = replace(CASES[0], images=("frontal",))
    assert encode_cases([with_image]) == encode_cases(CASES[:1])


def _line(**changes: Any) -> bytes:
    record = {"case_id": "c", "findings": None, "labels": {}, "source_url": None} | changes
    return json.dumps({key: value for key, value in record.items() if value != "DROP"}).encode()


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (b"{", "line 2: "),
        (b"", "line 2: "),
        (b"\xff", "line 2: "),
        (b"[]", "the line is a list; expected an object"),
        (b"[" * 100_000, "nested too deeply"),
        (_line(case_id=""), "case_id '': give 1 to 64 letters"),
        (_line(case_id=3), "case_id 3: give 1 to 64 letters"),
        (_line(case_id="../../x"), r"case_id '\.\./\.\./x': give 1 to 64 letters"),
        (_line(case_id="x" * 10**6), "case_id 'x{79}…: give"),
        (_line(findings="\ud800"), "findings of case c have half of a surrogate pair"),
        (_line(source_url="javascript:alert(1)"), r"source_url of case c is 'javascript:alert\(1\)'; give an http"),
        (_line(source_url="https://[x"), "give an http or https address"),
        (_line(labels={"<b>": None}), "label '<b>' of case c is unknown; use"),
        (_line(findings=3), "findings of case c is a int"),
        (_line(labels=[]), "labels of case c are a list"),
        (_line(labels={"Edema": "maybe"}), "label 'Edema' of case c is 'maybe'; use present"),
        (_line(labels={"Edema": []}), "label 'Edema'"),
        (_line(source_url="DROP"), "the case lacks source_url"),
        (_line(text="x"), "unknown fields text"),
        (_line(case_id="first"), "line 2: case first is on line 1 already"),
    ],
)
def test_rejects_malformed_line_with_its_number(line: bytes, message: str) -> None:
    with pytest.raises(CaseFormatError, match=message) as error:
        decode_cases(_line(case_id="first") + b"\n" + line + b"\n", "cases.jsonl")
    assert "cases.jsonl, line 2" in str(error.value)
