"""Pictures of the page for the documentation: ``python -m tests.support.screenshots [--out docs/images]``.

The real service with the shipped bundle drafts drawn phantoms. Reference cases with texts are invented and added
by ``POST /cases``: no radiograph and no text of the corpus is in any picture.
"""

from __future__ import annotations

import io
import re
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import httpx
from PIL import Image

from model.command_line import CommandParser
from tests.support.browser import choose, chromium, draft, find_chromium, open_page
from tests.support.paths import DRAWN
from tests.support.service import live_server

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

KEY = "screenshots-need-a-key"
COLOURS = 240  # dithered: an overlay is a smooth veil
SETTLE_MS = 500  # until the page has scrolled
WIDE, NARROW = (1440, 1130), (390, 844)
NAMES_A_FINDING = re.compile(r"opacit|airspace disease|atelectasis|enlarged|cardiomegaly")
INVENTED = {  # near enough to the drawn effusion to be among the first 50
    "drawn-1": "Left chest tube and central venous catheter. Small left effusion. Left lower lobe airspace disease.",
    "drawn-2": "Small left pleural effusion with associated airspace disease. Central venous catheter tip in the "
    "superior vena cava.",
    "drawn-3": "Central venous catheter is noted. Left base airspace disease with a small pleural effusion. The heart "
    "is enlarged.",
}


def add_cases(client: httpx.Client) -> None:
    """Reference cases with invented texts and drawn pictures."""
    for case_id, findings in INVENTED.items():
        pictures = {view: (view, (DRAWN / f"effusion-{view}.png").read_bytes()) for view in ("frontal", "lateral")}
        words = {"case_id": (None, case_id), "findings": (None, findings)}
        client.post("/cases", files={**words, **pictures}, headers={"X-API-Key": KEY}).raise_for_status()


def new_page(browser: Browser, url: str, size: tuple[int, int], theme: str, language: str) -> Page:
    """The page with a draft and the key given."""
    width, height = size
    page = browser.new_page(
        viewport={"width": width, "height": height}, color_scheme=theme,  # type: ignore[arg-type]
        locale=language, reduced_motion="reduce",
    )  # fmt: skip
    open_page(page, url)
    page.evaluate("key => sessionStorage.setItem('report-key', key)", KEY)
    choose(page)
    page.click("#options-button")
    page.fill("#top_k", "50")
    page.click("#options-button")
    draft(page, anyway=True)
    return page


def keep_invented(page: Page) -> None:
    """Hide all cases but the invented ones, which have texts."""
    page.evaluate(
        """names => document.querySelectorAll('#cases > li').forEach((item) => {
             item.hidden = !names.includes(item.querySelector('code').textContent); })""",
        list(INVENTED),
    )


def save(page: Page, path: Path) -> None:
    """Save a screenshot with few colours, to keep the file small."""
    picture = Image.open(io.BytesIO(page.screenshot()))
    colours = picture.convert("RGB").quantize(COLOURS, method=Image.Quantize.MEDIANCUT)
    picture.convert("RGB").quantize(palette=colours, dither=Image.Dither.FLOYDSTEINBERG).save(path, optimize=True)


def main(argv: list[str] | None = None) -> int:
    """Write all pictures; 1 where there is no Chromium."""
    parser = CommandParser(prog="python -m tests.support.screenshots", description=__doc__)
    parser.add_argument("--bundle", type=Path, default=Path("bundles/iu-xray"))
    parser.add_argument("--out", type=Path, default=DRAWN)
    arguments = parser.parse_args(argv)
    executable = find_chromium()
    if executable is None:
        print("no Chromium was found; apt install chromium, or name one in REPORT_CHROMIUM", file=sys.stderr)
        return 1
    with (
        tempfile.TemporaryDirectory() as folder,
        live_server(arguments.bundle, api_key=KEY, user_cases_dir=Path(folder) / "cases") as live,
        live.client() as client,
        chromium(executable) as browser,
    ):
        add_cases(client)
        for name, size, theme, language in (
            ("page", WIDE, "dark", "en"),
            ("page-zh", WIDE, "light", "zh-CN"),
            ("page-narrow", NARROW, "dark", "en"),
            ("page-zh-narrow", NARROW, "dark", "zh-CN"),
        ):
            page = new_page(browser, live.url, size, theme, language)
            keep_invented(page)
            sentence = page.locator("button.sentence").filter(has_text=NAMES_A_FINDING).first
            if size == NARROW:
                sentence.click()  # it stays under its images
            else:
                sentence.focus()
            page.wait_for_timeout(SETTLE_MS)
            save(page, arguments.out / f"{name}.png")
            if name == "page":
                page.keyboard.press("l")
                page.wait_for_timeout(SETTLE_MS)
                page.evaluate("scrollTo(0, 0)")
                save(page, arguments.out / "page-large.png")
                page.evaluate("dispatchEvent(new Event('beforeprint'))")
                page.emulate_media(media="print")
                page.set_viewport_size({"width": 800, "height": 1130})
                save(page, arguments.out / "page-print.png")
            page.close()
    return 0


if __name__ == "__main__":
    sys.exit(main())
