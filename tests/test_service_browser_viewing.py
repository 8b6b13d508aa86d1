"""The page in a real browser: window and level, zoom, and the images on a phone."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import pytest

from service.schemas.examples import REPORT_EXAMPLE
from tests.support.browser import answered, choose, corner, open_page, transform

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Locator, Page

    from tests.support.service import Live

SMALL = {"width": 1280, "height": 720}
GRID = {"frontal": corner(2, 2), "lateral": corner(3, 3)}
EVIDENCE = {"finding": "Cardiomegaly", "patches": GRID}
LONG = [{**REPORT_EXAMPLE["sentences"][0], "evidence": EVIDENCE}] * 8


@pytest.fixture
def phone(browser: Browser, page_server: Live) -> Iterator[Page]:
    """The page on a phone of 390 x 844 with a touch screen."""
    context = browser.new_context(
        viewport={"width": 390, "height": 844}, has_touch=True, is_mobile=True, reduced_motion="reduce"
    )
    page = context.new_page()
    errors: list[str] = []
    page.on("pageerror", lambda error: errors.append(str(error)))
    open_page(page, page_server.url)
    yield page
    context.close()
    assert errors == []


def box(part: Locator) -> dict[str, float]:
    found = part.bounding_box()
    assert found is not None
    return {**found, "end": found["y"] + found["height"]}


def window(page: Page) -> tuple[int, int]:
    """Brightness and contrast of the images in percent."""
    return int(page.input_value("#brightness")), int(page.input_value("#contrast"))


def touch(page: Page, *moves: list[tuple[float, float]]) -> None:
    """Move fingers through the points of each move: all fingers down at the first, up after the last."""
    session = page.context.new_cdp_session(page)
    for number, fingers in enumerate(moves):
        points = [{"x": x, "y": y, "id": finger} for finger, (x, y) in enumerate(fingers)]
        kind = "touchMove" if number else "touchStart"
        session.send("Input.dispatchTouchEvent", {"type": kind, "touchPoints": points})
    session.send("Input.dispatchTouchEvent", {"type": "touchEnd", "touchPoints": []})


# --- window and level ---


def test_right_button_changes_window_and_level_of_both_images(page: Page) -> None:
    choose(page)
    page.evaluate("document.addEventListener('contextmenu', (event) => { window.menu = !event.defaultPrevented; })")
    zone = box(page.locator(".zone").first)
    page.mouse.move(zone["x"] + 90, zone["y"] + 90)
    page.mouse.down(button="right")
    page.mouse.move(zone["x"] + 60, zone["y"] + 150, steps=4)
    page.mouse.up(button="right")
    brightness, contrast = window(page)
    assert (brightness, contrast) == (pytest.approx(100 * 0.819, abs=2), pytest.approx(100 * 1.105, abs=2))
    filters = page.locator(".film img").evaluate_all("images => images.map((image) => getComputedStyle(image).filter)")
    assert len(set(filters)) == 1
    assert f"brightness({brightness / 100:g})" in filters[0]
    assert page.evaluate("window.menu") is not True, "no menu opens over the image"
    assert transform(page, 0) == [1, 0, 0]


def test_presets_set_level_and_width_and_reset_restores_them(page: Page) -> None:
    choose(page)
    page.click("#display-button")
    for name, level, width in (("lungs", 90, 160), ("mediastinum", 185, 150), ("bones", 140, 120)):
        page.click(f"[data-preset={name}]")
        brightness, contrast = (value / 100 for value in window(page))
        assert 127.5 / brightness == pytest.approx(level, rel=0.02), name
        assert 255 / (brightness * contrast) == pytest.approx(width, rel=0.02), name
    words = page.locator("#window-values").inner_text()
    assert words.startswith("Width 1")
    page.check("#invert")
    page.click("#display-reset")
    assert window(page) == (100, 100)
    assert not page.is_checked("#invert")


@pytest.mark.parametrize("panel", ["display", "options"])
def test_panels_open_in_sight_and_move_no_button(page: Page, panel: str) -> None:
    page.set_viewport_size(SMALL)
    answered(page, {**REPORT_EXAMPLE, "sentences": LONG})
    page.evaluate("scrollTo(0, 0)")
    parts = [page.locator(f"#{name}") for name in ("draft", f"{panel}-button", "large")]
    before = [box(part) for part in parts]
    page.click(f"#{panel}-button")
    footer = box(page.locator(".disclaimer"))["y"]
    assert box(page.locator(f"#{panel}"))["end"] <= footer
    assert box(page.locator(".zone").first)["end"] <= footer, "with the images that it changes"
    after = [box(part) for part in parts]
    assert after[1:] == before[1:]
    assert after[0]["y"] == pytest.approx(before[0]["y"], abs=1)
    assert after[0]["end"] <= footer


def test_double_click_zooms_both_images(page: Page) -> None:
    choose(page)
    page.locator(".zone").first.dblclick(position={"x": 40, "y": 60})
    first, other = transform(page, 0), transform(page, 1)
    assert first[0] == other[0] == 2.5
    assert first[1] > 0
    assert other[1] == 0, "the sides of the views differ"
    assert first[2] == other[2] > 0, "at one height"
    page.locator(".zone").last.dblclick()
    assert [transform(page, view) for view in (0, 1)] == [[1, 0, 0], [1, 0, 0]]


# --- on a phone ---


def test_two_fingers_change_window_and_level_or_zoom(phone: Page) -> None:
    choose(phone)
    zone = box(phone.locator(".zone").first)
    x, y = zone["x"] + 60, zone["y"] + 90
    touch(phone, *([(x, y + 6 * step), (x + 40, y + 6 * step)] for step in range(11)))
    assert window(phone) == (pytest.approx(82, abs=3), 100)
    assert transform(phone, 0)[0] == 1
    touch(phone, *([(x - 3 * step, y), (x + 40 + 3 * step, y)] for step in range(11)))
    assert transform(phone, 0)[0] == pytest.approx(100 / 40, rel=0.3)
    assert window(phone) == (pytest.approx(82, abs=3), 100)
    assert phone.evaluate("visualViewport.scale") == 1


def test_tapped_sentence_stays_under_its_images_and_their_legend(phone: Page) -> None:
    answered(phone, {**REPORT_EXAMPLE, "sentences": LONG})
    pinned, footer = phone.locator("#pinned"), phone.locator(".disclaimer")
    for number in (0, 3, 7):
        sentence = phone.locator("button.sentence").nth(number)
        sentence.evaluate("button => button.scrollIntoView({block: 'start'})")
        phone.wait_for_function("() => document.body.classList.contains('away')")
        if number == 0:
            sentence.tap(position={"x": 30, "y": 12})  # where the images will be
        else:
            sentence.tap()
        phone.wait_for_function("() => document.body.classList.contains('looking')")
        settle(phone)
        assert sentence.get_attribute("aria-pressed") == "true", number
        images, words = box(pinned), box(sentence)
        assert images["y"] == 0
        assert images["end"] <= words["y"] + 1 < words["end"] <= box(footer)["y"], number
        assert images["end"] < 844 / 2
        fits(phone)
        if number == 3:
            phone.evaluate("scrollBy(0, 400)")
            settle(phone)
            assert box(sentence)["y"] == pytest.approx(box(pinned)["end"], abs=2), "it stays"


def settle(page: Page) -> None:
    """Wait until the page was laid out several times."""
    page.evaluate("() => new Promise((done) => { let n = 6, next = () => (n-- ? requestAnimationFrame(next) : done());"
                  " next(); })")  # fmt: skip


def fits(page: Page) -> None:
    """The legend and the words of the evidence lie within the images' part, uncut."""
    note: Any = page.locator("#overlay-note").evaluate(
        "note => [note.scrollWidth <= note.clientWidth, note.scrollHeight <= note.clientHeight]"
    )
    assert note == [True, True]
    images = box(page.locator("#pinned"))
    for part in (".of-evidence", "#overlay-what", "#overlay-where"):
        shown = box(page.locator(part))
        assert shown["x"] >= 0, part
        assert shown["x"] + shown["width"] <= 390, part
        assert shown["end"] <= images["end"], part


def test_pointer_over_a_sentence_moves_nothing_on_a_narrow_screen(browser: Browser, page_server: Live) -> None:
    context = browser.new_context(viewport={"width": 390, "height": 1800}, reduced_motion="reduce")  # with a mouse
    page = context.new_page()
    open_page(page, page_server.url)
    answered(page, {**REPORT_EXAMPLE, "sentences": LONG})
    page.locator("button.sentence").first.hover()
    settle(page)
    assert page.locator("button.shown").count() == 0, "its legend would move the sentences away from the pointer"
    context.close()
