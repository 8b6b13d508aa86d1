"""The page in a real browser: what the bundle knows of a finding, hidden percentages, unusual images."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, Literal

import pytest

from service.schemas.examples import REPORT_EXAMPLE
from tests.support.browser import answered, asked, choose, flaws, texts

if TYPE_CHECKING:
    from playwright.sync_api import Page

HEART, EFFUSION = REPORT_EXAMPLE["sentences"]
DENIAL = {**HEART, "text": "No pneumothorax.", "labels": {"Pneumothorax": "absent"}, "show_confidence": False}
KNOWN = {
    **REPORT_EXAMPLE,
    "sentences": [HEART, EFFUSION, DENIAL],
    "labels": {**REPORT_EXAMPLE["labels"], "Pneumothorax": "absent"},
    "finding_probabilities": {"Cardiomegaly": 0.071, "Pleural Effusion": 0.62, "Fracture": 0.34, "Edema": 0.002},
    "not_assessed": ["Pneumothorax"],
}
UNUSUAL = {**KNOWN, "warnings": [{"code": "unusual_image", "message": "The frontal image is unusual."}]}
LIKE_OLD_BUNDLES = {
    **UNUSUAL, "not_assessed": [], "finding_probabilities": None, "sentences": [HEART, EFFUSION],
    "labels": {**KNOWN["labels"], "No Finding": "present"},
}  # fmt: skip
GREEN = """chip => { const [r, g, b] = getComputedStyle(chip).backgroundColor.match(/[0-9]+/g).map(Number);
                     return g > Math.max(r, b) + 4; }"""


def chip(page: Page, finding: str) -> Any:
    return page.locator(f"#labels .chip[data-finding='{finding}']")


# --- findings ---


def test_each_finding_has_the_label_and_the_probability_of_the_classifier(page: Page) -> None:
    answered(page, KNOWN)
    words = " ".join(chip(page, "Pleural Effusion").inner_text().split())
    assert words == "Pleural Effusion : present · left , probability 62%"
    assert chip(page, "Cardiomegaly").inner_text().endswith("7%")
    assert "%" not in chip(page, "Atelectasis").inner_text(), "it has no fit"
    rest = page.locator("#labels .rest").inner_text()
    assert rest.startswith("Not mentioned: Fracture (34%), Edema (<1%), Enlarged Cardiomediastinum, ")
    assert "probability by the model's classifier" in page.locator("#legend-chances").inner_text()


def test_denied_finding_that_is_not_assessed_is_grey_and_has_no_percentage(page: Page) -> None:
    answered(page, {**KNOWN, "finding_probabilities": {"Pneumothorax": 0.03}})
    denied = chip(page, "Pneumothorax")
    assert "not assessed by this model" in denied.inner_text()
    assert "%" not in denied.inner_text()
    assert denied.get_attribute("title") == "On validation: 2 studies had it, 0 calls, 0 right."
    assert "On validation: 2 studies had it" in denied.inner_text(), "screen readers read no tooltip"
    assert not denied.evaluate(GREEN)
    assert chip(page, "Cardiomegaly").evaluate(GREEN)
    page.select_option("#language", "zh-Hans")
    assert "此模型不评估" in chip(page, "Pneumothorax").inner_text()
    page.select_option("#language", "en")


def test_bundle_without_a_track_record_shows_labels_as_before(page: Page) -> None:
    model = {**REPORT_EXAMPLE["model"], "findings": None}
    answered(page, {**KNOWN, "model": model, "finding_probabilities": None, "not_assessed": []})
    assert chip(page, "Pneumothorax").evaluate(GREEN)
    assert not chip(page, "Pneumothorax").get_attribute("title")
    assert "%" not in page.locator("#labels").inner_text()
    assert not page.locator("#legend-chances").is_visible()


# --- sentences ---


def test_sentence_whose_confidence_is_hidden_has_neither_percentage_nor_doubt(page: Page) -> None:
    answered(page, {**KNOWN, "sentences": [HEART, {**DENIAL, "confidence": 0.1}]})
    marks = page.locator("button.sentence .marks")
    assert "83%" in marks.first.inner_text()
    assert marks.last.inner_text() == ""
    assert page.locator("#legend-hidden").inner_text().startswith("Sentences have no percentage where")
    answered(page, {**KNOWN, "sentences": [DENIAL]})
    assert not page.locator("#legend-words").is_visible()
    answered(page, REPORT_EXAMPLE)
    assert not page.locator("#legend-hidden").is_visible()


# --- unusual images ---


def test_page_asks_before_it_shows_the_draft_of_an_unusual_image(page: Page) -> None:
    asked(page, UNUSUAL)
    for part in ("#sentences", "#labels", "#cases", "#result-tools", "#checks", "#made-details"):
        assert not page.locator(part).is_visible(), part
    assert page.evaluate("document.activeElement.id") == "unusual-show"
    assert (
        page.locator("#status").inner_text()
        == "The draft is hidden, because an image is unlike the training radiographs."
    )
    assert page.locator("#warnings").is_visible()
    page.keyboard.press("e")
    assert not page.locator("#editor").is_visible()
    page.select_option("#language", "zh-Hans")
    assert page.locator("#unusual").inner_text().startswith("该图像与训练所用的胸片差别很大")
    page.select_option("#language", "en")
    page.focus("#unusual-show")
    page.keyboard.press("Enter")
    assert texts(page, "button.sentence .words") == [sentence["text"] for sentence in UNUSUAL["sentences"]]
    assert page.locator("#result-tools").is_visible()
    assert not page.locator("#unusual").is_visible()
    assert page.evaluate("document.activeElement.id") == "result"
    assert page.locator("#status").inner_text().startswith("Draft ready")
    page.select_option("#language", "zh-Hans")
    assert not page.locator("#unusual").is_visible(), "asked once"
    page.select_option("#language", "en")


@pytest.mark.parametrize("answer", [UNUSUAL, LIKE_OLD_BUNDLES])
def test_unusual_image_has_no_percentage_and_nothing_green(page: Page, answer: dict[str, Any]) -> None:
    asked(page, answer)
    page.click("#unusual-show")
    assert not any("%" in mark for mark in texts(page, "button.sentence .marks"))
    assert "low confidence" not in page.locator("#sentences").inner_text()
    assert "%" not in page.locator("#labels").inner_text()
    assert page.locator("#result .chip").evaluate_all(f"chips => chips.some({GREEN})") is False
    assert page.locator("#legend-hidden").inner_text().startswith("There are no percentages")


def test_next_draft_is_asked_for_again_and_a_usual_one_is_not(page: Page) -> None:
    asked(page, UNUSUAL)
    page.click("#unusual-show")
    asked(page, {**UNUSUAL, "report_id": "0b0f1c52-6f0e-4c0b-9a52-0d3f5ad1c8f7"})
    answered(page, KNOWN)
    assert not page.locator("#unusual").is_visible()
    assert chip(page, "Cardiomegaly").evaluate(GREEN)


@pytest.mark.parametrize(("shown", "added"), [([False, False], 0), ([False, True, False], 3)])
def test_sentences_that_may_be_of_an_unusual_image_wait_for_the_report(
    page: Page, shown: list[bool], added: int
) -> None:
    events = [("cases", {"reference_cases": []})]
    events += [
        ("sentence", {"index": number, "sentence": {**HEART, "show_confidence": show}})
        for number, show in enumerate(shown)
    ]
    stream = "".join(f"event: {name}\ndata: {json.dumps(data)}\n\n" for name, data in events)
    page.route("**/report", lambda route: route.fulfill(status=200, content_type="text/event-stream", body=stream))
    page.evaluate(
        """() => { window.added = 0;
             const count = (mutations) => mutations.forEach(({addedNodes}) => { window.added += addedNodes.length; });
             new MutationObserver(count).observe(document.getElementById("sentences"), {childList: true}); }"""
    )
    choose(page)
    page.click("#draft")
    page.wait_for_selector("#error:not([hidden])")  # the stream ends early
    assert page.evaluate("window.added") == added


# --- accessibility ---


@pytest.mark.parametrize("theme", ["dark", "light"])
def test_axe_reports_no_violation_in_findings_and_question(page: Page, theme: Literal["dark", "light"]) -> None:
    page.emulate_media(color_scheme=theme)
    asked(page, UNUSUAL)
    assert flaws(page) == []
    page.click("#unusual-show")
    assert flaws(page) == []
    draft_known = {**KNOWN, "report_id": "0b0f1c52-6f0e-4c0b-9a52-0d3f5ad1c8f7"}
    answered(page, draft_known)
    assert flaws(page) == []
    for width in (320, 390):
        page.set_viewport_size({"width": width, "height": 800})
        assert page.evaluate("document.documentElement.scrollWidth") <= width
