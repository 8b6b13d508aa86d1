"""The page in a real browser: the wait for a draft, labels of edited findings, the rewrite where it is possible."""

from __future__ import annotations

import dataclasses
import re
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from model.types import Draft, DraftOptions, EventCallback, StudyView
from service.inference import runtime
from service.inference.loader import LoadedBundle, load
from service.schemas.examples import REPORT_EXAMPLE
from service.settings import Settings
from tests.support.browser import answered, choose, draft, edit, open_page, texts
from tests.support.service import WAIT_S, Gate, live_server

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

STUDY_BUTTONS = ("#draft", "#options-button", "#display-button", "#swap", "#clear", "[data-view=lateral] .remove")
RESULT_BUTTONS = ("#edit", "#copy", "#save-text", "#save-fhir", "#print")


class Paused(Gate):
    """A drafter that also waits after it has found the cases."""

    def __init__(self, real: Any) -> None:
        super().__init__(real)
        self.go_on = threading.Event()

    def draft(
        self,
        studies: Sequence[Sequence[StudyView]],
        options: DraftOptions = DraftOptions(),  # noqa: B008
        *,
        callbacks: Sequence[EventCallback | None] | None = None,
        **more: Any,
    ) -> list[Draft]:
        def pausing(callback: EventCallback) -> EventCallback:
            def call(event: Any) -> None:
                callback(event)
                assert self.go_on.wait(WAIT_S)

            return call

        paused = None if callbacks is None else [None if one is None else pausing(one) for one in callbacks]
        return super().draft(studies, options, callbacks=paused, **more)


@pytest.fixture
def paused(browser: Browser, bundle: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[Page, Paused]]:
    """The page of a service whose drafter waits, and that drafter."""
    made: list[Paused] = []

    def load_paused(settings: Settings) -> LoadedBundle:
        loaded = load(settings)
        made.append(Paused(loaded.drafter))
        return dataclasses.replace(loaded, drafters=(made[-1],))

    monkeypatch.setattr(runtime, "load", load_paused)
    with live_server(bundle, warm_up=False) as live:
        page = browser.new_page(viewport={"width": 1280, "height": 900}, reduced_motion="reduce")
        open_page(page, live.url)
        yield page, made[0]
        for event in (made[0].go, made[0].go_on):
            event.set()
        page.close()


def boxes(page: Page, selectors: Sequence[str]) -> list[Any]:
    return [page.locator(selector).bounding_box() for selector in selectors]


def empty_headings(page: Page) -> list[str]:
    """Visible headings of the result without visible words before the next heading."""
    found: list[str] = page.evaluate(
        """() => { const shown = (part) => part.checkVisibility({visibilityProperty: true}) && part.innerText.trim();
             return [...document.querySelectorAll("#result :is(h2, h3)")].filter(shown).filter((heading) => {
               let part = heading.closest(".heading") ?? heading;
               while ((part = part.nextElementSibling)) {
                 if (part.matches("h2, h3")) return true;
                 if (shown(part)) return false;
               }
               return true; }).map((heading) => heading.innerText); }"""
    )
    return found


# --- while a draft is made ---


def test_stage_and_seconds_are_shown_and_no_button_moves(paused: tuple[Page, Paused]) -> None:
    page, drafter = paused
    assert "sentence by sentence" not in page.locator("body").inner_text()
    choose(page)
    study = boxes(page, STUDY_BUTTONS)
    page.click("#draft")
    page.wait_for_function("() => /^[1-9][0-9]* s$/.test(document.getElementById('elapsed').textContent)")
    assert page.locator("#status").inner_text() == "Reading the images and writing the draft…"
    waiting = page.locator("#waiting").inner_text()
    assert re.fullmatch(r"Reading the images and writing the draft… [1-9][0-9]* s", waiting)
    assert page.locator("#status").get_attribute("aria-live") == "polite"
    assert page.locator("#elapsed").get_attribute("aria-hidden") == "true", "a screen reader does not count"
    assert empty_headings(page) == []
    assert boxes(page, STUDY_BUTTONS) == study
    drafter.go.set()
    page.wait_for_selector("#cases > li")
    assert page.locator("#status").inner_text() == "Reference cases found. Writing the draft…"
    assert page.locator("#waiting").is_visible()
    assert empty_headings(page) == []
    assert boxes(page, STUDY_BUTTONS) == study
    assert page.locator("#cases").evaluate("list => getComputedStyle(list).pointerEvents") == "none"
    drafter.go_on.set()
    page.wait_for_selector("#result:not(.arriving) #result-tools:visible")
    assert not page.locator("#waiting").is_visible()
    assert page.locator("#elapsed").inner_text() == ""
    assert empty_headings(page) == []
    assert boxes(page, STUDY_BUTTONS) == study


