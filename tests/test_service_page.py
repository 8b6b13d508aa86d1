"""The page: all files from this service, no other origin, with the disclaimer, in two languages."""

from __future__ import annotations

import re
from html.parser import HTMLParser

import httpx
import pytest

from model.text.annotation_terms import BONES, REGIONS
from model.text.annotations import DEGREES
from model.text.labeler import FINDINGS
from service.routes.system import STATIC
from service.schemas.examples import DISCLAIMER
from service.web.problems import CODES
from tests.support.paths import REPOSITORY

FILES = sorted(path for path in STATIC.rglob("*") if path.is_file())
SCRIPTS = {path.name: path.read_text(encoding="utf-8") for path in STATIC.glob("*.js")}
ALL_SCRIPTS = "".join(SCRIPTS.values())


class Page(HTMLParser):
    """Elements of a page: (tag, attributes), and its text."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.words: list[str] = []
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.words.append(data)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.words).split())


PAGES = ("index.html", "worklist.html")


def page(name: str = "index.html") -> Page:
    return Page((STATIC / name).read_text(encoding="utf-8"))


def test_page_is_served_with_all_its_files(client: httpx.Client) -> None:
    answer = client.get("/")
    assert answer.status_code == 200
    assert answer.headers["content-type"] == "text/html; charset=utf-8"
    parts = {
        value
        for tag, attributes in Page(answer.text).elements
        for name, value in attributes.items()
        if name in ("src", "href") and tag in ("script", "link", "img") and value
    }
    assert len(parts) >= 3
    for part in parts:
        assert client.get(part).status_code == 200, part
    kinds = {path.suffix: client.get(f"/static/{path.name}").headers["content-type"] for path in FILES}
    assert "javascript" in kinds[".js"]
    assert kinds[".css"].startswith("text/css")


def test_content_security_policy_allows_nothing_foreign(client: httpx.Client) -> None:
    for path in ("/", "/static/page.js", "/health", "/nothing"):
        headers = client.get(path).headers
        policy = dict(part.strip().split(" ", 1) for part in headers["content-security-policy"].split(";"))
        assert policy["default-src"] == "'none'"
        assert policy["script-src"] == policy["style-src"] == policy["connect-src"] == "'self'"
        assert policy["frame-ancestors"] == "'none'"
        assert "unsafe" not in headers["content-security-policy"]
        assert headers["x-content-type-options"] == "nosniff"
        assert headers["referrer-policy"] == "no-referrer"
        assert path not in ("/health", "/nothing") or headers["cache-control"] == "no-store"


def test_page_files_reference_no_other_origin() -> None:
    for path in FILES:
        text = path.read_text(encoding="utf-8").replace("http://www.w3.org/2000/svg", "")  # a name, not an address
        assert not re.search(r"https?://|[\"'(]//\w", text), path.name
        assert "@import" not in text, path.name
        assert "innerHTML" not in text, path.name


@pytest.mark.parametrize("name", PAGES)
def test_page_has_no_inline_script_or_style(name: str) -> None:
    for tag, attributes in page(name).elements:
        assert not any(name == "style" or name.startswith("on") for name in attributes), (tag, attributes)
        assert tag != "style"
        if tag == "script":
            assert attributes.get("src")


@pytest.mark.parametrize("name", PAGES)
def test_page_shows_the_disclaimer(name: str) -> None:
    assert DISCLAIMER in page(name).text


def test_every_control_has_a_name() -> None:
    parsed = page()
    labelled = {attributes.get("for") for tag, attributes in parsed.elements if tag == "label"}
    for tag, attributes in parsed.elements:
        if tag == "input":
            assert attributes.get("id") in labelled, attributes
    identifiers = [attributes["id"] for _, attributes in parsed.elements if "id" in attributes]
    assert len(identifiers) == len(set(identifiers))
    for _, attributes in parsed.elements:
        for name in ("aria-labelledby", "aria-describedby"):
            for target in (attributes.get(name) or "").split():
                assert target in identifiers, target
    live = [attributes for _, attributes in parsed.elements if attributes.get("role") in ("status", "alert")]
    assert len(live) >= 3


def test_every_element_that_scripts_use_exists() -> None:
    identifiers = {attributes.get("id") for name in PAGES for _, attributes in page(name).elements}
    used = set(re.findall(r'(?:byId|getElementById)\("([^"]+)"\)', ALL_SCRIPTS))
    assert len(used) > 15
    assert used <= identifiers


# --- the key ----------------------------------------------------------------------------------------------------


def test_key_field_is_a_labelled_password_field() -> None:
    elements = page().elements
    (form,) = [attributes for tag, attributes in elements if tag == "form" and attributes.get("id") == "key-form"]
    assert "hidden" in form  # until a request is answered 401
    (field,) = [attributes for tag, attributes in elements if tag == "input" and attributes["type"] == "password"]
    assert (field["id"], field["autocomplete"]) == ("key", "off")
    assert "name" not in field  # never part of an address


def test_key_is_kept_in_the_tab_and_sent_in_one_header() -> None:
    for elsewhere in ("document.cookie", "indexedDB", "location.", "history.", "console."):
        assert elsewhere not in ALL_SCRIPTS, elsewhere
    assert [name for name, script in SCRIPTS.items() if "sessionStorage" in script] == ["key.js"]
    assert {name for name, script in SCRIPTS.items() if "storedKey()" in script} == {"key.js", "api.js"}
    assert SCRIPTS["api.js"].count("storedKey()") == 1
    assert "{ Authorization: `Bearer ${key}` }" in SCRIPTS["api.js"]
    assert 'problem.code === "unauthorized"' in SCRIPTS["page.js"]
    assert "unauthorized" in CODES


def test_only_language_theme_and_shortcuts_outlast_the_tab() -> None:
    assert [name for name, script in SCRIPTS.items() if "localStorage" in script] == ["preferences.js"]
    kept = re.findall(r"""\bprefer\(["'](\w+)["']""", ALL_SCRIPTS)
    assert sorted(kept) == ["keys", "language", "theme"]


# --- two languages ----------------------------------------------------------------------------------------------


def dictionary(name: str) -> dict[str, str]:
    """Key -> words, as the script holds them."""
    entries = re.findall(r'^  (?:"([^"]+)"|(\w+)):\s+"((?:[^"\\]|\\.)*)",$', (STATIC / name).read_text("utf-8"), re.M)
    found = [(quoted or bare, words) for quoted, bare, words in entries]
    assert len(found) == len(dict(found)), "a key occurs twice"
    return dict(found)


# translations of the service's English texts
SERVICE_KEYS = ("finding.", "region.", "degree.", "warning.", "problem.", "remedy.")


def test_both_dictionaries_have_the_same_keys() -> None:
    english, chinese = dictionary("words.en.js"), dictionary("words.zh.js")
    shared = {key: words for key, words in chinese.items() if not key.startswith(SERVICE_KEYS)}
    assert list(shared) == list(english)
    assert len(english) > 100
    for key, words in english.items():
        assert sorted(re.findall(r"\{\w+\}", words)) == sorted(re.findall(r"\{\w+\}", shared[key])), key
        assert words.strip(), key
        assert shared[key].strip(), key


def test_chinese_dictionary_covers_findings_and_warnings() -> None:
    chinese = dictionary("words.zh.js")
    guide = (REPOSITORY / "docs" / "api.md").read_text(encoding="utf-8")
    tables = re.findall(r"^\| ?warning ?\| ?meaning ?\|\n(?:\|.*\n)+", guide, re.M)
    warnings = set(re.findall(r"^\| ?`(\w+)` ?\|", "".join(tables), re.M))
    assert {"missing_view", "view_mismatch", "refine_added"} <= warnings
    needed = {f"finding.{name}" for name in FINDINGS} | {f"degree.{name}" for name in DEGREES}
    needed |= {f"region.{name}" for name, _ in (*REGIONS, *BONES)}
    needed |= {f"problem.{code}" for code in CODES} | {f"warning.{code}" for code in warnings}
    assert needed <= set(chinese), needed - set(chinese)
    remedies = {key.removeprefix("remedy.") for key in chinese if key.startswith("remedy.")}
    assert remedies <= set(CODES), remedies - set(CODES)


def test_chinese_texts_use_chinese_punctuation() -> None:
    for key, words in dictionary("words.zh.js").items():
        assert not re.search(r"[\u4e00-\u9fff}][,:;()?!]|[,:;()?!][\u4e00-\u9fff{]", words), key


def test_every_used_dictionary_key_exists() -> None:
    english = dictionary("words.en.js")
    used = set(re.findall(r"""\bt\("([^"$]+)\"""", ALL_SCRIPTS))
    used |= {f"{key}.{number}" for key in re.findall(r'\bcount\("(\w+)"', ALL_SCRIPTS) for number in ("one", "many")}
    marked = [
        (tag, name, value or "")
        for document in PAGES
        for tag, attributes in page(document).elements
        for name, value in attributes.items()
        if name.startswith("data-i18n")
    ]
    used |= {key for _, _, key in marked}
    assert len(used) > 90
    assert used <= set(english), used - set(english)


@pytest.mark.parametrize("document", PAGES)
def test_static_texts_equal_the_dictionary(document: str) -> None:
    html = (STATIC / document).read_text(encoding="utf-8")
    english = dictionary("words.en.js")
    static = re.findall(r'<\w+[^>]* data-i18n="([^"]+)"[^>]*>([^<]+)<', html)
    assert len(static) > 10
    for key, words in static:
        assert " ".join(words.split()) == english[key], key
    for attribute, name in (("aria-label", "data-i18n-label"), ("alt", "data-i18n-alt")):
        for _, attributes in page(document).elements:
            if name in attributes:
                assert attributes[attribute] == english[attributes[name] or ""]


# --- contrast ---------------------------------------------------------------------------------------------------


def themes() -> dict[str, dict[str, str]]:
    css = (STATIC / "page.css").read_text(encoding="utf-8")
    colours = re.findall(r"--([a-z-]+): light-dark\((#[0-9a-f]{3,6}), (#[0-9a-f]{3,6})\);", css)
    assert len(colours) > 15
    return {"dark": {name: dark for name, _, dark in colours}, "light": {name: light for name, light, _ in colours}}


def luminance(colour: str) -> float:
    digits = colour.lstrip("#")
    if len(digits) == 3:
        digits = "".join(digit * 2 for digit in digits)
    channels = [int(digits[start : start + 2], 16) / 255 for start in (0, 2, 4)]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(one: str, other: str) -> float:
    high, low = sorted((luminance(one), luminance(other)), reverse=True)
    return (high + 0.05) / (low + 0.05)


@pytest.mark.parametrize("theme", ["dark", "light"])
def test_all_text_has_enough_contrast(theme: str) -> None:
    colours = themes()[theme]
    pairs = [(text, ground) for text in ("ink", "soft", "accent") for ground in ("ground", "panel", "raised")]
    pairs += [(name, f"{name}-ground") for name in ("present", "uncertain", "absent", "danger")]
    pairs += [("accent-ink", "accent"), ("danger", "panel"), ("uncertain", "panel"), ("ink", "line")]
    for text, ground in pairs:
        assert contrast(colours[text], colours[ground]) >= 4.5, (text, ground)
    for edge, ground in (("control", "panel"), ("accent", "panel"), ("accent", "line"), ("uncertain", "line")):
        assert contrast(colours[edge], colours[ground]) >= 3, (edge, ground)  # WCAG 1.4.11, not text
