"""Agreement of the finding labeler with a table: counts, table reader, command. All texts are invented."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import pytest

from model.text.labeler import FINDINGS
from model.types import Label
from training.data.tables import read_labels
from training.evaluation.labeler_agreement import FindingStudies, compare, main, read_texts

TEXTS = {
    "CXR1": "Cardiomegaly with a broad effusion.",
    "CXR2": "Cardiomegaly, perhaps. No effusion at all.",
    "CXR3": "An effusion fills the left side.",
    "CXR4": "A film without any blemish.",
    "CXR5": "A mass without a row in the table.",
}


def row(**present: Label) -> dict[str, Label | None]:
    return {name: present.get(name.replace(" ", "_")) for name in FINDINGS}


TABLE: Mapping[str, Mapping[str, Label | None]] = {
    "CXR1": row(Cardiomegaly="present"),
    "CXR2": row(Cardiomegaly="present", Pleural_Effusion="uncertain"),
    "CXR3": row(Pleural_Effusion="present", Edema="present"),
    "CXR4": row(No_Finding="present"),
    "CXR9": row(Fracture="present"),  # no text
}


def test_compares_studies_by_finding_and_scores_them() -> None:
    agreement = compare(TEXTS, TABLE)
    assert agreement.studies == 4
    assert {name: found for name, found in agreement.findings.items() if any(found)} == {
        "Cardiomegaly": FindingStudies(("CXR1", "CXR2"), (), ()),
        "Pleural Effusion": FindingStudies(("CXR3",), ("CXR1",), ()),
        "Edema": FindingStudies((), (), ("CXR3",)),
        "No Finding": FindingStudies(("CXR4",), (), ()),
    }
    assert agreement.scores.whole["label_f1_micro"] == 0.75  # 3 hits, 1 wrong, 1 missed; without No Finding
    assert agreement.scores.whole["label_f1_macro"] == pytest.approx((1 + 2 / 3 + 0) / 3)  # findings of the table
    low, high = agreement.scores.intervals()["label_f1_micro"]
    assert 0 <= low <= 0.75 <= high <= 1


def test_uncertain_labels_can_be_counted() -> None:
    agreement = compare({"CXR2": "Possible effusion."}, TABLE, positive="uncertain")
    assert agreement.findings["Pleural Effusion"].both == ("CXR2",)
    assert agreement.scores.whole["label_f1_micro"] == 1


def test_rejects_texts_without_a_row() -> None:
    with pytest.raises(ValueError, match="no study has both"):
        compare({"CXR77": "Cardiomegaly."}, TABLE)


def test_reads_the_three_values_of_a_table(tmp_path: Path) -> None:
    path = write_table(tmp_path, {"CXR1": {"Edema": "1", "Fracture": "-1"}, "CXR2": {"Edema": "1.0", "Fracture": ""}})
    table = read_labels(path)
    assert (table["CXR1"]["Edema"], table["CXR1"]["Fracture"]) == ("present", "uncertain")
    assert (table["CXR2"]["Edema"], table["CXR2"]["Fracture"], table["CXR2"]["Pneumonia"]) == ("present", None, None)


def test_rejects_bad_tables_with_the_line(tmp_path: Path) -> None:
    path = write_table(tmp_path, {"CXR1": {"Edema": "yes"}})
    with pytest.raises(ValueError, match=r"chexbert_labels\.csv:2: cell 'yes'"):
        read_labels(path)
    path.write_text("study_id,Edema\nCXR1,1\n")
    with pytest.raises(ValueError, match=r"lacks the columns .*, Fracture,"):
        read_labels(path)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Four studies: two of train, one of val, one of test; and one outside the split."""
    reports = tmp_path / "ecgen-radiology"
    reports.mkdir()
    for number, text in enumerate(TEXTS.values(), start=1):
        (reports / f"{number}.xml").write_text(
            f'<eCitation><uId id="CXR{number}"/><AbstractText Label="FINDINGS">See below.</AbstractText>'
            f'<AbstractText Label="IMPRESSION">{text}</AbstractText></eCitation>'
        )
    (tmp_path / "r2gen_split.csv").write_text("study_id,split\nCXR1,train\nCXR2,train\nCXR3,val\nCXR4,test\n")
    write_table(tmp_path, {f"CXR{n}": {"Cardiomegaly": "1" if n < 3 else "0"} for n in range(1, 6)})
    return tmp_path


def test_reads_texts_by_part_without_the_test_split(root: Path) -> None:
    texts = read_texts(root)
    assert texts == {
        "train": {"CXR1": TEXTS["CXR1"], "CXR2": TEXTS["CXR2"]},
        "val": {"CXR3": TEXTS["CXR3"]},
        "extra": {"CXR5": TEXTS["CXR5"]},
    }
    assert read_texts(root, "findings")["val"] == {"CXR3": "See below."}
    assert read_texts(root, "both")["val"] == {"CXR3": f"See below. . {TEXTS['CXR3']}"}


def test_command_prints_findings_and_ids_but_no_text(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--root", str(root), "--split", "train", "--markdown"]) == 0
    printed = capsys.readouterr().out
    assert "| Cardiomegaly | 2 | 1.000 | 1.000 | 1.000 |" in printed
    assert "| micro, 13 findings | 2 | .667 | 1.000 | .800 |" in printed
    assert "- Pleural Effusion, labeler only: CXR1" in printed
    assert not any(text in printed for text in TEXTS.values())


def test_command_prints_train_and_val_and_needs_a_table(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--root", str(root)]) == 0
    printed = capsys.readouterr().out
    assert "train, impression, present: 2 studies" in printed
    assert "val, impression, present: 1 studies" in printed
    with pytest.raises(SystemExit, match="1"):
        main(["--root", str(root / "images")])
    assert "chexbert_labels.csv" in capsys.readouterr().err


def write_table(folder: Path, cells: Mapping[str, Mapping[str, str]]) -> Path:
    path = folder / "chexbert_labels.csv"
    lines = [",".join(("study_id", *FINDINGS))]
    lines += [",".join((uid, *(given.get(name, "0") for name in FINDINGS))) for uid, given in cells.items()]
    path.write_text("\n".join(lines) + "\n")
    return path
