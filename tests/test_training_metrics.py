"""Metrics equal values computed by hand; strings are prepared as published."""

from __future__ import annotations

import math
import shutil

import pytest

from training.scoring import metrics
from training.scoring.metrics import (
    METRICS,
    comparable_pairs,
    label_scores,
    label_table,
    present_findings,
    score,
    validation_scores,
)
from training.scoring.protocol import (
    comparable_prediction,
    comparable_reference,
    comparable_vocabulary,
    full_prediction,
    full_reference,
)

PAIRS = [
    ("the heart is large . no effusion .", "the heart is large . no effusion ."),
    ("there is a left effusion .", "the lungs are clear ."),
    ("the lungs are clear .", "the lungs are clear . no effusion ."),
]


# --- metrics ----------------------------------------------------------------------------------------------------------


def test_perfect_drafts_score_one_and_cider_ten() -> None:
    scores = score([(reference, reference) for reference, _ in PAIRS])
    assert list(scores) == list(METRICS)
    for name in ("BLEU_1", "BLEU_2", "BLEU_3", "BLEU_4", "ROUGE_L", "label_f1_micro", "label_f1_macro"):
        assert scores[name] == pytest.approx(1.0), name
    assert scores["CIDEr"] == pytest.approx(10.0)
    assert scores["METEOR"] is None
    assert scores["distinct"] == 1.0


def test_bleu_and_rouge_by_hand() -> None:
    # 5 words against 4, three of them common and in order: precision 3/5, recall 3/4, one common pair of words
    scores = score([("heart is not large", "the heart is clearly large")])
    precision, recall, beta2 = 3 / 5, 3 / 4, 1.2**2
    assert scores["BLEU_1"] == pytest.approx(precision)
    assert scores["BLEU_2"] == pytest.approx(math.sqrt(precision * 1 / 4))
    assert scores["ROUGE_L"] == pytest.approx((1 + beta2) * precision * recall / (recall + beta2 * precision))


@pytest.mark.parametrize(
    ("reference", "draft", "ratio"), [("a b c d", "a b", 4 / 2), ("no effusion .", "no effusion", 3 / 2)]
)
def test_bleu_penalises_short_drafts_and_counts_the_full_stop(reference: str, draft: str, ratio: float) -> None:
    assert score([(reference, draft)])["BLEU_1"] == pytest.approx(math.exp(1 - ratio))


def test_length_and_distinct_share() -> None:
    scores = score(PAIRS)
    assert scores["mean_length"] == pytest.approx((6 + 4 + 6) / 3)  # "." is not counted
    assert scores["distinct"] == 1.0
    assert score([("a", "b"), ("b", "b"), ("c", "b"), ("d", "c")])["distinct"] == pytest.approx(2 / 4)


@pytest.mark.parametrize("others", [[], [("the lungs are clear .", "the lungs are clear .")]])
def test_empty_prediction_counts_as_wrong(others: list[tuple[str, str]]) -> None:
    scores = score([("there is a left effusion .", ""), *others])
    share = len(others) / (1 + len(others))
    assert scores["ROUGE_L"] == pytest.approx(share)
    assert scores["CIDEr"] == pytest.approx(10 * share)
    assert scores["label_f1_micro"] == 0.0
    assert all(value is None or math.isfinite(value) for value in scores.values())


def test_rejects_missing_pairs_and_empty_references() -> None:
    with pytest.raises(ValueError, match="nothing to score"):
        score([])
    with pytest.raises(ValueError, match="no words"):
        score([(" ", "the lungs are clear .")])


# --- findings ---------------------------------------------------------------------------------------------------------


def test_label_f1_by_hand() -> None:
    reference = [frozenset({"Edema", "Fracture"}), frozenset({"Edema"}), frozenset({"No Finding"})]
    predicted = [frozenset({"Edema"}), frozenset({"No Finding"}), frozenset({"No Finding", "Pneumonia"})]
    scores = label_scores(reference, predicted)
    # Edema 1 hit 1 missed, Fracture 1 missed, Pneumonia 1 wrong and without support
    assert scores["label_f1_micro"] == pytest.approx(2 * 1 / (2 * 1 + 1 + 2))
    assert scores["label_f1_macro"] == pytest.approx((2 / 3 + 0) / 2)
    assert scores["no_finding_f1"] == pytest.approx(2 * 1 / (2 * 1 + 1 + 0))


def test_normal_drafts_have_no_label_f1() -> None:
    normal = "the heart is normal in size . the lungs are clear ."
    scores = score([("there is a large pleural effusion .", normal), (normal, normal)])
    assert scores["label_f1_micro"] == scores["label_f1_macro"] == 0.0
    assert scores["no_finding_f1"] == pytest.approx(2 / 3)


def test_only_present_findings_count() -> None:
    assert present_findings("No pneumothorax. There is a large pleural effusion.") == {"Pleural Effusion"}
    assert present_findings("") == frozenset()