def test_buttons_of_the_result_stay_during_the_next_draft(paused: tuple[Page, Paused]) -> None:
    page, drafter = paused
    drafter.go.set()
    drafter.go_on.set()
    choose(page)
    draft(page)
    page.evaluate("scrollTo(0, 0)")
    before = boxes(page, RESULT_BUTTONS)
    drafter.go_on.clear()
    page.click("#draft")
    page.wait_for_selector("#waiting:visible")
    assert boxes(page, RESULT_BUTTONS) == before
    assert page.locator("#edit").is_disabled()
    assert empty_headings(page) == []
    drafter.go_on.set()
    page.wait_for_selector("#result:not(.arriving) #edit:enabled")
    assert boxes(page, RESULT_BUTTONS) == before


# --- labels ---


def test_labels_and_cases_follow_an_edit(page: Page) -> None:
    case = {**REPORT_EXAMPLE["reference_cases"][0], "labels": {"Pleural Effusion": "present", "Fracture": "present"}}
    answered(page, {**REPORT_EXAMPLE, "reference_cases": [case]})
    assert page.locator("#labels [data-finding='Fracture']").count() == 0
    page.click("#edit")
    page.fill("#edit-area", "There is a rib fracture. No pleural effusion.")
    page.wait_for_selector("#labels [data-finding='Fracture'].present")  # while the reader types
    assert page.locator("#labels [data-finding='Pleural Effusion'].absent").count() == 1
    assert page.locator("#labels [data-finding='Cardiomegaly']").count() == 0
    assert page.locator("#labels-title").inner_text() == "Labels found in the edited findings"
    relations = dict(zip(page.locator("#cases .chip").evaluate_all("all => all.map((chip) => chip.dataset.finding)"),
                         texts(page, "#cases .relation"), strict=True))  # fmt: skip
    assert relations == {"Pleural Effusion": "denied in the draft", "Fracture": "as in the draft"}
    page.click("#edit-undo")
    assert page.locator("#labels [data-finding='Cardiomegaly'].absent").count() == 1
    assert page.locator("#labels-title").inner_text() == "Labels found in the draft"


def test_labels_of_an_edit_without_an_answer_are_those_of_the_draft(page: Page) -> None:
    answered(page, REPORT_EXAMPLE)
    page.route("**/export", lambda route: route.abort())
    edit(page, "There is a rib fracture.")
    page.wait_for_function("() => document.getElementById('labels-title').textContent.includes(\"model's draft\")")
    assert page.locator("#labels [data-finding='Cardiomegaly'].absent").count() == 1


# --- the rewrite ---


def test_rewrite_is_offered_only_where_a_model_is_configured(page: Page, browser: Browser, bundle: Path) -> None:
    page.click("#options-button")
    assert not page.locator("#refine").is_visible()
    with live_server(
        bundle, warm_up=False, refine_url="http://127.0.0.1:9/v1", refine_model="m", prefer_hydrated=False
    ) as live:
        with live.client() as client:
            assert client.get("/health").json()["refine"] is True
        other = browser.new_page()
        open_page(other, live.url)
        other.click("#options-button")
        other.check("#refine")
        choose(other)
        draft(other)
        assert "The language model gave no usable answer" in other.locator("#warnings").inner_text()
        other.close()
