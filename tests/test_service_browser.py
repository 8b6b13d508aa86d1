"""The page in a real browser against the real service: what a reader sees, does by keyboard, edits and takes away."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import pytest
from PIL import Image

from service.schemas.examples import REPORT_EXAMPLE
from service.schemas.models import ReportResponse
from tests.support.browser import DRAWN, choose, chromium, draft, find_chromium, open_page
from tests.support.dicom import dicom
from tests.support.formats import facts_of_fhir
from tests.support.paths import REPOSITORY
from tests.support.service import Live, live_server

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page, Route

pytest.importorskip("playwright", reason="needs pip install playwright")
EXECUTABLE = find_chromium()
pytestmark = pytest.mark.skipif(
    EXECUTABLE is None, reason="needs a Chromium: apt install chromium, or name one in REPORT_CHROMIUM"
)
KEY = "correct-horse-battery-staple"
NAMES = ("Frontal", "Lateral")
RULES = ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa", "wcag22aa", "best-practice"]  # of axe-core


@pytest.fixture(scope="module")
def live(bundle: Path) -> Iterator[Live]:
    with live_server(bundle, warm_up=False) as live:
        yield live


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    assert EXECUTABLE is not None
    with chromium(EXECUTABLE) as browser:
        yield browser


@pytest.fixture
def page(browser: Browser, live: Live) -> Iterator[Page]:
    """The page, opened; nothing may go wrong in its scripts."""
    page = browser.new_page(viewport={"width": 1280, "height": 900}, color_scheme="dark", reduced_motion="reduce")
    faults: list[str] = []
    page.on("pageerror", lambda error: faults.append(str(error)))
    open_page(page, live.url)
    yield page
    page.close()
    assert faults == []


def answered(page: Page, answer: dict[str, Any]) -> None:
    """Let the next draft be a given answer: for what depends on how the page draws, not on what the model says."""

    def fulfil(route: Route) -> None:
        route.fulfill(status=200, content_type="application/json", body=json.dumps(answer))

    page.route("**/report", fulfil)
    choose(page)
    draft(page)


def texts(page: Page, selector: str) -> list[str]:
    return page.locator(selector).all_inner_texts()


# --- a draft --------------------------------------------------------------------------------------------------------


def test_a_draft_arrives_with_its_evidence(page: Page) -> None:
    choose(page)
    with page.expect_response("**/report") as response:
        draft(page)
    assert response.value.headers["content-type"].startswith("text/event-stream")
    report = json.loads(response.value.text().rstrip().rpartition("data: ")[2])
    assert texts(page, "button.sentence .words") == [sentence["text"] for sentence in report["sentences"]]
    assert texts(page, "#cases code") == [case["case_id"] for case in report["reference_cases"]]
    assert page.locator("#status").inner_text().startswith("Draft ready")
    assert page.evaluate("document.activeElement.id") == "result"


def test_pointing_at_a_sentence_lays_its_attention_over_both_images(page: Page) -> None:
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
        scale = min(
            zone["width"] / width, zone["height"] / height
        )  # the image is fitted into its element, in the middle
        shown = {"x": zone["x"] + (zone["width"] - scale * width) / 2, "width": scale * width,
                 "y": zone["y"] + (zone["height"] - scale * height) / 2, "height": scale * height}  # fmt: skip
        assert box == {side: pytest.approx(value, abs=1) for side, value in shown.items()}
    page.locator("#study-title").hover()
    assert not overlays.first.is_visible()


def corner(row: int, column: int) -> list[list[float]]:
    grid = [[0.0] * 7 for _ in range(7)]
    grid[row][column] = 0.5
    return grid


def test_a_weight_in_a_corner_lights_that_corner(page: Page) -> None:
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
    """The overlay of the frontal is lit in one corner alone, that of the lateral in the opposite one."""
    for place, (y, x) in enumerate([(row, column), (6 - row, 6 - column)]):
        alpha = (
            page.locator("canvas.heat")
            .nth(place)
            .evaluate(
                """canvas => { const {width, height} = canvas, context = canvas.getContext("2d");
                 return [0, 1].map((v) => [0, 1].map((u) =>
                   context.getImageData(u * (width - 16) + 4, v * (height - 16) + 4, 1, 1).data[3])); }"""
            )
        )
        lit = alpha[y // 6][x // 6]
        assert lit > 100
        assert sum(map(sum, alpha)) == lit, "no other corner"


def test_what_a_case_says_and_the_draft_does_not_is_marked(page: Page) -> None:
    case = {
        **REPORT_EXAMPLE["reference_cases"][0],
        "findings": f"{REPORT_EXAMPLE['sentences'][1]['text']} There is a fractured rib.",
        "labels": {"Pleural Effusion": "present", "Fracture": "present"},
    }
    answered(page, {**REPORT_EXAMPLE, "reference_cases": [case]})
    assert [words.split("\n")[-1] for words in texts(page, "mark.differs")] == ["There is a fractured rib."]
    chips = texts(page, "#cases .chip")
    assert any("Fracture" in chip and "not in the draft" in chip for chip in chips)
    assert any("Pleural Effusion" in chip and "as in the draft" in chip for chip in chips)
    assert "Atelectasis" in page.locator("#cases .rest").inner_text()


def test_doubt_is_told_in_words(page: Page) -> None:
    doubtful = {**REPORT_EXAMPLE["sentences"][1], "supported": False, "confidence": 0.2}
    refined = {"text": "A small effusion.", "model": "qwen3:8b"}
    answered(page, {**REPORT_EXAMPLE, "sentences": [doubtful], "refined": refined})
    assert texts(page, "button.sentence .note") == ["no support", "low confidence"]
    assert page.locator("#refined").inner_text().startswith("Rewritten by qwen3:8b. Not the model's draft")
    assert "looks like a frontal" in page.locator("#checks").inner_text()


def test_the_cases_stand_before_the_sentences_and_these_before_the_end(page: Page) -> None:
    page.evaluate(
        """() => { window.told = [];
             for (const name of ["cases", "sentences"]) {
               const told = (changes) => changes.some((change) => change.addedNodes.length)
                 && window.told.push(name, document.getElementById("result").className);
               new MutationObserver(told).observe(document.getElementById(name), {childList: true});
             } }"""
    )
    choose(page)
    draft(page)
    told = page.evaluate("window.told")
    assert told[:2] == ["cases", "result arriving"], "while the answer is not whole yet"
    assert "sentences" in told


def test_where_the_model_looked_is_told_in_words(page: Page) -> None:
    attention = {"patches": {"frontal": corner(6, 0), "lateral": corner(3, 3)}, "cases": [0.02, 0.01]}
    answered(page, {**REPORT_EXAMPLE, "sentences": [{**REPORT_EXAMPLE["sentences"][0], "attention": attention}]})
    page.locator("button.sentence").focus()
    said = "Attention: frontal 50%, strongest at lower left; lateral 50%, strongest at centre; reference cases 3%."
    assert said in page.locator("#overlay-note").inner_text()
    assert page.locator("button.sentence").get_attribute("aria-describedby") == "overlay-note"


# --- the images -----------------------------------------------------------------------------------------------------


def transform(page: Page, view: int) -> list[float]:
    """Scale and shift of a view."""
    matrix: list[float] = (
        page.locator(".film")
        .nth(view)
        .evaluate("film => { const m = new DOMMatrix(getComputedStyle(film).transform); return [m.a, m.e, m.f]; }")
    )
    return matrix


def test_a_view_is_enlarged_moved_and_put_back_and_the_overlay_with_it(page: Page) -> None:
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
    assert min(transform(page, 0)[1:]) > 0, "towards the corner that was pointed at"


def test_the_wheel_enlarges_by_as_much_as_it_turns(page: Page) -> None:
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


def test_a_smaller_screen_shows_no_gap_beside_an_enlarged_image(page: Page) -> None:
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


def test_brightness_is_the_screens_and_goes_back(page: Page) -> None:
    choose(page)
    page.click("details.display summary")

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


def test_large_images_leave_the_sentences_in_sight(page: Page) -> None:
    answered(page, REPORT_EXAMPLE)
    width = page.locator(".zone").first.evaluate("zone => zone.clientWidth")
    page.keyboard.press("l")
    assert page.locator("#large").get_attribute("aria-pressed") == "true"
    assert page.locator(".zone").first.evaluate("zone => zone.clientWidth") > 1.1 * width
    sentence = page.locator("button.sentence").first.bounding_box()
    assert sentence is not None
    assert sentence["y"] < 900
    assert sentence["x"] + sentence["width"] <= 1280


def test_dicom_is_drawn_as_it_is_read(page: Page, tmp_path: Path) -> None:
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
def test_only_what_the_browser_draws_too_dark_is_spread(page: Page, tmp_path: Path, kind: str, spread: bool) -> None:
    """16 bits that hold 12 are dark in a browser; a picture by the service is as it is to be shown."""
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


def test_what_cannot_be_drawn_is_told_before_a_draft_is_asked_for(page: Page, tmp_path: Path) -> None:
    page.select_option("#language", "zh-Hans")
    (tmp_path / "scan.dcm").write_bytes(b"neither image nor DICOM" * 9)
    page.set_input_files("#file-lateral", tmp_path / "scan.dcm")
    page.wait_for_selector("#error-lateral:not([hidden])")
    assert page.locator("#error-lateral").inner_text().startswith("请选择 PNG")
    page.select_option("#language", "en")


# --- by keyboard ----------------------------------------------------------------------------------------------------


def test_the_keyboard_walks_pins_and_edits(page: Page) -> None:
    answered(page, {**REPORT_EXAMPLE, "sentences": [
        {**sentence, "attention": {"patches": {"frontal": corner(3, 3)}, "cases": []}}
        for sentence in REPORT_EXAMPLE["sentences"]
    ]})  # fmt: skip
    sentences = page.locator("button.sentence")
    overlay = page.locator("canvas.heat").first
    sentences.first.focus()
    assert overlay.is_visible()
    page.locator("#result").focus()
    page.keyboard.press("ArrowDown")
    assert sentences.first.evaluate("button => button === document.activeElement"), "from the section into the list"
    page.keyboard.press("ArrowDown")
    assert sentences.nth(1).evaluate("button => button === document.activeElement")
    page.keyboard.press("Enter")
    assert sentences.nth(1).get_attribute("aria-pressed") == "true"
    sentences.nth(1).blur()
    assert overlay.is_visible(), "a pinned overlay stays"
    page.keyboard.press("Escape")
    assert not overlay.is_visible()
    page.keyboard.press("?")
    assert page.locator("#help").is_visible()
    page.keyboard.press("Escape")
    page.wait_for_selector("#help", state="hidden")
    page.keyboard.press("e")
    assert page.evaluate("document.activeElement.id") == "edit-area"
    page.keyboard.press("Escape")
    assert page.evaluate("document.activeElement.id") == "edit"


def test_the_tabulator_reaches_every_control_with_a_visible_focus(page: Page) -> None:
    choose(page)
    draft(page)
    page.evaluate("document.activeElement.blur()")
    wanted = {
        "language",
        "theme",
        "keys",
        "large",
        "swap",
        "clear",
        "file-frontal",
        "file-lateral",
        "draft",
        "edit",
        "copy",
    }
    wanted |= {"save-text", "save-fhir", "print"}
    reached: set[str] = set()
    for _ in range(60):
        page.keyboard.press("Tab")
        state = page.evaluate(
            """() => { const node = document.activeElement, zone = node.closest(".zone") ?? node;
                 return [node.id || node.className, getComputedStyle(zone).outlineStyle]; }"""
        )
        reached.add(state[0])
        assert state[1] != "none" or state[0] == "", state
    assert wanted | {"sentence shown"} <= reached


# --- editing and taking away ----------------------------------------------------------------------------------------


BEGUN = 'event: cases\ndata: {"reference_cases": []}\n\n'  # a stream that ends after its cases


def edit(page: Page, findings: str) -> None:
    """Put a reader's words in the place of the draft."""
    page.click("#edit")
    page.fill("#edit-area", findings)
    page.click("#edit-done")


