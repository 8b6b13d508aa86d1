"""The R2Gen study set from the official archive."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from model.types import View
from retrieval_index.openi import ArchiveError
from tests.support.archives import IMAGES, report_xml, write_reports, write_tgz, xml_files
from training.data.openi import download_archives, open_openi
from training.data.studies import ImageRef, Study
from training.data.tables import builtin_images, builtin_split, builtin_views, read_split, read_views
from training.openi import annotation, main

SPLIT = "study_id,split\nCXR1,val\nCXR2,train\nCXR10,train\nCXR11,train\nCXR99,test\n"
VIEWS = "image_id,view\n{},lateral\n{},frontal\n{},frontal\n".format(*IMAGES["CXR1"], IMAGES["CXR2"][0])


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Five studies; CXR12 is in no split, CXR99 in no archive, CXR11 has no FINDINGS."""
    write_reports(tmp_path / "NLMCXR_reports.tgz")
    (tmp_path / "r2gen_split.csv").write_text(SPLIT)
    (tmp_path / "views.csv").write_text(VIEWS)
    (tmp_path / "images").mkdir()
    for uid in ("CXR1", "CXR2", "CXR12"):
        for image in IMAGES[uid]:
            (tmp_path / "images" / f"{image}.jpg").write_bytes(image.encode())
    return tmp_path


def test_r2gen_set_needs_two_images_and_findings(root: Path) -> None:
    source = open_openi(root)
    assert [(study.study_id, study.uid, study.split) for study in source.studies] == [
        ("CXR1_1_IM-0001", "CXR1", "val"),
        ("CXR2_IM-0652", "CXR2", "train"),
        ("CXR10_IM-0002-1001", "CXR10", "train"),
    ]
    assert source.split("train") == source.studies[1:]
    assert source.studies[1].report == "Left base opacity. Small fluid level."
    assert source.studies[1].mesh == ("normal",)
    assert [image.key for image in source.studies[1].images] == list(IMAGES["CXR2"][:2])


def test_only_studies_outside_the_split_table_are_extra(root: Path) -> None:
    (root / "r2gen_split.csv").write_text(SPLIT.replace("CXR2,train", "CXR12,val"))
    source = open_openi(root)
    assert [(study.uid, study.split) for study in source.extra] == [("CXR2", None)]
    assert [image.key for image in source.extra[0].images] == list(IMAGES["CXR2"])  # all three
    assert {study.uid for study in (*source.studies, *source.extra)} == {"CXR1", "CXR2", "CXR10"}
    assert any("2 studies skipped: CXR11, CXR12" in note for note in source.notes)


def test_notes_count_and_name_missing_data(root: Path) -> None:
    write_reports(root / "NLMCXR_reports.tgz", xml_files() | {"77.xml": b"<broken"})
    notes = "\n".join(open_openi(root).notes)
    assert "5 read, 1 broken and skipped: ecgen-radiology/77.xml" in notes
    assert "5 studies, 3 found (train 2, val 1), 2 missing (train 1, test 1)" in notes
    assert "1 of 3 studies reordered to frontal first" in notes
    assert "2 have an image of unknown view" in notes
    assert f"2 missing: {', '.join(IMAGES['CXR10'])}" in notes


def test_views_come_from_the_table_and_order_the_images(root: Path) -> None:
    study = open_openi(root).studies[0]
    lateral, frontal = study.images
    assert (lateral.view, frontal.view) == (View.LATERAL, View.FRONTAL)
    assert [lateral.key, frontal.key] == list(IMAGES["CXR1"])  # the annotation keeps the file's order
    assert study.ordered() == (frontal, lateral)


@pytest.mark.parametrize(
    ("views", "order"),
    [
        ("LF", "10"),
        ("FL", "01"),
        ("FF", "01"),
        ("??", "01"),
        ("L?", "10"),
        ("?F", "10"),
        ("?L", "01"),
        ("L?F?F", "24130"),
    ],
)
def test_frontals_first_then_unknown_then_laterals(views: str, order: str) -> None:
    meaning = {"F": View.FRONTAL, "L": View.LATERAL, "?": None}
    images = tuple(ImageRef(str(k), meaning[letter]) for k, letter in enumerate(views))
    study = Study("s", "s", "train", "Clear.", images)
    assert "".join(image.key for image in study.ordered()) == order


def test_images_are_loose_files_and_the_archive(root: Path) -> None:
    keys = [*IMAGES["CXR1"], *IMAGES["CXR10"], "CXR5_IM-0005-1001"]
    in_archive = {f"{IMAGES['CXR10'][0]}.png": b"png", f"NLMCXR_png/{IMAGES['CXR10'][1]}.dcm": b"dicom"}
    write_tgz(root / "NLMCXR_png.tgz", in_archive)
    source = open_openi(root)
    assert dict(source.images.iter(keys)) == {
        IMAGES["CXR1"][0]: IMAGES["CXR1"][0].encode(),
        IMAGES["CXR1"][1]: IMAGES["CXR1"][1].encode(),
        IMAGES["CXR10"][0]: b"png",
        IMAGES["CXR10"][1]: b"dicom",
        "CXR5_IM-0005-1001": None,
    }
    assert "to be read from the archive" in source.notes[-1]


