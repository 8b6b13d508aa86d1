"""The page in a real browser: keyboard, editing, copying, exports and printing."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import TYPE_CHECKING

from service.schemas.examples import REPORT_EXAMPLE
from service.schemas.models import ReportResponse
from tests.support.browser import answered, break_streams, choose, corner, draft, edit, texts, transform
from tests.support.formats import facts_of_fhir
from tests.support.service import KEY

if TYPE_CHECKING:
    from playwright.sync_api import Page, Route


# --- by keyboard ---


def test_keyboard_moves_pins_and_edits(page: Page) -> None:
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
    page.wait_for_function("() => document.activeElement === document.body")  # later than the window is hidden
    page.keyboard.press("e")
    page.wait_for_function("() => document.activeElement.id === 'edit-area'")
    page.keyboard.press("Escape")
    page.wait_for_function("() => document.activeElement.id === 'edit'")


def test_tab_reaches_every_control_with_visible_focus(page: Page) -> None:
    choose(page)
    draft(page)
    page.evaluate("document.activeElement.blur()")
    wanted = set(
        ["language", "theme", "keys", "large", "swap", "clear", "file-frontal", "file-lateral", "draft", "edit", "copy"]
    )
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


# --- editing and taking away ---


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
    facts = facts_of_fhir(json.loads((tmp_path / "draft.json").read_text(encoding="utf-8")))
    assert facts["findings"] == f"{kept} No pleural effusion."
    assert facts["warnings"][-1]["code"] == "edited"
    page.click("#edit")
    page.click("#edit-undo")
    assert texts(page, "button.sentence .words") == [part["text"] for part in REPORT_EXAMPLE["sentences"]]
    assert not page.locator("#edited-note").is_visible()


def test_failed_draft_keeps_the_edit(page: Page) -> None:
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


def test_new_draft_asks_before_replacing_an_edit(page: Page, tmp_path: Path) -> None:
    requests: list[str] = []
    answered(page, REPORT_EXAMPLE)
    page.on("request", lambda request: requests.append(request.url.rpartition("/")[2]))
    edit(page, "No pleural effusion.")
    page.click("#draft")
    assert page.evaluate("document.activeElement.value") == "keep"
    page.keyboard.press("Escape")
    page.click("#draft")
    page.click("#replace [value=keep]")
    assert texts(page, "button.sentence .words") == ["No pleural effusion."]
    assert "report" not in requests
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


def test_leaving_with_unsaved_text_asks(page: Page) -> None:
    answered(page, REPORT_EXAMPLE)
    asks = "dispatchEvent(new Event('beforeunload', {cancelable: true}))"
    assert page.evaluate(asks) is True, "nothing is lost"
    page.click("#edit")
    page.fill("#edit-area", "No pleural effusion.")
    assert page.evaluate(asks) is False
    page.click("#edit-undo")
    assert page.evaluate(asks) is True


def test_text_written_during_a_save_stays_unsaved(page: Page) -> None:
    asks = "dispatchEvent(new Event('beforeunload', {cancelable: true}))"
    answered(page, REPORT_EXAMPLE)
    edit(page, "No pleural effusion.")
    held: list[Route] = []
    of_file = re.compile("text/plain")  # the labels of an edit are exports too, as JSON
    page.route(
        "**/export",
        lambda route: held.append(route) if of_file.search(route.request.headers["accept"]) else route.continue_(),
    )
    with page.expect_request(lambda request: bool(of_file.search(request.headers.get("accept", "")))):
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


def test_key_prompt_during_export_keeps_the_edit(page: Page) -> None:
    answered(page, REPORT_EXAMPLE)
    with page.expect_response("**/export"):  # of the labels
        edit(page, "No pleural effusion.")
    requests: list[str | None] = []

    def guard(route: Route) -> None:
        requests.append(route.request.headers.get("authorization"))
        if requests[-1] is None:
            problem = {
                "title": "An API key is required",
                "status": 401,
                "detail": "Send a key.",
                "code": "unauthorized",
            }
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
    assert requests == [None, f"Bearer {KEY}"]
    assert texts(page, "button.sentence .words") == ["No pleural effusion."]


def test_copying_works_without_the_clipboard_api(page: Page) -> None:
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


def test_escape_closes_only_the_shortcut_list(page: Page) -> None:
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
    """WCAG 2.1.4: speech input may send letters unintentionally."""
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


def test_print_shows_findings_and_their_origin(page: Page) -> None:
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
