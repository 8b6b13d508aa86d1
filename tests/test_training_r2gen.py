"""Data sets in R2Gen's layout."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from model.types import View
from training.data.openi import open_openi
from training.data.r2gen import open_r2gen


def entry(study_id: str, paths: list[str], report: str = "A made-up report.", **more: Any) -> dict[str, Any]:
    return {"id": study_id, "report": report, "image_path": paths, **more}


def write(path: Path, **splits: list[dict[str, Any]]) -> Path:
    path.write_text(json.dumps(splits))
    return path


def put(folder: Path, *names: str) -> Path:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(name.encode())
    return folder


def test_any_number_of_images_at_their_paths(tmp_path: Path) -> None:
    images = put(tmp_path / "images", "p10/s1/a.jpg", "p10/s1/b.jpg", "p10/s1/c.jpg", "p11/s2/d.jpg")
    table = write(
        tmp_path / "annotation.json",
        train=[entry("s1", ["p10/s1/a.jpg", "p10/s1/b.jpg", "p10/s1/c.jpg"])],
        test=[entry("s2", ["p11/s2/d.jpg"], " Two words. \n")],
    )
    source = open_r2gen(table, images)
    found = [(study.study_id, study.uid, study.split, len(study.images)) for study in source.studies]
    assert found == [("s1", "s1", "train", 3), ("s2", "s2", "test", 1)]
    assert source.studies[1].report == "Two words."
    assert source.extra == ()
    keys = ["p11/s2/d.jpg", "p10/s1/b.jpg"]
    assert dict(source.images.iter(keys)) == {key: key.encode() for key in keys}
    assert all(image.view is None for study in source.studies for image in study.images)


def test_numbered_paths_resolve_to_image_ids_where_files_lie_by_id(tmp_path: Path) -> None:
    ids = ["CXR7_IM-0001-1001", "CXR7_IM-0001-2001"]
    images = put(tmp_path / "images", f"x/{ids[0]}.png", f"{ids[1]}.dcm", "CXR8_IM-0002/0.jpg", "other/1.png")
    table = write(
        tmp_path / "annotation.json",
        train=[
            entry("CXR7_IM-0001", ["CXR7_IM-0001/1.png", "CXR7_IM-0001/0.png"], image_ids=ids),
            entry("CXR8_IM-0002", ["CXR8_IM-0002/0.png", "CXR8_IM-0002/1.png"], image_ids=["CXR8_IM-0002-1001"]),
        ],
    )
    source = open_r2gen(table, images)
    first, second = source.studies
    assert (first.uid, second.uid) == ("CXR7", "CXR8")
    assert dict(source.images.iter([image.key for image in (*first.images, *second.images)])) == {
        "CXR7_IM-0001/0.png": f"x/{ids[0]}.png".encode(),
        "CXR7_IM-0001/1.png": f"{ids[1]}.dcm".encode(),
        "CXR8_IM-0002/0.png": b"CXR8_IM-0002/0.jpg",  # its path, with another extension
        "CXR8_IM-0002/1.png": None,  # never the 1.png of another study
    }
    assert "3 found, 1 missing: CXR8_IM-0002/1.png" in source.notes[-1]


def test_published_annotation_takes_ids_and_views_from_built_in_tables(tmp_path: Path) -> None:
    images = put(tmp_path / "images", "CXR1_1_IM-0001-3001.png", "CXR1_1_IM-0001-4001.png")
    paths = ["CXR1_1_IM-0001/0.png", "CXR1_1_IM-0001/1.png"]
    source = open_r2gen(write(tmp_path / "a.json", train=[entry("CXR1_1_IM-0001", paths)]), images)
    (study,) = source.studies
    assert [image.view for image in study.images] == [View.LATERAL, View.FRONTAL]
    assert [image.key for image in study.ordered()] == [paths[1], paths[0]]
    assert dict(source.images.iter(paths))[paths[1]] == b"CXR1_1_IM-0001-4001.png"


@pytest.mark.parametrize("folder", [".", "images"])
def test_views_come_from_a_table_by_id_or_by_path(tmp_path: Path, folder: str) -> None:
    images = put(tmp_path / "images", "s/a.png", "s/b.png")
    table = write(tmp_path / "a.json", val=[entry("s", ["s/a.png", "s/b.png"])])
    (tmp_path / folder / "views.csv").write_text("image_id,view\na,lateral\ns/b.png,frontal\n")
    (study,) = open_r2gen(table, images).studies
    assert [image.view for image in study.images] == [View.LATERAL, View.FRONTAL]


def test_studies_without_report_or_image_are_named_and_skipped(tmp_path: Path) -> None:
    table = write(tmp_path / "a.json", train=[entry("a", ["a.png"], "  "), entry("b", []), entry("c", ["c.png"])])
    source = open_r2gen(table, tmp_path)
    assert [study.study_id for study in source.studies] == ["c"]
    assert "2 without report or image: a, b" in source.notes[0]
    assert list(source.images.iter(["c.png"])) == [("c.png", None)]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "Invalid JSON"),
        ("[]", r"the file is of type list: .* An R2Gen annotation has train, val, test"),
        ('{"valid": []}', r"valid.*: Input should be 'train', 'val' or 'test'"),
        ('{"train": [3]}', r"train\.0 is of type int: .* lists of id, report, image_path"),
        ('{"train": [{"id": "a", "image_path": []}]}', r"train\.0\.report .*Field required"),
        ('{"train": [{"id": "a", "report": "r", "image_path": "x"}]}', r"image_path is of type str: .* valid array"),
        ('{"val": [{"id": "a", "report": "", "image_path": [], "image_ids": [1]}]}', r"image_ids.0 is of type int"),
        (json.dumps({split: [entry("a", [])] for split in ("train", "val")}),
         r"study a of val is in train already; an id occurs once"),
    ],
)  # fmt: skip
def test_rejects_malformed_annotation_with_its_entry(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "a.json").write_text(text)
    with pytest.raises(ValueError, match=message):
        open_r2gen(tmp_path / "a.json", tmp_path)


def test_the_real_annotation_gives_the_same_studies_as_the_archive(real_data: Path) -> None:
    root = real_data / "openi"
    source, archive = open_r2gen(root / "annotation.json", root / "images"), open_openi(root)
    expected = {study.study_id: study for study in archive.studies}
    assert len(source.studies) == len(expected) == 2365
    for study in source.studies:
        other = expected[study.study_id]
        assert (study.uid, study.split, study.report) == (other.uid, other.split, other.report)
        assert [image.view for image in study.images] == [image.view for image in other.images]
    for study in source.split("val")[:20]:
        other = expected[study.study_id]
        found = dict(source.images.iter([image.key for image in study.images]))
        expected_images = dict(archive.images.iter([image.key for image in other.images]))
        assert list(found.values()) == list(expected_images.values())
