"""``training.score``: equal to ``training.evaluate`` on the same texts; its files, page and comparisons."""

from __future__ import annotations

import csv
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from model.text.labeler import FINDINGS
from tests.support.tiny import REPORTS as CASES
from training.evaluate import main as evaluate
from training.openi import main as write_annotation
from training.phantoms import write_phantom_root
from training.score import main

VAL = 6
DRAWS = ["--draws", "60", "--no-meteor"]
REPORTS = {
    "s1": "The heart is normal. The lungs are clear.",
    "s2": "Large right pleural effusion. No pneumothorax.",
    "s3": "The heart is enlarged. The lungs are clear.",
    "s4": "No acute disease. The heart is normal.",
}
DRAFTS = {**REPORTS, "s4": "Large right pleural effusion."}
OTHERS = dict.fromkeys(REPORTS, "The heart is normal. The lungs are clear.")


@pytest.fixture(scope="module")
def evaluated(tmp_path_factory: pytest.TempPathFactory, bundle: Path) -> Path:
    """An annotation, a table of labels, and ``val.json`` of ``training.evaluate`` with its predictions."""
    folder = tmp_path_factory.mktemp("score")
    root = write_phantom_root(folder / "root", train=12, val=VAL, size=64)
    annotation = folder / "annotation.json"
    assert write_annotation(["--root", str(root), "--out", str(annotation)]) == 0
    entries = json.loads(annotation.read_text())
    cases = [{**entries["train"][0], "id": f"CXR9{row:03d}_IM-0001", "report": text} for row, text in enumerate(CASES)]
    annotation.write_text(json.dumps({**entries, "train": [*entries["train"], *cases]}))
    uids = [entry["id"].partition("_")[0] for entry in entries["val"]]
    rows = [",".join([uid, *("1" if name == "Pleural Effusion" else "0" for name in FINDINGS)]) for uid in uids]
    (folder / "labels.csv").write_text("\n".join([",".join(["study_id", *FINDINGS]), *rows]) + "\n")
    data = ["--annotation", str(annotation), "--images", str(root)]
    options = ["--device", "cpu", "--beam-size", "2", "--reference-labels", str(folder / "labels.csv"), *DRAWS]
    assert evaluate(["--bundle", str(bundle), *data, "--out", str(folder / "val.json"), *options]) == 0
    return folder


def _score(folder: Path, *options: str | Path) -> dict[str, Any]:
    out = folder / "out"
    assert main([*map(str, options), "--out", str(out), *DRAWS]) == 0
    result: dict[str, Any] = json.loads((out / "metrics.json").read_text())
    return result


def _write(path: Path, texts: Mapping[str, str]) -> Path:
    path.write_text("".join(json.dumps({"id": study, "text": text}) + "\n" for study, text in texts.items()))
    return path


def test_metrics_equal_those_of_evaluate_on_the_same_texts(evaluated: Path, tmp_path: Path) -> None:
    annotation = evaluated / "annotation.json"
    scored = _score(tmp_path, "--predictions", evaluated / "val.predictions.jsonl", "--references", annotation,
                    "--training-reports", annotation, "--reference-labels", evaluated / "labels.csv")  # fmt: skip
    expected = json.loads((evaluated / "val.json").read_text())
    assert scored["n"] == VAL
    assert all(scored["baselines"].values())  # the nearest row too, from the ids of the cases
    given = {"predictions", "dataset", "split", "bundle", "decoding", "limit", "counts", "notes", "n_beside"}
    differ = {"selection", "vocabulary", "constant_chosen_on", "finding_auroc", "views", "device", "precision"}
    for name in set(expected) - given - differ:
        assert scored[name] == expected[name], name
    assert scored["vocabulary"]["words"] == expected["vocabulary"]["words"]
    assert scored["bundle"] is scored["finding_auroc"] is None


