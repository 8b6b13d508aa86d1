"""Headings as the text that a model learns: what they read, which runs take them, and that scores compare with them."""

from __future__ import annotations

import csv
import json
from dataclasses import replace
from pathlib import Path

import pytest

from model.bundle import load_bundle
from model.types import ReferenceCase
from tests.support.tiny import REPORTS
from training import evaluate, run
from training.data.headings import with_headings
from training.data.openi import open_openi
from training.data.studies import ImageRef, Source, Study
from training.evaluation.scoring import texts_of
from training.phantoms import write_phantom_root

OPACITY = "Opacity/lung/base/left/mild"
SETTINGS = [
    "target_text=headings", "without_comparisons=false", "shape.writer=coattention", "decoding.method=greedy",
    "decoding.language.attested=false", "decoding.min_length=1", "retrieval_k=0", "pretrain=null", "scst=null",
    "backbone_weights=none", "shape.backbone=mobilenet_v3_small", "ce.backbone_lr=0.001", "ce.epochs=1",
    "weights_dtype=fp32",
]  # fmt: skip


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_phantom_root(tmp_path_factory.mktemp("phantoms"), train=12, val=4, seed=4, size=64)


def source_of(root: Path, *headings: tuple[str, ...]) -> Source:
    """Studies with these headings, the last of val."""
    studies = [Study(f"CXR{row}_IM-1", f"CXR{row}", "train", REPORTS[row], (ImageRef(f"CXR{row}", None),), mesh=mesh)
               for row, mesh in enumerate(headings)]  # fmt: skip
    studies[-1] = replace(studies[-1], split="val")
    return replace(open_openi(root), studies=tuple(studies))


def test_text_has_a_sentence_for_each_heading_the_frequent_first(root: Path) -> None:
    source = source_of(root, ("Aorta, Thoracic/tortuous", OPACITY), ("normal",), ("No Indexing",),
                       ("Opacity/lung", "Nodule"), ("Nodule", "Aorta, Thoracic/tortuous", OPACITY))  # fmt: skip
    found = with_headings(source)
    assert [study.target for study in found.studies] == [
        "opacity lung base left mild. aorta thoracic tortuous.",
        "normal.",
        "opacity lung. nodule.",  # two of three training studies have an opacity
        "opacity lung base left mild. aorta thoracic tortuous. nodule.",
    ]
    assert found.studies[0].training_text == found.studies[0].reference == found.studies[0].target
    assert found.studies[0].report == REPORTS[0]  # that of retriever and labels
    assert found.notes[-1] == "texts are MeSH headings; without headings: 1 studies left out"
    assert with_headings(found).studies == found.studies


def test_refuses_data_without_headings(root: Path) -> None:
    with pytest.raises(ValueError, match="target_text=headings needs MeSH headings, and the data set openi has none"):
        with_headings(source_of(root, (), ("No Indexing",)))


@pytest.mark.parametrize(
    ("changed", "message"),
    [("decoding.method=consensus", "beam or greedy, not consensus"), ("decoding.min_length=4", "min_length 2 or less"),
     ("without_comparisons=true", "without_comparisons=false")],
)  # fmt: skip
def test_refuses_settings_that_do_not_fit_headings(
    changed: str, message: str, caplog: pytest.LogCaptureFixture
) -> None:
    name = changed.partition("=")[0]
    settings = [one for one in SETTINGS if not one.startswith((name, "retrieval_k"))]
    assert run.main(["--preset", "smoke", "--print-config", "--set", *settings, changed]) == 2
    assert message in caplog.text


def test_names_all_settings_that_do_not_fit_at_once(caplog: pytest.LogCaptureFixture) -> None:
    assert run.main(["--preset", "smoke", "--print-config", "--set", "target_text=headings"]) == 2
    for name in ("decoding.method", "decoding.min_length", "without_comparisons"):
        assert name in caplog.text


def test_retrieved_cases_are_scored_by_their_headings_though_a_bundle_holds_their_reports() -> None:
    texts = texts_of({"CXR1": "normal."}, ["normal."], origin="train", chosen_on="val")
    case = ReferenceCase(1, "CXR1", 0.9, REPORTS[0], {}, None)
    assert texts.of_case(case) == REPORTS[0]
    assert replace(texts, headings=True).of_case(case) == "normal."
    assert replace(texts, headings=True).of_case(replace(case, case_id="CXR2")) is None


def test_a_trained_bundle_states_its_text_and_is_scored_against_headings(root: Path, tmp_path: Path) -> None:
    bundle, metrics = tmp_path / "B", tmp_path / "metrics.json"
    data = ["--dataset", "openi", "--root", str(root), "--device", "cpu"]
    assert run.main([*data, "--preset", "smoke", "--out", str(bundle), "--precision", "fp32", "--stages", "ce,bundle",
                     "--set", *SETTINGS]) == 0  # fmt: skip
    loaded = load_bundle(bundle)
    assert loaded.config.trained_on["target_text"] == "headings"
    assert "It writes MeSH headings" in (bundle / "MODEL_CARD.md").read_text()
    assert "normal" in loaded.tokenizer.tokens
    assert "costophrenic" not in loaded.tokenizer.tokens  # a word of the reports

    assert evaluate.main([*data, "--bundle", str(bundle), "--out", str(metrics), "--no-meteor", "--draws", "0"]) == 0
    result = json.loads(metrics.read_text())
    lines = [json.loads(line) for line in (tmp_path / "metrics.predictions.jsonl").read_text().splitlines()]
    headings = with_headings(open_openi(root)).split("val")
    assert [line["reference_full"] for line in lines] == [study.reference.replace(".", " .") for study in headings]
    assert "references are MeSH headings, not reports" in result["notes"]
    assert result["baselines"]["constant"]["mean_length"] < 12  # headings too
    with (tmp_path / "B.work" / "ce" / "log.csv").open() as log:
        (validated,) = csv.DictReader(log)
    for metric in ("BLEU_1", "CIDEr", "mean_length"):  # validation scored the same drafts against the same texts
        assert float(validated[f"val_{metric}"]) == pytest.approx(result["system"][metric], abs=1e-6)
