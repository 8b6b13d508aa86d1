"""Image stores: loose files, the archive, and both chained."""

from __future__ import annotations

import logging
import os
import tarfile
from pathlib import Path

import numpy as np
import pytest

from model.images import load_pixels
from model.types import View
from tests.support.archives import write_tgz
from tests.support.dicom import dicom, film, png
from training.data.image_store import ChainedImages, LooseImages, TarImages, images_by_id
from training.data.pixel_cache import build_pixel_cache
from training.data.studies import ImageRef, Source, Study

MEMBERS = {
    "NLMCXR_png/CXR1_IM-0001-1001.png": b"one",
    "NLMCXR_png/sub/CXR2_IM-0002-1001.JPG": b"two" * 1000,
    "CXR3_IM-0003-1001.dcm": b"three",
    "README.txt": b"no image",
    "again/CXR3_IM-0003-1001.png": b"the same id once more",
}
IDS = ["CXR3_IM-0003-1001", "CXR1_IM-0001-1001", "CXR2_IM-0002-1001"]
EXPECTED = dict(zip(IDS, [b"three", b"one", b"two" * 1000], strict=True))


def test_finds_images_by_id_in_subfolders(tmp_path: Path) -> None:
    for name in ("a.png", "sub/b.JPEG", "sub/deep/c.dcm", "d.jpg", "d.png", "notes.txt", ".e.png"):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(name.encode())
    found = images_by_id(tmp_path)
    names = {key: path.relative_to(tmp_path).as_posix() for key, path in found.items()}
    assert names == {"a": "a.png", "b": "sub/b.JPEG", "c": "sub/deep/c.dcm", "d": "d.png"}  # .png before .jpg


def test_loose_images_are_yielded_once_and_missing_ones_as_none(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(b"a")
    store = LooseImages({"a": tmp_path / "a.png", "gone": tmp_path / "gone.png"}, tmp_path)
    assert list(store.iter(["a", "never", "a", "gone"])) == [("a", b"a"), ("never", None), ("gone", None)]
    assert "2 files" in store.description()


def test_archive_is_read_in_one_pass(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = TarImages(write_tgz(tmp_path / "NLMCXR_png.tgz", MEMBERS))
    opened: list[object] = []
    original = tarfile.open

    def counted(*arguments: object, **keywords: object) -> tarfile.TarFile:
        opened.append(arguments)
        return original(*arguments, **keywords)  # type: ignore[call-overload, no-any-return]

    monkeypatch.setattr(tarfile, "open", counted)
    read = list(store.iter([*IDS, "CXR9_IM-0009-1001", IDS[0]]))
    assert read == [*((key, EXPECTED[key]) for key in (IDS[1], IDS[2], IDS[0])), ("CXR9_IM-0009-1001", None)]
    assert len(opened) == 1
    assert dict(store.iter(IDS[:1])) == {IDS[0]: b"three"}
    assert list(store.iter([])) == []


def test_truncated_archive_loses_its_tail_and_logs_it(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    noise = {f"CXR{n}_IM-{n:04d}-1001.png": os.urandom(20_000) for n in range(10)}
    archive = write_tgz(tmp_path / "NLMCXR_png.tgz", noise)
    archive.write_bytes(archive.read_bytes()[:110_000])
    with caplog.at_level(logging.WARNING):
        read = dict(TarImages(archive).iter([name.removesuffix(".png") for name in noise]))
    whole = [data is not None for data in read.values()]
    assert whole == [True] * 5 + [False] * 5
    assert all(data is None or data == noise[f"{key}.png"] for key, data in read.items())
    assert "is damaged" in caplog.text
    assert "5 images are lost" in caplog.text


@pytest.mark.parametrize("content", [b"", b"<html>moved</html>", b"\x1f\x8b\x08"])
def test_rejects_file_that_is_no_archive(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "NLMCXR_png.tgz").write_bytes(content)
    with pytest.raises(ValueError, match=r"NLMCXR_png\.tgz is no readable tar archive .*; download it again"):
        TarImages(tmp_path / "NLMCXR_png.tgz")


def test_chained_stores_fill_each_others_gaps(tmp_path: Path) -> None:
    (tmp_path / "loose.png").write_bytes(b"loose")
    loose = LooseImages({IDS[0]: tmp_path / "loose.png", IDS[1]: tmp_path / "gone.png"}, tmp_path)
    chained = ChainedImages([loose, TarImages(write_tgz(tmp_path / "x.tgz", MEMBERS))])
    assert list(chained.iter([*IDS, "never", *IDS])) == [*(EXPECTED | {IDS[0]: b"loose"}).items(), ("never", None)]
    assert ChainedImages([]).description() == "no images"
    assert list(ChainedImages([]).iter(["a"])) == [("a", None)]


# --- decoded images ---------------------------------------------------------------------------------------------------


FILES = {
    "frontal": dicom(film(), stored=12, ViewPosition="AP", WindowCenter=2000, WindowWidth=2500),
    "lateral": dicom(film(), stored=12, photometric="MONOCHROME1", ViewPosition="LL"),
    "ct": dicom(film(), sop_class="1.2.840.10008.5.1.4.1.1.2"),
    "png": png(film()),
}


def test_training_reads_dicom_like_the_service(tmp_path: Path) -> None:
    paths = {key: tmp_path / f"{key}.img" for key in FILES}
    for key, path in paths.items():
        path.write_bytes(FILES[key])
    study = Study("a", "a", "train", "Clear.", tuple(ImageRef(key, None) for key in FILES))
    source = Source("test", (study,), (), LooseImages(paths, tmp_path), ())
    cache = build_pixel_cache(source, [study], 64, tmp_path / "cache")
    assert cache.views == {"frontal": View.FRONTAL, "lateral": View.LATERAL}
    assert cache.skipped == {"ct": "not_a_radiograph"}
    for key in ("frontal", "lateral", "png"):
        np.testing.assert_array_equal(cache.array[cache.rows[key]], load_pixels(FILES[key], 64))
    usable = cache.usable(study)
    assert usable is not None
    assert [ref.view for ref in usable.images] == [View.FRONTAL, View.LATERAL, None]
