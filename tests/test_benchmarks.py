"""The parts of the benchmarks that decide what a reader believes: ratios, goals, scaling, made cases, tables."""

from __future__ import annotations

import csv
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import psutil
import pytest
import torch
from PIL import Image

from benchmarks import __main__ as command
from benchmarks import index, published_size
from benchmarks.measure import HEADER, REFERENCE, Machine, Row, Unit, at_least, below, in_turn, markdown, show
from benchmarks.memory import rise, slope
from benchmarks.server import BUNDLE
from retrieval_index.index import ReportIndex
from tests.support.paths import REPOSITORY


def test_goals_compare_with_the_peer_or_the_limit() -> None:
    row = Row("decode", 0.1, peer="plainly", peer_value=3.0)
    assert at_least(30, row).met
    assert not at_least(30.1, row).met
    assert below(0.01, Row("overhead", 0.0099)).met
    assert not below(0.01, Row("overhead", 0.01)).met


@pytest.mark.parametrize(
    ("value", "unit", "shown"),
    [
        (1.5, "s", "1.50 s"),
        (0.0123, "s", "12.30 ms"),
        (2.5e-5, "s", "25.0 µs"),
        (3 * 2**30, "bytes", "3.00 GiB"),
        (5 * 2**20, "bytes", "5.0 MiB"),
    ],
)
def test_shows_values_in_readable_units(value: float, unit: Unit, shown: str) -> None:
    assert show(value, unit) == shown


def test_command_that_gets_sigterm_stops_its_server() -> None:
    code = (
        "import time; from benchmarks.server import run_command, running\n"
        "def command(_):\n"
        "    with running('http.server', health='/') as server:\n"
        "        print(server.pid, flush=True); time.sleep(600)\n"
        "raise SystemExit(run_command(command, None))"
    )
    with subprocess.Popen([sys.executable, "-c", code], cwd=REPOSITORY, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        server = int(process.stdout.readline())
        process.terminate()
        assert process.wait(60) == 128 + signal.SIGTERM
        assert not psutil.pid_exists(server)


def test_table_holds_every_cell() -> None:
    rows = [at_least(2, Row("a", 1.0, peer="b", peer_value=3.0, note="n")), below(1.0, Row("c", 2.0))]
    cells = [row.cells() for row in rows]
    text = markdown(HEADER, cells)
    assert all(part in text for part in ("a (n)", "3.00 s", "3.0 ×", "2 ×", "yes", "c", "< 1.00 s", "no"))
    assert {line.count("|") for line in text.splitlines()} == {8}


def test_the_faster_of_plain_and_scaled_reference_is_the_peer() -> None:
    machine = Machine("cpu", fp32=REFERENCE.gflops, bf16=1.0)
    assert machine.peer(5.5, 6.0) == ("published equations, unoptimised", 5.5, "reference scaled: 6.00 s")
    assert machine.peer(9.0, 6.0) == ("reference, scaled", 6.0, "unoptimised here: 9.00 s")


def test_the_reference_is_scaled_by_the_speed_of_the_same_product() -> None:
    twice = Machine("cpu", fp32=2 * REFERENCE.gflops, bf16=1.0)
    assert twice.scaled(REFERENCE.step) == pytest.approx(REFERENCE.step / 2)
    assert "262 GFLOP/s float32" in twice.describe()


def test_warm_up_runs_are_not_timed() -> None:
    calls: list[str] = []
    taken = in_turn([lambda: calls.append("a"), lambda: calls.append("b")], rounds=3, warm_up=2)
    assert [len(each) for each in taken] == [3, 3]
    assert calls == ["a", "b"] * 5


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


def test_curve_measures_exact_and_chosen_index_at_each_size(tmp_path: Path) -> None:
    Image.new("L", (64, 64), 90).save(tmp_path / "a.png")
    points = index.curve(tmp_path / "out", (300, 150), images=tmp_path)
    assert [(p.vectors, p.kind, p.recall_reports, p.recall_images) for p in points] == [
        (150, "flat", 1.0, 1.0), (300, "flat", 1.0, 1.0),
    ]  # fmt: skip
    with (tmp_path / "out/index-curve.csv").open(newline="") as file:
        lines = list(csv.DictReader(file))
    assert [(line["vectors"], line["kind"]) for line in lines] == [
        ("150", "exact"), ("150", "flat"), ("300", "exact"), ("300", "flat"),
    ]  # fmt: skip
    assert (tmp_path / "out/index-curve.png").read_bytes().startswith(b"\x89PNG")


def test_made_cases_resemble_the_real_ones_and_hold_no_query() -> None:
    shipped = ReportIndex.load(BUNDLE / "index")
    maker = index.Maker(shipped)
    cases, queries = maker.cases(2000), maker.queries(300)
    np.testing.assert_array_equal(cases[:500], index.Maker(shipped).cases(500))  # a smaller collection is a prefix
    real = shipped.vectors(np.arange(len(shipped)))
    distinct = np.unique(real, axis=0)
    similarity = distinct @ distinct.T - 2 * np.eye(len(distinct))
    made = float(np.median((queries @ cases.T).max(axis=1)))
    assert made == pytest.approx(float(np.median(similarity.max(axis=1))), abs=0.08)  # real: .92
    assert made < 0.98
    assert float((queries @ real.T).max()) < 0.999


def test_a_folder_without_images_is_refused(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    arguments = ["index", "--out", str(tmp_path / "out"), "--sizes", "100", "--images", str(tmp_path)]
    assert command.main(arguments) == 2
    assert "holds no .png, .jpg or .jpeg" in caplog.text


def test_growth_is_written_as_table_and_plot(tmp_path: Path) -> None:
    points = [(axis, value, 10.0, 100.0 * value) for axis in published_size.AXES for value in (1, 2)]
    published_size.write_growth(points, tmp_path)
    lines = (tmp_path / "growth.csv").read_text().splitlines()
    assert lines[:2] == ["axis,value,encode_ms,report_ms", "words,1,10.00,100.00"]
    assert len(lines) == 1 + len(points)
    assert (tmp_path / "growth.png").read_bytes().startswith(b"\x89PNG")


def test_compares_kinds_of_index_on_the_same_queries() -> None:
    points = index.kinds(3000)
    assert [point.kind.split(",")[0] for point in points] == ["flat", "ivf", "ivf", "ivf", "hnsw", "hnsw"]
    assert points[0].recall_reports == 1.0
    assert all(0.5 < point.recall_reports <= 1.0 for point in points)
    assert all(point.recall_images is None for point in points)
    assert index.as_markdown(points).count("\n") == 1 + len(points)


# --- memory -----------------------------------------------------------------------------------------------------------


def test_slope_is_that_of_the_second_half_without_steps() -> None:
    rising = [(float(n), 1000 + (n if n < 50 else 50 + 3 * (n - 50))) for n in range(100)]
    assert slope(rising) == pytest.approx(3, rel=0.02)
    assert rise(rising) == pytest.approx(3 * 49, abs=3)
    assert slope(rising[:5]) is None
    assert slope([]) is None
    step = [(float(n), 1000 + 500 * (n > 95)) for n in range(100)]
    assert slope(step) == 0
    assert rise(step) == 500
