"""External images with known findings: tables of labels, agreement, pretraining."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from model.bundle import load_bundle
from model.text.labeler import label_report
from retrieval_index.index import ReportIndex
from training.data.external import NIH_FINDINGS, for_pretraining, read_external
from training.data.openi import open_openi
from training.data.targets import finding_targets
from training.evaluation.external import agreement, score_external
from training.evaluation.plan import InferenceOptions
from training.phantoms import write_phantom_root
from training.run import main
from training.scoring.metrics import label_scores

NIH = "Image Index,Finding Labels,Follow-up #,View Position"
TABLE_HEAD = "image_id,view_position,Effusion,Nodule,Mass,Hernia"


def write(folder: Path, table: Sequence[str], images: Sequence[str]) -> tuple[Path, Path]:
    (folder / "images").mkdir()
    for number, name in enumerate(images):
        pixels = np.random.default_rng(number).integers(0, 256, (48, 64), np.uint8)
        Image.fromarray(pixels).save(folder / "images" / name)
    path = folder / "labels.csv"
    path.write_text("\n".join(table) + "\n")
    return path, folder / "images"


@pytest.mark.parametrize(("name", "finding"), NIH_FINDINGS.items())
def test_nih_names_map_to_findings_of_the_labeler(name: str, finding: str) -> None:
    sentences = label_report(f"There is {name.replace('_', ' ').lower()}.")
    assert [found for found, label in sentences.items() if label == "present"] == [finding]


@pytest.mark.parametrize("name", ["Emphysema", "Hernia"])
def test_unmapped_nih_names_have_no_finding_of_the_labeler(name: str) -> None:
    assert name not in NIH_FINDINGS
    assert label_report(f"There is {name.lower()}.")["No Finding"] == "present"


def test_reads_columns_of_numbers(tmp_path: Path) -> None:
    table = [TABLE_HEAD, "a,PA,1,0,1,0", "b,AP,0,1,1,1", "c,LATERAL,1,1,1,1", "d,PA,0,0,0,-1", "e,PA,1,0,0,0"]
    found = read_external(*write(tmp_path, table, ["a.png", "b.jpg", "c.png", "d.png"]))
    assert [study.study_id for study in found.studies] == ["a", "b", "d"]
    assert found.truth == (frozenset({"Pleural Effusion", "Lung Lesion"}), frozenset({"Lung Lesion"}), frozenset())
    assert found.mapped == {"Effusion": "Pleural Effusion", "Nodule": "Lung Lesion", "Mass": "Lung Lesion"}
    assert found.unmapped == ("Hernia",)
    assert found.skipped == {"not frontal": 1, "no file": 1}


def test_reads_the_published_nih_table(tmp_path: Path) -> None:
    table = [NIH, "a.png,Cardiomegaly|Emphysema,0,PA", "b.png,No Finding,1,AP", "c.png,Pleural_Thickening,2,AP"]
    found = read_external(*write(tmp_path, table, ["a.png", "b.png", "c.png"]))
    assert found.truth == (frozenset({"Cardiomegaly"}), frozenset(), frozenset({"Pleural Other"}))
    assert found.unmapped == ("Emphysema",)


def test_limit_is_spread_over_the_table(tmp_path: Path) -> None:
    names = [f"{number:02}" for number in range(10)]
    table = ["image_id,Edema", *(f"{name},0" for name in names)]
    found = read_external(*write(tmp_path, table, [f"{name}.png" for name in names]), limit=4)
    assert [study.study_id for study in found.studies] == ["00", "02", "05", "07"]


@pytest.mark.parametrize(
    ("table", "message"),
    [
        (["file,Edema", "a,1"], "no column image_id or Image Index; it has file, Edema"),
        (["image_id,Oedema", "a,1"], "names no finding that is known"),
        (["image_id,Edema", "z,1"], "1 rows, 1 frontal, none with a file"),
        (["image_id,view,Edema", "a,lateral,1"], "1 rows, 0 frontal"),
    ],
)
def test_rejects_unusable_tables(tmp_path: Path, table: list[str], message: str) -> None:
    path, images = write(tmp_path, table, ["a.png"])
    with pytest.raises(ValueError, match=message):
        read_external(path, images)
    with pytest.raises(ValueError, match="no such file"):
        read_external(tmp_path / "gone.csv", images)
    with pytest.raises(ValueError, match="no such folder"):
        read_external(path, tmp_path / "gone")


def test_agreement_counts_the_findings_of_the_table() -> None:
    names = frozenset({"Cardiomegaly", "Edema"})
    truth = [frozenset({"Cardiomegaly"}), frozenset({"Cardiomegaly", "Edema"}), frozenset[str]()]
    texts = ["The heart is enlarged. There is a fracture.", "There is pulmonary edema.", "There is pulmonary edema."]
    result, _ = agreement(truth, texts, names, draws=200, seed=1)
    # right: 1 heart, 1 edema; wrong: 1 edema; missed: 1 heart; the fracture is no matter
    assert result["figures"]["label_f1_micro"] == pytest.approx(4 / 6)
    assert result["figures"]["label_f1_macro"] == pytest.approx((2 / 3 + 2 / 3) / 2)
    assert result["figures"]["distinct"] == pytest.approx(2 / 3)
    assert result["figures"]["mean_length"] == pytest.approx((8 + 4 + 4) / 3)
    assert result["findings"] == {
        "Cardiomegaly": {"images": 2, "named": 1, "both": 1}, "Edema": {"images": 1, "named": 2, "both": 1},
    }  # fmt: skip
    assert result["every_finding_named"]["label_f1_micro"] == pytest.approx(6 / 9)
    low, high = result["confidence_95"]["label_f1_micro"]
    assert 0 <= low <= result["figures"]["label_f1_micro"] <= high <= 1


def test_agreement_equals_the_label_scores() -> None:
    rng = np.random.default_rng(0)
    sentences = {"Cardiomegaly": "The heart is enlarged.", "Edema": "There is pulmonary edema."}
    draws = rng.random((2, 40, 2)) < 0.4
    truth, guess = ([frozenset(name for name, has in zip(sentences, row, strict=True) if has) for row in side]
                    for side in draws)  # fmt: skip
    texts = [" ".join(sentences[name] for name in sorted(names)) or "Normal." for names in guess]
    result, drawn = agreement(truth, texts, frozenset(sentences), draws=50, seed=1)
    expected = label_scores(truth, guess)
    for name in ("label_f1_micro", "label_f1_macro"):
        assert result["figures"][name] == drawn.whole[name] == pytest.approx(expected[name])


def test_a_bundle_is_scored_on_images(tmp_path: Path, bundle: Path) -> None:
    names = [f"{number}.png" for number in range(3)]
    table = ["image_id,Effusion,Cardiomegaly", *(f"{name[0]},1,0" for name in names)]
    path, images = write(tmp_path, table, names)
    (images / "1.png").write_bytes(b"no image")
    loaded = load_bundle(bundle)
    index = ReportIndex.load(loaded.path / "index", expected_sha256=loaded.index_sha256())
    result, _ = score_external(loaded, index, read_external(path, images), work_dir=tmp_path / "work", draws=20,
                               options=InferenceOptions(progress=False))  # fmt: skip
    assert result["n"] == 2
    assert result["skipped"] == {"not frontal": 0, "no file": 0, "unreadable": 1}
    assert result["findings"]["Pleural Effusion"]["images"] == 2
    assert result["map"] == {"Effusion": "Pleural Effusion", "Cardiomegaly": "Cardiomegaly"}


def test_labelled_images_take_part_in_pretraining(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    root = write_phantom_root(tmp_path / "root", train=8, val=2, test=1, seed=3, size=96)
    table = [TABLE_HEAD, "a,PA,1,0,1,0", "CXR900001_IM-0001-1001,AP,0,1,1,1", "c,PA,0,0,0,0"]
    labels, images = write(tmp_path, table, ["a.png", "CXR900001_IM-0001-1001.png", "c.png"])
    openi = open_openi(root)
    source, known = for_pretraining(openi, read_external(labels, images))
    assert source.studies == openi.studies
    assert [study.study_id for study in source.extra[len(openi.extra) :]] == [
        "external/a", "external/CXR900001_IM-0001-1001", "external/c",
    ]  # fmt: skip
    pairs = [(study.images[0].key, study) for study in (openi.split("train")[0], *source.extra[len(openi.extra) :])]
    stored = dict(source.images.iter([key for key, _ in pairs]))
    assert stored[pairs[2][0]] == (images / "CXR900001_IM-0001-1001.png").read_bytes(), "not the archive's of this id"
    assert stored[pairs[0][0]] not in (None, stored[pairs[2][0]])
    targets = finding_targets(pairs, None, terms=True, external=known)
    external = targets.group("external")
    assert targets.columns[external] == ("external/Lung Lesion", "external/Pleural Effusion")
    assert targets.values[:, external].tolist() == [[0, 0], [1, 1], [1, 0], [0, 0]]
    assert targets.mask[:, external].tolist() == [[0, 0], [1, 1], [1, 1], [1, 1]]
    assert not targets.mask[1:, : external.start].any(), "external images have no other targets"
    arguments = ["--root", str(root), "--preset", "smoke", "--out", str(tmp_path / "B"), "--device", "cpu",
                 "--stages", "pretrain", "--external-labels", str(labels)]  # fmt: skip
    assert main(arguments) == 2
    assert "--external-labels and --external-images need each other" in caplog.text
    caplog.set_level("INFO")
    assert main([*arguments, "--external-images", str(images)]) == 0
    assert "3 images for pretraining, labels Lung Lesion, Pleural Effusion" in caplog.text
    assert "external 2" in caplog.text
    assert "external" in (tmp_path / "B.work" / "pretrain" / "log.csv").read_text().splitlines()[0].split(",")
    labels.write_text(labels.read_text().replace("c,PA,0,0,0,0", "c,PA,0,1,0,0"))
    assert main([*arguments, "--external-images", str(images), "--resume"]) == 2
    assert "the content of --external-labels" in caplog.text