def break_streams(page: Page) -> None:
    """Let the next drafts begin and end early."""
    page.unroute("**/report")
    page.route("**/report", lambda route: route.fulfill(status=200, content_type="text/event-stream", body=BEGUN))


def test_edited_findings_are_marked_copied_and_exported(page: Page, tmp_path: Path) -> None:
    page.context.grant_permissions(["clipboard-read", "clipboard-write"])
    answered(page, REPORT_EXAMPLE)
    kept = REPORT_EXAMPLE["sentences"][0]["text"]
    edit(page, f"{kept} No pleural effusion.")
    assert texts(page, "button.sentence .words") == [kept, "No pleural effusion."]
    assert texts(page, "button.sentence .note") == ["edited"]
    assert page.locator("#edited-note").is_visible()
    page.click("#copy")
    page.wait_for_function("() => navigator.clipboard.readText().then((text) => text.endsWith('No pleural effusion.'))")
    assert page.evaluate("navigator.clipboard.readText()") == f"{kept} No pleural effusion."
    with page.expect_download() as text:
        page.click("#save-text")
    assert text.value.suggested_filename == f"draft-{REPORT_EXAMPLE['report_id'][:8]}.txt"
    text.value.save_as(tmp_path / "draft.txt")
    assert f"{kept} No pleural effusion." in (tmp_path / "draft.txt").read_text(encoding="utf-8")
    with page.expect_download() as fhir:
        page.click("#save-fhir")
    fhir.value.save_as(tmp_path / "draft.json")
    told = facts_of_fhir(json.loads((tmp_path / "draft.json").read_text(encoding="utf-8")))
    assert told["findings"] == f"{kept} No pleural effusion."
    assert told["warnings"][-1]["code"] == "edited"
    page.click("#edit")
    page.click("#edit-undo")
    assert texts(page, "button.sentence .words") == [part["text"] for part in REPORT_EXAMPLE["sentences"]]
    assert not page.locator("#edited-note").is_visible()


