"""Training text without comparisons with earlier studies."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from model.text.statements import refers_to_prior
from training.data.comparisons import with_rewritten, without_comparisons
from training.scoring.language import language_faults

REWRITTEN = {
    "Stable cardiomegaly.": "Cardiomegaly.",
    "Heart size remains normal.": "Heart size is normal.",
    "Both lungs remain clear.": "Both lungs are clear.",
    "Heart is mildly enlarged but stable.": "Heart is mildly enlarged.",
    "The silhouette is stable and normal.": "The silhouette is normal.",
    "The silhouette is normal in size, and stable.": "The silhouette is normal in size.",
    "Mild cardiomegaly is unchanged.": "Mild cardiomegaly.",
    "There is a stable calcified granuloma.": "There is a calcified granuloma.",
    "There is an unchanged hiatal hernia.": "There is a hiatal hernia.",
    "Again noted is a tortuous aorta.": "There is a tortuous aorta.",
    "Surgical clips are again seen.": "Surgical clips are seen.",
    "There is again mild scarring.": "There is mild scarring.",
    "Redemonstration of a granuloma.": "A granuloma.",
    "No new focal opacity.": "No focal opacity.",
    "Left basilar scarring, unchanged from the prior exam.": "Left basilar scarring.",
    "Right basilar opacity, similar to prior study.": "Right basilar opacity.",
    "There has been interval development of a small effusion.": "There is a small effusion.",
    "Since the prior study, there has been interval development of edema.": "There is edema.",
    "Stable position of a left catheter.": "A left catheter.",
    "Grossly stable left lower lobe consolidation.": "Left lower lobe consolidation.",
    "Heart size moderately enlarged, stable mediastinal contours.": "Heart size moderately enlarged.",
    "Bilateral blunting, left worse than right.": "Bilateral blunting.",
}
REMOVED = (
    "The mediastinum is stable.",
    "Stable cardiomediastinal silhouette.",
    "Heart size is unchanged.",
    "The pneumothorax has resolved.",
    "Interval removal of the chest tube.",
    "No change in the small nodule.",
    "In the interval, a mass has developed in the right upper lobe.",
    "Effusion, atelectasis, and blunting have cleared in the interval.",
    "This is increased since the previous study.",
    "Lower lung volumes compared to the prior examination.",
    "There has been interval removal of a catheter.",
    "The opacity appears improved.",
)
UNTOUCHED = (
    "The heart is normal in size. No pleural effusion, pneumothorax.",
    "Sequela of prior granulomatous disease.",
    "Suture material suggests prior lung surgery.",
    "Prior calcified granulomatous disease.",
)


@pytest.mark.parametrize(("sentence", "expected"), REWRITTEN.items())
def test_rewrites_a_comparison_to_what_it_says_about_the_study(sentence: str, expected: str) -> None:
    assert without_comparisons(sentence) == expected


@pytest.mark.parametrize("sentence", REMOVED)
def test_removes_a_sentence_of_which_nothing_is_left(sentence: str) -> None:
    assert without_comparisons(f"Lungs are clear. {sentence} No effusion.") == "Lungs are clear. No effusion."


@pytest.mark.parametrize("report", UNTOUCHED)
def test_leaves_other_sentences_as_they_are(report: str) -> None:
    assert without_comparisons(report) == report


def test_words_of_a_rewritten_report_are_attested() -> None:
    published = ["There is stable cardiomegaly."]
    draft = "there is cardiomegaly ."
    assert language_faults([draft], published)["unattested_sentences"] == 1
    assert language_faults([draft], with_rewritten(published))["unattested_sentences"] == 0


def test_no_comparison_is_left_in_real_reports(real_data: Path) -> None:
    entries = json.loads((real_data / "openi" / "annotation.json").read_text())["train"]
    cleaned = [without_comparisons(entry["report"]) for entry in entries]
    assert all(cleaned)
    assert not [text for report in cleaned for text in re.split(r"(?<=[.?!;])\s+", report) if refers_to_prior(text)]
