"""Small pictures of the reference cases: made by hydration from a folder or an archive of radiographs."""

from __future__ import annotations

import io
import json
from pathlib import Path

import pytest
from PIL import Image

from model.files import file_sha256
from retrieval_index.cases import Case
from retrieval_index.hydrate import HydrateError, hydrate, main
from retrieval_index.index import IndexFormatError, ReportIndex
from retrieval_index.openi import image_views
from retrieval_index.pictures import SIDE, CasePictures
from tests.support.archives import IMAGES, report_xml, write_reports, write_tgz
from tests.support.index import write_index_bundle
from tests.support.service import png

CASES = [Case("CXR1_1_IM-0001"), Case("CXR3_IM-1384"), Case("CXR10_IM-0002-1001", "It had a text.")]
STUDIES = {"CXR1": IMAGES["CXR1"], "CXR3": ("CXR3_IM-1384-1001", "CXR3_IM-1384-2001")}
FRONTAL, LATERAL = "CXR1_1_IM-0001-4001", "CXR1_1_IM-0001-3001"  # the lateral is the first in the XML file


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    return write_index_bundle(tmp_path / "bundles" / "tiny", CASES)


@pytest.fixture
def reports(tmp_path: Path) -> Path:
    files = {f"{uid}.xml": report_xml(uid, "Invented words.", images) for uid, images in STUDIES.items()}
    return write_reports(tmp_path / "NLMCXR_reports.tgz", files)


def radiographs(*, sides: int = 400) -> dict[str, bytes]:
    """Files of the image archive: a wide frontal, a narrow lateral, a damaged file, and one of no case."""
    return {
        f"{FRONTAL}.png": png(sides, sides // 2), f"{LATERAL}.png": png(sides // 4, sides),
        "CXR3_IM-1384-1001.png": b"\x89PNG damaged", "CXR2_IM-0652-1001.png": png(), "notes.txt": b"not an image",
    }  # fmt: skip


@pytest.fixture
def images(tmp_path: Path) -> Path:
    folder = tmp_path / "NLMCXR_png"
    folder.mkdir()
    for name, data in radiographs().items():
        (folder / name).write_bytes(data)
    return folder


def size(picture: bytes | None) -> tuple[int, int]:
    assert picture is not None
    with Image.open(io.BytesIO(picture)) as image:
        assert (image.format, image.mode) == ("JPEG", "L")
        return image.size


def test_pictures_are_small_and_in_the_view_of_the_table(bundle: Path, reports: Path, images: Path) -> None:
    result = hydrate(bundle, reports, images=images, out=bundle.parent / "out")
    assert (result.pictures, result.broken) == (2, ("CXR3_IM-1384-1001: not_an_image",))
    assert "2 pictures; 1 broken files skipped" in result.summary()
    assert (image_views()[FRONTAL], image_views()[LATERAL]) == ("frontal", "lateral")
    manifest = json.loads((result.out / "MANIFEST.json").read_text())["files"]
    digests = {name.removeprefix("index/"): entry["sha256"] for name, entry in manifest.items()}
    assert "pictures.zip" in digests
    index = ReportIndex.load(result.out / "index", expected_sha256=digests)
    assert [index.case(row).images for row in range(3)] == [("frontal", "lateral"), (), ()]
    assert size(index.picture("CXR1_1_IM-0001", "frontal")) == (SIDE, SIDE // 2)
    assert size(index.picture("CXR1_1_IM-0001", "lateral")) == (SIDE // 4, SIDE)
    assert index.picture("CXR3_IM-1384", "frontal") is None
    assert ReportIndex.load(bundle / "index").case(0).images == ()


def test_archive_and_folder_give_equal_copies(bundle: Path, reports: Path, images: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert not hydrate(bundle, reports, images=images, out=out).unchanged
    archive = write_tgz(tmp_path / "NLMCXR_png.tgz", {f"x/{name}": data for name, data in radiographs().items()})
    assert hydrate(bundle, reports, images=archive, out=out).unchanged
    assert not hydrate(bundle, reports, out=out).unchanged, "without --images the copy has none"
    assert not (out / "index" / "pictures.zip").exists()


@pytest.mark.parametrize("content", [None, {}, {"CXR9_IM-1.png": b""}, b"no archive"])
def test_refuses_images_of_other_cases(
    bundle: Path, reports: Path, tmp_path: Path, content: dict[str, bytes] | bytes | None
) -> None:
    path = tmp_path / "images.tgz"
    if isinstance(content, bytes):
        path.write_bytes(content)
    elif content is not None:
        write_tgz(path, content)
    with pytest.raises(HydrateError, match="--images"):
        hydrate(bundle, reports, images=path, out=tmp_path / "outs" / "out")
    assert list((tmp_path / "outs").iterdir()) == []


def test_altered_pictures_are_refused(bundle: Path, reports: Path, images: Path, tmp_path: Path) -> None:
    hydrate(bundle, reports, images=images, out=tmp_path / "out")
    file = tmp_path / "out" / "index" / "pictures.zip"
    digests = {each.name: "0" * 64 if each == file else file_sha256(each) for each in file.parent.iterdir()}
    with pytest.raises(IndexFormatError, match=r"pictures\.zip has SHA-256"):
        ReportIndex.load(file.parent, expected_sha256=digests)
    file.write_bytes(b"no zip archive")
    with pytest.raises(ValueError, match="is not a zip archive"):
        CasePictures(file)


def test_command_line_counts_the_pictures(
    bundle: Path, reports: Path, images: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["--bundle", str(bundle), "--reports", str(reports), "--out", str(bundle.parent / "out")]
    assert main([*command, "--images", str(images)]) == 0
    printed = capsys.readouterr()
    assert "2 pictures" in printed.out
    assert "pictures: 3 of 4" in printed.err