def test_a_draft_that_breaks_costs_no_edit(page: Page) -> None:
    answered(page, REPORT_EXAMPLE)
    page.click("#edit")
    page.fill("#edit-area", "No pleural effusion.")  # not done yet
    break_streams(page)
    page.click("#draft")
    page.click("#replace [value=replace]")
    page.wait_for_selector("#error:not([hidden])")
    assert texts(page, "button.sentence .words") == ["No pleural effusion."]
    assert page.locator("#edited-note").is_visible()
    assert not page.locator("#stale").is_visible(), "the images are those of the draft"


def test_a_new_draft_takes_no_edit_without_asking(page: Page, tmp_path: Path) -> None:
    asked: list[str] = []
    answered(page, REPORT_EXAMPLE)
    page.on("request", lambda request: asked.append(request.url.rpartition("/")[2]))
    edit(page, "No pleural effusion.")
    page.click("#draft")
    assert page.evaluate("document.activeElement.value") == "keep"
    page.keyboard.press("Escape")
    page.click("#draft")
    page.click("#replace [value=keep]")
    assert texts(page, "button.sentence .words") == ["No pleural effusion."]
    assert "report" not in asked
    page.click("#draft")
    page.click("#replace [value=replace]")
    page.wait_for_selector("#edited-note", state="hidden")
    assert texts(page, "button.sentence .words") == [part["text"] for part in REPORT_EXAMPLE["sentences"]]
    edit(page, "No pneumothorax.")
    with page.expect_download():
        page.click("#save-text")
    page.click("#draft")  # what is saved can go
    page.wait_for_selector("#edited-note", state="hidden")
    assert not page.locator("#replace").is_visible()


