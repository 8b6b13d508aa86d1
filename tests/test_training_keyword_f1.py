"""Key words by category: synonyms count once, negated sentences can be left out, counts by hand."""

from __future__ import annotations

import pytest

from training.scoring.keyword_f1 import AVERAGE, KEY_WORDS, key_words, keyword_f1


def test_four_categories_of_the_paper() -> None:
    assert list(KEY_WORDS) == ["degree", "landmark", "feature", "impression"]
    assert all(len(words) > 15 for words in KEY_WORDS.values())


@pytest.mark.parametrize(
    ("text", "category", "expected"),
    [
        ("mildly enlarged heart .", "degree", {"mild"}),
        ("mildly enlarged heart .", "landmark", {"heart"}),
        ("mildly enlarged heart .", "impression", {"cardiomegaly"}),
        ("stable mild cardiomegaly .", "impression", {"cardiomegaly"}),
        ("bibasilar atelectasis .", "landmark", {"both sides", "lower zone"}),
        ("patchy opacities in the right lower lobe .", "feature", {"patchy", "opacity"}),
        ("small left pleural effusion .", "impression", {"pleural effusion"}),
        ("the lungs are well-expanded and clear .", "feature", {"well expanded", "clear"}),
        ("the medial end and a calcifiedx word .", "feature", set()),  # whole words only
        ("", "degree", set()),
    ],
)
def test_key_words_of_a_text(text: str, category: str, expected: set[str]) -> None:
    assert key_words(text)[category] == expected


def test_negated_sentences_can_be_left_out() -> None:
    text = "no pleural effusion or pneumothorax . there is a rib fracture . lungs are free of pneumonia ."
    assert key_words(text)["impression"] == {"pleural effusion", "pneumothorax", "fracture", "pneumonia"}
    assert key_words(text, negated=False)["impression"] == {"fracture"}


def test_counts_are_pooled_over_studies() -> None:
    pairs = [
        ("pleural effusion . pneumothorax .", "effusion ."),  # 1 right, 1 missed
        ("pneumonia .", "edema . emphysema . pneumonia ."),  # 1 right, 2 wrong
        ("hernia .", ""),  # 1 missed
    ]
    row = keyword_f1(pairs)["impression"]
    assert row == pytest.approx({"precision": 2 / 4, "recall": 2 / 4, "f1": 2 / 4, "support": 4})


def test_equal_texts_score_one_and_average_is_over_categories() -> None:
    text = "mild right lower lobe opacity . pneumonia ."
    table = keyword_f1([(text, text)] * 3)
    assert all(row["f1"] == 1.0 for row in table.values())
    assert table["degree"]["support"] == 3
    mixed = keyword_f1([(text, "mild opacity .")])
    assert mixed[AVERAGE]["f1"] == pytest.approx(sum(mixed[name]["f1"] or 0 for name in KEY_WORDS) / 4)
    assert mixed["impression"]["f1"] == 0.0
