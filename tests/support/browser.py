"""A headless Chromium of the system for tests and screenshots; none is downloaded."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
DRAWN = Path(__file__).resolve().parents[2] / "docs" / "images"  # phantoms, no patient's
WAIT_MS = 60_000


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
    """Open the service's page and wait until it calls the service ready."""
    page.set_default_timeout(WAIT_MS)
    page.goto(url)
    page.wait_for_selector("#service[data-state=ready]")


def choose(page: Page, kind: str = "effusion") -> None:
    """Put both views of a drawn study into their zones."""
    for view in ("frontal", "lateral"):
        page.set_input_files(f"#file-{view}", DRAWN / f"{kind}-{view}.png")


def draft(page: Page) -> None:
    """Ask for a draft and wait for the whole of it."""
    with page.expect_response("**/report") as response:  # an answer may be on show already
        page.click("#draft")
    response.value.finished()
    page.wait_for_selector("#result:not(.arriving) #result-tools:not([hidden])")
