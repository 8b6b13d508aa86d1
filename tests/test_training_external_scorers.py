"""Clinical scorers that are not installed are named; those that are run offline, and only with their weights there.

The packages themselves are far larger than this project: stand-ins with their interface lie on the path here.
"""

from __future__ import annotations

import importlib
import importlib.util
import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from training.evaluation.external_scorers import external_scores
from training.evaluation.scoring import ReferenceSet
from training.scoring.baselines import TrivialRow

REPORTS = ["the heart is large .", "no effusion ."]
ROWS = {"constant": TrivialRow({"a": ["no effusion ."] * 2, "b": REPORTS}, merge="best")}
STAND_INS = {
    "appdirs.py": "import os\ndef user_cache_dir(name):\n    return os.path.join(os.environ['STAND_IN_CACHE'], name)\n",
    "radgraph.py": """import os
class F1RadGraph:
    def __init__(self, reward_level, model_type):
        assert reward_level == "all" and os.environ["HF_HUB_OFFLINE"] == "1"
    def __call__(self, refs, hyps):
        same = sum(r == h for r, h in zip(refs, hyps)) / len(refs)
        return (same, same / 2, same / 4), [], [], []
""",
    "radgraph-1.2.dist-info/METADATA": "Metadata-Version: 2.1\nName: radgraph\nVersion: 1.2\n",
    "f1chexbert.py": "raise RuntimeError('tokenizer is not cached')\n",
}


@pytest.fixture
def references() -> ReferenceSet:
    return ReferenceSet(REPORTS, frozenset(["the", "heart", "is", "large", "no", "effusion", "."]), meteor=False)


@pytest.fixture
def installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder with stand-ins on the path; returns their cache of weights, which is empty."""
    for name, text in STAND_INS.items():
        path = tmp_path / "packages" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    monkeypatch.syspath_prepend(tmp_path / "packages")
    monkeypatch.setenv("STAND_IN_CACHE", str(tmp_path / "cache"))
    yield tmp_path / "cache"
    for name in ("radgraph", "f1chexbert", "appdirs"):
        sys.modules.pop(name, None)
    importlib.invalidate_caches()


@pytest.mark.skipif(importlib.util.find_spec("radgraph") is not None, reason="RadGraph is installed here")
def test_names_packages_that_are_not_installed(references: ReferenceSet) -> None:
    tables, reasons = external_scores(references, REPORTS, ROWS)
    assert tables["RadGraph"] is None
    assert reasons["RadGraph"] == "the package radgraph is not installed"
    assert set(tables) == {"RadGraph", "CheXbert"}


def test_scorers_without_weights_are_not_run(installed: Path, references: ReferenceSet) -> None:
    tables, reasons = external_scores(references, REPORTS, ROWS)
    assert tables == {"RadGraph": None, "CheXbert": None}
    assert "its weights are not in" in reasons["RadGraph"]
    assert str(installed / "radgraph" / "1.2") in reasons["RadGraph"]


def test_scores_every_row_offline(installed: Path, references: ReferenceSet) -> None:
    weights = installed / "radgraph" / "1.2" / "radgraph" / "weights.th"
    weights.parent.mkdir(parents=True)
    weights.touch()
    before = dict(os.environ)
    tables, reasons = external_scores(references, [REPORTS[0], "nothing ."], ROWS)
    assert tables["RadGraph"]["system"] == {"simple (radgraph)": 0.5, "partial": 0.25, "complete": 0.125}
    assert tables["RadGraph"]["baselines"]["constant"]["simple (radgraph)"] == 1.0  # the better of the two
    assert "RadGraph" not in reasons
    assert dict(os.environ) == before


def test_failing_package_is_named(installed: Path, references: ReferenceSet) -> None:
    tables, reasons = external_scores(references, REPORTS, ROWS)
    assert tables["CheXbert"] is None
    assert reasons["CheXbert"] == "its package failed (RuntimeError: tokenizer is not cached)"
