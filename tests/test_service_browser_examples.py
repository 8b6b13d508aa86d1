"""Example studies in a browser: one click fills both views; drawings are called drawings."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from retrieval_index.examples import STUDIES, fetch_examples
from tests.support.browser import flaws, open_page, shown_files, texts
from tests.support.service import KEY, live_server, png

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The studies, with invented images of different widths, and the drawings."""
    images, out = tmp_path_factory.mktemp("images"), tmp_path_factory.mktemp("examples")
    for number, study in enumerate(STUDIES):
        for view, file in study.files.items():
            (images / file).write_bytes(png(100 + 10 * number + (view == "lateral")))
    fetch_examples(str(images), out)
    return out


def texts_of(page: Page) -> dict[str, list[str]]:
    """Heading -> buttons of its group."""
    groups = page.locator("#examples [role=group]")
    return {
        groups.nth(at).locator("strong").inner_text(): groups.nth(at).locator("button").all_inner_texts()
        for at in range(groups.count())
    }


def test_one_click_fills_both_views(browser: Browser, bundle: Path, folder: Path) -> None:
    page = browser.new_page(viewport={"width": 1280, "height": 900}, reduced_motion="reduce")
    errors: list[str] = []
    page.on("pageerror", lambda error: errors.append(str(error)))
    with live_server(bundle, warm_up=False, examples_dir=folder, api_key=KEY) as live:
        open_page(page, live.url)  # without the key
        page.click("#examples-button")
        studies = ["normal", "cardiomegaly", "pleural effusion", "lung opacity"]
        drawings = ["normal", "pleural effusion", "consolidation"]
        assert list(texts_of(page).items()) == [("Radiographs", studies), ("Drawings", drawings)]
        (credit, warning) = texts(page, "#examples .legend")
        assert "Indiana University, Open-i, CC BY-NC-ND 4.0" in credit
        assert "unaltered" in credit
        assert "not radiographs" in warning
        links = page.locator("#examples a").evaluate_all("links => links.map((link) => link.href)")
        assert links[1:] == [study.source_url for study in STUDIES]
        page.click("#examples button >> text=pleural effusion >> nth=0")
        page.wait_for_selector(".view[data-view=lateral] img:visible")
        assert shown_files(page) == {"frontal": [120, 120], "lateral": [121, 120]}
        assert flaws(page) == []
        page.select_option("#language", "zh-Hans")
        assert texts_of(page)["绘制图"] == ["正常", "胸腔积液", "肺实变"]
        page.select_option("#language", "en")
        shutil.move(folder / STUDIES[3].files["lateral"], folder / "gone.png")
        page.click("#examples button >> text=lung opacity")
        page.wait_for_selector("#error:visible")
        assert "The example could not be read" in page.inner_text("#error")
        assert shown_files(page) == {"frontal": [120, 120], "lateral": [121, 120]}  # as before
        page.click("#draft")
        page.fill("#key", KEY)
        page.click("#key-form button")
        page.wait_for_selector("#result:not(.arriving) :is(#result-tools, #unusual-show):visible")
    page.close()
    assert errors == []


def test_page_without_examples_has_no_button(page: Page) -> None:
    assert page.locator("#examples-button").is_hidden()
