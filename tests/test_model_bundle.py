"""Bundles are written atomically, verified before use, and unchanged by a round trip; their drafter."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from model.bundle import load_bundle, write_bundle
from model.config import BundleConfig, DecodingConfig, RetrievalConfig
from model.drafter import Drafter
from model.manifest import BundleError, verify_bundle
from model.types import Draft, DraftOptions, StudyView, View
from tests.support.tiny import noise_study, open_drafter, tiny_model, tiny_tokenizer, write_tiny_bundle

BOTH = (View.FRONTAL, View.LATERAL)


@pytest.fixture
def bundle_path(tmp_path: Path) -> Path:
    return write_tiny_bundle(tmp_path / "tiny")


def same(one: Draft, other: Draft) -> bool:
    return (one.findings, one.labels, [c.case_id for c in one.reference_cases]) == (
        other.findings, other.labels, [c.case_id for c in other.reference_cases])  # fmt: skip


def test_round_trip_keeps_every_weight(bundle_path: Path) -> None:
    bundle = load_bundle(bundle_path)
    original = tiny_model(0).state_dict()
    loaded = bundle.model.state_dict()
    assert loaded.keys() == original.keys()
    assert all(np.array_equal(loaded[key].numpy(), original[key].numpy()) for key in original)
    assert bundle.tokenizer == tiny_tokenizer()
    assert len(bundle.digest) == 64


def test_metrics_keep_six_digits(bundle_path: Path, tmp_path: Path) -> None:
    plain, metrics = load_bundle(bundle_path), {"val": {"CIDEr": 0.123456789, "n": 1234567, "ends": [1e-9 / 3, None]}}
    write_bundle(
        tmp_path / "B", config=plain.config, model=plain.model, tokenizer=plain.tokenizer,
        index_dir=bundle_path / "index", metrics=metrics,
    )  # fmt: skip
    assert load_bundle(tmp_path / "B").metrics == {
        "val": {"CIDEr": 0.123457, "n": 1234567, "ends": [3.33333e-10, None]}
    }


def test_copies_only_index_files_into_a_bundle(bundle_path: Path, tmp_path: Path) -> None:
    plain, index = load_bundle(bundle_path), bundle_path.parent / "tiny-index"
    stray = index / ".cases.jsonl.killed.tmp"  # what a killed `write_atomic` leaves
    stray.write_bytes((index / "cases.jsonl").read_bytes())
    write_bundle(tmp_path / "B", config=plain.config, model=plain.model, tokenizer=plain.tokenizer, index_dir=index)
    assert {path.name for path in (tmp_path / "B" / "index").iterdir()} == {"reports.faiss", "cases.jsonl"}


def test_bundle_holds_exactly_the_documented_files(bundle_path: Path) -> None:
    names = {p.relative_to(bundle_path).as_posix() for p in bundle_path.rglob("*") if p.is_file()}
    assert names == {"MANIFEST.json", "config.json", "model.safetensors", "tokenizer.json", "metrics.json",
                     "index/reports.faiss", "index/cases.jsonl"}  # fmt: skip
    assert set(json.loads((bundle_path / "MANIFEST.json").read_text())["files"]) == names - {"MANIFEST.json"}


@pytest.mark.parametrize("name", ["model.safetensors", "tokenizer.json"])
def test_rejects_missing_and_truncated_files_by_name(bundle_path: Path, name: str) -> None:
    content = (bundle_path / name).read_bytes()
    (bundle_path / name).write_bytes(content[:-1])
    with pytest.raises(BundleError, match=f"{name} has"):
        verify_bundle(bundle_path)
    (bundle_path / name).unlink()
    with pytest.raises(BundleError, match=f"{name} is missing"):
        verify_bundle(bundle_path)


def test_rejects_a_directory_without_a_manifest(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match=r"MANIFEST\.json"):
        load_bundle(tmp_path)


def test_keeps_an_existing_bundle_without_replace(bundle_path: Path) -> None:
    before = load_bundle(bundle_path)
    with pytest.raises(BundleError, match="already exists"):
        write_bundle(bundle_path, config=before.config, model=before.model, tokenizer=before.tokenizer)
    assert load_bundle(bundle_path).digest == before.digest


def test_failed_write_keeps_the_old_bundle_and_leaves_no_other_file(bundle_path: Path) -> None:
    before = load_bundle(bundle_path)
    with pytest.raises(FileNotFoundError):
        write_bundle(bundle_path, config=before.config, model=before.model, tokenizer=before.tokenizer,
                     index_dir=bundle_path.parent / "nowhere", replace=True)  # fmt: skip
    assert load_bundle(bundle_path).digest == before.digest
    assert {p.name for p in bundle_path.parent.iterdir()} == {"tiny", "tiny-index"}


# --- the drafter ------------------------------------------------------------------------------------------------------


def test_drafts_do_not_depend_on_the_batch_or_on_view_order(bundle_path: Path) -> None:
    d = open_drafter(bundle_path)
    studies = [
        noise_study(1, *BOTH),
        noise_study(2, View.LATERAL),
        noise_study(3, *reversed(BOTH)),
        noise_study(4, *[View.FRONTAL] * 3),
    ]
    together = d.draft(studies)
    assert all(same(d.draft([s])[0], draft) for s, draft in zip(studies, together, strict=True))
    assert same(d.draft([list(reversed(studies[0]))])[0], together[0])
    assert len({draft.findings for draft in together}) > 1


def test_rejects_options_out_of_range_and_applies_top_k(bundle_path: Path) -> None:
    d = open_drafter(bundle_path)
    assert len(d.draft([noise_study(1, *BOTH)], DraftOptions(top_k=1))[0].reference_cases) == 1
    assert len(d.draft([noise_study(1, *BOTH)], DraftOptions(top_k=8))[0].reference_cases) == 8
    for wrong in ({"top_k": 0}, {"top_k": 51}, {"beam_size": 0}, {"beam_size": 9}):
        with pytest.raises(ValueError, match="must lie between"):
            DraftOptions(**wrong)


def test_rejects_contradictory_configurations() -> None:
    model = tiny_model(0, retrieval_k=0).config
    with pytest.raises(ValueError, match="no retrieval; use 'beam'"):
        BundleConfig(name="x", model=model, decoding=DecodingConfig(method="rerank"))
    with pytest.raises(ValueError, match="the model takes no cases"):
        BundleConfig(name="x", model=model, retrieval=RetrievalConfig(k=3, dim=16, cases=4))


def test_rejects_wrong_input(bundle_path: Path) -> None:
    d = open_drafter(bundle_path)
    with pytest.raises(ValueError, match="has no image"):
        d.draft([[]])
    with pytest.raises(ValueError, match=r"expected \(64, 64\) uint8"):
        d.draft([[StudyView(np.zeros((32, 32), np.uint8), View.FRONTAL)]])
    with pytest.raises(ValueError, match="needs its index"):
        Drafter(load_bundle(bundle_path), None)
    assert d.draft([]) == []
