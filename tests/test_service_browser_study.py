"""The page in a real browser: a study from several files, a folder, a zip archive or a medium with a DICOMDIR."""

from __future__ import annotations

import io
import re
import zipfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pydicom
import pytest
from PIL import Image
from pydicom.dataset import Dataset
from pydicom.fileset import FileSet

from model.images.dicom import header
from service.routes.system import STATIC
from service.schemas.examples import REPORT_EXAMPLE
from tests.support.browser import answer_with, drop, shown_files, texts
from tests.support.dicom import SC, dicom
from tests.support.paths import DRAWN

if TYPE_CHECKING:
    from playwright.sync_api import Page

CT = "1.2.840.10008.5.1.4.1.1.2"
IMPLICIT, BIG, DEFLATED = "1.2.840.10008.1.2", "1.2.840.10008.1.2.2", "1.2.840.10008.1.2.1.99"
NEW, OLD = "1.2.3.1", "1.2.3.2"


def film(side: int, position: str | None = None, study: str = NEW, **tags: Any) -> bytes:
    """A square DICOM image that its side identifies on the page."""
    views = {} if position is None else {"ViewPosition": position}
    values = np.tile(np.linspace(0, 255, side).astype(np.uint8), (side, 1))
    return dicom(values, StudyInstanceUID=study, StudyDate="20240501" if study == NEW else "20200501", **views, **tags)


STUDY = {  # file -> content, in an order that is not that of the views
    "DICOM/IM1": film(61, "LL"),
    "DICOM/IM2": film(62, "PA", ContentDate="20240501", ContentTime="100000"),
    "DICOM/IM3": film(63, "PA", ContentDate="20240501", ContentTime="110000"),
    "DICOM/IM4": film(64, "PA", study=OLD),
    "DICOM/IM5": film(65, "PA", PresentationIntentType="FOR PROCESSING"),
    "DICOM/IM6": film(66, sop_class=CT, Modality="CT"),
    "DICOM/IM7": film(67, "PA", BodyPartExamined="HAND"),
    "DICOM/IM8": film(68, "LLO"),
    "DICOM/IM9": film(69, sop_class=SC),
    "VIEWER/LOGO.PNG": (DRAWN / "normal-frontal.png").read_bytes(),
    "VIEWER/README.TXT": b"Start VIEWER.EXE.",
    ".DS_Store": b"\0\0\0\1Bud1",
}
LEFT = [  # the end of each line, with the files
    ("IM2", "another image of the same view; the newest one is used"),
    ("IM4", "another study; the newest one is used"),
    ("IM5", "image for processing"),
    ("IM6", "no radiograph (CT)"),
    ("IM7", "another body part (HAND)"),
    ("IM8", "another projection (LLO)"),
    ("IM9", "secondary capture without a view"),
    ("LOGO.PNG", "the DICOM images are used"),
    ("README.TXT", "no DICOM, PNG or JPEG file"),
]


def zipped(files: dict[str, bytes], method: int = zipfile.ZIP_DEFLATED) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", method) as archive:
        for name, data in files.items():
            archive.writestr(name, data)
    return out.getvalue()


def unpacked(folder: Path, files: dict[str, bytes]) -> Path:
    for name, data in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)
    return folder


def check_study(page: Page) -> None:
    """The page shows the views of ``STUDY`` and names what it left out."""
    assert shown_files(page) == {"frontal": [63, 63], "lateral": [61, 61]}
    lines = texts(page, "#left li")
    assert len(lines) == len(LEFT)
    for name, reason in LEFT:
        assert any(line.endswith(f"{name}: {reason}") for line in lines), (name, lines)
    assert not any("DS_Store" in line for line in lines)


def test_folder_is_sorted_into_the_views_and_the_rest_is_named(page: Page, tmp_path: Path) -> None:
    page.set_viewport_size({"width": 1280, "height": 720})
    drop(page, unpacked(tmp_path / "disc", STUDY))
    check_study(page)
    left, footer, button = (page.locator(part).bounding_box() for part in ("#left", ".disclaimer", "#draft"))
    assert left is not None
    assert footer is not None
    assert button is not None
    assert left["y"] + left["height"] < button["y"] < button["y"] + button["height"] < footer["y"], "all in sight"
    page.select_option("#language", "zh-Hans")
    assert any(line.endswith("IM6\uff1a不是 X 线片\uff08CT\uff09") for line in texts(page, "#left li"))
    page.select_option("#language", "en")
    page.click("#clear")
    assert not page.locator("#left").is_visible()


