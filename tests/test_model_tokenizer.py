"""Report cleaning, the vocabulary, encoding and decoding."""

from __future__ import annotations

import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from model.text.tokenizer import (
    SPECIALS,
    Tokenizer,
    clean_report,
    clean_report_r2gen,
    display_sentence,
    split_sentences,
)


@pytest.mark.parametrize(
    ("report", "expected"),
    [
        ("Heart size is normal. Lungs are clear.", "heart size is normal . lungs are clear ."),
        ("1. Normal heart. 2. Clear lungs.", "normal heart . clear lungs ."),
        ("A nodule of 1.5 cm.  In the apex", "a nodule of 1.5 cm . in the apex ."),
        ("Well-expanded lungs; no edema!", "well-expanded lungs . no edema ."),
        ("Bones/soft tissues: intact..", "bones soft tissues intact ."),
        ("The patient's heart, large.", "the patients heart large ."),
        ("Fractures of ribs 5 and 6. Stable.", "fractures of ribs 5 and 6 . stable ."),
        ("", ""),
        (" . . ", ""),
    ],
)
def test_clean_report(report: str, expected: str) -> None:
    assert clean_report(report) == expected


@settings(max_examples=300, deadline=None)
@given(st.text(alphabet=st.sampled_from("ab1 2.-,;/:()!?'\"\nXÉ"), max_size=60), st.booleans())
def test_cleaning_twice_changes_nothing(report: str, commas: bool) -> None:
    once = clean_report(report, commas=commas)
    assert clean_report(once, commas=commas) == once
    assert clean_report(once) == clean_report(report)


@pytest.mark.parametrize(
    ("report", "expected"),
    [
        ("No opacity, effusion, or edema.", "no opacity , effusion , or edema ."),
        ("Normal, , clear ,. Heart,normal, 1,000 mL,", "normal , clear . heart normal , 1 000 ml ."),
        (", Clear.", "clear ."),
    ],
)
def test_clean_report_keeps_commas_between_words(report: str, expected: str) -> None:
    assert clean_report(report, commas=True) == expected


def test_commas_are_words_that_are_displayed_without_a_space() -> None:
    tokenizer = Tokenizer.build(["No opacity, effusion."], min_count=1, commas=True)
    assert tokenizer.tokens[tokenizer.comma_id] == ","
    assert Tokenizer.build(["No opacity, effusion."], min_count=1).comma_id == tokenizer.pad_id
    words = tokenizer.decode(tokenizer.encode("No effusion, opacity.", 60)).split()
    assert words == ["no", "effusion", ",", "opacity", "."]
    assert display_sentence(words) == "No effusion, opacity."
    assert Tokenizer.from_json(tokenizer.to_json()) == tokenizer


@pytest.mark.parametrize(
    ("report", "expected"),
    [
        ("Heart size is normal. Lungs are clear.", "heart size is normal . lungs are clear ."),
        ("Well-expanded lungs; no edema", "well-expanded lungs no edema ."),  # the accidental range spares the hyphen
        ("A - B. C", "a - b . c ."),
        ("Bones/tissues intact", "bonestissues intact ."),
        ("Normal heart. . Clear.", "normal heart .  . clear ."),  # an empty sentence survives
        ("1. Normal heart. 2. Clear lungs.", "normal heart . clear lungs ."),
        ("Nodule of 1.5 cm", "nodule of 15 cm ."),
        ("View [AP]: x=3 <y>", "view ap x3 y ."),
    ],
)
def test_r2gen_cleaning_equals_the_published_rules(report: str, expected: str) -> None:
    assert clean_report_r2gen(report) == expected


REPORTS = ["No effusion. Heart normal.", "No effusion. Lungs clear.", "No nodule. Heart normal.", "Heart normal."]


def test_vocabulary_holds_frequent_words_in_sorted_order() -> None:
    tokenizer = Tokenizer.build(REPORTS, min_count=3)
    assert tokenizer.tokens == (*SPECIALS, ".", "heart", "no", "normal")
    assert (tokenizer.pad_id, tokenizer.bos_id, tokenizer.eos_id, tokenizer.unk_id) == (0, 1, 2, 3)


def test_decode_inverts_encode() -> None:
    tokenizer = Tokenizer.build(REPORTS, min_count=1)
    ids = tokenizer.encode("Heart normal. No widget.", 60)
    assert ids[0] == tokenizer.bos_id
    assert ids[-1] == tokenizer.eos_id
    assert tokenizer.decode([*ids, 0, 0]) == "heart normal . no <unk> ."
    assert tokenizer.encode("Heart normal. No widget.", 4) == ids[:4]


def test_finds_known_words_among_marks_and_unknown_words() -> None:
    tokenizer = Tokenizer.build([*REPORTS, "Compared with XXXX."], min_count=1)
    assert tokenizer.id_of("xxxx") != tokenizer.unk_id
    assert tokenizer.has_known_word("Zzyzx HEART?")
    for text in ("Zzyzx widget.", "XXXX xxxx.", "... ; !", ""):
        assert not tokenizer.has_known_word(text), text


def test_round_trips_through_json_and_rejects_invalid_vocabularies() -> None:
    tokenizer = Tokenizer.build(REPORTS, min_count=1)
    assert Tokenizer.from_json(tokenizer.to_json()) == tokenizer
    with pytest.raises(ValueError, match="schema_version"):
        Tokenizer.from_json('{"tokens": []}')
    with pytest.raises(ValueError, match="twice"):
        Tokenizer((*SPECIALS, "a", "a"))
    with pytest.raises(ValueError, match="must start with"):
        Tokenizer(("a", "b"))


def test_splits_and_displays_sentences() -> None:
    words = ["heart", "normal", ".", ".", "no", "effusion", ".", "stable"]
    spans = split_sentences(words)
    assert [display_sentence(words[a:b]) for a, b in spans] == ["Heart normal.", "No effusion.", "Stable."]


def test_cleans_a_run_of_full_stops_in_linear_time() -> None:
    started = time.process_time()
    assert clean_report("." * 20_000 + "a") == "a ."
    assert clean_report("?.;!" * 5_000 + "a?! b..") == "a . b ."
    assert time.process_time() - started < 2