def test_leaving_with_unsaved_words_asks(page: Page) -> None:
    answered(page, REPORT_EXAMPLE)
    asks = "dispatchEvent(new Event('beforeunload', {cancelable: true}))"
    assert page.evaluate(asks) is True, "nothing is lost"
    page.click("#edit")
    page.fill("#edit-area", "No pleural effusion.")
    assert page.evaluate(asks) is False
    page.click("#edit-undo")
    assert page.evaluate(asks) is True


def test_what_is_written_while_the_rest_is_taken_counts_as_unsaved(page: Page) -> None:
    asks = "dispatchEvent(new Event('beforeunload', {cancelable: true}))"
    answered(page, REPORT_EXAMPLE)
    edit(page, "No pleural effusion.")
    held: list[Route] = []
    page.route("**/export", lambda route: held.append(route))
    with page.expect_request("**/export"):
        page.click("#save-text")
    edit(page, "No pleural effusion. No pneumothorax.")
    with page.expect_download():
        held[0].continue_()
    assert page.evaluate(asks) is False, "the file holds less"
    edit(page, "No pleural effusion.")
    assert page.evaluate(asks) is True, "what the file holds"
    page.evaluate("() => { navigator.clipboard.writeText = () => new Promise((done) => { window.copied = done; }); }")
    edit(page, "No pneumothorax.")
    page.click("#copy")
    edit(page, "No pneumothorax. No fracture.")
    page.evaluate("window.copied()")
    page.wait_for_function("() => document.getElementById('copy').textContent === 'Copied'")
    assert page.evaluate(asks) is False


def test_a_key_that_an_export_asks_for_costs_no_edit(page: Page) -> None:
    answered(page, REPORT_EXAMPLE)
    edit(page, "No pleural effusion.")
    asked: list[str | None] = []

    def guard(route: Route) -> None:
        asked.append(route.request.headers.get("authorization"))
        if asked[-1] is None:
            problem = {"title": "A key is needed", "status": 401, "detail": "Send a key.", "code": "unauthorized"}
            route.fulfill(status=401, content_type="application/problem+json", body=json.dumps(problem))
        else:
            route.continue_()

    page.route("**/export", guard)
    page.click("#save-text")
    page.wait_for_selector("#key-form:not([hidden])")
    page.fill("#key", KEY)
    with page.expect_download() as text:
        page.keyboard.press("Enter")
    assert "No pleural effusion." in text.value.path().read_text(encoding="utf-8")
    assert asked == [None, f"Bearer {KEY}"]
    assert texts(page, "button.sentence .words") == ["No pleural effusion."]


def test_copying_works_where_the_browser_keeps_its_clipboard(page: Page) -> None:
    """As it does over plain HTTP: navigator.clipboard is not there."""
    answered(page, REPORT_EXAMPLE)
    page.evaluate("Object.defineProperty(navigator, 'clipboard', {value: undefined})")
    page.evaluate("document.addEventListener('copy', () => { window.copied = getSelection().toString(); })")
    page.click("#copy")
    page.wait_for_function("() => document.getElementById('copy').textContent === 'Copied'")
    assert page.evaluate("document.activeElement.id") == "copy"
    page.evaluate("document.body.prepend(Object.assign(document.createElement('textarea'), {id: 'pasted'}))")
    page.focus("#pasted")
    page.keyboard.press("Control+V")
    assert page.input_value("#pasted") == REPORT_EXAMPLE["findings"]


def test_escape_in_the_list_of_keys_closes_that_alone(page: Page) -> None:
    answered(page, REPORT_EXAMPLE)
    page.locator("button.sentence").first.focus()
    page.keyboard.press("Enter")
    page.keyboard.press("?")
    page.keyboard.press("Escape")
    page.wait_for_selector("#help", state="hidden")
    assert page.locator("button.sentence").first.get_attribute("aria-pressed") == "true", "still pinned"
    page.keyboard.press("e")
    page.click("#keys")
    page.keyboard.press("Escape")
    assert page.locator("#edit-area").is_visible(), "still being edited"


