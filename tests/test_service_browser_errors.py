"""The page in a real browser: wrong files, wrong fields, broken streams, API keys."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from service.schemas.examples import REPORT_EXAMPLE
from tests.support.browser import answered, break_streams, choose, choose_wrong_file, draft, open_page, texts
from tests.support.paths import DRAWN
from tests.support.service import KEY, live_server

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page


def test_refused_file_is_reported_at_its_view_and_disables_the_button(page: Page, tmp_path: Path) -> None:
    page.set_input_files("#file-lateral", DRAWN / "normal-lateral.png")
    assert page.locator("#draft").is_enabled()
    choose_wrong_file(page, tmp_path, "frontal", "scan.gif")
    page.wait_for_selector("#error-frontal:not([hidden])")
    assert "GIF" in page.locator("#error-frontal").inner_text()
    assert page.locator("#draft").is_disabled()
    page.click("#swap")
    page.wait_for_selector("#error-lateral:not([hidden])")
    assert page.locator("#draft").is_disabled()
    page.set_input_files("#file-lateral", DRAWN / "normal-lateral.png")
    draft(page)
    assert not page.locator("#error-lateral").is_visible()


def test_file_that_the_draft_refuses_disables_the_button(page: Page) -> None:
    problem = {"title": "x", "detail": "y", "code": "truncated", "field": "lateral", "status": 422, "type": ""}
    page.route("**/report", lambda route: route.fulfill(status=422, json=problem))
    choose(page)
    page.click("#draft")
    page.wait_for_selector("#error-lateral:not([hidden])")
    page.wait_for_selector("#draft:disabled")
    assert page.locator("#error").inner_text().startswith("Lateral image.")
    page.click("[data-view=lateral] .remove")
    assert page.locator("#draft").is_enabled()


def test_error_stays_when_the_other_view_changes(page: Page, tmp_path: Path) -> None:
    choose_wrong_file(page, tmp_path, "frontal")
    page.wait_for_selector("#error-frontal:not([hidden])")
    page.set_input_files("#file-lateral", DRAWN / "normal-lateral.png")
    assert page.locator("#error-frontal").is_visible()
    page.set_input_files("#file-frontal", DRAWN / "normal-frontal.png")
    assert not page.locator("#error-frontal").is_visible()


def test_invalid_number_is_reported(page: Page) -> None:
    choose(page)
    page.click("#options-button")
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


def test_broken_stream_keeps_the_previous_draft(page: Page) -> None:
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
def test_unexpected_response_is_reported_and_can_be_retried(page: Page, kind: str, body: str) -> None:
    page.route("**/report", lambda route: route.fulfill(status=200, content_type=kind, body=body))
    choose(page)
    page.click("#draft")
    page.wait_for_selector("#error:not([hidden])")
    assert "ended early" in page.locator("#error").inner_text()
    assert page.locator("#draft").is_enabled()
    assert page.evaluate("document.activeElement.id") == "draft", "the focus is not lost"


def test_unconfirmed_edit_is_exported(page: Page, tmp_path: Path) -> None:
    answered(page, REPORT_EXAMPLE)
    page.click("#edit")
    page.fill("#edit-area", "No pleural effusion.")
    with page.expect_download() as text:
        page.click("#save-text")  # without Done
    text.value.save_as(tmp_path / "draft.txt")
    assert (tmp_path / "draft.txt").read_text(encoding="utf-8").startswith("No pleural effusion.\n")


def test_key_is_requested_and_used(browser: Browser, bundle: Path, tmp_path: Path) -> None:
    with live_server(bundle, warm_up=False, api_key=KEY, user_cases_dir=tmp_path / "cases") as live:
        with live.client() as client:
            words = {"case_id": (None, "added-1"), "findings": (None, "The heart is normal. No effusion.")}
            picture = {"frontal": ("f", (DRAWN / "normal-frontal.png").read_bytes())}
            added = client.post("/cases", files={**words, **picture}, headers={"X-API-Key": KEY})
            assert added.status_code == 201
        page = browser.new_page()
        open_page(page, live.url)
        choose(page)
        page.click("#options-button")
        page.fill("#top_k", "50")
        page.click("#draft")
        page.wait_for_selector("#key-form:not([hidden])")
        page.fill("#key", KEY)
        page.keyboard.press("Enter")
        page.wait_for_selector("#result:not(.arriving) #result-tools:not([hidden])")
        image = page.locator(".case-images img")
        image.wait_for()
        page.wait_for_function("() => document.querySelector('.case-images img').naturalWidth > 0")
        assert "added-1" in (image.get_attribute("alt") or "")
        page.close()
