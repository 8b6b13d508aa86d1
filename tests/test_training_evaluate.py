"""Evaluation of a tiny bundle on phantoms: metrics, baselines, skipped studies, rejected arguments."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from model.bundle import Bundle, load_bundle
from model.text.labeler import FINDINGS
from model.types import Draft, ReferenceCase, View
from retrieval_index.index import ReportIndex
from tests.support.tiny import REPORTS, write_tiny_bundle
from training.data.openi import open_openi
from training.data.pixel_cache import build_pixel_cache
from training.data.r2gen import open_r2gen
from training.data.studies import ImageRef, Source, Study
from training.evaluate import evaluate, main
from training.evaluation import inference
from training.evaluation.inference import swap_images, wanted_studies, with_images
from training.evaluation.plan import SWAPS, EvaluationPlan, InferenceOptions, Outputs
from training.evaluation.terminal import format_table
from training.openi import annotation
from training.phantoms import write_phantom_root
from training.scoring.metrics import METRICS, score
from training.scoring.protocol import comparable_reference, comparable_vocabulary, full_reference

VAL = 5
QUIET = InferenceOptions(progress=False)


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_phantom_root(tmp_path_factory.mktemp("data") / "root", train=12, val=VAL, size=64)


@pytest.fixture(scope="module")
def source(root: Path) -> Source:
    return open_openi(root)


@pytest.fixture(scope="module")
def bundle(bundle: Path) -> Bundle:
    return load_bundle(bundle)


@pytest.fixture(scope="module")
def index(bundle: Bundle) -> ReportIndex:
    return ReportIndex.load(bundle.path / "index", expected_sha256=bundle.index_sha256())


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("work")


def sentences_of(report: str) -> list[str]:
    return [sentence for part in full_reference(report).split(".") if (sentence := part.strip())]


def _lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


# --- end to end -------------------------------------------------------------------------------------------------------


def test_command_writes_metrics_and_predictions(bundle: Bundle, root: Path, tmp_path: Path) -> None:
    out = tmp_path / "val.json"
    table = tmp_path / "labels.csv"
    _write_labels(table, [study.uid for study in open_openi(root).split("val")])
    arguments = ["--bundle", str(bundle.path), "--dataset", "openi", "--root", str(root), "--split", "val",
                 "--out", str(out), "--device", "cpu", "--beam-size", "2", "--no-meteor", "--counterfactuals",
                 "--reference-labels", str(table)]  # fmt: skip
    assert main(arguments) == 0
    result = json.loads(out.read_text())
    lines = _lines(out.parent / result["predictions"])
    assert result["n"] == len(lines) == VAL
    for row in ("system", "system_full", "system_images_exchanged"):
        assert list(result[row]) == list(METRICS)
    assert set(result["baselines"]) == {"constant", "most_frequent", "random", "nearest"}
    assert all(set(row) == set(METRICS) for row in result["baselines"].values())
    assert {"protocol", "confidence_95"} <= set(result)
    for row in ("system", "system_full", "system_images_exchanged"):
        low, high = result["confidence_95"][row]["BLEU_1"]
        assert low <= result[row]["BLEU_1"] <= high
    assert set(result["confidence_95"]["baselines"]) == set(result["baselines"])
    swapped = {f"system_{swap}_exchanged" for swap in SWAPS}
    assert set(result["system_minus"]) == {*result["baselines"], *swapped}
    minus = result["system_minus"]["constant"]["CIDEr"]
    difference = result["system"]["CIDEr"] - result["baselines"]["constant"]["CIDEr"]
    assert minus["difference"] == pytest.approx(difference)
    assert minus["confidence_95"][0] <= difference <= minus["confidence_95"][1]
    assert 0 < minus["p"] <= 1
    assert result["decoding"]["beam_size"] == 2
    assert result["bundle"]["digest"] == bundle.digest
    # the metrics are those of the predictions file
    assert score([(line["reference"], line["prediction"]) for line in lines]) == result["system"]
    assert score([(line["reference_full"], line["prediction_full"]) for line in lines]) == result["system_full"]
    assert [len(line["retrieved"]) for line in lines] == [3] * VAL
    assert result["reference_labels"]["n"] == VAL
    assert set(result["reference_labels"]["baselines"]) == set(result["baselines"])
    # no sentence of a report, the constant's among them, leaves the predictions file
    text = out.read_text().lower()
    reports = [study.report for study in open_openi(root).studies] + [line["findings"] for line in lines]
    assert not any(words in text for report in reports for words in sentences_of(report))
    # a second run decodes nothing and gives the same result
    again = tmp_path / "again.json"
    arguments[arguments.index(str(out))] = str(again)
    assert main([*arguments, "--work", str(tmp_path / "val.work")]) == 0
    assert {**json.loads(again.read_text()), "predictions": ""} == {**result, "predictions": ""}


def _write_labels(path: Path, uids: Sequence[str]) -> None:
    rows = [",".join([uid, *("1" if name == "Pleural Effusion" else "0" for name in FINDINGS)]) for uid in uids]
    path.write_text("\n".join([",".join(["study_id", *FINDINGS]), *rows]) + "\n")


Writer = Callable[[Study], str]


@pytest.fixture
def oracle(monkeypatch: pytest.MonkeyPatch) -> Callable[[Writer], None]:
    """Replaces every draft by a text of the study; the first retrieved case names an effusion."""

    def install(text_of: Writer) -> None:
        def write(_: object, studies: Sequence[Study], **__: object) -> list[Draft]:
            case = ReferenceCase(1, "CXR900001_IM-0001", 1.0, REPORTS[1], {}, None)
            return [Draft(text_of(study), (), {}, (case,), (), {}) for study in studies]

        monkeypatch.setattr(inference.DraftWriter, "write", write)

    return install


def test_perfect_drafts_score_one(
    bundle: Bundle, index: ReportIndex, source: Source, work: Path, oracle: Callable[[Writer], None], tmp_path: Path
) -> None:
    oracle(lambda study: study.report)
    labels = tmp_path / "labels.csv"
    uids = [study.uid for study in source.split("val")][1:]
    _write_labels(labels, uids)
    result = evaluate(bundle, index, source, EvaluationPlan(reference_labels=labels), Outputs(work), QUIET)
    for metric in ("BLEU_4", "ROUGE_L", "label_f1_micro"):
        assert result["system_full"][metric] == pytest.approx(1.0), metric
    assert result["system_full"]["CIDEr"] == pytest.approx(10)
    constant, random = result["baselines"]["constant"], result["baselines"]["random"]
    assert constant["distinct"] == 1 / VAL
    assert constant["BLEU_4"] + constant["ROUGE_L"] >= random["BLEU_4"] + random["ROUGE_L"]
    for metric in ("BLEU_4", "ROUGE_L", "CIDEr"):
        assert constant[metric] == max(part[metric] for part in result["constant_parts"].values())
    # every nearest case has an effusion: recall 1, precision 1 against the table, which leaves one study out
    assert result["reference_labels"]["n"] == VAL - 1
    assert result["reference_labels"]["baselines"]["nearest"]["label_f1_micro"] == pytest.approx(2 / 3)


def test_copies_of_training_reports_are_counted(
    bundle: Bundle, index: ReportIndex, source: Source, work: Path, oracle: Callable[[Writer], None]
) -> None:
    first = source.split("val")[0].study_id
    copy, other = source.split("train")[0].report, "The heart reminds of a pear."
    oracle(lambda study: other if study.study_id == first else copy)
    result = evaluate(bundle, index, source, EvaluationPlan(baselines=False, draws=0), Outputs(work), QUIET)
    assert result["copied"] == pytest.approx(1 - 1 / VAL)
    assert f"drafts that equal a training report: {1 - 1 / VAL:.3f}" in format_table(result)


def test_comparable_reference_uses_the_train_split_of_the_data_set(
    bundle: Bundle, index: ReportIndex, source: Source, work: Path, tmp_path: Path
) -> None:
    predictions = tmp_path / "p.jsonl"
    plan = EvaluationPlan(limit=2, baselines=False)
    result = evaluate(bundle, index, source, plan, Outputs(work, predictions=predictions), QUIET)
    vocabulary = comparable_vocabulary(study.report for study in source.split("train"))
    assert result["vocabulary"] == {"from": "train split of openi, 12 reports", "words": len(vocabulary)}
    expected = [comparable_reference(study.report, vocabulary) for study in source.split("val")[:2]]
    assert [line["reference"] for line in _lines(predictions)] == expected
    assert result["baselines"] == dict.fromkeys(("constant", "most_frequent", "random", "nearest"))
    assert set(result["baseline_reasons"].values()) == {"not asked for"}


# --- other data sets --------------------------------------------------------------------------------------------------


@pytest.fixture
def private(tmp_path: Path) -> Path:
    """A folder with images and an annotation that has a test split alone, of one, two and three images a study."""
    entries = []
    for number, count in enumerate((1, 2, 3)):
        paths = [f"case{number}/{k}.png" for k in range(count)]
        for k, path in enumerate(paths):
            (tmp_path / path).parent.mkdir(exist_ok=True)
            pixels = np.random.default_rng(10 * number + k).integers(0, 255, (70, 60), np.uint8)
            Image.fromarray(pixels).save(tmp_path / path)
        entries.append({"id": f"case{number}", "report": REPORTS[number], "image_path": paths, "split": "test"})
    (tmp_path / "annotation.json").write_text(json.dumps({"test": entries}))
    return tmp_path


def test_studies_with_any_number_of_images_and_rows_from_the_bundle(
    bundle: Bundle, index: ReportIndex, private: Path
) -> None:
    source = open_r2gen(private / "annotation.json", private)
    result = evaluate(bundle, index, source, EvaluationPlan("test"), Outputs(private / "work"), QUIET)
    assert result["counts"] == {"in_split": 3, "scored": 3, "skipped": 0, "images": 6, "images_skipped": 0}
    assert result["notes"][0].startswith("3 studies have an image of unknown view")
    assert result["vocabulary"]["from"] == f"reference cases of the bundle, {len(REPORTS)} reports"
    assert result["constant_chosen_on"] == f"{len(REPORTS)} training reports; there is no val split"
    assert all(result["baselines"].values())


def test_rows_whose_texts_are_unknown_are_null_with_a_reason(private: Path) -> None:
    source = open_r2gen(private / "annotation.json", private)
    bare = load_bundle(write_tiny_bundle(private / "bare", texts=False))
    plan = EvaluationPlan("test")
    result = evaluate(bare, ReportIndex.load(bare.path / "index"), source, plan, Outputs(private), QUIET)
    assert set(result["baselines"].values()) == {None}
    assert "hydrated bundle" in result["baseline_reasons"]["constant"]
    assert result["baseline_reasons"]["nearest"] == "texts of 3 of 3 first cases are unknown; hydrate the bundle"
    assert result["vocabulary"]["from"].startswith("tokenizer of the bundle")
    plain = load_bundle(write_tiny_bundle(private / "plain", retrieval=False))
    result = evaluate(plain, None, source, plan, Outputs(private), QUIET)
    assert result["baseline_reasons"]["nearest"] == "this bundle retrieves no reference cases"


def test_openi_and_its_annotation_give_the_same_metrics(
    bundle: Bundle, index: ReportIndex, source: Source, root: Path, work: Path, tmp_path: Path
) -> None:
    (tmp_path / "annotation.json").write_text(json.dumps(annotation(source)))
    shutil.copy(root / "views.csv", tmp_path)
    other = open_r2gen(tmp_path / "annotation.json", root / "images")
    metrics = [
        evaluate(bundle, index, data, EvaluationPlan(baselines=False), Outputs(where), QUIET)["system_full"]
        for data, where in ((source, work), (other, tmp_path))
    ]
    assert metrics[0] == metrics[1]


# --- studies ----------------------------------------------------------------------------------------------------------


def test_studies_without_readable_images_or_words_are_skipped_by_name(
    bundle: Bundle, index: ReportIndex, root: Path, tmp_path: Path
) -> None:
    copy = tmp_path / "root"
    (copy / "images").mkdir(parents=True)
    for file in (p for p in root.rglob("*") if p.is_file()):
        (copy / file.relative_to(root)).write_bytes(file.read_bytes())
    broken, one_view, *_ = open_openi(copy).split("val")
    for ref in broken.images:
        (copy / "images" / f"{ref.key}.png").write_bytes(b"no image")
    (copy / "images" / f"{one_view.images[0].key}.png").unlink()
    result = evaluate(bundle, index, open_openi(copy), EvaluationPlan(baselines=False), Outputs(tmp_path), QUIET)
    assert result["skipped_studies"] == {broken.study_id: "none of its images can be read"}
    assert result["counts"] == {"in_split": VAL, "scored": VAL - 1, "skipped": 1, "images": 2 * VAL - 3,
                                "images_skipped": 3}  # fmt: skip


def test_views_are_ordered_and_chosen(source: Source, work: Path) -> None:
    val = source.split("val")
    cache = build_pixel_cache(source, val, 64, work / f"evaluate-val-{VAL}")
    both, _ = with_images(val, cache, "both", {})
    assert all([ref.view for ref in study.images] == [View.FRONTAL, View.LATERAL] for study in both)
    lateral, _ = with_images(val, cache, "lateral", {})
    assert all([ref.view for ref in study.images] == [View.LATERAL] for study in lateral)
    key = val[0].images[0].key
    skipped: dict[str, str] = {}
    lone = Study("A", "A", "val", "Text.", (ImageRef(key, View.LATERAL),))
    unknown = Study("B", "B", "val", "Text.", (ImageRef(key, None), ImageRef(key, None)))
    frontal, notes = with_images([lone, unknown], cache, "frontal", skipped)
    assert skipped == {"A": "it has no frontal image"}
    assert frontal[0].images == (ImageRef(key, View.FRONTAL),)
    assert "1 studies have an image of unknown view" in notes[0]
    with pytest.raises(ValueError, match="no frontal image: 1"):
        with_images([lone], cache, "frontal", {})


@pytest.mark.parametrize("count", [2, 3, 40])
def test_swap_gives_every_study_the_images_of_another(count: int) -> None:
    studies = [Study(str(i), str(i), "val", f"report {i}", (ImageRef(str(i), None),)) for i in range(count)]
    swapped = swap_images(studies, seed=3)
    assert [study.report for study in swapped] == [study.report for study in studies]
    given = [study.images[0].key for study in swapped]
    assert sorted(given) == sorted(study.study_id for study in studies)
    assert all(key != study.study_id for key, study in zip(given, studies, strict=True))
    assert swapped == swap_images(studies, seed=3)
    with pytest.raises(ValueError, match="two studies or more"):
        swap_images(studies[:1], seed=1)


def test_swapped_rows_are_drafted_from_the_swapped_images(
    bundle: Bundle, index: ReportIndex, source: Source, work: Path, oracle: Callable[[Writer], None]
) -> None:
    reports = {study.images[0].key.rpartition("-")[0]: study.report for study in source.studies}
    oracle(lambda study: reports[study.images[0].key.rpartition("-")[0]])  # the report of the images' study
    plan = EvaluationPlan(swaps=("images",), baselines=False)
    result = evaluate(bundle, index, source, plan, Outputs(work), QUIET)
    assert result["system_full"]["BLEU_4"] == pytest.approx(1.0)
    assert result["system_full_images_exchanged"]["BLEU_4"] < 0.9
    assert result["system_full_images_exchanged"]["distinct"] == result["system_full"]["distinct"]
    assert result["n_beside"] == {"system_images_exchanged": VAL}


def test_empty_reports_are_left_out() -> None:
    blank, good = (Study(i, i, "val", text, ()) for i, text in (("A", "?!"), ("B", "Clear lungs.")))
    wanted, skipped = wanted_studies(Source("x", (blank, good), (), None, ()), "val", None)  # type: ignore[arg-type]
    assert wanted == [good]
    assert skipped == {"A": "its report has no words"}


# --- refusals ---------------------------------------------------------------------------------------------------------


def test_refuses_an_empty_split_with_the_counts(
    bundle: Bundle, root: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    out = tmp_path / "test.json"
    arguments = ["--bundle", str(bundle.path), "--root", str(root), "--split", "test", "--out", str(out)]
    assert main([*arguments, "--device", "cpu"]) == 2
    assert "the test split of this openi data set has no study (it holds train 12, val 5, test 0)" in caplog.text
    assert not out.exists()


def test_refuses_the_train_split(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["--bundle", "b", "--root", "r", "--split", "train", "--out", "o"])
    assert "invalid choice: 'train'" in capsys.readouterr().err


@pytest.mark.parametrize("option", ["--out", "--report", "--predictions", "--work"])
@pytest.mark.parametrize("path", ["tiny/metrics.json", "tiny/deep/er/metrics.json", "tiny.json"])
def test_refuses_outputs_among_bundles_before_any_work(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, option: str, path: str
) -> None:
    bundles = tmp_path / "bundles"
    write_tiny_bundle(bundles / "tiny")
    before = sorted(bundles.rglob("*"))
    arguments = ["--bundle", "no-such", "--root", "no-such", "--out", str(tmp_path / "val.json"), option]
    assert main([*arguments, str(bundles / path)]) == 2
    assert "among bundles" in caplog.text
    assert sorted(bundles.rglob("*")) == before


def test_beam_size_is_checked_before_any_work(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    arguments = ["--bundle", "no-such", "--root", "no-such", "--out", str(tmp_path / "val.json"), "--beam-size", "9"]
    assert main(arguments) == 2
    assert "beam_size=9" in caplog.text
    assert not list(tmp_path.iterdir())


# --- real data --------------------------------------------------------------------------------------------------------


def test_constant_row_on_the_real_validation_split(real_data: Path) -> None:
    from training.evaluation.scoring import ReferenceSet
    from training.scoring.baselines import trivial_rows

    entries = json.loads((real_data / "openi" / "annotation.json").read_text())
    train, val = ([entry["report"] for entry in entries[split]] for split in ("train", "val"))
    vocabulary = comparable_vocabulary(train)
    rows = trivial_rows(train, val, len(val), vocabulary)
    references = ReferenceSet(val, vocabulary, meteor=False)
    constant = rows["constant"].merged([references.reports(texts)[0] for texts in rows["constant"].variants.values()])
    for metric, least in (("BLEU_4", 0.17), ("ROUGE_L", 0.37), ("CIDEr", 0.37)):  # as good as published systems
        assert (constant[metric] or 0.0) >= least, metric
    assert constant["label_f1_micro"] == 0.0  # and never names a finding
