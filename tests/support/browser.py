"""A headless Chromium of the system for tests and screenshots, and what tests do on the page."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from tests.support.paths import DRAWN

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page, Route, ViewportSize

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
WAIT_MS = 60_000
VIEWPORT: ViewportSize = {"width": 1280, "height": 900}
RULES = ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa", "wcag22aa", "best-practice"]  # of axe-core
CUT_STREAM = 'event: cases\ndata: {"reference_cases": []}\n\n'  # a stream that ends after its cases


def find_chromium() -> str | None:
    """The browser that ``REPORT_CHROMIUM`` names, or the first of the usual names; None where there is none."""
    return os.environ.get("REPORT_CHROMIUM") or next(filter(None, map(shutil.which, NAMES)), None)


@contextmanager
def chromium(executable: str) -> Iterator[Browser]:
    """A browser; it ends with the block."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=executable, args=["--no-sandbox"])
        try:
            yield browser
        finally:
            browser.close()


def open_page(page: Page, url: str) -> None:
    """Open the page and wait until it shows that the service is ready."""
    page.set_default_timeout(WAIT_MS)
    page.goto(url)
    page.wait_for_selector("#service[data-state=ready]")


class Tab:
    """One tab for many tests: it opens the page in half the processor time that a new tab and its process need."""

    def __init__(self, browser: Browser) -> None:
        self._browser = browser
        self._errors: list[str] = []
        self._page: Page | None = None

    @contextmanager
    def opened(self, url: str) -> Iterator[Page]:
        """The page at its usual size, dark; afterwards the tab forgets what was stored, granted and routed.

        Raises:
            AssertionError: a script of the page raised an error.
        """
        page, self._page = self._page or self._new(), None
        try:
            page.set_viewport_size(VIEWPORT)
            page.emulate_media(media="null", color_scheme="dark", reduced_motion="reduce")
            open_page(page, url)
            yield page
            page.unroute_all(behavior="ignoreErrors")
            page.evaluate("() => { localStorage.clear(); sessionStorage.clear(); }")
            page.goto("about:blank")  # ends its requests
            page.mouse.move(0, 0)
            page.context.clear_permissions()
        except BaseException:
            page.context.close()  # the next test gets a new tab
            raise
        self._page = page
        errors, self._errors[:] = self._errors.copy(), []
        assert errors == []

    def _new(self) -> Page:
        page = self._browser.new_page(viewport=VIEWPORT, color_scheme="dark", reduced_motion="reduce")
        page.on("pageerror", lambda error: self._errors.append(str(error)))
        return page


def choose(page: Page, kind: str = "effusion") -> None:
    """Choose both views of a drawn study."""
    for view in ("frontal", "lateral"):
        page.set_input_files(f"#file-{view}", DRAWN / f"{kind}-{view}.png")


def choose_wrong_file(page: Page, folder: Path, view: str, name: str = "scan.dcm") -> None:
    """Choose a file that is not an image; a GIF by its name."""
    (folder / name).write_bytes(b"GIF89a" + bytes(100) if name.endswith(".gif") else b"neither image nor DICOM" * 9)
    page.set_input_files(f"#file-{view}", folder / name)


def draft(page: Page, *, anyway: bool = False) -> None:
    """Request a draft and wait until it is complete; ``anyway`` shows it if the page asks, for drawn images."""
    with page.expect_response("**/report") as response:  # an answer may be on show already
        page.click("#draft")
    response.value.finished()
    if anyway:
        page.wait_for_selector("#result:not(.arriving) :is(#result-tools, #unusual-show):visible")
        if page.locator("#unusual-show").is_visible():
            page.click("#unusual-show")
    page.wait_for_selector("#result:not(.arriving) #result-tools:not([hidden])")


def answered(page: Page, answer: dict[str, Any]) -> None:
    """Draft with a fixed response, for tests of how the page draws a report."""
    answer_with(page, answer)
    choose(page)
    draft(page)


def asked(page: Page, answer: dict[str, Any]) -> None:
    """Draft with a fixed response to an unusual image, and wait until the page asks."""
    answer_with(page, answer)
    choose(page)
    page.click("#draft")
    page.wait_for_selector("#unusual-show")


def answer_with(page: Page, answer: dict[str, Any]) -> None:
    """Give every draft a fixed response."""

    def fulfil(route: Route) -> None:
        route.fulfill(status=200, content_type="application/json", body=json.dumps(answer))

    page.route("**/report", fulfil)


def texts(page: Page, selector: str) -> list[str]:
    return page.locator(selector).all_inner_texts()


def corner(row: int, column: int) -> list[list[float]]:
    grid = [[0.0] * 7 for _ in range(7)]
    grid[row][column] = 0.5
    return grid


def edit(page: Page, findings: str) -> None:
    """Replace the draft by edited findings."""
    page.click("#edit")
    page.fill("#edit-area", findings)
    page.click("#edit-done")


def break_streams(page: Page) -> None:
    """Cut the streams of the next drafts."""
    page.unroute("**/report")
    page.route("**/report", lambda route: route.fulfill(status=200, content_type="text/event-stream", body=CUT_STREAM))


def transform(page: Page, view: int) -> list[float]:
    """Scale and shift of a view."""
    matrix: list[float] = (
        page.locator(".film")
        .nth(view)
        .evaluate("film => { const m = new DOMMatrix(getComputedStyle(film).transform); return [m.a, m.e, m.f]; }")
    )
    return matrix


def flaws(page: Page) -> list[str]:
    """Violations that axe-core finds on the current page: rule and element."""
    axe = pytest.importorskip("axe_playwright_python.sync_playwright", reason="needs pip install axe-playwright-python")
    found = axe.Axe().run(page, options={"runOnly": {"type": "tag", "values": RULES}})
    return [f"{flaw['id']}: {node['target']} {node['failureSummary']}" for flaw in found.response["violations"]
            for node in flaw["nodes"]]  # fmt: skip


def drop(page: Page, *paths: Path, on: str = "#study-title") -> None:
    """Drop files and folders of this machine on an element, as a file manager does."""
    box = page.locator(on).first.bounding_box()
    assert box is not None
    at = {"x": box["x"] + box["width"] / 2, "y": box["y"] + box["height"] / 2}
    data = {"items": [], "files": [str(path) for path in paths], "dragOperationsMask": 1}
    session = page.context.new_cdp_session(page)
    for kind in ("dragEnter", "dragOver", "drop"):
        session.send("Input.dispatchDragEvent", {"type": kind, "data": data, **at})
    session.detach()


def shown_files(page: Page) -> dict[str, list[int]]:
    """Width and height of the image in each view that has one, once all are drawn."""
    page.wait_for_function(
        """() => !document.getElementById("draft").disabled && [...document.querySelectorAll(".zone.filled img")].every(
             (image) => !image.hidden && image.complete && image.naturalWidth > 0)"""
    )
    sizes: dict[str, list[int]] = page.evaluate(
        """() => Object.fromEntries([...document.querySelectorAll(".view:has(.filled)")].map((view) => {
             const image = view.querySelector("img");
             return [view.dataset.view, [image.naturalWidth, image.naturalHeight]]; }))"""
    )
    return sizes