def test_built_in_tables_are_used_where_the_root_has_none(root: Path) -> None:
    (root / "r2gen_split.csv").unlink()
    (root / "views.csv").unlink()
    source = open_openi(root)
    assert {study.uid: study.split for study in source.studies}.items() <= builtin_split().items()
    assert "(built in): 2955 studies" in source.notes[1]


def test_built_in_tables() -> None:
    split = builtin_split()
    assert [list(split.values()).count(name) for name in ("train", "val", "test")] == [2069, 296, 590]
    views = builtin_views()
    assert len(views) == 6247
    assert [list(views.values()).count(view) for view in (View.FRONTAL, View.LATERAL, None)] == [3203, 3040, 4]
    assert builtin_images()["CXR1"] == ("CXR1_1_IM-0001-3001", "CXR1_1_IM-0001-4001")
    assert views["CXR1_1_IM-0001-3001"] is View.LATERAL
    assert not {image.partition("_")[0] for image in views} & {uid for uid, name in split.items() if name == "test"}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("study,split\n", r"lacks the columns study_id; it has study, split"),
        ("study_id,split\nCXR1,training\n", "2: split 'training'; use one of train, val, test"),
        ("study_id,split\nCXR1,train\nCXR1,val\n", "3: study 'CXR1' is named twice"),
    ],
)
def test_rejects_bad_split_table_with_its_line(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "split.csv").write_text(text)
    with pytest.raises(ValueError, match=message):
        read_split(tmp_path / "split.csv")


def test_view_tables_may_have_unknown_views(tmp_path: Path) -> None:
    (tmp_path / "views.csv").write_text("image_id,view\na,frontal\nb,\n")
    assert read_views(tmp_path / "views.csv") == {"a": View.FRONTAL, "b": None}
    (tmp_path / "views.csv").write_text("image_id,view\na,oblique\n")
    with pytest.raises(ValueError, match="2: view 'oblique'; use frontal, lateral or nothing"):
        read_views(tmp_path / "views.csv")


def test_command_writes_the_annotation(root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "sub" / "annotation.json"
    assert main(["--root", str(root), "--out", str(out)]) == 0
    written = json.loads(out.read_text())
    assert written == annotation(open_openi(root))
    assert list(written) == ["train", "val"]
    assert written["val"] == [
        {
            "id": "CXR1_1_IM-0001",
            "report": "Cardiac silhouette normal. No fluid.",
            "image_path": ["CXR1_1_IM-0001/0.png", "CXR1_1_IM-0001/1.png"],
            "split": "val",
            "image_ids": list(IMAGES["CXR1"]),
        }
    ]
    assert "3 studies (train 2, val 1)" in capsys.readouterr().out


def test_command_fails_with_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        main(["--root", str(tmp_path), "--out", str(tmp_path / "a.json")])
    assert stop.value.code == 1
    assert "error: " in capsys.readouterr().err
    assert not (tmp_path / "a.json").exists()
    with pytest.raises(ArchiveError, match="expected"):
        open_openi(tmp_path)


def test_downloads_missing_archives_only(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fetched: list[tuple[str, str]] = []
    monkeypatch.setattr("training.data.openi.download", lambda url, dest, progress: fetched.append((url, dest.name)))
    download_archives(root)
    assert fetched == []
    (root / "NLMCXR_reports.tgz").unlink()
    (root / "images").rename(root / "elsewhere")
    download_archives(root)
    assert fetched == [
        ("https://openi.nlm.nih.gov/imgs/collections/NLMCXR_reports.tgz", "NLMCXR_reports.tgz"),
        ("https://openi.nlm.nih.gov/imgs/collections/NLMCXR_png.tgz", "NLMCXR_png.tgz"),
    ]


def test_a_study_without_images_keeps_its_uid(root: Path) -> None:
    write_reports(root / "NLMCXR_reports.tgz", {"5.xml": report_xml("CXR5", "No image.", [])})
    assert [(study.study_id, study.images) for study in open_openi(root).extra] == [("CXR5", ())]


def test_the_real_annotation_is_reproduced(real_data: Path, tmp_path: Path) -> None:
    root = real_data / "openi"
    assert main(["--root", str(root), "--out", str(tmp_path / "a.json")]) == 0
    expected = json.loads((root / "annotation.json").read_text())
    written = json.loads((tmp_path / "a.json").read_text())
    for split in expected:
        by_id = {entry["id"]: entry for entry in written[split]}
        assert len(by_id) == len(expected[split])
        assert sum(by_id[entry["id"]] == entry for entry in expected[split]) == len(expected[split])


def test_built_in_tables_equal_those_of_the_real_root(real_data: Path) -> None:
    root = real_data / "openi"
    assert builtin_split() == read_split(root / "r2gen_split.csv")
    assert {image: view for image, view in builtin_views().items() if view} == read_views(root / "views.csv")


def test_real_studies_outside_the_set(real_data: Path) -> None:
    source = open_openi(real_data / "openi")
    assert len(source.extra) == 1000
    assert not {study.uid for study in source.extra} & set(builtin_split())
    assert all(len(study.images) < 2 or not study.report for study in source.extra)
