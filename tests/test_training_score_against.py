"""Paired differences of two systems."""

from __future__ import annotations

import json
from itertools import product
from pathlib import Path

import numpy as np
import pytest

from training.score import main
from training.scoring.metrics import Pair, score
from training.scoring.paired_permutation import paired_permutation_test
from training.scoring.study_statistics import METRICS

REFERENCES = [
    "the heart is normal . the lungs are clear .", "large right pleural effusion .", "the heart is enlarged .",
    "no acute disease .", "there is a small left pneumothorax .", "the lungs are hyperexpanded .",
]  # fmt: skip
OTHER = ["the heart is normal ."] * len(REFERENCES)


def _pairs(texts: list[str]) -> list[Pair]:
    return list(zip(REFERENCES, texts, strict=True))


def test_p_is_the_share_over_all_exchanges() -> None:
    """Against all 2**6 assignments, each scored by the scorers of the tables."""
    names = ("BLEU_1", "ROUGE_L", "label_f1_micro", "label_f1_macro", "CIDEr")
    differences = []
    for kept in product((True, False), repeat=len(REFERENCES)):
        one = [text if keep else OTHER[row] for row, (keep, text) in enumerate(zip(kept, REFERENCES, strict=True))]
        two = [OTHER[row] if keep else text for row, (keep, text) in enumerate(zip(kept, REFERENCES, strict=True))]
        first, second = score(_pairs(one)), score(_pairs(two))
        differences.append([abs((first[name] or 0.0) - (second[name] or 0.0)) for name in names])
    exact = (np.array(differences) >= np.array(differences)[0] - 1e-9).mean(axis=0)
    found = paired_permutation_test(_pairs(REFERENCES), _pairs(OTHER), draws=4000, seed=1)
    assert found is not None
    assert tuple(found) == METRICS
    for name, p in zip(names, exact.tolist(), strict=True):
        assert found[name] == pytest.approx(p, abs=0.02), name


def test_equal_systems_do_not_differ() -> None:
    found = paired_permutation_test(_pairs(OTHER), _pairs(OTHER), draws=50, seed=1)
    assert found is not None
    assert set(found.values()) == {1.0}
    assert paired_permutation_test(_pairs(OTHER), _pairs(OTHER), draws=0, seed=1) is None


def test_command_compares_two_systems(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    reports = [f"{text} {number} ribs are seen ." for number, text in enumerate(REFERENCES * 5)]
    files = {"r": reports, "one": reports, "two": ["the heart is normal ."] * len(reports)}
    for name, texts in files.items():
        lines = [json.dumps({"id": f"s{row}", "text": text}) for row, text in enumerate(texts)]
        (tmp_path / f"{name}.jsonl").write_text("\n".join(lines))
    paths = {name: str(tmp_path / f"{name}.jsonl") for name in files}
    assert main(["--predictions", paths["one"], "--references", paths["r"], "--against", paths["two"],
                 "--out", str(tmp_path / "out"), "--draws", "99", "--no-meteor"]) == 0  # fmt: skip
    result = json.loads((tmp_path / "out" / "metrics.json").read_text())
    row = result["against"]["two"]["row"]
    entry = result["system_minus"][row]["ROUGE_L"]
    assert entry["difference"] == pytest.approx(result["system"]["ROUGE_L"] - result[row]["ROUGE_L"])
    assert entry["confidence_95"][0] <= entry["difference"] <= entry["confidence_95"][1]
    assert entry["confidence_95"][0] > 0
    assert entry["p"] == pytest.approx(0.02)
    assert entry["p_permutation"] == pytest.approx(0.01)
    printed = capsys.readouterr().out
    assert "p permutation" in printed
    assert "two      ROUGE-L" in printed


def test_systems_of_one_file_name_are_named_by_their_folders(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    content = "".join(json.dumps({"id": f"s{row}", "text": text}) + "\n" for row, text in enumerate(REFERENCES))
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "val.predictions.jsonl").write_text(content)
    path = str(tmp_path / "a" / "val.predictions.jsonl")
    arguments = ["--predictions", path, "--references", path, "--draws", "0", "--no-meteor", "--against"]
    assert main([*arguments, path.replace("/a/", "/b/"), "--out", str(tmp_path / "out")]) == 0
    assert list(json.loads((tmp_path / "out" / "metrics.json").read_text())["against"]) == ["b/val"]
    assert main([*arguments, path]) == 2
    assert "two systems would both be called a/val" in caplog.text
