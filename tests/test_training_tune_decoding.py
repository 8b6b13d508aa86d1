"""``python -m training.tune_decoding``: every trial kept, the best settings chosen and written into a bundle."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from model.bundle import load_bundle
from model.config import ConsensusConfig, DecodingConfig
from tests.helpers import write_tiny_bundle
from training.phantom import write_phantom_root
from training.tune_decoding import GRID, best_settings, main

VAL = 4


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_phantom_root(tmp_path_factory.mktemp("phantoms"), train=12, val=VAL, test=2, seed=3, size=96)


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    decoding = DecodingConfig(method="consensus", candidates=4, temperature=1.0)
    return write_tiny_bundle(tmp_path_factory.mktemp("bundles") / "B", decoding=decoding)


def test_trials_are_kept_and_the_best_is_written(root: Path, bundle: Path, tmp_path: Path) -> None:
    out = tmp_path / "decoding.json"
    arguments = ["--bundle", str(bundle), "--root", str(root), "--out", str(out), "--device", "cpu"]
    assert main([*arguments, "--write-bundle", str(tmp_path / "tuned")]) == 0
    result = json.loads(out.read_text())
    assert result["n"] == VAL
    rows = {row["trial"]: row for row in result["trials"]}
    assert list(rows)[:4] == ["greedy", "beam", "best candidate", "start"]
    tried = [row for row in result["trials"] if row["settings"].get("moves")]
    assert len(tried) >= sum(len(values) for values in GRID.values()) - len(GRID)
    best = max(tried, key=lambda row: row["objective"])
    chosen = next(row for row in tried if row["settings"] == result["chosen"]["consensus"])
    assert chosen["objective"] == pytest.approx(best["objective"])
    assert load_bundle(tmp_path / "tuned").config.decoding.consensus == ConsensusConfig(**chosen["settings"])


def test_one_setting_after_the_other_is_moved_to_its_best_value() -> None:
    def value(_: str, decoding: DecodingConfig) -> float:
        settings = decoding.consensus
        return -abs(settings.temperature - 0.04) - abs(settings.finding - 4) - abs(settings.bleu4 - 1)

    best = best_settings(DecodingConfig(), value).consensus
    assert (best.temperature, best.finding, best.bleu4) == (0.04, 4, 1)
    assert best.finding_cost == ConsensusConfig().finding_cost  # nothing was gained by another


def test_a_bundle_that_decodes_otherwise_is_refused(
    root: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    plain = write_tiny_bundle(tmp_path / "plain")
    assert main(["--bundle", str(plain), "--root", str(root), "--out", str(tmp_path / "x.json")]) == 2
    assert "does not decode by consensus" in caplog.text
