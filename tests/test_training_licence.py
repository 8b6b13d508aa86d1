"""The licence note of a bundle follows from its data."""

from __future__ import annotations

import json

import pytest

from model.command_line import CommandParser
from tests.support.paths import REPOSITORY
from training.licence import UNKNOWN, add_data_licence, import_note, licence_note


def test_only_openi_has_the_indiana_licence() -> None:
    shipped = json.loads((REPOSITORY / "bundles" / "iu-xray" / "config.json").read_text())["licence"]
    assert shipped.startswith(licence_note("openi", None, holds_texts=False))
    for note in (licence_note("r2gen", None, holds_texts=False), import_note(None)):
        assert "Indiana" not in note
        assert "CC BY" not in note
        assert f"is {UNKNOWN}." in note
        assert "not a medical device" in note


def test_states_the_licence_that_the_user_gives() -> None:
    given = "PhysioNet Credentialed Health Data License 1.5.0"
    for note in (licence_note("openi", given, holds_texts=True, other_images=True), import_note(given)):
        assert f"is {given}. For research" in note
        assert "Indiana" not in note
        assert UNKNOWN not in note


def test_states_other_images_and_texts() -> None:
    note = licence_note("openi", None, holds_texts=True, other_images=True)
    assert f"Labelled images of another source took part; their licence is {UNKNOWN}." in note
    assert note.endswith("is part of this bundle but the reports of its cases.")
    assert licence_note("openi", None, holds_texts=False).endswith("is part of this bundle.")


@pytest.mark.parametrize("text", ["", " \n ", "x" * 2001, "a\0b"])
def test_refuses_unprintable_text(text: str) -> None:
    parser = CommandParser()
    add_data_licence(parser)
    assert parser.parse_args(["--data-licence", " CC0\n 1.0 "]).data_licence == "CC0 1.0"
    with pytest.raises(SystemExit):
        parser.parse_args(["--data-licence", text])
