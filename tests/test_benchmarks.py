"""The parts of the benchmarks that decide what a reader believes: ratios, goals, scaling, and files that resume."""

from __future__ import annotations

import csv
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from benchmarks import __main__ as command
from benchmarks import growth, index, kinds
from benchmarks.machine import REFERENCE, Machine
from benchmarks.table import Row, as_markdown, as_text, at_least, below, show, times
from retrieval_index.index import ReportIndex


def test_a_ratio_is_the_peers_share_and_decides_the_goal() -> None:
    met = at_least(30, figure="decode", value=0.1, peer="plainly", peer_value=3.0)
    assert met.ratio == pytest.approx(30)
    assert met.met
    assert not at_least(30.1, figure="decode", value=0.1, peer="plainly", peer_value=3.0).met
    assert below(0.01, figure="overhead", value=0.0099).met
    assert not below(0.01, figure="overhead", value=0.01).met
    assert Row("alone", 1.0).ratio is None


def test_units_are_for_people() -> None:
    seconds = {1.5: "1.50 s", 0.0123: "12.30 ms", 2.5e-5: "25.0 µs"}
    assert [show(value, "s") for value in seconds] == list(seconds.values())
    assert [show(value, "bytes") for value in (3 * 2**30, 5 * 2**20)] == ["3.00 GiB", "5.0 MiB"]


def test_both_tables_hold_every_cell() -> None:
    rows = [at_least(2, figure="a", value=1.0, peer="b", peer_value=3.0, note="n"), below(1.0, figure="c", value=2.0)]
    for text in (as_markdown(rows), as_text(rows)):
        assert all(part in text for part in ("a (n)", "3.00 s", "3.0 ×", "2 ×", "yes", "c", "< 1.00 s", "no"))
    assert {line.count("|") for line in as_markdown(rows).splitlines()} == {8}


def test_the_reference_is_scaled_by_the_reading_of_the_same_product() -> None:
    twice = Machine("processor", 2, 2, "2", "cpu", fp32=2 * REFERENCE.gflops, bf16=1.0)
    assert twice.scaled(REFERENCE.step) == pytest.approx(REFERENCE.step / 2)
    assert "262 GFLOP/s float32" in twice.describe()


def test_warm_up_runs_are_not_timed() -> None:
    calls: list[int] = []
    assert len(times(lambda: calls.append(0), repeats=3, warm_up=2)) == 3
    assert len(calls) == 5


def test_unknown_sections_and_devices_are_named(
    capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    with pytest.raises(SystemExit):
        command.main(["--only", "cider,speed"])
    assert "unknown section 'speed'" in capsys.readouterr().err
    if not torch.cuda.is_available():
        assert command.main(["--device", "cuda"]) == 2
        assert "cuda" in caplog.text.lower()


# --- the index --------------------------------------------------------------------------------------------------------


def test_a_curve_is_written_and_goes_on_where_it_stopped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    radiographs = tmp_path / "radiographs"
    radiographs.mkdir()
    Image.new("L", (64, 64), 90).save(radiographs / "a.png")
    first = index.curve(tmp_path / "out", (300, 150), images=radiographs)
    assert [(point.vectors, point.kind, point.recall_5, point.recall_5_images) for point in first] == [
        (150, "flat", 1.0, 1.0), (300, "flat", 1.0, 1.0),
    ]  # fmt: skip
    assert (tmp_path / "out" / index.PLOT).read_bytes().startswith(b"\x89PNG")
    measured: list[int] = []

    def measure(maker: object, size: int, images: object) -> index.Point:
        measured.append(size)
        return replace(first[0], vectors=size)

    monkeypatch.setattr(index, "_measure", measure)
    index.curve(tmp_path / "out", (150, 300, 450), images=radiographs)
    assert measured == [450]
    with (tmp_path / "out" / index.CSV).open("w", newline="") as file:
        csv.writer(file).writerow(["vectors", "other"])
    with pytest.raises(ValueError, match="remove it or choose another --out"):
        index.curve(tmp_path / "out", (150,))


def test_made_cases_resemble_the_real_ones_and_hold_no_query() -> None:
    shipped = ReportIndex.load(index.BUNDLE / "index")
    maker = index.Maker(shipped)
    cases, queries = maker.cases(2000), maker.queries(300)
    np.testing.assert_array_equal(cases[:500], index.Maker(shipped).cases(500))  # a smaller collection is a prefix
    real = shipped.vectors(np.arange(len(shipped)))
    distinct = np.unique(real, axis=0)
    likeness = distinct @ distinct.T - 2 * np.eye(len(distinct))
    made = float(np.median((queries @ cases.T).max(axis=1)))
    assert made == pytest.approx(float(np.median(likeness.max(axis=1))), abs=0.08)  # real: .92
    assert made < 0.98
    assert float((queries @ real.T).max()) < 0.999


def test_a_folder_without_images_is_refused(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    arguments = ["index", "--out", str(tmp_path / "out"), "--sizes", "100", "--images", str(tmp_path)]
    assert command.main(arguments) == 2
    assert "holds no .png, .jpg or .jpeg" in caplog.text


def test_growth_is_written_as_table_and_picture(tmp_path: Path) -> None:
    points = [(axis, value, 0.01, 0.1 * value) for axis in ("words", "beams", "slots", "batch") for value in (1, 2)]
    growth.write(points, tmp_path)
    lines = (tmp_path / "growth.csv").read_text().splitlines()
    assert lines[:2] == ["axis,value,encode_ms,report_ms", "words,1,10.00,100.00"]
    assert len(lines) == 1 + len(points)
    assert (tmp_path / "growth.png").read_bytes().startswith(b"\x89PNG")


def test_kinds_are_compared_on_the_same_queries() -> None:
    lines = kinds.compare(3000)
    assert [line.kind.split(",")[0] for line in lines] == ["flat", "ivf", "ivf", "ivf", "hnsw", "hnsw"]
    assert lines[0].recall_reports == 1.0
    assert all(0.5 < line.recall_reports <= 1.0 for line in lines)
    assert all(line.recall_images is None for line in lines)
    assert kinds.as_markdown(lines).count("\n") == 1 + len(lines)
