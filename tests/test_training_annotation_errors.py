"""Errors of side, region and degree: outcomes of a pair, counts over pairs, rows of an evaluation, and the reward.

All sentences are invented for these tests.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from training.config import RewardConfig
from training.evaluation.terminal import format_table
from training.score import main as score
from training.scoring.annotation_errors import FIELDS, annotation_errors, annotation_gain, merged_errors, outcomes
from training.scoring.baselines import TrivialRow
from training.scoring.bootstrap import Bootstrap
from training.stages.scst_reward import FINDING_COST, Reward

LEFT, RIGHT, BOTH = "small left effusion .", "small right effusion .", "small bilateral effusions ."


def named(reference: str, draft: str) -> dict[str, str]:
    """Field -> the outcome that was counted, of one finding."""
    return {name: key for name, counts in outcomes(reference, draft).items() for key, count in counts.items() if count}


@pytest.mark.parametrize(
    ("reference", "draft", "expected"),
    [
        (LEFT, LEFT, {"side": "agree", "degree": "agree"}),
        (LEFT, RIGHT, {"side": "wrong", "degree": "agree"}),
        (LEFT, BOTH, {"side": "wrong", "degree": "agree"}),
        ("large left effusion .", LEFT, {"side": "agree", "degree": "wrong"}),
        ("trace left effusion .", LEFT, {"side": "agree", "degree": "agree"}),
        ("left effusion .", "small effusion .", {"side": "missing", "degree": "invented"}),
        ("left basilar atelectasis .", "left lower lobe atelectasis .", {"side": "agree", "region": "agree"}),
        ("left basilar atelectasis .", "left apical atelectasis .", {"side": "agree", "region": "wrong"}),
        ("degenerative thoracic spine .", "degenerative spine .", {"region": "agree"}),
        ("degenerative thoracic spine .", "degenerative lumbar spine .", {"region": "wrong"}),
        ("mild cardiomegaly .", "moderate cardiomegaly .", {"degree": "wrong"}),
        ("mild scoliosis .", "severe scoliosis .", {"degree": "wrong"}),
        # only findings that both name as present
        (LEFT, "no effusion on the right .", {}),
        (LEFT, "right effusion cannot be excluded .", {}),
        (LEFT, "right pneumothorax .", {}),
        # all mentions of a text count together, the strongest degree alone
        ("small left effusion . right effusion .", BOTH, {"side": "agree", "degree": "agree"}),
        ("small left effusion . large effusion .", "large left effusion .", {"side": "agree", "degree": "agree"}),
    ],
)
def test_outcome_of_each_field(reference: str, draft: str, expected: dict[str, str]) -> None:
    assert named(reference, draft) == expected


def test_counts_pairs_with_their_intervals() -> None:
    pairs = [(LEFT, LEFT), (LEFT, RIGHT), (LEFT, "no effusion ."), ("clear lungs .", "clear lungs .")]
    table = annotation_errors(pairs, Bootstrap(len(pairs), draws=200))
    assert table["findings"] == 2
    side = {"compared": 2, "agree": 1, "wrong": 1, "missing": 0, "invented": 0, "agreement": 0.5}
    assert {key: table["side"][key] for key in side} == side
    assert table["side"]["agreement_95"] == [0.0, 1.0]
    assert table["region"] == {key: 0 for key in side} | {"agreement": None}
    assert table["overall"]["agree"] == 3
    assert table["overall"]["compared"] == sum(table[name]["compared"] for name in FIELDS)


def test_merges_trivial_rows() -> None:
    parts = [annotation_errors([(LEFT, draft), (BOTH, draft)]) for draft in (LEFT, "left effusion .")]
    best = merged_errors(TrivialRow({"a": [], "b": []}, "best"), parts)
    assert best == parts[0]
    mean = merged_errors(TrivialRow({"a": [], "b": []}, "mean"), parts)
    assert mean["degree"] == {"compared": 2, "agree": 1, "wrong": 0, "missing": 1, "invented": 0, "agreement": 0.5}


def test_score_writes_annotations_of_every_row(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    texts = {"a": "Small left effusion.", "b": "Mild cardiomegaly.", "c": "Right apical scar."}
    drafts = {**texts, "a": "Small right effusion."}
    train = {f"{uid}{copy}": text for copy in range(3) for uid, text in texts.items()}
    for name, shown in (("reports", texts), ("drafts", drafts), ("train", train)):
        (tmp_path / f"{name}.json").write_text(json.dumps(shown))
    out = tmp_path / "out"
    assert score(["--predictions", str(tmp_path / "drafts.json"), "--references", str(tmp_path / "reports.json"),
                  "--training-reports", str(tmp_path / "train.json"), "--against", str(tmp_path / "reports.json"),
                  "--out", str(out), "--no-meteor", "--draws", "20"]) == 0  # fmt: skip
    result = json.loads((out / "metrics.json").read_text())
    found = result["annotations"]
    assert found["system"]["side"]["wrong"] == 1
    assert found["system"]["overall"]["compared"] == 5
    assert found["system_against_reports"]["overall"]["agreement"] == 1
    assert found["baselines"]["constant"]["findings"] >= 1
    assert "side, region and degree" in capsys.readouterr().out
    for page in ("report.html", "report.md"):
        assert "Side, region and degree" in (out / page).read_text()
    assert format_table({name: value for name, value in result.items() if name != "annotations"})


@pytest.mark.parametrize(
    ("draft", "gain"),
    [
        (LEFT, 2.0),
        (RIGHT, 0.0),
        ("right effusion .", -1.0),
        ("effusion .", 0.0),
        ("clear lungs .", 0.0),
        ("large right effusion .", -2.0),
    ],
)
def test_gain_is_agreement_minus_contradiction(draft: str, gain: float) -> None:
    assert annotation_gain(LEFT, draft) == gain


def test_gain_of_a_long_list_is_limited() -> None:
    text = "small left effusion . mild cardiomegaly . left basilar atelectasis . right rib fracture ."
    assert annotation_gain(text, text) == 3.0


def test_right_finding_on_the_wrong_side_is_worth_less_than_none() -> None:
    reports = ["left effusion . heart is normal .", "clear lungs . heart is normal ."] * 3
    reward = Reward(reports, RewardConfig(cider=0, label_f1=1, annotations=1), max_length=20)
    drafts = ["right effusion . heart is normal .", "heart is normal .", "left effusion . heart is normal ."]
    parts = reward(drafts, [True] * 3, [0, 0, 0])
    np.testing.assert_allclose(parts["annotations"], [-1, 0, 1])
    np.testing.assert_allclose(parts["reward"], [-FINDING_COST, 0, 2 - FINDING_COST])
