"""What a sentence claims: comparisons, fragments, organs and their states."""

from __future__ import annotations

import pytest

from model.text.statements import claims, contradict, disagrees, is_fragment, organ_of, refers_to_prior


@pytest.mark.parametrize(
    "sentence",
    [
        "stable mild cardiomegaly",
        "no interval change",
        "the opacity has increased since the prior study",
        "heart size is unchanged",
        "there is again seen a small effusion",
        "the lungs remain clear",
        "there is a new infiltrate",
        "compared to prior examination the edema is worse",
        "the effusion is no longer seen",
        "increased opacity compared with earlier films",
        "no significant change",
        "previous radiograph showed a nodule",
    ],
)
def test_finds_comparisons_with_an_earlier_study(sentence: str) -> None:
    assert refers_to_prior(sentence)


@pytest.mark.parametrize(
    "sentence",
    [
        "calcified granuloma from prior granulomatous disease",
        "evidence of previous sternotomy",
        "prior cabg",
        "degenerative changes of the thoracic spine",
        "increased interstitial markings",
        "chronic interstitial changes",
        "emphysematous changes without effusion",
        "old healed rib fracture",
        "the heart is normal in size",
        "postsurgical changes in the right breast",
        "there is renewed interest",
    ],
)
def test_earlier_disease_is_no_comparison(sentence: str) -> None:
    assert not refers_to_prior(sentence)


@pytest.mark.parametrize(("sentence", "fragment"), [
    ("left greater than right", True), ("there is no", True), ("stable", True), ("these are noted in the left", True),
    ("Left greater than right.", True), ("emphysema", False), ("no effusion", False), ("mild cardiomegaly", False),
])  # fmt: skip
def test_fragment_names_nothing(sentence: str, fragment: bool) -> None:
    assert is_fragment(sentence) is fragment


@pytest.mark.parametrize(("sentence", "wrong"), [
    ("There is mild degenerative changes of the thoracic spine.", True), ("There is bibasilar opacities.", True),
    ("There are mild degenerative changes.", False), ("There is prominence of the interstitial markings.", False),
    ("There is no pneumothorax.", False), ("There is a granuloma and there are opacities.", False),
])  # fmt: skip
def test_singular_verb_before_a_plural_noun_disagrees(sentence: str, wrong: bool) -> None:
    assert disagrees(sentence) is wrong


@pytest.mark.parametrize(("sentence", "organ"), [
    ("the heart is normal in size", "heart"),
    ("the cardiomediastinal silhouette is within normal limits", "heart"),
    ("the mediastinum is unremarkable", "mediastinum"),
    ("the aorta is tortuous", "mediastinum"),
    ("pulmonary vasculature is normal", "mediastinum"),
    ("the lungs are clear", "lungs"),
    ("no focal consolidation", "lungs"),
    ("no pleural effusion or pneumothorax", "pleura"),
    ("no acute bony abnormality", "bones"),
    ("degenerative changes of the spine", "bones"),
    ("right picc with its tip in the superior vena cava", "devices"),
    ("sternotomy wires are intact", "devices"),
    ("the patient is rotated", None),
])  # fmt: skip
def test_organ_of_a_sentence(sentence: str, organ: str | None) -> None:
    assert organ_of(sentence) == organ


@pytest.mark.parametrize(("sentence", "expected"), [
    ("the heart is enlarged", {("heart size", "enlarged")}),
    ("mild cardiomegaly", {("heart size", "enlarged")}),
    ("no cardiomegaly", {("heart size", "normal")}),
    ("the heart is large", {("heart size", "enlarged")}),
    ("low lung volumes", {("lung volume", "low")}),
    ("the lungs are mildly hyperexpanded", {("lung volume", "high")}),
    ("the lungs are not hyperexpanded", set()),
    ("mild biapical scarring", {("lungs", "abnormal")}),
    ("heart size is upper limits of normal", {("heart size", "borderline")}),
    ("heart size is normal", {("heart size", "normal")}),
    ("the lungs are clear", {("lungs", "clear"), ("air spaces", "clear")}),
    ("the lungs are otherwise clear", set()),
    ("the lungs are clear of focal airspace disease", {("lungs", "clear"), ("air spaces", "clear")}),
    ("the left infiltrates are noted", {("lungs", "abnormal"), ("air spaces", "filled")}),
    ("no focal airspace consolidation", {("air spaces", "clear")}),
    ("bibasilar opacities", {("lungs", "abnormal")}),
    ("bony structures are intact", {("bones", "intact")}),
    ("acute rib fracture", {("bones", "broken")}),
    ("old rib fracture", set()),
    ("no pleural effusion", set()),
])  # fmt: skip
def test_claims_of_a_sentence(sentence: str, expected: set[tuple[str, str]]) -> None:
    assert claims(sentence) == expected


@pytest.mark.parametrize(("first", "second", "against"), [
    ("mild cardiomegaly", "heart size is upper limits of normal", True),
    ("the left infiltrates are noted", "no focal consolidation", True),
    ("bibasilar opacities", "the lungs are clear", True),
    ("bibasilar opacities", "no focal consolidation", False),
    ("lung volumes are low", "the lungs are hyperinflated", True),
    ("the heart is large", "heart size upper limits of normal", True),
    ("the heart is enlarged", "the lungs are clear", False),
    ("acute rib fracture", "bony structures are intact", True),
])  # fmt: skip
def test_contradictions(first: str, second: str, against: bool) -> None:
    assert contradict(claims(first) | claims(second)) is against