def test_single_keys_can_be_turned_off(page: Page) -> None:
    """WCAG 2.1.4: who speaks to the computer may send letters without meaning to."""
    answered(page, REPORT_EXAMPLE)
    page.keyboard.press("?")
    page.uncheck("#single-keys")
    page.keyboard.press("Escape")
    page.wait_for_selector("#help", state="hidden")
    for key in ("e", "l", "?", "+"):
        page.keyboard.press(key)
    assert not page.locator("#help, #edit-area").first.is_visible()
    assert page.locator("#large").get_attribute("aria-pressed") == "false"
    assert transform(page, 0)[0] == 1
    page.locator("#file-frontal").focus()
    page.keyboard.press("+")
    assert transform(page, 0)[0] == 1.25, "a view that has the focus is enlarged all the same"
    page.reload()
    assert not page.is_checked("#single-keys")
    page.click("#keys")
    page.check("#single-keys")
    page.keyboard.press("Escape")
    page.wait_for_selector("#help", state="hidden")
    page.keyboard.press("l")
    assert page.locator("#large").get_attribute("aria-pressed") == "true"


def test_on_paper_stand_the_findings_and_whence_they_come(page: Page) -> None:
    answered(page, REPORT_EXAMPLE)
    page.evaluate("window.dispatchEvent(new Event('beforeprint'))")
    page.emulate_media(media="print")
    paper = page.locator("body").inner_text()
    report = ReportResponse.model_validate(REPORT_EXAMPLE)
    for words in (*(part.text for part in report.sentences), report.reference_cases[0].case_id, report.report_id,
                  report.warnings[0].message, "Not a diagnosis", "The percentage is how often"):  # fmt: skip
        assert words in paper
    for control in ("#draft", "#edit", "#language", "#hint", "canvas.heat"):
        assert not page.locator(control).first.is_visible(), control
    assert page.locator(".film img").first.is_visible()
    page.evaluate("document.getElementById('paper-images').checked = false")
    assert not page.locator(".film img").first.is_visible()
    assert page.pdf(prefer_css_page_size=True).startswith(b"%PDF")


# --- accessibility --------------------------------------------------------------------------------------------------


def flaws(page: Page) -> list[str]:
    """What axe-core finds wrong with the page as it stands: rule and place."""
    axe = pytest.importorskip("axe_playwright_python.sync_playwright", reason="needs pip install axe-playwright-python")
    found = axe.Axe().run(page, options={"runOnly": {"type": "tag", "values": RULES}})
    return [f"{flaw['id']}: {node['target']} {node['failureSummary']}" for flaw in found.response["violations"]
            for node in flaw["nodes"]]  # fmt: skip


@pytest.mark.parametrize("theme", ["dark", "light"])
def test_axe_finds_nothing(page: Page, theme: Literal["dark", "light"]) -> None:
    page.emulate_media(color_scheme=theme)
    assert flaws(page) == []
    attention = {"patches": {"frontal": corner(2, 2), "lateral": corner(3, 3)}, "cases": [0.1]}
    doubtful = {**REPORT_EXAMPLE["sentences"][1], "supported": False, "confidence": 0.1, "attention": attention}
    refined = {"text": "A small effusion.", "model": "qwen3:8b"}
    answered(page, {**REPORT_EXAMPLE, "sentences": [REPORT_EXAMPLE["sentences"][0], doubtful], "refined": refined})
    page.locator("button.sentence").last.focus()
    page.evaluate("document.querySelectorAll('details').forEach((part) => { part.open = true; })")
    assert flaws(page) == []
    page.click("#edit")
    page.fill("#edit-area", "No effusion.")
    page.click("#swap")  # the draft is stale now
    assert flaws(page) == []
    page.click("#edit-done")
    page.click("#keys")
    assert flaws(page) == []
    page.keyboard.press("Escape")
    page.click("#draft")
    page.wait_for_selector("#replace[open]")
    assert flaws(page) == []


# --- modules by themselves ------------------------------------------------------------------------------------------

SENTENCES = [  # of a case, of the draft, and whether they say the same
    ("No pleural effusion.", "There is no effusion of the pleural space. The lungs are clear.", True),
    ("No pleural effusion.", "No pleural effusions.", True),
    ("No pleural effusion.", "There is a pleural effusion.", False),
    ("The lungs are clear.", "Lungs clear.", True),
    ("Fracture of the left rib.", "The heart is enlarged.", False),
]
UNUSUAL = {  # of an image, and as it is told: never rounded up to .99, from which there is a warning
    0.31: "31%", 0.98: "98%", 0.9851: "98.5%", 0.9899: "98.9%", 0.99: "99.0%", 0.9949: "99.4%", 1.0: "100.0%",
}  # fmt: skip
STREAM = ': wait\n\nevent: cases\r\ndata: {"n":\r\ndata: 1}\r\n\r\nevent: report\ndata: "é"\n\n'


def of_module(page: Page, name: str, expression: str, argument: object = None) -> Any:
    """The value of an expression of a module `m` and an argument `a`."""
    return page.evaluate(f"(a) => import('/static/{name}').then((m) => {expression})", argument)


