"""The trivial rows: the fast scorer equals pycocoevalcap, the search finds the best constant."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from training.scoring.baselines import (
    ConstantScorer,
    TrivialRow,
    choose_constant,
    frequent_sentences,
    most_frequent,
    trivial_rows,
)
from training.scoring.metrics import score
from training.scoring.protocol import comparable_reference, comparable_vocabulary

TRAIN = (
    "The heart is normal. The lungs are clear. No effusion.",
    "The heart is normal. The lungs are clear. No effusion.",
    "The lungs are clear. The heart is large. There is a pacemaker.",
    "The heart is normal. There is an effusion. The lungs are clear.",
    "The bones are intact. The lungs are clear. The heart is normal.",
)

texts = st.lists(st.sampled_from(["a", "b", "c", "d", "."]), min_size=1, max_size=12).map(" ".join)


@settings(max_examples=60, deadline=None)
@given(references=st.lists(texts, min_size=1, max_size=6), constant=texts)
@example(references=["a"], constant="a")  # one reference: every tf-idf is 0
@example(references=["a b c d", "b"], constant="z z z")  # nothing in common
def test_scorer_equals_pycocoevalcap(references: list[str], constant: str) -> None:
    scorer, words = ConstantScorer(references), constant.split()
    expected = score([(reference, constant) for reference in references])
    assert scorer.bleu4(words) == pytest.approx(expected["BLEU_4"], abs=1e-12)
    assert scorer.rouge_l(words) == pytest.approx(expected["ROUGE_L"], abs=1e-12)
    assert scorer.cider(words) == pytest.approx(expected["CIDEr"], abs=1e-9)


def test_scorer_without_words_is_zero_and_without_references_refused() -> None:
    scorer = ConstantScorer(["a b", "c"])
    assert scorer.bleu4([]) == scorer.rouge_l([]) == scorer.cider([]) == 0.0
    with pytest.raises(ValueError, match="needs references"):
        ConstantScorer([])


def test_search_finds_the_best_of_all_arrangements() -> None:
    vocabulary = comparable_vocabulary(TRAIN) | {"large", "pacemaker", "intact"}
    scorer = ConstantScorer([comparable_reference(report, vocabulary) for report in TRAIN])
    sentences = frequent_sentences(TRAIN, vocabulary, limit=5)

    def objective(words: list[str] | tuple[str, ...]) -> float:
        return scorer.bleu4(words) + scorer.rouge_l(words)

    best = max(
        objective(list(itertools.chain(*arrangement)))
        for size in range(1, 6)
        for arrangement in itertools.permutations(sentences, size)
    )
    found = choose_constant(sentences, lambda words: objective(list(words)))
    assert objective(found.split()) == pytest.approx(best)


def test_search_replaces_and_drops_sentences() -> None:
    values = {"a": 1.0, "a c": 1.5, "b c": 3.0}
    sentences = (("a",), ("b",), ("c",))
    assert choose_constant(sentences, lambda words: values.get(" ".join(words), 0.0)) == "b c"
    assert choose_constant(sentences, lambda words: {**values, "b c": 1.5}.get(" ".join(words), 0.0)) == "a c"
    assert choose_constant(sentences, lambda words: float(words == ["b"])) == "b"


def test_frequent_sentences_come_by_frequency_and_without_unknown_words() -> None:
    vocabulary = comparable_vocabulary(TRAIN)
    assert "pacemaker" not in vocabulary
    assert [" ".join(sentence) for sentence in frequent_sentences(TRAIN, vocabulary)] == [
        "the lungs are clear .",
        "the heart is normal .",
    ]


def test_most_frequent_report_is_returned_as_it_was_written() -> None:
    assert most_frequent(["One of a kind.", *TRAIN], comparable_vocabulary(TRAIN)) == TRAIN[0]


def test_rows_have_a_text_for_each_study_and_are_deterministic() -> None:
    vocabulary = comparable_vocabulary(TRAIN)
    rows = trivial_rows(TRAIN, TRAIN, 7, vocabulary)
    assert set(rows) == {"constant", "most_frequent", "random"}
    assert set(rows["constant"].variants) == {"bleu_rouge", "cider"}
    assert len(rows["random"].variants) == 3
    for row in rows.values():
        assert all(len(written) == 7 for written in row.variants.values())
    assert all(len(set(written)) == 1 for written in rows["constant"].variants.values())
    assert rows == trivial_rows(TRAIN, TRAIN, 7, vocabulary)
    assert set(itertools.chain(*rows["random"].variants.values())) <= set(TRAIN)


def test_constant_takes_the_better_score_and_random_the_mean() -> None:
    scores = [{"x": 1.0, "y": 4.0, "z": None}, {"x": 3.0, "y": 2.0, "z": None}]
    assert TrivialRow({}, merge="best").merged(scores) == {"x": 3.0, "y": 4.0, "z": None}
    assert TrivialRow({}).merged(scores) == {"x": 2.0, "y": 3.0, "z": None}


def test_rows_need_reports() -> None:
    with pytest.raises(ValueError, match="training reports"):
        trivial_rows([], TRAIN, 1, frozenset())
