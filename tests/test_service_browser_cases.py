"""The page in a real browser: cases compared with the draft, folded, and with hostile texts and addresses."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import httpx
import pytest

from service.schemas.examples import REPORT_EXAMPLE
from tests.support.browser import answered, choose, draft, edit, open_page, texts
from tests.support.formats import written_as
from tests.support.index import add_picture
from tests.support.service import AUTHORIZED, KEY, live_server

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

MARKUP = (
    'The heart is enlarged. <img src=x onerror="window.hacked=1"> <script>window.hacked=2</script> '
    '</p><a href="javascript:window.hacked=3">x</a> &lt;b&gt; ${window.hacked=4} {{7*7}} xxxx <svg/onload=hacked=5>.'
)
ADDRESSES = {  # accepted by the service; a browser cannot parse the second
    "quoted": 'https://x.example/"><img/src=x/onerror="window.hacked=6">',
    "unparsable": "http://1.2.3.4.5/",
}


@pytest.fixture
def hostile(browser: Browser, bundle: Path, tmp_path: Path) -> Iterator[Page]:
    """The page of a service that retrieves all of these cases."""
    with live_server(bundle, warm_up=False, api_key=KEY, user_cases_dir=tmp_path / "cases") as live:
        with httpx.Client(base_url=live.url, headers=AUTHORIZED) as client:
            for name, address in ADDRESSES.items():
                form = {"case_id": name, "findings": MARKUP, "source_url": address}
                assert (
                    client.post("/cases", files={key: (None, value) for key, value in form.items()}).status_code == 201
                )
        page = browser.new_page()
        errors: list[str] = []
        page.on("pageerror", lambda error: errors.append(str(error)))
        page.set_extra_http_headers(AUTHORIZED)
        open_page(page, live.url)
        yield page
        page.close()
        assert errors == []


def test_cases_of_a_bundle_with_pictures_show_them(browser: Browser, bundle_copy: Path) -> None:
    case_id = add_picture(bundle_copy)
    with live_server(bundle_copy, warm_up=False, api_key=KEY) as live, live.client() as client:
        client.headers.update(AUTHORIZED)
        assert client.get(f"/cases/{case_id}").json()["images"] == {"lateral": f"cases/{case_id}/lateral"}
        assert client.get(f"/cases/{case_id}/lateral").content[:2] == b"\xff\xd8"
        assert client.get(f"/cases/{case_id}/frontal").json()["code"] == "no_such_case"
        page = browser.new_page()
        page.set_extra_http_headers(AUTHORIZED)
        open_page(page, live.url)
        choose(page)
        page.click("#options-button")
        page.fill("#top_k", "50")
        draft(page)
        picture = page.locator("#cases > li", has_text=case_id).locator("img:not(.loading)")
        assert picture.evaluate("image => [image.naturalWidth, image.naturalHeight]") == [90, 120]
        assert picture.get_attribute("alt") == f"Lateral radiograph of case {case_id}"
        assert page.locator("#cases img").count() == 1
        page.close()


def test_case_with_markup_is_shown_as_text(hostile: Page) -> None:
    choose(hostile)
    hostile.click("#options-button")
    hostile.fill("#top_k", "10")
    draft(hostile)
    for name in ADDRESSES:
        case = hostile.locator("#cases > li", has=hostile.locator("code", has_text=name))
        shown = case.locator(".case-text").inner_text()
        assert '<img src=x onerror="window.hacked=1">' in shown
        assert '</p><a href="javascript:window.hacked=3">x</a> &lt;b&gt; ${window.hacked=4} {{7*7}}' in shown
        assert case.locator("img, script, svg").count() == 0
    links = hostile.locator("#cases a").evaluate_all("links => links.map((link) => link.protocol)")
    assert set(links) == {"https:"}
    assert hostile.evaluate("window.hacked") is None
    assert set(ADDRESSES) <= set(texts(hostile, "#cases code"))


# --- compared with the draft ------------------------------------------------------------------------------------------


def answer_with_cases(findings: str, *cases: str) -> dict[str, Any]:
    """An answer whose draft and cases have these texts, with what is read from each."""
    read = ("findings", "labels", "annotations")
    found = [{name: part for name, part in written_as(text).model_dump().items() if name in read} for text in cases]
    (case,) = REPORT_EXAMPLE["reference_cases"]
    listed = [{**case, "rank": number, **each} for number, each in enumerate(found, 1)]
    return {**written_as(findings).model_dump(), "reference_cases": listed}


def test_case_with_the_finding_on_another_side_or_in_another_degree_is_marked(page: Page) -> None:
    cases = {
        "Small left effusion. Edema.": ["as in the draft", "as in the draft"],
        "Small right effusion. Edema.": ["side differs", "as in the draft"],
        "Large left effusion. Severe edema.": ["degree differs", "degree differs"],
        "Bilateral effusions. Minimal edema.": ["side differs", "as in the draft"],
    }
    answered(page, answer_with_cases("Small left pleural effusion. Mild edema.", *cases))
    for number, expected in enumerate(cases.values(), 1):
        chip = f"#cases > li:nth-child({number}) .chip[data-finding='{{}}'] .relation"
        assert [page.locator(chip.format(name)).inner_text() for name in ("Pleural Effusion", "Edema")] == expected
    assert texts(page, "#cases .chip.other .place") == [" · right · small", " · both sides"]
    assert texts(page, "#cases li:last-child .place") == [" · minimal", " · both sides"]


def test_chosen_finding_folds_the_cases_that_do_not_name_it(page: Page) -> None:
    answered(page, answer_with_cases("Left effusion. Large heart.", "No effusion.", "Small effusion.", "Fracture."))
    chip, cases = page.locator("#labels button.chip[data-finding='Pleural Effusion']"), page.locator("#cases")
    shown = "list => [...list.children].map((item) => item.querySelector('.case-body').checkVisibility())"
    chip.focus()
    page.keyboard.press("Enter")
    assert chip.get_attribute("aria-pressed") == "true"
    assert cases.evaluate(shown) == [False, True, False]
    note = "Pleural Effusion: named by 1 of 3 reference cases. The others are folded."
    assert page.locator("#cases-folded").inner_text() == note
    edit(page, "Right effusion.")
    page.wait_for_function("() => document.getElementById('labels-title').textContent.includes('edited')")
    assert cases.evaluate(shown) == [False, True, False], "the edit keeps the finding"
    page.emulate_media(media="print")
    assert cases.evaluate(shown) == [True, True, True]
    page.emulate_media(media="screen")
    chip.click()
    assert cases.evaluate(shown) == [True, True, True]
    assert page.locator("#cases-folded").inner_text() == ""
