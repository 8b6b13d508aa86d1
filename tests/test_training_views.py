"""Views of a data set without a view table: header, view check of a bundle, file order; the table that is written."""

from __future__ import annotations

import csv
import json
import shutil
from argparse import ArgumentParser
from pathlib import Path

import numpy as np
import pytest

from model.types import View
from tests.support.dicom import dicom
from tests.support.paths import REPOSITORY
from tests.support.tiny import write_tiny_bundle
from training.cli import add_common_arguments, open_source
from training.data.openi import open_openi
from training.data.r2gen import open_r2gen
from training.data.studies import Source
from training.data.views import with_views
from training.evaluate import main as evaluate
from training.openi import annotation
from training.phantoms import write_phantom_root
from training.tune_decoding import main as tune

CHECK = ["--views-bundle", str(REPOSITORY / "bundles" / "iu-xray")]


@pytest.fixture(scope="module")
def phantoms(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_phantom_root(tmp_path_factory.mktemp("data") / "root", train=3, val=3, size=256)


@pytest.fixture
def data(phantoms: Path, tmp_path: Path) -> Path:
    """An annotation without a view table, and its images; the first study is of DICOM files with a header view."""
    source = open_openi(phantoms)
    entries = annotation(source)
    (tmp_path / "images").mkdir()
    for path in (phantoms / "images").iterdir():
        shutil.copy(path, tmp_path / "images")
    for image, position in zip(entries["train"][0]["image_ids"], ("LL", "PA"), strict=True):
        values = np.random.default_rng(0).integers(0, 4000, (64, 64), np.uint16)
        (tmp_path / "images" / f"{image}.png").unlink()
        (tmp_path / "images" / f"{image}.dcm").write_bytes(dicom(values, ViewPosition=position))
    (tmp_path / "annotation.json").write_text(json.dumps(entries))
    return tmp_path


def _open(data: Path, *more: str) -> Source:
    """The data set as a command opens it."""
    parser = ArgumentParser()
    add_common_arguments(parser)
    paths = ["--annotation", str(data / "annotation.json"), "--images", str(data / "images"), "--device", "cpu"]
    return open_source(parser.parse_args([*paths, *more]))


def _table(data: Path) -> dict[str, tuple[str, str]]:
    with (data / "views.csv").open(newline="") as file:
        return {row["image_id"]: (row["view"], row["how"]) for row in csv.DictReader(file)}


def _keys(source: Source) -> list[list[str]]:
    return [[ref.key for ref in study.images] for study in source.studies]


def test_headers_then_the_check_then_the_order(data: Path, phantoms: Path) -> None:
    (data / "images" / f"{annotation(open_openi(phantoms))['train'][1]['image_ids'][1]}.png").write_bytes(b"broken")
    source = _open(data, *CHECK)
    truth = open_openi(phantoms).studies
    (first, second, *others), keys = source.studies, _keys(source)
    assert [ref.view for ref in first.images] == [View.LATERAL, View.FRONTAL]  # as the headers say
    assert [ref.view for ref in second.images] == [truth[1].images[0].view, None]  # the broken one
    for study, expected in zip(others, truth[2:], strict=True):
        assert [ref.view for ref in study.images] == [ref.view for ref in expected.images]
    table = _table(data)
    assert set(table) == {key for study in keys for key in study}
    assert [table[key] for key in keys[0]] == [("lateral", "dicom header"), ("frontal", "dicom header")]
    order = "lateral" if truth[1].images[0].view is View.FRONTAL else "frontal"
    assert table[keys[1][1]] == ("", f"file order: {order}")
    assert all(table[key][1].startswith("view check") for study in keys[2:] for key in study)
    assert source.notes[-1].startswith("views of 12 of 12 images that no table names: 2 by dicom header, ")
    assert ", 1 by file order; correct them in" in source.notes[-1]


def test_a_corrected_table_is_read_back_and_completed(data: Path) -> None:
    first = _open(data)  # without a bundle: headers and file order
    keys = _keys(first)
    assert [_table(data)[key][1] for key in keys[1]] == ["file order: frontal", "file order: lateral"]
    assert [ref.view for ref in first.studies[1].images] == [None, None]
    lines = (data / "views.csv").read_text().replace(f"{keys[1][0]},,", f"{keys[1][0]},lateral,")
    lines = lines.replace(f"{keys[0][0]},lateral,", f"{keys[0][0]},frontal,")
    (data / "views.csv").write_text(lines)
    second = _open(data, *CHECK)
    assert second.studies[0].images[0].view is View.FRONTAL  # the user against the header
    assert second.studies[1].images[0].view is View.LATERAL  # the user, not the check
    assert all(ref.view for study in second.studies for ref in study.images)
    assert _table(data)[keys[0][0]] == ("frontal", "dicom header")
    assert _table(data)[keys[2][0]][1].startswith("view check")
    before = (data / "views.csv").read_bytes()
    third = _open(data)
    assert [study.images for study in third.studies] == [study.images for study in second.studies]
    assert (data / "views.csv").read_bytes() == before


def test_tables_of_the_user_are_not_written(data: Path, phantoms: Path) -> None:
    key = _keys(_open(data))[1][0]
    (data / "views.csv").write_text(f"image_id,view\n{key},lateral\n")
    source = _open(data, *CHECK)
    assert (data / "views.csv").read_text() == f"image_id,view\n{key},lateral\n"
    assert source.studies[1].images[0].view is View.LATERAL
    assert "has no column how and is not changed" in source.notes[-1]
    parts = ["--root", str(phantoms), "--device", "cpu"]
    before = (phantoms / "views.csv").read_bytes()
    bundle = write_tiny_bundle(data / "B")
    assert tune(["--bundle", str(bundle), *parts, "--out", str(data / "tuned.json"), "--limit", "1"]) == 0
    assert (phantoms / "views.csv").read_bytes() == before


def test_refuses_a_bundle_without_view_check(data: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    bundle = str(write_tiny_bundle(tmp_path / "B"))
    arguments = ["--annotation", str(data / "annotation.json"), "--images", str(data / "images"), "--device", "cpu"]
    assert evaluate(["--bundle", bundle, *arguments, "--out", str(tmp_path / "o.json"), "--views-bundle", bundle]) == 2
    assert "has no calibration, and so no view check" in caplog.text


def test_a_table_that_cannot_be_written_leaves_the_views(data: Path) -> None:
    source = with_views(open_r2gen(data / "annotation.json", data / "images"), Path("/proc/views.csv"))
    assert [ref.view for ref in source.studies[0].images] == [View.LATERAL, View.FRONTAL]
    assert "/proc/views.csv cannot be written" in source.notes[-1]
    assert source.notes[-1].endswith("so the next command determines them again")
