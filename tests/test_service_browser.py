"""The page in a real browser against the real service: what a reader sees, does by keyboard, edits and takes away."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from PIL import Image

from service.schemas import REPORT_EXAMPLE, ReportResponse
from tests.browser import DRAWN, choose, chromium, draft, find_chromium, open_page
from tests.conftest import REPOSITORY
from tests.dicom_helpers import dicom
from tests.format_helpers import facts_of_fhir
from tests.helpers import write_tiny_bundle
from tests.service_helpers import Live, live_server

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page, Route

pytest.importorskip("playwright", reason="needs pip install playwright")
EXECUTABLE = find_chromium()
pytestmark = pytest.mark.skipif(
    EXECUTABLE is None, reason="needs a Chromium: apt install chromium, or name one in REPORT_CHROMIUM"
)
KEY = "correct-horse-battery-staple"
NAMES = ("Frontal", "Lateral")


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_bundle(tmp_path_factory.mktemp("bundles") / "tiny")


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
        assert box["width"] / box["height"] == pytest.approx(width / height, rel=0.01)
        assert max(box["width"] / zone["width"], box["height"] / zone["height"]) == pytest.approx(1, abs=0.01)
    page.locator("#study-title").hover()
    assert not overlays.first.is_visible()


def corner(row: int, column: int) -> list[list[float]]:
    grid = [[0.0] * 7 for _ in range(7)]
    grid[row][column] = 0.5
    return grid


@pytest.mark.parametrize(("row", "column"), [(0, 0), (0, 6), (6, 0), (6, 6)])
def test_a_weight_in_a_corner_lights_that_corner(page: Page, row: int, column: int) -> None:
    attention = {"patches": {"frontal": corner(row, column), "lateral": corner(6 - row, 6 - column)}, "cases": [0.0]}
    sentence = {**REPORT_EXAMPLE["sentences"][0], "attention": attention}
    answered(page, {**REPORT_EXAMPLE, "sentences": [sentence]})
    page.locator("button.sentence").hover()
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
    assert page.locator("button.sentence .mark").inner_text() == "no support"
    assert "low confidence" in page.locator("button.sentence").inner_text()
    assert page.locator("#refined").inner_text().startswith("Rewritten by qwen3:8b. Not the model's draft")
    assert "looks like a Frontal" in page.locator("#checks").inner_text()


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
    page.keyboard.press("e")
    assert page.evaluate("document.activeElement.id") == "edit-area"
    page.keyboard.press("Escape")
    assert page.evaluate("document.activeElement.id") == "edit"


def test_the_tabulator_reaches_every_control_with_a_visible_focus(page: Page) -> None:
    choose(page)
    draft(page)
    page.evaluate("document.activeElement.blur()")
    wanted = {"language", "theme", "keys", "swap", "clear", "file-frontal", "file-lateral", "draft", "edit", "copy"}
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


def test_edited_findings_are_marked_copied_and_exported(page: Page, tmp_path: Path) -> None:
    page.context.grant_permissions(["clipboard-read", "clipboard-write"])
    answered(page, REPORT_EXAMPLE)
    kept = REPORT_EXAMPLE["sentences"][0]["text"]
    page.click("#edit")
    page.fill("#edit-area", f"{kept} No pleural effusion.")
    page.click("#edit-done")
    assert texts(page, "button.sentence .words") == [kept, "No pleural effusion."]
    assert texts(page, "button.sentence .mark") == ["edited"]
    assert page.locator("#edited-note").is_visible()
    page.click("#copy")
    page.wait_for_function("navigator.clipboard.readText().then((text) => text.endsWith('No pleural effusion.'))")
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


def test_on_paper_stand_the_findings_and_whence_they_come(page: Page) -> None:
    answered(page, REPORT_EXAMPLE)
    page.evaluate("window.dispatchEvent(new Event('beforeprint'))")
    page.emulate_media(media="print")
    paper = page.locator("body").inner_text()
    report = ReportResponse.model_validate(REPORT_EXAMPLE)
    for words in (*(part.text for part in report.sentences), report.reference_cases[0].case_id, report.report_id,
                  report.warnings[0].message, "Not a diagnosis"):  # fmt: skip
        assert words in paper
    for control in ("#draft", "#edit", "#language", "#hint", "canvas.heat"):
        assert not page.locator(control).first.is_visible(), control
    assert page.pdf(prefer_css_page_size=True).startswith(b"%PDF")


# --- language, theme, size ------------------------------------------------------------------------------------------


def test_the_interface_speaks_chinese_and_the_report_stays(page: Page) -> None:
    answered(page, REPORT_EXAMPLE)
    page.select_option("#language", "zh-Hans")
    assert page.locator("html").get_attribute("lang") == "zh-Hans"
    assert page.locator("#result-title").inner_text() == "所见草稿"
    assert "胸腔积液" in page.locator("#labels").inner_text()
    assert page.locator("#warnings").inner_text() == "只有一个体位;草稿仅依据现有图像。"
    assert page.get_by_role("button", name="移除正位图像").is_visible()
    assert texts(page, "button.sentence .words") == [part["text"] for part in REPORT_EXAMPLE["sentences"]]
    page.reload()
    assert page.locator("#study-title").inner_text() == "检查", "the choice outlasts the page"
    page.select_option("#language", "en")


def test_the_theme_follows_the_system_until_one_is_chosen(page: Page) -> None:
    def ground() -> str:
        colour: str = page.evaluate("getComputedStyle(document.body).backgroundColor")
        return colour

    dark = ground()
    page.emulate_media(color_scheme="light")
    light = ground()
    assert dark != light
    page.click("#theme")
    assert ground() == dark
    page.reload()
    assert ground() == dark
    page.click("#theme")
    assert ground() == light


@pytest.mark.parametrize("width", [320, 390, 768])
def test_no_screen_is_too_narrow(page: Page, width: int) -> None:
    page.set_viewport_size({"width": width, "height": 800})
    answered(page, REPORT_EXAMPLE)
    page.click("#edit")
    assert page.evaluate("document.documentElement.scrollWidth") <= width


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


def test_a_stream_that_breaks_leaves_the_draft_before_it(page: Page) -> None:
    answered(page, REPORT_EXAMPLE)
    page.unroute("**/report")
    begun = 'event: cases\ndata: {"reference_cases": []}\n\n'
    page.route("**/report", lambda route: route.fulfill(status=200, content_type="text/event-stream", body=begun))
    page.click("#draft")
    page.wait_for_selector("#error:not([hidden])")
    assert "ended early" in page.locator("#error").inner_text()
    assert texts(page, "button.sentence .words") == [part["text"] for part in REPORT_EXAMPLE["sentences"]]


def test_a_key_is_asked_for_and_used(browser: Browser, bundle: Path, tmp_path: Path) -> None:
    with live_server(bundle, warm_up=False, api_key=KEY, cases_dir=tmp_path / "cases") as live:
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
        page.wait_for_function("document.querySelector('.case-images img').naturalWidth > 0")
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
        assert page.locator("p.undrawn").first.is_visible(), "no browser draws DICOM"
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
