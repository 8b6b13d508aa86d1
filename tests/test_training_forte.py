"""FORTE as published: equal to the published code, counted by hand on invented lists, refused in another form."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from training.evaluate import main as evaluate
from training.evaluation.terminal import format_table
from training.score import main as score
from training.scoring.bootstrap import Bootstrap
from training.scoring.forte import ForteKeywords, forte, precision_recall, read_forte_keywords

SIZES = [" big", " large"]
INVENTED: dict[str, Any] = {
    "degree": {" big": SIZES, " large": SIZES, " no ": [" no "]},
    "landmark": {" wing": [" wing"], " tail": [" tail"]},
    "feature": {" spot": [" spot"]},
    "impression": {" cold": [" cold"]},
}


@pytest.fixture
def lists(tmp_path: Path) -> Path:
    path = tmp_path / "lists.json"
    path.write_text(json.dumps(INVENTED))
    return path


def test_equals_the_published_code(published_fixtures: Path) -> None:
    cases = published_fixtures / "forte_cases.json"
    if not cases.is_file():
        pytest.skip("needs the published code's scores: put forte_* into fixtures/ next to the real data")
    keywords = read_forte_keywords(published_fixtures / "forte_cxr_keywords.json")
    for case in json.loads(cases.read_text()):
        for category, expected in case["scores"].items():
            found = precision_recall(case["reference"], case["prediction"], keywords.lists[category])
            assert found == (expected["precision"], expected["recall"]), (case, category)


@pytest.mark.parametrize(
    ("reference", "prediction", "category", "expected"),
    [
        ("Big wing .", "a large wing .", "degree", (1, 1)),  # a synonym; the first word of a text has its blank
        ("big large wing .", "large wing .", "degree", (1, 1)),  # synonyms count once
        ("bigger wings .", "large .", "degree", (1, 1)),  # the start of a word suffices
        ("abig wing .", "large .", "degree", (0, None)),  # its end does not
        ("no spot", "no . large", "degree", (0.5, 1)),
        ("not large", "large", "degree", (1, 1)),  # " no " ends with a blank
        ("wing and tail .", "tail , spot .", "landmark", (1, 0.5)),
        ("wing", "", "landmark", (None, 0)),
        ("", "wing", "landmark", (0, None)),
        ("spot", "spot", "landmark", (None, None)),
    ],
)
def test_counts_as_published(
    reference: str, prediction: str, category: str, expected: tuple[float | None, float | None]
) -> None:
    assert precision_recall(reference, prediction, INVENTED[category]) == expected


def test_f1_is_that_of_means_over_reports_with_a_score() -> None:
    keywords = ForteKeywords("invented", "", INVENTED)
    pairs = [("wing tail", "wing"), ("tail", "wing tail"), ("", "wing"), ("big", "")]
    table = forte(pairs, keywords, Bootstrap(len(pairs), draws=40))
    landmark = table["landmark"]
    low, high = landmark.pop("f1_95")
    assert low < landmark["f1"] < high
    assert landmark == pytest.approx({"precision": 0.5, "recall": 0.75, "f1": 0.6, "precision_n": 3, "recall_n": 2})
    assert table["degree"] == {"precision": None, "recall": 0, "f1": None, "precision_n": 0, "recall_n": 1}
    assert table["average"]["f1"] is None  # a category has none
    assert forte(pairs[:2], keywords)["landmark"] == {
        "precision": 0.75, "recall": 0.75, "f1": 0.75, "precision_n": 2, "recall_n": 2
    }  # fmt: skip


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("no JSON", "Invalid JSON"),
        ("[]", "the file: "),
        (json.dumps({"degree": INVENTED["degree"]}), "its categories are degree; FORTE has degree, landmark,"),
        (json.dumps({**INVENTED, "degree": {}}), "'degree': "),
        (json.dumps({**INVENTED, "degree": {" big": " large"}}), "'degree' → ' big': "),
        (json.dumps({**INVENTED, "degree": {" ": [" big"]}}), "a key word is blank"),
    ],
)
def test_refuses_other_files_before_a_bundle_is_opened(
    content: str, message: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "lists.json"
    path.write_text(content)
    (tmp_path / "root").mkdir()
    code = evaluate(["--bundle", str(tmp_path / "none"), "--root", str(tmp_path / "root"), "--out",
                     str(tmp_path / "val.json"), "--forte-keywords", str(path)])  # fmt: skip
    assert code == 2
    assert f"--forte-keywords {path}: " in caplog.text
    assert message in caplog.text


def test_score_writes_forte_and_key_words_under_both_names(
    lists: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    texts = {"a": "The wing is large.", "b": "No spot.", "c": "A cold tail."}
    for name, shown in (("reports", texts), ("drafts", {**texts, "c": "A big tail."})):
        (tmp_path / f"{name}.json").write_text(json.dumps(shown))
    out = tmp_path / "out"
    assert score(["--predictions", str(tmp_path / "drafts.json"), "--references", str(tmp_path / "reports.json"),
                  "--forte-keywords", str(lists), "--against", str(tmp_path / "reports.json"), "--out", str(out),
                  "--no-meteor", "--draws", "20"]) == 0  # fmt: skip
    printed = capsys.readouterr().out
    result = json.loads((out / "metrics.json").read_text())
    found = result["forte_published"]
    assert found["keywords"]["file"] == "lists.json"
    assert found["system"]["impression"]["recall"] == 0
    assert found["system_against_reports"]["degree"]["f1"] == 1
    assert "FORTE as published" in printed
    for page in ("report.html", "report.md"):
        assert "FORTE as published" in (out / page).read_text()
    assert result["forte"] == result["keyword_f1"]
    assert result["forte_without_negated"] == result["keyword_f1_without_negated"]
    old = {name: value for name, value in result.items() if not name.startswith(("keyword_f1", "forte_published"))}
    assert format_table(old) in format_table({**result, "forte_published": None})