def test_more_images_of_unknown_view_than_empty_views_are_named_and_not_guessed(page: Page, tmp_path: Path) -> None:
    reason = "the view is not known, and more than one such image would fit; drop the right one on its view"
    for name, data in (("a.dcm", film(61, "LL")), ("b.dcm", film(62)), ("c.dcm", film(63))):
        (tmp_path / name).write_bytes(data)
    page.set_input_files("#file-frontal", [tmp_path / name for name in ("a.dcm", "b.dcm", "c.dcm")])
    assert shown_files(page) == {"lateral": [61, 61]}
    assert texts(page, "#left li") == [f"b.dcm, c.dcm: {reason}"]
    drop(page, *(drawing(tmp_path, side) for side in (71, 72, 73)))
    page.wait_for_selector("#left li >> text=73.png")
    assert page.is_disabled("#draft"), "the images of the study before are gone"


@pytest.mark.parametrize("method", [zipfile.ZIP_DEFLATED, zipfile.ZIP_STORED])
def test_zip_archive_is_read_like_a_folder(page: Page, tmp_path: Path, method: int) -> None:
    (tmp_path / "study.zip").write_bytes(zipped(STUDY, method))
    if method == zipfile.ZIP_STORED:
        page.set_input_files("#file-lateral", tmp_path / "study.zip")
    else:
        drop(page, tmp_path / "study.zip", on=".zone")
    check_study(page)


def test_several_files_are_chosen_at_once_and_the_third_is_named(page: Page, tmp_path: Path) -> None:
    for name, data in (("a.dcm", film(61, "LL")), ("b.dcm", film(62, "AP")), ("c.dcm", film(63))):
        (tmp_path / name).write_bytes(data)
    page.set_input_files("#file-frontal", [tmp_path / name for name in ("a.dcm", "b.dcm", "c.dcm")])
    assert shown_files(page) == {"frontal": [62, 62], "lateral": [61, 61]}
    assert texts(page, "#left li") == ["c.dcm: both views are filled"]


def drawing(folder: Path, side: int) -> Path:
    """A file with a square PNG, which has no header."""
    path = folder / f"{side}.png"
    Image.new("L", (side, side), 90).save(path)
    return path


def test_files_without_a_header_keep_their_order(page: Page, tmp_path: Path) -> None:
    drop(page, drawing(tmp_path, 72), drawing(tmp_path, 71), on=".zone")
    assert shown_files(page) == {"frontal": [72, 72], "lateral": [71, 71]}
    assert not page.locator("#left").is_visible()
    (tmp_path / "pa.dcm").write_bytes(film(62, "PA"))
    drop(page, drawing(tmp_path, 72), tmp_path / "pa.dcm")
    page.wait_for_function("() => document.querySelector('.film img').naturalWidth === 62")
    assert shown_files(page) == {"frontal": [62, 62], "lateral": [72, 72]}, "it takes the view that the header leaves"


def test_medium_with_a_dicomdir_is_read(page: Page, tmp_path: Path) -> None:
    files = FileSet()
    for number, data in enumerate((film(61, "LL"), film(62, "PA"))):
        made = pydicom.dcmread(io.BytesIO(data))
        made.SOPInstanceUID = made.file_meta.MediaStorageSOPInstanceUID = f"1.2.4.{number}"
        made.PatientID, made.PatientName, made.StudyID, made.Modality = "1", "Drawn^Phantom", "1", "DX"
        made.StudyTime, made.SeriesInstanceUID, made.SeriesNumber, made.InstanceNumber = "1000", "1.2.5", 1, number
        files.add(made)
    files.write(tmp_path / "disc")
    assert (tmp_path / "disc" / "DICOMDIR").exists()
    drop(page, tmp_path / "disc")
    assert shown_files(page) == {"frontal": [62, 62], "lateral": [61, 61]}
    assert not page.locator("#left").is_visible()


def test_one_file_dropped_next_to_the_views_goes_to_the_view_of_its_header(page: Page, tmp_path: Path) -> None:
    (tmp_path / "one.dcm").write_bytes(film(61, "LL"))
    drop(page, tmp_path / "one.dcm")
    assert shown_files(page) == {"lateral": [61, 61]}


