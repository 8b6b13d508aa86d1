"""The page in a real browser: accessibility, language, theme and screen size."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import pytest

from service.schemas.examples import REPORT_EXAMPLE
from tests.support.browser import answered, choose, choose_wrong_file, corner, drop, flaws, texts
from tests.support.paths import DRAWN

if TYPE_CHECKING:
    from playwright.sync_api import Page


# --- accessibility ---


@pytest.mark.parametrize("theme", ["dark", "light"])
def test_axe_reports_no_violation(page: Page, theme: Literal["dark", "light"]) -> None:
    page.emulate_media(color_scheme=theme)
    assert flaws(page) == []
    attention = {"patches": {"frontal": corner(2, 2), "lateral": corner(3, 3)}, "cases": [0.1]}
    doubtful = {**REPORT_EXAMPLE["sentences"][1], "supported": False, "confidence": 0.1, "attention": attention}
    refined = {"text": "A small effusion.", "model": "qwen3:8b"}
    answered(page, {**REPORT_EXAMPLE, "sentences": [REPORT_EXAMPLE["sentences"][0], doubtful], "refined": refined})
    page.locator("button.sentence").last.focus()
    page.evaluate("document.querySelectorAll('details').forEach((part) => { part.open = true; })")
    for panel in ("#options-button", "#display-button"):
        page.click(panel)
    drop(page, DRAWN / "normal-frontal.png", DRAWN / "normal-lateral.png", Path(__file__))
    page.wait_for_selector("#left li")
    assert flaws(page) == []
    page.click("#edit")
    page.fill("#edit-area", "No effusion.")
    page.click("#swap")  # the draft is stale now
    assert flaws(page) == []
    page.click("#edit-done")
    page.click("#keys")
    assert flaws(page) == []
    page.keyboard.press("Escape")
    page.click("#draft")
    page.wait_for_selector("#replace[open]")
    assert flaws(page) == []


# --- modules by themselves ---


UNUSUAL = {  # percentile and its text: never rounded up to .99, the warning threshold
    0.31: "31%", 0.98: "98%", 0.9851: "98.5%", 0.9899: "98.9%", 0.99: "99.0%", 0.9949: "99.4%", 1.0: "100.0%",
}  # fmt: skip
STREAM = ': wait\n\nevent: cases\r\ndata: {"n":\r\ndata: 1}\r\n\r\nevent: report\ndata: "é"\n\n'


def of_module(page: Page, name: str, expression: str, argument: object = None) -> Any:
    """The value of an expression of a module `m` and an argument `a`."""
    return page.evaluate(f"(a) => import('/static/{name}').then((m) => {expression})", argument)


def test_modules_work_without_the_page(page: Page) -> None:
    """One page for all of it: opening one takes longer than these."""
    for width in (1, 3, 1000):  # of the pieces in which a stream arrives
        pieces = [STREAM[start : start + width] for start in range(0, len(STREAM), width)]
        parse = "{ const parser = new m.EventParser(); return a.flatMap((piece) => parser.feed(piece)); }"
        events = of_module(page, "stream.js", parse, pieces)
        assert events == [{"event": "cases", "data": {"n": 1}}, {"event": "report", "data": "é"}], width
    grids = {f"{row},{column}": corner(row, column) for row in (0, 3, 6) for column in (0, 3, 6)}
    locations = of_module(page, "overlay.js", "m.describeLocation(a).map((part) => [part.location, part.sum])", grids)
    names = [f"{row}.{column}" for row in ("upper", "middle", "lower") for column in ("left", "centre", "right")]
    assert locations == [[name, 0.5] for name in names]
    draw = """{ const list = document.createElement("ul"), checks = a.map((unusual) => ({frontal: 0.998, unusual}));
                document.createElement("div").append(list);
                m.drawChecks(list, checks, a.map(() => "frontal"));
                return [...list.children].map((line) => line.textContent); }"""
    for line, share in zip(of_module(page, "draw.js", draw, list(UNUSUAL)), UNUSUAL.values(), strict=True):
        assert f"more unusual than {share} of" in line


# --- language, theme, size ---


def test_chinese_interface_keeps_the_english_report(page: Page) -> None:
    answered(page, REPORT_EXAMPLE)
    page.select_option("#language", "zh-Hans")
    assert page.locator("html").get_attribute("lang") == "zh-Hans"
    assert page.locator("#result-title").inner_text() == "所见草稿"
    assert "胸腔积液" in page.locator("#labels").inner_text()
    assert page.locator("#warnings").inner_text() == "没有侧位图像\uff1b草稿仅依据一个体位。"
    assert page.get_by_role("button", name="移除正位图像").is_visible()
    assert texts(page, "button.sentence .words") == [part["text"] for part in REPORT_EXAMPLE["sentences"]]
    page.reload()
    assert page.locator("#study-title").inner_text() == "检查", "the choice outlasts the page"
    page.select_option("#language", "en")


def test_report_is_marked_as_english(page: Page) -> None:
    case = {**REPORT_EXAMPLE["reference_cases"][0], "images": {}}
    answered(page, {**REPORT_EXAMPLE, "reference_cases": [case]})
    page.select_option("#language", "zh-Hans")
    for selector in ("button.sentence .words", ".case-text"):
        assert page.locator(selector).first.evaluate("node => node.closest('[lang]').lang") == "en", selector
    for selector in ("button.sentence .amount", "#cases .chip", ".case-text .redacted"):
        assert page.locator(selector).first.evaluate("node => node.closest('[lang]').lang") == "zh-Hans", selector
    page.select_option("#language", "en")


def test_errors_follow_the_current_language(page: Page, tmp_path: Path) -> None:
    choose_wrong_file(page, tmp_path, "frontal", "scan.gif")
    page.wait_for_selector("#error-frontal:not([hidden])")
    page.select_option("#language", "zh-Hans")
    assert page.locator("#error-frontal").inner_text() == "不支持 GIF 文件。请改用 PNG、JPEG 或 DICOM 文件。"
    page.select_option("#language", "en")
    assert page.locator("#error-frontal").inner_text().startswith("GIF files are not supported.")
    problem = {"title": "The image is too small", "detail": "The image is 9 x 8 pixels; at least 32 on each side are "
               "needed. Send the radiograph itself, not an icon or thumbnail.", "code": "too_small", "field": "frontal",
               "status": 422, "type": ""}  # fmt: skip
    page.route("**/report", lambda route: route.fulfill(status=422, json=problem))
    choose(page)
    page.click("#draft")
    page.wait_for_selector("#error:not([hidden])")
    page.select_option("#language", "zh-Hans")
    assert page.locator("#error").inner_text() == "正位图像\uff1a图像太小。"
    assert page.locator("#error-frontal").inner_text() == (
        "图像为 9 x 8 像素\uff0c每边至少需要 32 像素。请发送胸片原图\uff0c而不是缩略图。"
    )
    page.select_option("#language", "en")
    assert page.locator("#error").inner_text().startswith("Frontal image.")


def test_errors_of_the_connection_follow_the_current_language(page: Page) -> None:
    choose(page)
    page.route("**/report", lambda route: route.abort())
    page.click("#draft")
    page.wait_for_selector("#error:not([hidden])")
    assert page.locator("#error").inner_text().startswith("The service cannot be reached.")
    page.select_option("#language", "zh-Hans")
    assert page.locator("#error").inner_text().startswith("无法连接服务。")
    page.select_option("#language", "en")


def test_shown_report_follows_the_language_during_a_draft(page: Page) -> None:
    answered(page, REPORT_EXAMPLE)
    page.unroute("**/report")
    page.route("**/report", lambda route: None)  # no answer comes
    page.click("#draft")
    page.select_option("#language", "zh-Hans")
    page.click("#cancel")
    assert page.locator("#status").inner_text() == "已取消。"
    assert page.locator("#warnings").inner_text().startswith("没有侧位图像")
    assert "胸腔积液" in page.locator("#labels").inner_text()
    assert "与草稿一致" in page.locator("#cases").inner_text()
    page.select_option("#language", "en")


def test_theme_follows_the_system_until_chosen(page: Page) -> None:
    def ground() -> str:
        colour: str = page.evaluate("getComputedStyle(document.body).backgroundColor")
        return colour

    dark = ground()
    page.emulate_media(color_scheme="light")
    light = ground()
    assert dark != light
    page.wait_for_selector("#theme[aria-pressed=true]")
    page.click("#theme")
    assert ground() == dark
    page.reload()
    assert ground() == dark
    page.click("#theme")
    assert ground() == light


def test_narrow_screens_do_not_scroll_sideways(page: Page) -> None:
    answered(page, REPORT_EXAMPLE)
    page.evaluate("document.querySelectorAll('details').forEach((part) => { part.open = true; })")
    for _ in ("sentences", "editor"):
        for width in (320, 390, 640, 768, 1000):
            page.set_viewport_size({"width": width, "height": 800})
            for _ in ("usual", "large"):
                assert page.evaluate("document.documentElement.scrollWidth") <= width
                page.click("#large")
        page.click("#edit")


def test_images_stay_visible_on_narrow_screens(page: Page) -> None:
    page.set_viewport_size({"width": 390, "height": 844})
    attention = {"patches": {"frontal": corner(2, 2), "lateral": corner(3, 3)}, "cases": []}
    sentences = [{**REPORT_EXAMPLE["sentences"][0], "attention": attention}] * 6
    answered(page, {**REPORT_EXAMPLE, "sentences": sentences})
    page.mouse.move(0, 0)
    height = page.evaluate("document.documentElement.scrollHeight")
    last = page.locator("button.sentence").last
    last.evaluate("button => button.scrollIntoView({block: 'start'})")
    page.wait_for_function("() => document.body.classList.contains('away')")
    last.click()
    assert page.evaluate("document.documentElement.scrollHeight") == height, "nothing below moves"
    canvas, image = page.locator("canvas.heat").first, page.locator(".film img").first
    page.wait_for_function("() => document.querySelector('canvas.heat').getBoundingClientRect().height < 300")
    box, zone = canvas.bounding_box(), image.bounding_box()
    assert box is not None
    assert zone is not None
    assert 0 <= box["y"] < box["y"] + box["height"] < 844 * 0.4
    assert max(box["width"] / zone["width"], box["height"] / zone["height"]) == pytest.approx(1, abs=0.01)
    page.keyboard.press("Home")
    first = page.locator("button.sentence").first.bounding_box()
    assert first is not None
    assert first["y"] > 0.34 * 844, "the images hide no sentence that has the focus"