def test_modules_work_by_themselves(page: Page) -> None:
    """One page for all of it: opening one takes longer than these."""
    for said, draft_, alike in SENTENCES:
        assert of_module(page, "compare.js", "m.compared(a[0], a[1])", [said, draft_]) == [[said, alike]]
    for width in (1, 3, 1000):  # of the pieces in which a stream arrives
        pieces = [STREAM[start : start + width] for start in range(0, len(STREAM), width)]
        parse = "{ const parser = new m.EventParser(); return a.flatMap((piece) => parser.feed(piece)); }"
        events = of_module(page, "stream.js", parse, pieces)
        assert events == [{"event": "cases", "data": {"n": 1}}, {"event": "report", "data": "é"}], width
    grids = {f"{row},{column}": corner(row, column) for row in (0, 3, 6) for column in (0, 3, 6)}
    places = of_module(page, "overlay.js", "m.describeLocation(a).map((part) => [part.location, part.share])", grids)
    names = [f"{row}.{column}" for row in ("upper", "middle", "lower") for column in ("left", "centre", "right")]
    assert places == [[name, 0.5] for name in names]
    draw = """{ const list = document.createElement("ul"), checks = a.map((unusual) => ({frontal: 0.998, unusual}));
                document.createElement("div").append(list);
                m.drawChecks(list, checks, a.map(() => "frontal"));
                return [...list.children].map((line) => line.textContent); }"""
    for line, share in zip(of_module(page, "draw.js", draw, list(UNUSUAL)), UNUSUAL.values(), strict=True):
        assert f"more unusual than {share} of" in line


# --- language, theme, size ------------------------------------------------------------------------------------------


def test_the_interface_speaks_chinese_and_the_report_stays(page: Page) -> None:
    answered(page, REPORT_EXAMPLE)
    page.select_option("#language", "zh-Hans")
    assert page.locator("html").get_attribute("lang") == "zh-Hans"
    assert page.locator("#result-title").inner_text() == "所见草稿"
    assert "胸腔积液" in page.locator("#labels").inner_text()
    assert (
        page.locator("#warnings")
        .inner_text()
        .startswith("只有一个体位\uff1b草稿仅依据现有图像。\uff08No lateral image")
    )
    assert page.get_by_role("button", name="移除正位图像").is_visible()
    assert texts(page, "button.sentence .words") == [part["text"] for part in REPORT_EXAMPLE["sentences"]]
    page.reload()
    assert page.locator("#study-title").inner_text() == "检查", "the choice outlasts the page"
    page.select_option("#language", "en")


def test_the_report_is_called_english_to_a_screen_reader(page: Page) -> None:
    case = {**REPORT_EXAMPLE["reference_cases"][0], "images": {}}
    answered(page, {**REPORT_EXAMPLE, "reference_cases": [case]})
    page.select_option("#language", "zh-Hans")
    for place in ("button.sentence .words", ".case-text"):
        assert page.locator(place).first.evaluate("node => node.closest('[lang]').lang") == "en", place
    for place in ("button.sentence .amount", "#cases .chip", ".case-text .unseen", ".case-text .redacted"):
        assert page.locator(place).first.evaluate("node => node.closest('[lang]').lang") == "zh-Hans", place
    page.select_option("#language", "en")


def test_what_went_wrong_is_said_in_the_language_of_now(page: Page, tmp_path: Path) -> None:
    (tmp_path / "scan.gif").write_bytes(b"GIF89a" + bytes(100))
    page.set_input_files("#file-frontal", tmp_path / "scan.gif")
    page.click("#draft")
    page.wait_for_selector("#error:not([hidden])")
    page.select_option("#language", "zh-Hans")
    assert page.locator("#error").inner_text() == "正位图像\uff1a不支持此类图像文件。"
    assert page.locator("#error-frontal").inner_text().startswith("请改用 PNG")
    page.select_option("#language", "en")
    assert page.locator("#error").inner_text().startswith("Frontal image.")


def test_what_was_told_is_told_again_in_another_language(page: Page) -> None:
    answered(page, REPORT_EXAMPLE)
    page.evaluate("document.getElementById('made-details').open = true")
    page.select_option("#language", "zh-Hans")
    assert page.locator("#status").inner_text().startswith("草稿已就绪")
    assert "书写 402" in page.locator("#made").inner_text()
    page.select_option("#language", "en")
    assert page.locator("#status").inner_text().startswith("Draft ready")
    assert "writing 402" in page.locator("#made").inner_text()


def test_the_answer_on_show_follows_a_switch_of_language_while_another_is_made(page: Page) -> None:
    answered(page, REPORT_EXAMPLE)
    page.unroute("**/report")
    page.route("**/report", lambda route: None)  # no answer comes
    page.click("#draft")
    page.select_option("#language", "zh-Hans")
    page.click("#cancel")
    assert page.locator("#status").inner_text() == "已取消。"
    assert page.locator("#warnings").inner_text().startswith("只有一个体位")
    assert "胸腔积液" in page.locator("#labels").inner_text()
    assert "与草稿一致" in page.locator("#cases").inner_text()
    page.select_option("#language", "en")


