"""``python -m training.tune_decoding``: every trial kept, the best settings chosen and written into a bundle."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from model.bundle import load_bundle
from model.config import ConsensusConfig, DecodingConfig, LanguageConfig
from retrieval_index.index import ReportIndex
from tests.support.tiny import write_tiny_bundle
from training.data.features import cache_features
from training.data.openi import open_openi
from training.data.pixel_cache import build_pixel_cache
from training.data.resumable_lines import ResumableLines
from training.phantoms import write_phantom_root
from training.stages.common import ReportGenerator
from training.stages.validation import write_reports
from training.trainer.context import RunContext
from training.tune_decoding import GRID, LENGTH_PENALTIES, SIMILARITY_WEIGHTS, best_settings, draw, main

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
    assert {"greedy", "best candidate", "start"} < set(rows)
    assert {f"beam, length_penalty {value:g}" for value in LENGTH_PENALTIES} < set(rows)
    assert {f"rerank, similarity_weight {value:g}" for value in SIMILARITY_WEIGHTS} < set(rows)
    tried = [row for row in result["trials"] if row["settings"].get("moves")]
    assert len(tried) >= sum(len(values) for values in GRID.values()) - len(GRID)
    chosen = DecodingConfig(**result["chosen"])
    settings = {
        "beam": {"length_penalty": chosen.length_penalty},
        "rerank": {"similarity_weight": chosen.similarity_weight},
        "consensus": chosen.consensus.model_dump(),
    }[chosen.method]
    written = next(row for row in result["trials"] if row["settings"] == settings)
    best = max(row["objective"] for row in result["trials"] if row["trial"] not in ("greedy", "best candidate"))
    assert written["objective"] == pytest.approx(best)
    assert load_bundle(tmp_path / "tuned").config.decoding == chosen


def test_tries_only_the_given_settings(root: Path, bundle: Path, tmp_path: Path) -> None:
    out = tmp_path / "decoding.json"
    arguments = ["--bundle", str(bundle), "--root", str(root), "--out", str(out), "--device", "cpu"]
    assert main([*arguments, "--settings", "rouge", "classifier_weight"]) == 0
    names = [row["trial"] for row in json.loads(out.read_text())["trials"]]
    assert names[:2] == ["greedy", "start"]
    assert {name.split()[0] for name in names[2:]} == {"classifier_weight", "rouge"}


def test_clean_language_goes_into_the_written_bundle(root: Path, bundle: Path, tmp_path: Path) -> None:
    out, tuned = tmp_path / "decoding.json", tmp_path / "tuned"
    arguments = ["--bundle", str(bundle), "--root", str(root), "--out", str(out), "--device", "cpu", "--clean-language"]
    assert main([*arguments, "--write-bundle", str(tuned)]) == 0
    written = load_bundle(tuned)
    assert written.config.decoding.language == LanguageConfig(
        attested=True, no_priors=True, consistent=True, ordered=True
    )
    assert written.mbr_table is not None
    assert len(written.mbr_table.attested) > 0
    rows = {row["trial"]: row for row in json.loads(out.read_text())["trials"]}
    assert rows["start"]["drafts_with_comparison"] == 0
    assert rows["start"]["unattested_sentences"] < 0.5  # of an untrained model, which leads into dead ends


def test_clean_language_needs_a_consensus_table(root: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    plain = write_tiny_bundle(tmp_path / "plain", decoding=DecodingConfig(candidates=3))
    arguments = ["--bundle", str(plain), "--root", str(root), "--out", str(tmp_path / "x.json"), "--clean-language"]
    assert main(arguments) == 2
    assert "--clean-language needs a bundle with a table" in caplog.text


def test_settings_are_tuned_one_after_the_other() -> None:
    def value(_: str, decoding: DecodingConfig) -> float:
        settings = decoding.consensus
        return -abs(settings.temperature - 0.04) - abs(settings.finding - 4) - abs(settings.bleu4 - 1)

    best = best_settings(DecodingConfig(), value)[0].consensus
    assert (best.temperature, best.finding, best.bleu4) == (0.04, 4, 1)
    assert best.finding_threshold == ConsensusConfig().finding_threshold  # nothing was gained by another


def test_bundle_without_consensus_table_is_tuned_in_other_methods(root: Path, tmp_path: Path) -> None:
    plain = write_tiny_bundle(tmp_path / "plain", decoding=DecodingConfig(candidates=3))
    out = tmp_path / "x.json"
    assert main(["--bundle", str(plain), "--root", str(root), "--out", str(out), "--device", "cpu"]) == 0
    result = json.loads(out.read_text())
    assert len(result["trials"]) == 1 + len(LENGTH_PENALTIES) + len(SIMILARITY_WEIGHTS)
    assert result["chosen"]["method"] in ("beam", "rerank")


def test_refuses_a_bundle_without_retrieval(root: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    plain = write_tiny_bundle(tmp_path / "plain", retrieval=False)
    assert main(["--bundle", str(plain), "--root", str(root), "--out", str(tmp_path / "x.json")]) == 2
    assert "has no retrieval" in caplog.text


def test_trials_equal_the_drafts_of_the_methods(root: Path, bundle: Path, tmp_path: Path) -> None:
    """Beam search and reranking of ``generate`` itself, with the same settings, give the trials' reports."""
    loaded = load_bundle(bundle)
    index = ReportIndex.load(bundle / "index")
    source = open_openi(root)
    with ResumableLines(tmp_path / "candidates.jsonl", "") as lines:
        candidates, kept = draw(loaded, index, source.split("val"), source, tmp_path, torch.device("cpu"), lines)
    context = RunContext(torch.device("cpu"), 1, "fp32", tmp_path)
    cache = build_pixel_cache(source, kept, loaded.config.preprocessing.image_size, tmp_path)
    patches = cache_features(loaded.model.backbone, cache, kept, 1, context, tmp_path, view_dropout=0.0, name="again")
    for changes, ids in (
        ({"method": "beam", "length_penalty": 2.0}, candidates.beams[2.0]),
        ({"method": "rerank", "similarity_weight": 4.0}, candidates.reranked(4.0)),
    ):
        decoding = loaded.config.decoding.model_copy(update=changes)
        generator = ReportGenerator(loaded.model, loaded.tokenizer, patches, index, decoding)
        written = write_reports(generator, kept, context)
        assert written == [loaded.tokenizer.decode(row) for row in ids.tolist()], changes
