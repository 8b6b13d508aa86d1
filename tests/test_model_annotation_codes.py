"""Codes of annotations: the names are those of the vocabulary, and the codes those of DICOM's dictionary."""

from __future__ import annotations

from functools import cache

import pytest
from pydicom.sr._concepts_dict import concepts

from model.text import annotation_terms as terms
from model.text.annotation_codes import CODES, DICOM, SNOMED, SOURCES, Kind, code_of
from model.text.annotations import DEGREES
from model.text.labeler import FINDINGS

ALL = sorted({code for names in CODES.values() for code in names.values()})
SCHEMES = {SNOMED: "SCT", DICOM: "DCM"}
NAMES: dict[Kind, set[str]] = {
    "finding": set(FINDINGS),
    "concept": {name for names in terms.CONCEPTS.values() for name, _ in names} | set(terms.OTHER),
    "side": {"left", "right", "both"},
    "region": {name for name, _ in (*terms.REGIONS, *terms.BONES)},
    "degree": set(DEGREES),
}


@cache
def dictionary(system: str) -> dict[str, set[str]]:
    """Code -> its meanings in pydicom's copy, in lower case, without the kind of concept in brackets."""
    found: dict[str, set[str]] = {}
    for keywords in concepts[SCHEMES[system]].values():
        for code, (meaning, _) in keywords.items():
            found.setdefault(code, set()).add(meaning.lower().partition(" (")[0])
    return found


@pytest.mark.parametrize("kind", NAMES)
def test_every_coded_name_is_one_that_the_reader_gives(kind: Kind) -> None:
    assert set(CODES[kind]) <= NAMES[kind]


def test_every_side_and_degree_has_a_code() -> None:
    assert all(code_of("side", side) for side in NAMES["side"])
    assert all(code_of("degree", degree) for degree in DEGREES)
    assert code_of("region", "retrocardiac") is code_of("side", None) is None


def test_codes_and_displays_are_those_of_the_dictionary_or_have_a_source() -> None:
    assert {code.code for code in ALL if code.code not in dictionary(code.system)} == set(SOURCES)
    for code in ALL:
        assert code.code in SOURCES or code.display.lower() in dictionary(code.system)[code.code], code