def test_the_theme_follows_the_system_until_one_is_chosen(page: Page) -> None:
    def ground() -> str:
        colour: str = page.evaluate("getComputedStyle(document.body).backgroundColor")
        return colour

    dark = ground()
    page.emulate_media(color_scheme="light")
    light = ground()
    assert dark != light
    page.wait_for_selector("#theme[aria-pressed=true]")
    page.click("#theme")
    assert ground() == dark
    page.reload()
    assert ground() == dark
    page.click("#theme")
    assert ground() == light


def test_no_screen_is_too_narrow(page: Page) -> None:
    answered(page, REPORT_EXAMPLE)
    page.evaluate("document.querySelectorAll('details').forEach((part) => { part.open = true; })")
    for _ in ("sentences", "editor"):
        for width in (320, 390, 640, 768, 1000):
            page.set_viewport_size({"width": width, "height": 800})
            for _ in ("usual", "large"):
                assert page.evaluate("document.documentElement.scrollWidth") <= width
                page.click("#large")
        page.click("#edit")


def test_on_a_narrow_screen_the_images_come_along(page: Page) -> None:
    page.set_viewport_size({"width": 390, "height": 844})
    attention = {"patches": {"frontal": corner(2, 2), "lateral": corner(3, 3)}, "cases": []}
    sentences = [{**REPORT_EXAMPLE["sentences"][0], "attention": attention}] * 6
    answered(page, {**REPORT_EXAMPLE, "sentences": sentences})
    height = page.evaluate("document.documentElement.scrollHeight")
    last = page.locator("button.sentence").last
    last.evaluate("button => button.scrollIntoView({block: 'start'})")
    page.wait_for_function("() => document.body.classList.contains('away')")
    last.click()
    assert page.evaluate("document.documentElement.scrollHeight") == height, "nothing below moves"
    canvas, image = page.locator("canvas.heat").first, page.locator(".film img").first
    page.wait_for_function("() => document.querySelector('canvas.heat').getBoundingClientRect().height < 300")
    box, zone = canvas.bounding_box(), image.bounding_box()
    assert box is not None
    assert zone is not None
    assert 0 <= box["y"] < box["y"] + box["height"] < 844 * 0.4
    assert max(box["width"] / zone["width"], box["height"] / zone["height"]) == pytest.approx(1, abs=0.01)
    page.keyboard.press("Home")
    first = page.locator("button.sentence").first.bounding_box()
    assert first is not None
    assert first["y"] > 0.34 * 844, "the images hide no sentence that has the focus"


# --- what goes wrong ------------------------------------------------------------------------------------------------


def test_a_wrong_file_is_told_at_its_view(page: Page, tmp_path: Path) -> None:
    (tmp_path / "scan.gif").write_bytes(b"GIF89a" + bytes(100))
    page.set_input_files("#file-frontal", tmp_path / "scan.gif")
    page.click("#draft")
    page.wait_for_selector("#error-frontal:not([hidden])")
    assert "GIF" in page.locator("#error-frontal").inner_text()
    assert page.locator("#error").inner_text().startswith("Frontal image.")
    assert not page.locator("#draft-body").is_visible()
    page.set_input_files("#file-frontal", DRAWN / "normal-frontal.png")
    draft(page)
    assert not page.locator("#error").is_visible()


def test_a_refusal_outlasts_changes_of_the_other_view(page: Page, tmp_path: Path) -> None:
    (tmp_path / "scan.dcm").write_bytes(b"neither image nor DICOM" * 9)
    page.set_input_files("#file-frontal", tmp_path / "scan.dcm")
    page.wait_for_selector("#error-frontal:not([hidden])")
    page.set_input_files("#file-lateral", DRAWN / "normal-lateral.png")
    assert page.locator("#error-frontal").is_visible()
    page.set_input_files("#file-frontal", DRAWN / "normal-frontal.png")
    assert not page.locator("#error-frontal").is_visible()


def test_a_refusal_stands_until_a_draft_begins(page: Page, tmp_path: Path) -> None:
    answered(page, REPORT_EXAMPLE)
    edit(page, "No pleural effusion.")
    (tmp_path / "scan.dcm").write_bytes(b"neither image nor DICOM" * 9)
    page.set_input_files("#file-frontal", tmp_path / "scan.dcm")
    page.wait_for_selector("#error-frontal:not([hidden])")
    page.click("#draft")
    page.click("#replace [value=keep]")
    page.wait_for_selector("#replace", state="hidden")
    assert page.locator("#error-frontal").is_visible(), "nothing was asked for"
    page.click("details.options summary")
    page.focus("#top_k")
    page.keyboard.type("1e")
    page.click("#draft")
    assert page.locator("#error-top_k").is_visible()
    assert page.locator("#error-frontal").is_visible()
    page.fill("#top_k", "2")
    page.click("#draft")
    assert not page.locator("#error-top_k").is_visible(), "it is a number now"
    page.click("#replace [value=replace]")
    page.wait_for_selector("#edited-note", state="hidden")
    assert not page.locator("#error-frontal").is_visible()


