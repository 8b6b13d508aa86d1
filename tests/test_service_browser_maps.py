"""The page in a real browser: evidence maps over the images, and attention instead of them."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest

from service.schemas.examples import REPORT_EXAMPLE
from tests.support.browser import answered, corner

if TYPE_CHECKING:
    from playwright.sync_api import Page

HEART, EFFUSION = REPORT_EXAMPLE["sentences"]
ATTENTION = {"patches": {"frontal": corner(6, 0), "lateral": corner(3, 3)}, "cases": []}
OPAQUE = 0.75 * 255  # alpha of the largest contribution of a draft; smoothing adds a little


def evidence(finding: str, size: float) -> dict[str, Any]:
    """Evidence for a finding at the upper left of both views, and half of it against, at the lower right."""
    grid = [[size / 0.5 * (a - b / 2) for a, b in zip(*rows, strict=True)]
            for rows in zip(corner(0, 0), corner(6, 6), strict=True)]  # fmt: skip
    return {"finding": finding, "patches": {"frontal": grid, "lateral": grid}}


def answer() -> dict[str, Any]:
    """Sentences with evidence 2 and 1, and one without a finding; all with attention."""
    return {
        **REPORT_EXAMPLE,
        "sentences": [
            {**HEART, "attention": ATTENTION, "evidence": evidence("Cardiomegaly", 2.0)},
            {**EFFUSION, "attention": ATTENTION, "evidence": evidence("Pleural Effusion", 1.0)},
            {**HEART, "labels": {}, "attention": ATTENTION, "evidence": None},
        ],
    }


def corners(page: Page) -> list[list[int]]:
    """Red, green, blue and alpha at the upper left, the lower right and the lower left of the frontal."""
    pixels: list[list[int]] = page.locator("canvas.heat").first.evaluate(
        """canvas => { const {width, height} = canvas, context = canvas.getContext("2d");
             return [[4, 4], [width - 5, height - 5], [4, height - 5]].map(([x, y]) =>
               [...context.getImageData(x, y, 1, 1).data]); }"""
    )
    return pixels


def test_evidence_is_orange_for_and_blue_against_on_one_scale(page: Page) -> None:
    answered(page, answer())
    for number, share in ((0, 1.0), (1, 0.5)):
        page.locator("button.sentence").nth(number).focus()
        support, denial, nothing = corners(page)
        assert support[0] > support[2] + 100, "orange"
        assert denial[2] > denial[0] + 100, "blue"
        assert support[3] == pytest.approx(OPAQUE * share, rel=0.1)
        assert denial[3] == pytest.approx(OPAQUE * share / 2, rel=0.1)
        assert nothing[3] == 0


def test_evidence_is_described_in_words_with_its_legend(page: Page) -> None:
    answered(page, answer())
    page.locator("button.sentence").first.focus()
    note = page.locator("#overlay-note").inner_text()
    assert (
        "Evidence on Cardiomegaly, compared with other findings: orange patches speak for it, blue ones against it."
        in note
    )
    assert "frontal +1.00, strongest for it at upper left; lateral +1.00" in note
    assert page.locator(".of-evidence").is_visible()
    assert not page.locator(".of-attention").is_visible()
    page.select_option("#language", "zh-Hans")
    page.locator("button.sentence").first.focus()
    assert "关于“心脏增大”" in page.locator("#overlay-note").inner_text()
    page.select_option("#language", "en")


def test_switch_shows_attention_instead_of_evidence(page: Page) -> None:
    answered(page, answer())
    page.locator("button.sentence").first.click()  # pinned
    page.check("#show-attention")
    assert [pixel[3] for pixel in corners(page)] == [0, 0, pytest.approx(OPAQUE, rel=0.1)]
    assert page.locator("#overlay-note").inner_text().startswith("least")
    assert "Attention: frontal 50%, strongest at lower left" in page.locator("#overlay-note").inner_text()
    page.uncheck("#show-attention")
    assert corners(page)[0][3] == pytest.approx(OPAQUE, rel=0.1)


def test_sentence_without_a_finding_shows_attention_and_the_reason(page: Page) -> None:
    answered(page, answer())
    page.locator("button.sentence").nth(2).focus()
    assert "This sentence names no finding." in page.locator("#overlay-note").inner_text()
    assert corners(page)[2][3] == pytest.approx(OPAQUE, rel=0.1)
    assert page.locator(".of-attention").is_visible()


def test_bundle_without_evidence_shows_attention_without_a_switch(page: Page) -> None:
    answered(page, {**REPORT_EXAMPLE, "sentences": [{**HEART, "attention": ATTENTION}]})
    page.locator("button.sentence").focus()
    assert "Attention of the model while it wrote the sentence." in page.locator("#overlay-note").inner_text()
    assert not page.locator("#overlay-choice").is_visible()


def test_writer_without_attention_shows_evidence_alone(page: Page) -> None:
    sentences = [{**part, "attention": None} for part in answer()["sentences"]]
    answered(page, {**REPORT_EXAMPLE, "sentences": sentences})
    assert not page.locator("#overlay-choice").is_visible()
    page.locator("button.sentence").first.focus()
    assert corners(page)[0][3] == pytest.approx(OPAQUE, rel=0.1)
    page.locator("button.sentence").nth(2).focus()  # it names no finding
    assert page.locator("#overlay-note.idle").count() == 1
    assert page.locator("button.sentence").nth(2).get_attribute("aria-describedby") is None


def test_page_asks_for_both_maps_and_exports_none(page: Page) -> None:
    with page.expect_request("**/report") as draft:
        answered(page, answer())
    assert 'name="include"\r\n\r\nattention,evidence' in (draft.value.post_data_buffer or b"").decode("latin-1")
    with page.expect_request("**/export") as export, page.expect_download():
        page.click("#save-text")
    sentences = json.loads(export.value.post_data or "")["report"]["sentences"]
    assert [(part["attention"], part["evidence"]) for part in sentences] == [(None, None)] * 3
