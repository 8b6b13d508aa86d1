"""The worklist in a browser: states, reasons, links, languages, accessibility, narrow screens."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from service.pacs.queue import StudyQueue
from tests.support.browser import WAIT_MS, choose, flaws, texts, transform
from tests.support.dicomweb_server import dicomweb_server
from tests.support.pacs import image
from tests.support.service import KEY, live_server

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

LONG = "1.2.826.0.1.3680043.8.498." + "9" * 38


@pytest.fixture(scope="module")
def queue(tmp_path_factory: pytest.TempPathFactory) -> StudyQueue:
    queue = StudyQueue(tmp_path_factory.mktemp("node") / "queue.sqlite")
    queue.received("1.1", "1.1.1", "1.1.1.1", "a", quiet_s=0, patient="Doe^Jane", accession="A17", now=1.7e9)
    queue.received(LONG, "1.2.1", "1.2.1.1", "b", quiet_s=0, now=1.6e9)
    study = queue.due(1.65e9)
    assert study is not None
    queue.failed(study, "two_patients", "The images of the study have 2 different values of PatientID. Correct it.")
    return queue


@pytest.fixture
def worklist(browser: Browser, bundle: Path, queue: StudyQueue) -> Iterator[Page]:
    file = queue._connection.execute("PRAGMA database_list").fetchone()["file"]
    with live_server(bundle, warm_up=False, worklist=file, api_key=KEY) as live:
        page = browser.new_page(viewport={"width": 1280, "height": 720}, color_scheme="dark", reduced_motion="reduce")
        errors: list[str] = []
        page.on("pageerror", lambda error: errors.append(str(error)))
        page.set_default_timeout(WAIT_MS)
        page.goto(f"{live.url}/worklist")
        page.fill("#key", KEY)
        page.click("#key-form button")
        page.wait_for_selector("#worklist-status[data-state=ready]")
        yield page
        page.close()
        assert errors == []


def test_studies_are_shown_with_state_reason_and_a_link(worklist: Page) -> None:
    assert texts(worklist, ".state") == ["failed", "received"]
    assert "2 different values of PatientID" in texts(worklist, "#worklist-rows tr")[0]
    assert "Doe^Jane" in texts(worklist, "#worklist-rows tr")[1]
    assert "A17" in texts(worklist, "#worklist-rows tr")[1]
    links = worklist.locator("#worklist-rows a")
    assert [links.nth(each).get_attribute("href") for each in range(2)] == [f"./?study={LONG}", "./?study=1.1"]
    assert texts(worklist, "#worklist-status") == ["1 received, 0 drafted, 0 sent, 1 failed"]


def test_one_click_opens_the_study_with_its_images(browser: Browser, bundle: Path, queue: StudyQueue) -> None:
    file = queue._connection.execute("PRAGMA database_list").fetchone()["file"]
    page = browser.new_page()
    page.set_default_timeout(WAIT_MS)
    with (
        dicomweb_server() as pacs,
        live_server(bundle, warm_up=False, worklist=file, dicomweb_url=pacs.url, api_key=KEY) as live,
    ):
        pacs.reset(image("1.1", "LL", SeriesInstanceUID="1.1.2"), image("1.1", SeriesInstanceUID="1.1.1"))
        page.goto(f"{live.url}/worklist")
        page.fill("#key", KEY)
        page.click("#key-form button")
        page.click("#worklist-rows a >> text=Doe")
        page.wait_for_selector("[data-view=frontal] img:visible")
        page.wait_for_selector("[data-view=lateral] img:visible")
        page.click("#draft")
        page.wait_for_selector("#result:not(.arriving) :is(#result-tools, #unusual-show):visible")
        assert len([each for each in pacs.requests if each[0] == "GET"]) > 3
        page.goto(f"{live.url}/?study=1.9")
        page.wait_for_selector("#error:visible")
        assert "1.9" not in page.inner_text("#error")
    page.close()


def test_earlier_study_is_shown_next_to_the_images_until_they_are_replaced(browser: Browser, bundle: Path) -> None:
    page = browser.new_page(viewport={"width": 1280, "height": 720})
    page.set_default_timeout(WAIT_MS)
    with dicomweb_server() as pacs, live_server(bundle, warm_up=False, dicomweb_url=pacs.url) as live:
        pacs.reset(
            *(image("1.1", view, SeriesInstanceUID=f"1.1.{len(view)}{view == 'LL':d}") for view in ("PA", "LL")),
            image("1.2", StudyDate="20240315"), image("1.2", "LL", StudyDate="20240315"),
            image("1.3", patient="P2", StudyDate="20250101"),
        )  # fmt: skip
        page.goto(f"{live.url}/?study=1.1")
        page.wait_for_selector(".of-frontal img:visible")
        page.wait_for_selector(".of-lateral img:visible")
        assert texts(page, "#prior-words") == [
            "Earlier study of 2024-03-15; this one is of 2026-01-01. The draft does not use it."
        ]
        assert page.get_attribute(".of-lateral img", "alt") == "Lateral radiograph of the earlier study of 2024-03-15"
        boxes = {name: page.locator(name).bounding_box() for name in ("[data-view=lateral] .zone", ".of-lateral .zone")}
        now, before = boxes.values()
        assert now
        assert before
        assert (now["x"], now["width"]) == (before["x"], before["width"]), "below the same view"
        assert before["y"] + before["height"] < 720, "in sight"
        page.dblclick(".of-frontal .zone")
        assert [transform(page, number)[0] for number in range(4)] == [2.5] * 4, "zoomed together"
        page.select_option("#language", "zh-Hans")
        assert texts(page, "#prior-toggle") == ["隐藏"]
        assert flaws(page) == []
        page.click("#prior-toggle")
        assert page.is_hidden(".of-frontal img")
        page.set_viewport_size({"width": 320, "height": 640})
        assert page.evaluate("document.documentElement.scrollWidth") <= 320
        choose(page)
        assert page.is_hidden("#prior"), "another patient's images"
    page.close()


def test_worklist_speaks_chinese_and_has_no_flaw_in_either_theme(worklist: Page) -> None:
    worklist.select_option("#language", "zh-Hans")
    assert texts(worklist, "h1") == ["检查列表"]
    assert texts(worklist, ".state") == ["失败", "已接收"]
    assert worklist.title() == "检查列表"
    assert flaws(worklist) == []
    worklist.click("#theme")
    assert flaws(worklist) == []


def test_nothing_scrolls_sideways_on_a_phone_but_the_table(worklist: Page) -> None:
    worklist.set_viewport_size({"width": 320, "height": 640})
    assert worklist.evaluate("document.documentElement.scrollWidth") <= 320
