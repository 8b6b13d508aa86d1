"""The labeler on a column of a CSV, and hedges that follow a comma. All sentences are invented."""

from __future__ import annotations

import csv
import io
import subprocess
import sys
from pathlib import Path

import pytest

from model.text.labeler import FINDINGS, label_report, main
from tests.support.paths import REPOSITORY

REPORTS = 'study,report\nA,"Bibasilar atelectasis, cannot exclude pneumonia."\nB,No effusion.\n\nC,\n'


def rows(text: str) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(text)))


def test_each_row_gets_its_labels(tmp_path: Path) -> None:
    (tmp_path / "reports.csv").write_text("\ufeff" + REPORTS, encoding="utf-8")
    assert main([str(tmp_path / "reports.csv"), "--out", str(tmp_path / "labels.csv")]) == 0
    text = (tmp_path / "labels.csv").read_text()
    assert text.splitlines()[0] == "study,report," + ",".join(FINDINGS)
    first, second, third = rows(text)
    assert (first["study"], first["report"]) == ("A", "Bibasilar atelectasis, cannot exclude pneumonia.")
    assert {name: first[name] for name in FINDINGS if first[name]} == {
        "Atelectasis": "present",
        "Pneumonia": "uncertain",
    }
    assert (second["Pleural Effusion"], second["No Finding"], second["Edema"]) == ("absent", "present", "")
    assert not any(third[name] for name in FINDINGS)


def test_reads_stdin_and_writes_stdout() -> None:
    command = [sys.executable, "-m", "model.text.labeler", "--column", "text"]
    done = subprocess.run(command, input="text\nSmall effusion.\n", capture_output=True, text=True, cwd=REPOSITORY)
    assert (done.returncode, done.stderr) == (0, "")
    assert [row["Pleural Effusion"] for row in rows(done.stdout)] == ["present"]


@pytest.mark.parametrize(
    ("content", "column", "message"),
    [
        (b"id,text\n1,x\n", "report", "no column 'report' (id, text); choose one with --column"),
        (b"", "report", "no column 'report' (it is empty)"),
        (b"report,Edema\nx,\n", "report", "a column 'Edema' already; rename it"),
        (b"id,report\n1,effusion, small\n", "report", "line 2 has 3 cells, the header 2; put texts with commas in"),
        (b'report\n"effusion\n', "report", "line 2: unexpected end of data; save the file as CSV"),
        (b"report\n\xe9panchement\n", "report", "save the file in UTF-8"),
    ],
)
def test_refuses_other_files_with_a_remedy(
    content: bytes, column: str, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "reports.csv").write_bytes(content)
    assert main([str(tmp_path / "reports.csv"), "--column", column, "--out", str(tmp_path / "out.csv")]) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out.csv").exists()


def test_a_missing_file_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["missing.csv"]) == 2
    assert capsys.readouterr().err == "missing.csv: No such file or directory\n"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Bibasilar atelectasis, cannot exclude pneumonia.", {"Atelectasis": "present", "Pneumonia": "uncertain"}),
        ("bibasilar atelectasis , cannot exclude edema .", {"Atelectasis": "present", "Edema": "uncertain"}),
        ("Small effusion, pneumonia cannot be excluded.", {"Pleural Effusion": "present", "Pneumonia": "uncertain"}),
        ("Atelectasis, effusion, possible edema.", {"Atelectasis": "present", "Edema": "uncertain"}),
        # a list, a remark between commas and a sentence without commas keep their hedge
        ("Edema, atelectasis, or effusion cannot be excluded.", {"Edema": "uncertain", "Atelectasis": "uncertain"}),
        ("Pneumonia, in the right setting, cannot be excluded.", {"Pneumonia": "uncertain"}),
        ("Pneumonia, cannot be excluded.", {"Pneumonia": "uncertain"}),
        ("Atelectasis cannot be excluded.", {"Atelectasis": "uncertain"}),
        # a negation still reaches over it
        ("No effusion, edema not well seen.", {"Pleural Effusion": "absent"}),
    ],
)
def test_a_hedge_after_a_comma_does_not_reach_back(text: str, expected: dict[str, str]) -> None:
    labels = label_report(text)
    assert {name: labels[name] for name in expected} == expected
