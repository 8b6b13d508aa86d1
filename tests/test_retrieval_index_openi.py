"""The reader of the Open-i report archive."""

from __future__ import annotations

import tarfile
from pathlib import Path

import pytest

from retrieval_index.openi import ArchiveError, parse_report, read_reports
from tests.support.archives import FINDINGS, IMAGES, report_xml, write_reports, xml_files


def test_reads_all_fields_of_a_report() -> None:
    findings = "  Fluid at\n    the\tbase.  \r\n\n Two  blanks.\n"
    report = parse_report(report_xml("CXR7", findings, IMAGES["CXR2"], mesh=("Pleural Effusion/left", "x")))
    assert report.uid == "CXR7"
    assert report.findings == "Fluid at the base. Two  blanks."  # blanks within a line are kept
    assert report.impression == "An invented impression."
    assert report.indication == "Invented indication"
    assert report.image_ids == IMAGES["CXR2"]
    assert report.mesh == ("Pleural Effusion/left", "x")


@pytest.mark.parametrize(
    ("images", "study_id"),
    [
        (["CXR2384_IM-0942-1001", "CXR2384_IM-0942-3001"], "CXR2384_IM-0942"),
        (["CXR1_1_IM-0001-3001"], "CXR1_1_IM-0001"),
        (["CXR2056_IM-0694-1001-0001", "CXR2056_IM-0694-1001-0002"], "CXR2056_IM-0694-1001"),
        ([], "CXR9"),
    ],
)
def test_study_id_equals_that_of_the_r2gen_annotation(images: list[str], study_id: str) -> None:
    assert parse_report(report_xml("CXR9", "Clear.", images)).study_id == study_id


def test_archive_and_folders_give_the_same_reports_in_order(tmp_path: Path) -> None:
    archive = write_reports(tmp_path / "root" / "NLMCXR_reports.tgz")
    with tarfile.open(archive) as tar:
        tar.extractall(tmp_path / "extracted", filter="data")
    extracted = tmp_path / "extracted"
    read = [read_reports(path) for path in (archive, tmp_path / "root", extracted, extracted / "ecgen-radiology")]
    assert [report.uid for report in read[0].reports] == ["CXR1", "CXR2", "CXR10", "CXR11", "CXR12"]
    assert read[0].reports[1].findings == "Left base opacity. Small fluid level."
    assert read[0].reports[2].findings == FINDINGS["CXR10"]
    assert all(archive == read[0] for archive in read)


def test_skips_broken_files_and_names_them(tmp_path: Path) -> None:
    bomb = b'<!DOCTYPE x [<!ENTITY a "aaaa">]><eCitation><uId id="CXR3"/>&a;</eCitation>'
    files = xml_files() | {
        "3.xml": bomb,
        "4.xml": b"<eCitation><uId id=",
        "5.xml": b"<eCitation/>",
        "6.xml": report_xml("CXR1", "The same id again.", []),
        "7.xml": b"",
        "._1.xml": b"a file of a Mac, no report",
    }
    archive = read_reports(write_reports(tmp_path / "r.tgz", files))
    assert len(archive.reports) == 5
    assert [entry.partition(":")[0] for entry in archive.broken] == [
        f"ecgen-radiology/{n}.xml" for n in (3, 4, 5, 6, 7)
    ]
    assert "uId" in archive.broken[2]
    assert "CXR1 occurs twice" in archive.broken[3]


def test_rejects_sources_without_reports(tmp_path: Path) -> None:
    with pytest.raises(ArchiveError, match=r"has no reports; expected NLMCXR_reports\.tgz"):
        read_reports(tmp_path)
    with pytest.raises(ArchiveError, match="does not exist"):
        read_reports(tmp_path / "nowhere")
    with pytest.raises(ArchiveError, match="no readable report"):
        read_reports(write_reports(tmp_path / "empty.tgz", {}))
    (tmp_path / "page.tgz").write_text("<html>not found</html>")
    with pytest.raises(ArchiveError, match="not a tar archive"):
        read_reports(tmp_path / "page.tgz")


@pytest.mark.parametrize("kept", [0, 1, 100, 500, -100, -1])
def test_rejects_truncated_archive(tmp_path: Path, kept: int) -> None:
    whole = write_reports(tmp_path / "whole.tgz").read_bytes()
    (tmp_path / "cut.tgz").write_bytes(whole[:kept])
    with pytest.raises(ArchiveError, match="download it again"):
        read_reports(tmp_path / "cut.tgz")