def test_archives_that_cannot_be_read_are_named_with_the_reason(page: Page, tmp_path: Path) -> None:
    good = zipped({"IM1": film(61, "PA")})
    encrypted = bytearray(good)
    for signature, offset in ((b"PK\3\4", 6), (b"PK\1\2", 8)):
        encrypted[encrypted.index(signature) + offset] |= 1
    flipped = bytearray(zipped({"IM1": film(61, "PA")}, zipfile.ZIP_STORED))
    flipped[flipped.index(b"\xe0\x7f\x10\x00") + 600] ^= 1  # a pixel
    bomb = bytearray(zipped({"IM1": b"\0" * 128 + b"DICM" + bytes(2**20)}))
    at = bomb.index(b"PK\1\2") + 24
    bomb[at : at + 4] = (200_000).to_bytes(4, "little")  # the directory says less than there is
    cases = {
        "cut.zip": (good[:-30], "damaged"), "encrypted.zip": (bytes(encrypted), "encrypted"),
        "flipped.zip": (bytes(flipped), "damaged"), "bomb.zip": (bytes(bomb), "damaged"),
        "nested.zip": (zipped({"inner.zip": good}), "archive in an archive"),
        "lzma.zip": (zipped({"IM1": film(61, "PA")}, zipfile.ZIP_LZMA), "use deflate"),
    }  # fmt: skip
    for name, (data, words) in cases.items():
        (tmp_path / name).write_bytes(data)
        page.set_input_files("#file-frontal", tmp_path / name)
        page.wait_for_function(f"() => document.getElementById('left').textContent.includes({words!r})")
        page.wait_for_function("() => document.getElementById('status').textContent === ''")
        assert not page.locator(".zone.filled").first.is_visible(), name
        page.click("#left-close")
        assert not page.locator("#left").is_visible()


def header_in_browser(page: Page, data: bytes) -> dict[str, Any]:
    found: dict[str, Any] = page.evaluate(
        "(bytes) => import('/static/dicom.js').then((m) => m.readDicom(new Uint8Array(bytes)))", list(data)
    )
    return found


def test_header_is_read_in_every_syntax_and_damage_gives_nothing(page: Page) -> None:
    code = Dataset()
    code.CodeValue, code.CodingSchemeDesignator, code.CodeMeaning = "399067008", "SCT", "lateral"
    private = {"ViewCodeSequence": [code]}
    for syntax in ("1.2.840.10008.1.2.1", IMPLICIT, BIG):
        data = film(40, syntax=syntax, **private)
        found = header_in_browser(page, data)
        assert (found["view"], found["study"]) == ("lateral", NEW), syntax
        for end in (140, 200, 300, 400):
            assert header_in_browser(page, data[:end])["view"] is None, end
    assert header_in_browser(page, film(40, "PA", syntax=DEFLATED))["view"] is None
    assert header_in_browser(page, bytes(132))["view"] is None


def test_header_is_read_beyond_a_private_sequence_of_unknown_vr(page: Page) -> None:
    """Its items are in implicit VR (PS3.5, 6.2.2), which a PACS writes that does not know the element."""
    item = b"\xfe\xff\x00\xe0\xff\xff\xff\xff\x11\x00\x02\x10\x08\x00\x00\x00unlikely\xfe\xff\x0d\xe0\0\0\0\0"
    private = b"\x11\x00\x01\x10UN\0\0\xff\xff\xff\xff" + item + b"\xfe\xff\xdd\xe0\0\0\0\0"
    data = film(41, "PA")
    at = data.index(b"\x18\x00\x01\x51CS")
    found = header_in_browser(page, data[:at] + private + data[at:])
    assert (found["view"], found["study"]) == ("frontal", NEW)


def test_terms_of_the_view_equal_those_of_the_service() -> None:
    script = (STATIC / "dicom.js").read_text(encoding="utf-8")
    lists = {name: set(re.findall(rf'{name} = "([^"]+)"', script)[0].split(",")) for name in
             ("FRONTAL", "LATERAL", "OTHER")}  # fmt: skip
    known = {**header._POSITIONS, **header._VIEW_CODES}
    assert lists["FRONTAL"] == {term for term, view in known.items() if view == "frontal"}
    assert lists["LATERAL"] == {term for term, view in known.items() if view == "lateral"}
    assert lists["OTHER"] == header._OTHER_POSITIONS


def test_images_move_to_the_views_as_which_they_were_read(page: Page, tmp_path: Path) -> None:
    check = {"frontal": 0.001, "unusual": 0.3}
    checks = [{**check, "view": "lateral"}, {**check, "view": "frontal", "frontal": 0.999}]
    grids = {"frontal": [[0.5, 0.0], [0.0, 0.0]], "lateral": [[0.0, 0.0], [0.0, 0.5]]}
    sentence = {**REPORT_EXAMPLE["sentences"][0], "attention": {"patches": grids, "cases": []}}
    answer_with(page, {**REPORT_EXAMPLE, "image_checks": checks, "sentences": [sentence]})
    page.set_input_files("#file-frontal", drawing(tmp_path, 71))
    page.set_input_files("#file-lateral", drawing(tmp_path, 72))
    assert shown_files(page) == {"frontal": [71, 71], "lateral": [72, 72]}
    page.click("#draft")
    page.wait_for_selector("#result-tools:visible")
    assert shown_files(page) == {"frontal": [72, 72], "lateral": [71, 71]}
    assert not page.locator("#stale").is_visible()
    page.locator("button.sentence").focus()
    assert "frontal 50%, strongest at lower right" in page.locator("#overlay-note").inner_text()
    assert texts(page, "#checks li")[0].startswith("Lateral: looks like a lateral")