def test_what_is_no_number_is_told(page: Page) -> None:
    choose(page)
    page.click("details.options summary")
    page.focus("#top_k")
    page.keyboard.type("1e")
    page.click("#draft")
    assert page.evaluate("document.activeElement.id") == "top_k"
    assert page.locator("#error-top_k").inner_text().startswith("This is not a whole number")
    page.select_option("#language", "zh-Hans")
    assert page.locator("#error-top_k").inner_text().startswith("这不是整数")
    page.select_option("#language", "en")
    page.fill("#top_k", "2")
    draft(page)
    assert page.locator("#cases > li").count() == 2
    assert not page.locator("#error-top_k").is_visible()


def test_a_stream_that_breaks_leaves_the_draft_before_it(page: Page) -> None:
    answered(page, REPORT_EXAMPLE)
    break_streams(page)
    page.click("#draft")
    page.wait_for_selector("#error:not([hidden])")
    assert "ended early" in page.locator("#error").inner_text()
    assert texts(page, "button.sentence .words") == [part["text"] for part in REPORT_EXAMPLE["sentences"]]


@pytest.mark.parametrize(
    ("kind", "body"),
    [("text/html", "<h1>Sign in</h1>"), ("text/event-stream", ""), ("text/event-stream", "data: {\n\n")],
)
def test_an_answer_that_is_none_is_told_and_can_be_tried_again(page: Page, kind: str, body: str) -> None:
    page.route("**/report", lambda route: route.fulfill(status=200, content_type=kind, body=body))
    choose(page)
    page.click("#draft")
    page.wait_for_selector("#error:not([hidden])")
    assert "ended early" in page.locator("#error").inner_text()
    assert page.locator("#draft").is_enabled()
    assert page.evaluate("document.activeElement.id") == "draft", "the focus is not lost"


def test_what_is_typed_is_what_is_taken(page: Page, tmp_path: Path) -> None:
    answered(page, REPORT_EXAMPLE)
    page.click("#edit")
    page.fill("#edit-area", "No pleural effusion.")
    with page.expect_download() as text:
        page.click("#save-text")  # without Done
    text.value.save_as(tmp_path / "draft.txt")
    assert (tmp_path / "draft.txt").read_text(encoding="utf-8").startswith("No pleural effusion.\n")


def test_a_key_is_asked_for_and_used(browser: Browser, bundle: Path, tmp_path: Path) -> None:
    with live_server(bundle, warm_up=False, api_key=KEY, user_cases_dir=tmp_path / "cases") as live:
        with live.client() as client:
            words = {"case_id": (None, "own-1"), "findings": (None, "The heart is normal. No effusion.")}
            picture = {"frontal": ("f", (DRAWN / "normal-frontal.png").read_bytes())}
            added = client.post("/cases", files={**words, **picture}, headers={"X-API-Key": KEY})
            assert added.status_code == 201
        page = browser.new_page()
        open_page(page, live.url)
        choose(page)
        page.evaluate("document.querySelector('details.options').open = true")
        page.fill("#top_k", "50")
        page.click("#draft")
        page.wait_for_selector("#key-form:not([hidden])")
        page.fill("#key", KEY)
        page.keyboard.press("Enter")
        page.wait_for_selector("#result:not(.arriving) #result-tools:not([hidden])")
        image = page.locator(".case-images img")
        image.wait_for()
        page.wait_for_function("() => document.querySelector('.case-images img').naturalWidth > 0")
        assert "own-1" in (image.get_attribute("alt") or "")
        page.close()


# --- with the bundle that ships -------------------------------------------------------------------------------------


def test_the_shipped_bundle_reads_dicom_and_shows_its_evidence(browser: Browser, tmp_path: Path) -> None:
    for view, position in (("frontal", "PA"), ("lateral", "LL")):
        pixels = np.asarray(Image.open(DRAWN / f"effusion-{view}.png").convert("L")).astype(np.uint16) * 16
        film = dicom(4095 - pixels, stored=12, photometric="MONOCHROME1", ViewPosition=position, Modality="DX")
        (tmp_path / f"{view}.dcm").write_bytes(film)
    with live_server(REPOSITORY / "bundles" / "iu-xray", warm_up=False, prefer_hydrated=False) as live:
        page = browser.new_page()
        open_page(page, live.url)
        for view in ("frontal", "lateral"):
            page.set_input_files(f"#file-{view}", tmp_path / f"{view}.dcm")
        with page.expect_response("**/report") as response:
            draft(page)
        report = json.loads(response.value.text().rstrip().rpartition("data: ")[2])
        assert texts(page, "button.sentence .words") == [sentence["text"] for sentence in report["sentences"]]
        assert page.locator("#checks li").count() == 2
        page.locator("button.sentence").first.focus()
        assert all(canvas.is_visible() for canvas in page.locator("canvas.heat").all())
        with page.expect_download() as fhir:
            page.click("#save-fhir")
        fhir.value.save_as(tmp_path / "draft.json")
        told = facts_of_fhir(json.loads((tmp_path / "draft.json").read_text(encoding="utf-8")))
        assert told["findings"] == report["findings"]
        assert [check["unusual"] for check in told["image_checks"]] == [c["unusual"] for c in report["image_checks"]]
        page.close()
