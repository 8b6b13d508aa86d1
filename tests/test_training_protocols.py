"""The protocols iu-xray and mimic-cxr by name, on invented reports and phantoms."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torchvision import models

from model.bundle import load_bundle, read_config
from model.text.tokenizer import UNK, clean_report_r2gen_mimic
from model.types import StudyView, View
from tests.support.paths import SHIPPED
from tests.support.reference_cmn import END, ReferenceCMN, published_state
from tests.support.tiny import open_drafter
from training.config import RewardConfig
from training.data.openi import open_openi
from training.data.r2gen import open_r2gen
from training.data.studies import check_cases, one_study_a_report
from training.evaluate import main as evaluate
from training.import_r2gencmn.__main__ import main as import_checkpoint
from training.openi import annotation
from training.phantoms import write_phantom_root
from training.presets import preset
from training.protocols import IU_XRAY, MIMIC_CXR, PROTOCOLS
from training.run import main as train
from training.score import main as score
from training.scoring.protocol import comparable_prediction, comparable_reference, describe
from training.stages.scst_reward import Reward

pytestmark = pytest.mark.usefixtures("no_java")
SMALL = (
    "image_size=64", "shape.backbone=resnet18", "backbone_weights=none", "shape.d_model=32", "shape.d_ff=48",
    "shape.heads=4", "shape.layers=1", "shape.memory_slots=40", "shape.memory_dim=32", "shape.memory_heads=4",
    "shape.memory_top_k=8", "ce.epochs=1",
)  # fmt: skip


# --- reports ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("report", "cleaned"),
    [
        ("Clear lungs.\nNo effusion.", "clear lungs . no effusion ."),
        ("Seen by ___ at __:__ on ____.", "seen by  at  on  ."),
        ("Clear   lungs.      No     effusion", "clear lungs . no effusion ."),
        ("1. Clear lungs. 2. No effusion. 3. A wire", "clear lungs . no effusion . a wire ."),
        ("A line.... Another........ one", "a line . another . one ."),
        ("X-ray, of [the] 'chest' / \"spine\": 5 mm; (old)", "x-ray of the chest  spine 5 mm old ."),
    ],
)
def test_mimic_cleaning_keeps_the_published_quirks(report: str, cleaned: str) -> None:
    assert clean_report_r2gen_mimic(report) == cleaned


def test_protocols_have_the_published_lengths_and_thresholds() -> None:
    assert (IU_XRAY.max_ids, IU_XRAY.min_count, IU_XRAY.images) == (60, 3, None)
    assert (MIMIC_CXR.max_ids, MIMIC_CXR.min_count, MIMIC_CXR.images) == (100, 10, 1)
    reports = ["a ___ wire."] * 9 + ["A lung."]
    assert IU_XRAY.words(reports) == (".", UNK, "a", "wire")
    assert MIMIC_CXR.words(reports) == (".", UNK, "a")
    tokenizer = MIMIC_CXR.tokenizer(MIMIC_CXR.words(reports))
    assert len(tokenizer.encode("a " * 200, MIMIC_CXR.max_ids)) == 100
    assert tokenizer.decode(tokenizer.encode("A\n___  wire", 100)) == f"a {UNK} ."


def test_comparable_row_is_cut_by_the_protocol() -> None:
    long, words = "word " * 150, frozenset({"word", "."})
    for protocol, count in ((IU_XRAY, 59), (MIMIC_CXR, 99)):
        assert comparable_reference(long, words, protocol=protocol).split() == ["word"] * count
        assert comparable_prediction(long, protocol=protocol).split() == ["word"] * count
    assert describe(IU_XRAY) == (
        "system: published IU X-Ray cleaning, words seen fewer than 3 times in training are <unk>, cut to 60 ids; "
        "system_full: own cleaning, uncut, no <unk>; scorers of pycocoevalcap on strings split at spaces"
    )
    assert "MIMIC-CXR cleaning, words seen fewer than 10 times" in describe(MIMIC_CXR)


def test_reward_reads_references_by_the_protocol() -> None:
    reports = ["No\neffusion."] * 9 + ["Clear lungs."] * 12
    found = {
        protocol.name: Reward(reports, RewardConfig(cider=0, bleu4=1), max_length=40, protocol=protocol)(
            ["no effusion ."], [True], [0]
        )["bleu4"][0]
        for protocol in PROTOCOLS.values()
    }
    assert found["iu-xray"] > found["mimic-cxr"]  # words seen 9 times are <unk> there


def test_presets_take_another_protocol_with_its_length() -> None:
    assert preset("retrieval").with_protocol("mimic-cxr").shape.max_length == 100
    assert preset("r2gencmn").with_protocol("mimic-cxr").shape.max_length == 101
    assert preset("r2gencmn-mimic").with_protocol("iu-xray").shape.max_length == 61


def test_old_bundles_have_the_protocol_iu_xray() -> None:
    assert "protocol" not in json.loads((SHIPPED / "config.json").read_text())
    assert read_config(SHIPPED).protocol == "iu-xray"


# --- data sets --------------------------------------------------------------------------------------------------------


def entry(name: str, study: int, images: list[str], report: str = "Clear lungs.") -> dict[str, Any]:
    """As in the published MIMIC-CXR annotation."""
    return {"id": name, "study_id": study, "subject_id": 10_000_000 + study, "report": report, "image_path": images,
            "split": "train"}  # fmt: skip


def write(path: Path, **splits: list[dict[str, Any]]) -> Path:
    path.write_text(json.dumps(splits))
    return path


def test_mimic_annotation_gives_the_first_image_of_an_entry(tmp_path: Path) -> None:
    entries = [entry("02aa-a", 50_000_001, ["p10/s50000001/02aa-a.jpg"])]
    entries.append(entry("02aa-b", 50_000_002, ["c.jpg", "d.jpg"]))
    table = write(tmp_path / "annotation.json", train=entries, val=[], test=[])
    one, several = open_r2gen(table, tmp_path, MIMIC_CXR), open_r2gen(table, tmp_path)
    assert [[ref.key for ref in study.images] for study in one.studies] == [["p10/s50000001/02aa-a.jpg"], ["c.jpg"]]
    assert [len(study.images) for study in several.studies] == [1, 2]
    assert (one.protocol, several.protocol) == (MIMIC_CXR, IU_XRAY)
    assert [study.report_id for study in one.studies] == ["50000001", "50000002"]


def test_entries_of_one_report_are_one_case_and_in_one_split(tmp_path: Path) -> None:
    first, second = entry("a", 7, ["a.jpg"]), entry("b", 7, ["b.jpg"])
    with pytest.raises(ValueError, match="study_id 7 of entry b of val is in train too; the splits share a report"):
        open_r2gen(write(tmp_path / "leak.json", train=[first], val=[second]), tmp_path, MIMIC_CXR)
    third = entry("c", 8, ["c.jpg"])
    source = open_r2gen(write(tmp_path / "twice.json", train=[first, second, third]), tmp_path, MIMIC_CXR)
    check_cases(source.studies)
    assert [study.case_id for study in source.studies] == ["7", "7", "8"]
    assert [study.study_id for study in one_study_a_report(source.studies)] == ["a", "c"]
    other = entry("b", 7, ["b.jpg"], "Another report.")
    source = open_r2gen(write(tmp_path / "two.json", train=[first, other]), tmp_path, MIMIC_CXR)
    with pytest.raises(ValueError, match="entries a and b have study_id 7, but two reports; correct the annotation"):
        check_cases(source.studies)


def test_openi_is_refused_with_another_protocol(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    arguments = ["--dataset", "openi", "--root", str(tmp_path), "--protocol", "mimic-cxr", "--preset", "baseline"]
    assert train([*arguments, "--out", str(tmp_path / "out"), "--device", "cpu"]) == 2
    assert "--dataset openi has protocol iu-xray, not mimic-cxr; add --protocol iu-xray" in caplog.text


# --- from an annotation to a draft ------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Mimic:
    """Phantoms in the published MIMIC-CXR layout: an entry an image, two entries a report."""

    annotation: Path
    images: Path

    @property
    def options(self) -> list[str]:
        return ["--annotation", str(self.annotation), "--images", str(self.images), "--device", "cpu"]


@pytest.fixture(scope="module")
def mimic(tmp_path_factory: pytest.TempPathFactory) -> Mimic:
    folder = tmp_path_factory.mktemp("mimic")
    root = write_phantom_root(folder / "root", train=12, val=3, test=1, seed=5, size=64)
    splits = {
        split: [
            entry(image, 50_000_000 + number, [f"{image}.png"], one["report"].replace(". ", ".\n ") + " Seen by ___.")
            for number, one in enumerate(entries, {"train": 0, "val": 100, "test": 200}[split])
            for image in one["image_ids"]
        ]
        for split, entries in annotation(open_openi(root)).items()
    }
    return Mimic(write(folder / "annotation.json", **splits), root / "images")


@pytest.fixture(scope="module")
def trained(mimic: Mimic, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("trained") / "B"
    arguments = [*mimic.options, "--preset", "r2gencmn-mimic", "--out", str(out), "--set", *SMALL]
    assert train([*arguments, "--precision", "fp32", "--data-licence", "invented"]) == 0
    return out


def test_bundle_stores_its_protocol_and_is_scored_by_it(trained: Path, mimic: Mimic, tmp_path: Path) -> None:
    bundle = load_bundle(trained)
    assert (bundle.config.protocol, bundle.tokenizer.cleaning) == ("mimic-cxr", "r2gen-mimic")
    assert bundle.config.model.max_length == 101
    assert bundle.config.trained_on["train_studies"] == 24
    for more, title in (([], "MIMIC-CXR"), (["--protocol", "iu-xray"], "IU X-Ray")):
        out = tmp_path / f"{len(more)}.json"
        assert evaluate([f"--bundle={trained}", *mimic.options, f"--out={out}", "--no-meteor", "--draws=0", *more]) == 0
        result = json.loads(out.read_text())
        assert f"published {title} cleaning" in result["protocol"]
        assert (result["n"], result["counts"]["images"]) == (6, 6)


def test_bundle_drafts_one_image_and_two(trained: Path) -> None:
    drafter = open_drafter(trained)
    pixels = np.random.default_rng(0).integers(0, 255, (64, 64), np.uint8)
    for views in ((View.FRONTAL,), (View.LATERAL,), (View.FRONTAL, View.LATERAL)):
        (draft,) = drafter.draft([[StudyView(pixels, view) for view in views]])
        assert isinstance(draft.findings, str)


def test_texts_are_scored_by_a_protocol(mimic: Mimic, tmp_path: Path) -> None:
    val = json.loads(mimic.annotation.read_text())["val"]
    texts = tmp_path / "texts.json"
    texts.write_text(json.dumps([{"id": one["id"], "prediction": "clear lungs ."} for one in val]))
    arguments = ["--predictions", str(texts), "--references", str(mimic.annotation), "--split", "val", "--draws", "0",
                 "--training-reports", str(mimic.annotation), "--protocol", "mimic-cxr", "--no-meteor"]  # fmt: skip
    assert score([*arguments, "--out", str(tmp_path / "out")]) == 0
    assert "MIMIC-CXR cleaning" in json.loads((tmp_path / "out" / "metrics.json").read_text())["protocol"]


def test_no_entry_retrieves_its_report_by_another_entry(mimic: Mimic, tmp_path: Path) -> None:
    out = tmp_path / "B"
    arguments = [*mimic.options, "--preset", "smoke", "--protocol", "mimic-cxr", "--backbone", "resnet18", "--out"]
    changes = ["scst=null", "ce.epochs=1", "retriever.epochs=1"]
    assert train([*arguments, str(out), "--set", *changes, "--precision", "fp32", "--data-licence", "invented"]) == 0
    cases = [json.loads(line)["case_id"] for line in (out / "index" / "cases.jsonl").read_text().splitlines()]
    assert cases == [str(50_000_000 + number) for number in range(12)]
    found = np.load(tmp_path / "B.work" / "retriever" / "cases.npy")
    assert found.shape[0] == 24
    own = np.repeat(np.arange(12), 2)[:, None, None]  # of each entry, the row of its report
    assert ((found != own) & (found >= 0)).all()
    assert found.max() == 11


@torch.inference_mode()
def test_mimic_checkpoint_writes_as_the_published_model(mimic: Mimic, tmp_path: Path) -> None:
    """One image gives 49 patches."""
    train_reports = [one["report"] for one in json.loads(mimic.annotation.read_text())["train"]]
    words = MIMIC_CXR.words(train_reports)
    torch.manual_seed(1)
    visual = nn.Sequential(*list(models.resnet18(weights=None).children())[:-2])
    state = published_state(words=len(words), d_model=64, d_ff=96, features=512, layers=2, slots=40)
    state["encoder_decoder.logit.weight"] *= 3
    whole = state | {f"visual_extractor.model.{key}": value for key, value in visual.state_dict().items()}
    torch.save({"epoch": 3, "state_dict": whole}, tmp_path / "model.pth")
    arguments = ["--checkpoint", str(tmp_path / "model.pth"), "--annotation", str(mimic.annotation), "--heads", "4"]
    arguments += ["--top-k", "8", "--protocol", "mimic-cxr", "--data-licence", "invented"]
    assert import_checkpoint([*arguments, "--out", str(tmp_path / "B")]) == 0

    config = read_config(tmp_path / "B")
    assert (config.protocol, config.model.max_length) == ("mimic-cxr", 101)
    pixels = np.random.default_rng(1).integers(0, 255, (224, 224), np.uint8)
    (draft,) = open_drafter(tmp_path / "B").draft([[StudyView(pixels, View.FRONTAL)]])
    mean, std = (torch.tensor(v).view(1, 3, 1, 1) for v in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
    image = torch.from_numpy(pixels)[None, None].expand(-1, 3, -1, -1) / 255
    features = visual.eval()((image - mean) / std).flatten(2).transpose(1, 2)
    assert features.shape[1] == 49
    (ids,) = ReferenceCMN(state, heads=4, top_k=8, max_length=100).beam(features, 3).tolist()
    expected = " ".join(words[number - 1] for number in ids[: ids.index(END) if END in ids else None])
    written = comparable_prediction(draft.findings, protocol=MIMIC_CXR)
    assert [w for w in written.split() if w != "."] == [w for w in expected.split() if w != "."]
