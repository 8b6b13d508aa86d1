"""The yardstick of annotations: headings and reports compared, and its command. All texts are invented."""

from __future__ import annotations

from pathlib import Path

import pytest

from retrieval_index.openi import OpeniReport
from tests.support.archives import report_xml, write_reports
from training.annotation_yardstick import main
from training.evaluation.annotation_agreement import Difference, compare, of_headings


def report(uid: str, findings: str, impression: str, *mesh: str) -> OpeniReport:
    return OpeniReport(uid, findings, impression, "", (), mesh)


def test_reads_sides_regions_and_degrees_of_headings() -> None:
    found = of_headings(
        ["Opacity/lung/base/left/mild", "Airspace Disease/lung/middle lobe/right", "Cardiac Shadow/borderline",
         "Spine/degenerative/severe", "Aorta/tortuous", "Pleural Effusion/bilateral/large", "normal"]
    )  # fmt: skip
    assert {name: {kind: set(values) for kind, values in context.items()} for name, context in found.items()} == {
        "Lung Opacity": {"side": {"left", "right"}, "region": {"base", "middle lobe"}, "degree": {"mild"}},
        "degenerative change": {"side": set(), "region": {"spine"}, "degree": {"severe"}},
        "tortuous aorta": {"side": set(), "region": set(), "degree": set()},
        "Pleural Effusion": {"side": {"left", "right"}, "region": set(), "degree": {"severe"}},
    }


def test_counts_each_side_region_and_degree_where_both_name_the_finding() -> None:
    agreement = compare(
        [
            report("CXR1", "A minimal opacity at the left base.", "", "Opacity/lung/base/left/mild"),
            report("CXR2", "No effusion.", "Opacity in the right apex.", "Opacity/lung/apex/bilateral"),
            report("CXR3", "Left midlung scarring.", "", "Cicatrix/lung/lingula", "Pleural Effusion/left"),
        ]
    )
    assert agreement.studies == 3
    assert dict(agreement.counts["Lung Opacity", "side"]) == {"hits": 2, "wrong": 0, "missed": 1}
    assert dict(agreement.counts["Lung Opacity", "region"]) == {"hits": 2, "wrong": 0, "missed": 0}
    assert dict(agreement.counts["Lung Opacity", "degree"]) == {"hits": 1, "wrong": 0, "missed": 0}
    assert dict(agreement.counts["scar", "region"]) == {"hits": 1, "wrong": 0, "missed": 0}
    assert {name: dict(sides) for name, sides in agreement.named.items()} == {
        "Lung Opacity": {"both": 2}, "scar": {"both": 1}, "Pleural Effusion": {"headings": 1},
    }  # fmt: skip
    expected = Difference("CXR2", "Lung Opacity", "side", frozenset({"left", "right"}), frozenset({"right"}))
    assert agreement.differences == [expected]


@pytest.fixture
def root(tmp_path: Path) -> Path:
    texts = {"CXR1": "Small left effusion.", "CXR2": "Small right effusion.", "CXR3": "Large left effusion."}
    files = {
        f"{uid[3:]}.xml": report_xml(uid, text, (), mesh=["Pleural Effusion/left/small"]) for uid, text in texts.items()
    }
    write_reports(tmp_path / "NLMCXR_reports.tgz", files)
    (tmp_path / "r2gen_split.csv").write_text("study_id,split\nCXR1,train\nCXR2,val\nCXR3,test\n")
    return tmp_path


def test_command_prints_a_split_and_no_text(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--root", str(root), "--split", "val", "--markdown", "--differences"]) == 0
    printed = capsys.readouterr().out
    assert "val: 1 studies" in printed
    assert "| side | 0 | 1 | 1 | .000 | .000 | .000 |" in printed
    assert "| Pleural Effusion | degree | 1 | 0 | 0 | 1.000 | 1.000 | 1.000 |" in printed
    assert "CXR2\tPleural Effusion\tside\tleft\tright" in printed
    assert "right effusion" not in printed


def test_command_never_reads_test_studies_and_names_a_missing_archive(
    root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit, match="2"):
        main(["--root", str(root), "--split", "test"])
    with pytest.raises(SystemExit, match="1"):
        main(["--root", str(root / "none")])
    assert "none" in capsys.readouterr().err
