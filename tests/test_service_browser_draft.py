"""The page in a real browser: a draft, its evidence, and the images."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest
from PIL import Image

from service.schemas.examples import REPORT_EXAMPLE
from tests.support.browser import answered, choose, choose_wrong_file, corner, draft, open_page, texts, transform
from tests.support.dicom import dicom
from tests.support.formats import facts_of_fhir
from tests.support.paths import DRAWN, SHIPPED
from tests.support.service import live_server

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

NAMES = ("Frontal", "Lateral")


# --- a draft ---


def test_draft_is_shown_with_its_evidence(page: Page) -> None:
    choose(page)
    with page.expect_response("**/report") as response:
        draft(page)
    assert response.value.headers["content-type"].startswith("text/event-stream")
    report = json.loads(response.value.text().rstrip().rpartition("data: ")[2])
    assert texts(page, "button.sentence .words") == [sentence["text"] for sentence in report["sentences"]]
    assert texts(page, "#cases code") == [case["case_id"] for case in report["reference_cases"]]
    assert page.locator("#status").inner_text().startswith("Draft ready")
    assert page.evaluate("document.activeElement.id") == "result"


def test_hovering_a_sentence_shows_its_attention_on_both_images(page: Page) -> None:
    choose(page)
    draft(page)
    overlays = page.locator("canvas.heat")
    assert [overlays.nth(view).is_visible() for view in (0, 1)] == [False, False]
    page.locator("button.sentence").first.hover()
    for view, canvas, image in zip(range(2), overlays.all(), page.locator(".zone img").all(), strict=True):
        assert canvas.is_visible(), NAMES[view]
        box, zone = canvas.bounding_box(), image.bounding_box()
        assert box is not None
        assert zone is not None
        width, height = image.evaluate("image => [image.naturalWidth, image.naturalHeight]")
        scale = min(zone["width"] / width, zone["height"] / height)  # fitted into its element, in the middle
        shown = {"x": zone["x"] + (zone["width"] - scale * width) / 2, "width": scale * width,
                 "y": zone["y"] + (zone["height"] - scale * height) / 2, "height": scale * height}  # fmt: skip
        assert box == {side: pytest.approx(value, abs=1) for side, value in shown.items()}
    page.locator("#study-title").hover()
    assert not overlays.first.is_visible()


def test_weight_in_a_corner_lights_that_corner(page: Page) -> None:
    corners = [(0, 0), (0, 6), (6, 0), (6, 6)]
    sentences = [
        {
            **REPORT_EXAMPLE["sentences"][0],
            "attention": {"patches": {"frontal": corner(y, x), "lateral": corner(6 - y, 6 - x)}, "cases": [0.0]},
        }
        for y, x in corners
    ]
    answered(page, {**REPORT_EXAMPLE, "sentences": sentences})
    for number, (row, column) in enumerate(corners):
        page.locator("button.sentence").nth(number).hover()
        check_corners(page, row, column)


def check_corners(page: Page, row: int, column: int) -> None:
    """The overlay of the frontal is lit in one corner only, that of the lateral in the opposite one."""
    for index, (y, x) in enumerate([(row, column), (6 - row, 6 - column)]):
        alpha = (
            page.locator("canvas.heat")
            .nth(index)
            .evaluate(
                """canvas => { const {width, height} = canvas, context = canvas.getContext("2d");
                 return [0, 1].map((v) => [0, 1].map((u) =>
                   context.getImageData(u * (width - 16) + 4, v * (height - 16) + 4, 1, 1).data[3])); }"""
            )
        )
        lit = alpha[y // 6][x // 6]
        assert lit > 100
        assert sum(map(sum, alpha)) == lit, "no other corner"


def test_cases_are_compared_with_the_draft_by_findings(page: Page) -> None:
    case = {
        **REPORT_EXAMPLE["reference_cases"][0],
        "findings": "Fluid blunts the costophrenic angle, other words for what the draft says. A rib is broken.",
        "labels": {"Pleural Effusion": "present", "Fracture": "present", "Cardiomegaly": "present"},
    }
    denial = {**case, "rank": 2, "labels": {"Pleural Effusion": "absent", "Atelectasis": "present"}}
    answered(page, {**REPORT_EXAMPLE, "reference_cases": [case, denial]})
    assert page.locator(".case-text").first.inner_text() == case["findings"]
    assert page.locator(".case-text *").count() == 0, "no word of it is marked"
    relations = {"Pleural Effusion": "as in the draft", "Fracture": "not in the draft",
                 "Cardiomegaly": "denied in the draft"}  # fmt: skip
    for finding, relation in relations.items():
        chip = page.locator(f"#cases > li:first-child .chip[data-finding='{finding}'] .relation")
        assert chip.inner_text() == relation
    assert texts(page, "#cases .rest") == [
        "In the draft, not in this case: Atelectasis.",
        "In the draft, denied in this case: Pleural Effusion.",
    ]


def test_low_confidence_is_shown_in_words(page: Page) -> None:
    doubtful = {**REPORT_EXAMPLE["sentences"][1], "supported": False, "confidence": 0.2}
    refined = {"text": "A small effusion.", "model": "qwen3:8b"}
    answered(page, {**REPORT_EXAMPLE, "sentences": [doubtful], "refined": refined})
    assert texts(page, "button.sentence .note") == ["no support", "low confidence"]
    assert page.locator("#refined").inner_text().startswith("Rewritten by qwen3:8b. Not the model's draft")
    assert "looks like a frontal" in page.locator("#checks").inner_text()


def test_cases_appear_before_sentences_and_both_before_the_end(page: Page) -> None:
    page.evaluate(
        """() => { window.changes = [];
             for (const name of ["cases", "sentences"]) {
               const record = (mutations) => mutations.some((mutation) => mutation.addedNodes.length)
                 && window.changes.push(name, document.getElementById("result").className);
               new MutationObserver(record).observe(document.getElementById(name), {childList: true});
             } }"""
    )
    choose(page)
    draft(page)
    order = page.evaluate("window.changes")
    assert order[:2] == ["cases", "result arriving"], "while the report is incomplete"
    assert "sentences" in order


def test_attention_is_described_in_words(page: Page) -> None:
    attention = {"patches": {"frontal": corner(6, 0), "lateral": corner(3, 3)}, "cases": [0.02, 0.01]}
    answered(page, {**REPORT_EXAMPLE, "sentences": [{**REPORT_EXAMPLE["sentences"][0], "attention": attention}]})
    page.locator("button.sentence").focus()
    expected = "Attention: frontal 50%, strongest at lower left; lateral 50%, strongest at centre; reference cases 3%."
    assert expected in page.locator("#overlay-note").inner_text()
    assert page.locator("button.sentence").get_attribute("aria-describedby") == "overlay-note"


# --- the images ---


def test_zoom_pan_and_reset_move_image_and_overlay(page: Page) -> None:
    attention = {"patches": {"frontal": corner(0, 0), "lateral": corner(0, 0)}, "cases": []}
    answered(page, {**REPORT_EXAMPLE, "sentences": [{**REPORT_EXAMPLE["sentences"][0], "attention": attention}]})
    page.locator("button.sentence").focus()
    page.keyboard.press("+")
    assert [transform(page, view)[0] for view in (0, 1)] == [1.25, 1.25]
    page.keyboard.press("0")
    page.locator("#file-frontal").focus()
    for _ in range(3):
        page.keyboard.press("+")
    assert [transform(page, view)[0] for view in (0, 1)] == [pytest.approx(1.25**3, abs=1e-4), 1]
    page.keyboard.press("ArrowLeft")
    assert transform(page, 0)[1] == 40
    for _ in range(40):
        page.keyboard.press("ArrowLeft")
    width = page.locator(".zone").first.evaluate("zone => zone.clientWidth")
    assert transform(page, 0)[1] == pytest.approx((1.25**3 - 1) * width / 2), "no further than the edge"
    page.locator("button.sentence").focus()
    canvas, image = page.locator("canvas.heat").first, page.locator(".film img").first
    boxes = [part.evaluate("part => { const b = part.getBoundingClientRect(); return [b.x, b.width]; }")
             for part in (canvas, image)]  # fmt: skip
    assert boxes[0] == pytest.approx(boxes[1], abs=0.5)
    zone = page.locator(".zone").first
    zone.dblclick()
    assert transform(page, 0) == [1, 0, 0]
    zone.dblclick(position={"x": 5, "y": 5})
    assert transform(page, 0)[0] == 2.5
    assert min(transform(page, 0)[1:]) > 0, "towards the pointer"


def test_wheel_zooms_in_proportion(page: Page) -> None:
    choose(page)
    page.locator(".zone").first.hover()
    page.keyboard.down("Control")
    page.mouse.wheel(0, -10)  # two fingers on a trackpad
    assert transform(page, 0)[0] == pytest.approx(np.exp(0.1), abs=1e-4)
    page.mouse.wheel(0, -120)  # a notch
    assert transform(page, 0)[0] == pytest.approx(np.exp(0.1) * 1.25, abs=1e-4)
    page.mouse.wheel(50, 0)
    assert transform(page, 0)[0] == pytest.approx(np.exp(0.1) * 1.25, abs=1e-4)
    page.keyboard.up("Control")


def test_resizing_leaves_no_gap_next_to_a_zoomed_image(page: Page) -> None:
    choose(page)
    page.locator("#file-frontal").focus()
    page.keyboard.press("+")
    for _ in range(20):
        page.keyboard.press("ArrowLeft")
    page.set_viewport_size({"width": 700, "height": 900})
    page.wait_for_function(
        """() => { const zone = document.querySelector(".zone").getBoundingClientRect();
             const film = document.querySelector(".film").getBoundingClientRect();
             return film.left <= zone.left + 2 && film.left > zone.left - 1; }"""
    )  # the border is 1 pixel wide


def test_brightness_is_display_only_and_can_be_reset(page: Page) -> None:
    choose(page)
    page.click("#display-button")

    def filters() -> str:
        value: str = page.locator(".film img").first.evaluate("image => getComputedStyle(image).filter")
        return value

    plain = filters()
    page.fill("#brightness", "150")
    page.check("#invert")
    assert "brightness(1.5)" in filters()
    assert "invert(1)" in filters()
    page.click("#display-reset")
    assert filters() == plain


def test_large_images_keep_the_sentences_visible(page: Page) -> None:
    answered(page, REPORT_EXAMPLE)
    width = page.locator(".zone").first.evaluate("zone => zone.clientWidth")
    page.keyboard.press("l")
    assert page.locator("#large").get_attribute("aria-pressed") == "true"
    assert page.locator(".zone").first.evaluate("zone => zone.clientWidth") > 1.1 * width
    sentence = page.locator("button.sentence").first.bounding_box()
    assert sentence is not None
    assert sentence["y"] < 900
    assert sentence["x"] + sentence["width"] <= 1280


def test_dicom_preview_equals_the_read_image(page: Page, tmp_path: Path) -> None:
    grey = np.tile(np.linspace(0, 4095, 96).astype(np.uint16), (120, 1))
    (tmp_path / "film.dcm").write_bytes(dicom(4095 - grey, stored=12, photometric="MONOCHROME1", ViewPosition="PA"))
    page.set_input_files("#file-frontal", tmp_path / "film.dcm")
    image = page.locator(".film img").first
    image.wait_for()
    page.wait_for_function("() => document.querySelector('.film img').naturalWidth === 96")
    greys = image.evaluate(
        """image => { const canvas = new OffscreenCanvas(96, 120), context = canvas.getContext("2d");
             context.drawImage(image, 0, 0);
             return [2, 93].map((x) => context.getImageData(x, 60, 1, 1).data[0]); }"""
    )
    assert greys[0] < 20
    assert greys[1] > 235
    assert not page.locator("p.undrawn").first.is_visible()


@pytest.mark.parametrize(("kind", "spread"), [("png", True), ("dcm", False)])
def test_contrast_is_stretched_only_for_dark_images(page: Page, tmp_path: Path, kind: str, spread: bool) -> None:
    """Browsers show 12-bit data in a 16-bit file almost black; previews of the service need no stretch."""
    path = tmp_path / f"film.{kind}"
    if kind == "png":
        Image.fromarray(np.tile(np.linspace(0, 56, 96).astype(np.uint8), (96, 1))).save(path)
    else:
        grey = np.tile(np.linspace(0, 55, 96).astype(np.uint8), (96, 1))
        path.write_bytes(dicom(grey, stored=8, ViewPosition="PA", WindowCenter=128, WindowWidth=256))
    page.set_input_files("#file-frontal", path)
    image = page.locator(".film img").first
    image.wait_for()
    page.wait_for_function("() => document.querySelector('.film img').naturalWidth === 96")
    value = image.evaluate("image => image.style.getPropertyValue('--spread')")
    assert float(value) == pytest.approx(255 / 55, rel=0.05) if spread else value == ""


def test_unreadable_file_is_reported_before_a_draft(page: Page, tmp_path: Path) -> None:
    page.select_option("#language", "zh-Hans")
    choose_wrong_file(page, tmp_path, "lateral")
    page.wait_for_selector("#error-lateral:not([hidden])")
    assert page.locator("#error-lateral").inner_text().startswith("这 207 字节不是图像。请改用 PNG")
    page.select_option("#language", "en")


# --- with the bundle that ships ---


def test_shipped_bundle_drafts_dicom_with_evidence(browser: Browser, tmp_path: Path) -> None:
    for view, position in (("frontal", "PA"), ("lateral", "LL")):
        pixels = np.asarray(Image.open(DRAWN / f"effusion-{view}.png").convert("L")).astype(np.uint16) * 16
        film = dicom(4095 - pixels, stored=12, photometric="MONOCHROME1", ViewPosition=position, Modality="DX")
        (tmp_path / f"{view}.dcm").write_bytes(film)
    with live_server(SHIPPED, warm_up=False, prefer_hydrated=False) as live:
        page = browser.new_page()
        open_page(page, live.url)
        for view in ("frontal", "lateral"):
            page.set_input_files(f"#file-{view}", tmp_path / f"{view}.dcm")
        with page.expect_response("**/report") as response:
            draft(page, anyway=True)
        report = json.loads(response.value.text().rstrip().rpartition("data: ")[2])
        assert texts(page, "button.sentence .words") == [sentence["text"] for sentence in report["sentences"]]
        assert page.locator("#checks li").count() == 2
        page.locator("button.sentence").first.focus()
        assert all(canvas.is_visible() for canvas in page.locator("canvas.heat").all())
        with page.expect_download() as fhir:
            page.click("#save-fhir")
        fhir.value.save_as(tmp_path / "draft.json")
        facts = facts_of_fhir(json.loads((tmp_path / "draft.json").read_text(encoding="utf-8")))
        assert facts["findings"] == report["findings"]
        assert [check["unusual"] for check in facts["image_checks"]] == [c["unusual"] for c in report["image_checks"]]
        page.close()