@pytest.mark.parametrize("kind", ["jsonl", "list", "mapping", "csv"])
def test_reads_every_form_of_a_file(tmp_path: Path, kind: str) -> None:
    rows = [{"study_id": study, "report": text} for study, text in REPORTS.items()]
    references = tmp_path / ("references.csv" if kind == "csv" else "references.json")
    if kind == "csv":
        with references.open("w", newline="", encoding="utf-8-sig") as file:
            writer = csv.DictWriter(file, ["study_id", "report"])
            writer.writeheader()
            writer.writerows(rows)
    else:
        lines = "\n".join(map(json.dumps, rows))
        references.write_text({"jsonl": lines, "list": json.dumps(rows), "mapping": json.dumps(REPORTS)}[kind])
    result = _score(tmp_path, "--predictions", _write(tmp_path / "a.jsonl", REPORTS), "--references", references)
    assert result["system_full"]["BLEU_4"] == pytest.approx(1.0)
    assert result["system"]["BLEU_4"] == pytest.approx(1.0)  # no training reports: no word becomes <unk>
    assert result["language"] is result["copied"] is None
    assert "a.jsonl has no lists of case ids" in result["baseline_reasons"]["nearest"]


def test_reads_the_two_files_of_r2gen_by_their_rows(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """One column, no header: what the published trainer writes as res.csv and gts.csv."""
    (tmp_path / "gts.csv").write_text("".join(f'"{text.lower()}"\n' for text in REPORTS.values()))
    (tmp_path / "res.csv").write_text("".join(f"{text.lower()}\n" for text in [*list(REPORTS.values())[:3], "clear ."]))
    result = _score(tmp_path, "--predictions", tmp_path / "res.csv", "--references", tmp_path / "gts.csv")
    assert result["n"] == 4
    assert 0.5 < result["system"]["BLEU_1"] < 1
    references = _write(tmp_path / "r.jsonl", REPORTS)
    assert main(["--predictions", str(tmp_path / "res.csv"), "--references", str(references)]) == 2
    assert "ids such as 'row 1' there, 's1' here" in caplog.text


@pytest.mark.parametrize(
    ("predictions", "words"),
    [
        ({**DRAFTS, "s9": "Clear."}, ["1 of its ids are not in", "s9", "--common"]),
        ({study: DRAFTS[study] for study in ("s1", "s2")}, ["2 studies of", "s3, s4", '""', "--common"]),
        ({"x1": "Clear."}, ["no id of", "'x1'", "'s1'"]),
        ({}, ["holds no text"]),
    ],
)
def test_refuses_other_ids_by_name(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, predictions: dict[str, str], words: list[str]
) -> None:
    references, drafts = _write(tmp_path / "r.jsonl", REPORTS), _write(tmp_path / "p.jsonl", predictions)
    assert main(["--predictions", str(drafts), "--references", str(references), *DRAWS]) == 2
    assert all(word in caplog.text for word in words), caplog.text


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("p.csv", "id,text\ns1,a\ns1,b\n", ["1 ids occur more than once: s1", "one row for each study"]),
        ("p.csv", "name,text\ns1,a\n", ["p.csv:2: no column for the id", "study_id", "found: name, text"]),
        ("p.csv", "id,text\ns1,no effusion, no pneumothorax\n", ["p.csv:2 has 3 cells for 2 columns", "double quotes"]),
        ("p.csv", "clear lungs .\nno effusion, clear .\n", ["p.csv:2 has 2 cells for 1 columns", "double quotes"]),
        ("p.csv", "id,draft\ns1,a\n", ["no column for the text", "hypothesis"]),
        ("p.json", '[{"id": "s1", "text": null}]', ["entry 1: text of study s1 is no text", '""']),
        ("p.jsonl", '{"id": "s1", "text": "a"}\n{"id"\n', ["p.jsonl:2 is not valid JSON"]),
        ("p.json", "[1]", ["entry 1 is no JSON object"]),
        ("p.jsonl", '{"id": null, "text": "a"}', ["id is None"]),
        ("p.csv", "id;text\ns1;clear\n", ["'id;text' is one column", "by commas"]),
        ("p.tsv", "study_id\ttext\ns1\tclear\n", ["is one column", "by commas"]),
        ("p.txt", b"id,text\ns1,\xff\n", ["is not UTF-8"]),
    ],
)
def test_refuses_malformed_files_with_the_place(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, name: str, content: str | bytes, words: list[str]
) -> None:
    (tmp_path / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    references = _write(tmp_path / "r.jsonl", REPORTS)
    assert main(["--predictions", str(tmp_path / name), "--references", str(references)]) == 2
    assert all(word in caplog.text for word in words), caplog.text


def test_annotation_with_two_splits_needs_a_split(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    entries = [{"id": study, "report": text, "image_path": ["a.png"]} for study, text in REPORTS.items()]
    annotation = tmp_path / "annotation.json"
    annotation.write_text(json.dumps({"train": [], "val": entries[:2], "test": entries[2:]}))
    predictions = _write(tmp_path / "p.jsonl", {"s3": DRAFTS["s3"], "s4": DRAFTS["s4"]})
    arguments = ["--predictions", str(predictions), "--references", str(annotation)]
    assert main(arguments) == 2
    assert "name one: --split val or --split test" in caplog.text
    assert _score(tmp_path, *arguments, "--split", "test")["n"] == 2
    assert main(["--predictions", str(predictions), "--references", str(predictions), "--split", "val"]) == 2
    assert "leave --split and --split-val out" in caplog.text


def test_common_studies_are_scored_and_counted(tmp_path: Path) -> None:
    few = {study: text for study, text in DRAFTS.items() if study != "s2"} | {"s9": "Clear."}
    result = _score(tmp_path, "--predictions", _write(tmp_path / "p.jsonl", few), "--references",
                    _write(tmp_path / "r.jsonl", {**REPORTS, "s5": "?!"}), "--common")  # fmt: skip
    assert result["n"] == 3
    assert any("1 studies that some file lacks are not scored" in note for note in result["notes"])
    assert result["skipped_studies"] == {"s5": "its report has no words"}


def test_texts_of_reports_without_words_may_be_there_or_not(tmp_path: Path) -> None:
    references = _write(tmp_path / "r.jsonl", {**REPORTS, "s5": "?!"})
    for drafts in (DRAFTS, {**DRAFTS, "s5": "Clear."}):
        result = _score(tmp_path, "--predictions", _write(tmp_path / "p.jsonl", drafts), "--references", references)
        assert (result["n"], result["skipped_studies"]) == (4, {"s5": "its report has no words"})


def test_page_names_both_systems_and_holds_no_image(tmp_path: Path) -> None:
    result = _score(tmp_path, "--predictions", _write(tmp_path / "good.jsonl", DRAFTS),
                    "--references", _write(tmp_path / "r.jsonl", REPORTS),
                    "--training-reports", _write(tmp_path / "train.jsonl", REPORTS),
                    "--against", _write(tmp_path / "bad.jsonl", OTHERS))  # fmt: skip
    for name in ("report.html", "report.md"):
        text = (tmp_path / "out" / name).read_text()
        assert "good against bad on r.jsonl" in text
        assert "Against other systems" in text
        assert "radiographs of the data set" not in text
        assert "data:image" not in text
        assert "Share of the permutations that score at least as high" in " ".join(text.split())
        assert REPORTS["s4"] in text  # the worst study of the gallery
    assert not any(text.lower() in json.dumps(result).lower() for text in REPORTS.values())
    assert (tmp_path / "out" / ".gitignore").read_text().endswith("*\n")


def test_retrieved_reports_of_mimic_are_found_by_their_study_id(tmp_path: Path) -> None:
    """Entries are images there; ``study_id`` is the id of the report, and so of the case."""
    entries = {
        split: [
            {"id": f"{split}-{study}", "study_id": number, "report": text, "image_path": ["1.jpg"]}
            for number, (study, text) in enumerate(REPORTS.items(), first)
        ]
        for split, first in (("train", 100), ("test", 200))
    }
    annotation, predictions = tmp_path / "annotation.json", tmp_path / "p.jsonl"
    annotation.write_text(json.dumps(entries))
    rows = [{"id": entry["id"], "text": "Clear.", "retrieved": ["101"]} for entry in entries["test"]]
    predictions.write_text("\n".join(map(json.dumps, rows)))
    result = _score(tmp_path, "--predictions", predictions, "--references", annotation, "--split", "test",
                    "--training-reports", annotation)  # fmt: skip
    assert result["baselines"]["nearest"] is not None, result["baseline_reasons"]
    assert "text not available" not in (tmp_path / "out" / "report.html").read_text()