# --- METEOR -----------------------------------------------------------------------------------------------------------


class BrokenMeteor:
    def compute_score(self, *_: object) -> None:
        raise BrokenPipeError("java died")


@pytest.mark.parametrize(("java", "message"), [(None, "needs a Java runtime"), ("/usr/bin/java", "java died")])
def test_meteor_is_none_with_a_warning_without_a_working_java(
    java: str | None, message: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(shutil, "which", lambda name: java)
    monkeypatch.setattr(metrics, "Meteor", BrokenMeteor)
    metrics._meteor_process.cache_clear()
    assert score(PAIRS, meteor=True)["METEOR"] is None
    assert message in caplog.text


@pytest.mark.skipif(not metrics.meteor_available(), reason="needs Java")
def test_meteor_is_the_same_in_a_locale_with_decimal_commas(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("JAVA_TOOL_OPTIONS", "-Duser.language=de -Duser.language.format=de -Duser.country=DE")
    metrics._meteor_process.cache_clear()
    pairs = [("the heart is normal in size .", "the heart is large .")]
    assert score(pairs, meteor=True)["METEOR"] == 0.23113048162370592
    metrics._meteor_process.cache_clear()


# --- strings of the comparable row ------------------------------------------------------------------------------------


def test_vocabulary_holds_words_seen_three_times() -> None:
    assert comparable_vocabulary(["Clear lungs.", "Clear, clear heart. Heart."]) == {".", "clear"}


def test_reference_is_cleaned_as_published_and_rare_words_are_unknown() -> None:
    vocabulary = frozenset({"the", "heart", "is", "large", ".", "3"})
    report = "1. The heart, is LARGE. 2. Of course/3.5 the-heart."
    # "1. " goes, ". 2. " becomes ". ", slash and decimal point vanish without a space, the hyphen stays
    assert comparable_reference(report, vocabulary) == "the heart is large . <unk> <unk> <unk> ."


@pytest.mark.parametrize(("written", "kept"), [(57, 57), (58, 58), (59, 59), (60, 59), (80, 59)])
def test_reference_is_cut_to_sixty_ids_of_which_bos_is_one(written: int, kept: int) -> None:
    words = [f"w{i}" for i in range(written - 1)]
    report = " ".join(words) + "."  # written - 1 words and the "."
    expected = [*words, "."][:kept]
    published = [0, *[*words, "."], 0][:60]  # R2Gen: ids = [0] + ids + [0], cut to 60; scored without the first 0 …
    assert [i for i in published[1:] if i != 0] == expected  # … up to the next one
    assert comparable_reference(report, frozenset([*words, "."])).split() == expected


def test_tokens_and_served_findings_give_the_same_prediction() -> None:
    tokens = "the heart is mildly enlarged . a 1.5 cm left-sided nodule . no t1 fracture ."
    served = "The heart is mildly enlarged. A 1.5 cm left-sided nodule. No t1 fracture."
    expected = "the heart is mildly enlarged . a 15 cm left-sided nodule . no t1 fracture ."
    assert comparable_prediction(tokens) == comparable_prediction(served) == expected
    assert comparable_prediction(expected) == expected
    assert comparable_prediction("no end <unk>") == "no end <unk> ."
    assert comparable_prediction(" . . ") == ""


def test_prediction_is_cut_like_the_reference() -> None:
    assert len(comparable_prediction("word " * 100).split()) == 59


def test_full_row_is_uncut_and_keeps_every_word() -> None:
    report = "Zygote at T1. " + "Word " * 80
    assert full_reference(report) == full_prediction(report) == "zygote at t1 . " + "word " * 80 + "."


def test_validation_scores_are_those_of_the_comparable_row() -> None:
    train = ["The heart is large. No effusion."] * 3
    pairs = comparable_pairs([("The heart is huge. No effusion.", "the heart is large . no effusion .")], train)
    scores = validation_scores(pairs)
    expected = score([("the heart is <unk> . no effusion .", "the heart is large . no effusion .")])
    assert scores == {name: value for name, value in expected.items() if value is not None}
    assert set(METRICS) - set(scores) == {"METEOR"}


def test_label_table_by_hand() -> None:
    pairs = [
        ("there is a left rib fracture .", "rib fracture ."),
        ("the lungs are clear .", "rib fracture . pleural effusion ."),
        ("small pleural effusion .", "the lungs are clear ."),
        ("the lungs are clear .", "the lungs are clear ."),
    ]
    table = label_table(pairs)
    assert table["Fracture"] == pytest.approx(
        {"precision": 1 / 2, "recall": 1.0, "f1": 2 / 3, "prevalence": 1 / 4, "predicted": 2 / 4}
    )
    assert table["Pleural Effusion"] == {"precision": 0, "recall": 0, "f1": 0, "prevalence": 1 / 4, "predicted": 1 / 4}
    assert table["Edema"]["f1"] == 0.0
    assert table["No Finding"]["f1"] == score(pairs)["no_finding_f1"]
