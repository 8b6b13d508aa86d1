"""Chest phantoms: findings are visible in pixels and named in reports; a written root reads like Open-i."""

from __future__ import annotations

import io
import re
import tarfile
from collections import Counter
from functools import lru_cache, partial
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from model.text.labeler import label_report
from retrieval_index.openi import read_reports
from training.phantoms import PHANTOM_FINDINGS, make_phantom, write_phantom_root
from training.phantoms import report as report_module
from training.phantoms.__main__ import main
from training.phantoms.dataset import sample_findings
from training.phantoms.study import chest_of

NORMAL: frozenset[str] = frozenset()
SIZE = 128
LEFT, RIGHT = slice(65, 128), slice(0, 63)  # columns of a frontal, by the patient's side
BASE = slice(75, 108)  # rows around the costophrenic angles
SEEDS = range(3)

draw = lru_cache(maxsize=None)(partial(make_phantom, size=SIZE))


def change(seed: int, finding: str, view: str = "frontal") -> np.ndarray:
    """Grey levels that the finding adds to the same person's normal chest, (SIZE, SIZE) float."""
    return getattr(draw(seed, frozenset({finding})), view).astype(float) - getattr(draw(seed, NORMAL), view)


def test_pictures_have_the_size_dark_lungs_and_bright_bone() -> None:
    study = make_phantom(0, NORMAL, size=160)
    for picture in (study.frontal, study.lateral):
        assert picture.shape == (160, 160)
        assert picture.dtype == np.uint8
        assert picture.min() < 10
        assert picture.max() > 220
    lung, spine = study.frontal[70:85, 30:45], study.frontal[120:150, 76:84]
    assert lung.mean() + 80 < spine.mean()


@pytest.mark.parametrize("seed", SEEDS)
def test_a_large_heart_covers_more_of_the_chest(seed: int) -> None:
    added = change(seed, "cardiomegaly")
    assert added[75:90, 85:100].max() > 50  # next to the left border
    assert np.abs(added[:45]).mean() < 1  # the upper chest stays as it is


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize(("name", "side", "other"), [("left effusion", LEFT, RIGHT), ("right effusion", RIGHT, LEFT)])
def test_fluid_whitens_the_costophrenic_angle_of_its_side(seed: int, name: str, side: slice, other: slice) -> None:
    added = change(seed, name)
    assert added[BASE, side].max() > 60
    assert np.abs(added[BASE, other]).mean() < 1.5


def test_more_fluid_is_called_larger_and_whitens_more() -> None:
    words: dict[str, list[float]] = {"small": [], "moderate": [], "large": []}
    for seed in range(20):
        study = make_phantom(seed, frozenset({"left effusion"}), size=96)
        word = re.search(r"(small|moderate|large)[^.]*effusion", study.report)
        assert word
        normal = make_phantom(seed, NORMAL, size=96)
        words[word[1]].append(float((study.frontal.astype(float) - normal.frontal)[:, 49:].mean()))
    assert all(words.values())
    assert max(words["small"]) < min(words["large"])


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("finding", [f for f in PHANTOM_FINDINGS if f != "atelectasis"])
def test_every_finding_shows_in_both_views(seed: int, finding: str) -> None:
    assert np.abs(change(seed, finding)).max() > 25
    if finding != "pneumothorax":  # hardly visible in a lateral image
        assert np.abs(change(seed, finding, "lateral")).max() > 12


def test_atelectasis_draws_thin_bright_bands_at_one_base() -> None:
    added = change(1, "atelectasis")
    assert added.max() > 25
    assert (np.abs(added) > 10).mean() < 0.02


def test_labeler_reads_the_drawn_findings_from_the_report() -> None:
    """Every composed report, read by the labeler: stated labels as stated, nothing else present."""
    rng = np.random.default_rng(0)
    sets = [NORMAL, *(frozenset({name}) for name in PHANTOM_FINDINGS)]
    sets += [sample_findings(rng) for _ in range(60)]
    for seed, findings in enumerate(sets):
        chest = chest_of(seed, findings)
        text, truth = report_module.compose_report(chest, np.random.default_rng(seed))
        for written in (text, text.lower().replace(".", " .").replace(",", " ,")):
            read = label_report(written)
            wrong = {name: (read[name], state) for name, state in truth.items() if read[name] != state}
            assert not wrong, written
            unexpected = {name for name, state in read.items() if state == "present"} - set(truth)
            assert unexpected <= {"No Finding"}, written  # an elevated diaphragm is none of the 14


def test_labels_follow_the_findings() -> None:
    expected = {
        "cardiomegaly": "Cardiomegaly", "left effusion": "Pleural Effusion", "right consolidation": "Consolidation",
        "nodule": "Lung Lesion", "atelectasis": "Atelectasis", "pneumothorax": "Pneumothorax", "edema": "Edema",
        "pacemaker": "Support Devices", "central line": "Support Devices",
    }  # fmt: skip
    for finding, label in expected.items():
        assert draw(7, frozenset({finding})).labels[label] == "present"
        assert draw(7, NORMAL).labels.get(label, "absent") == "absent"


def test_rejects_unknown_finding() -> None:
    with pytest.raises(ValueError, match=r"\['gout'\].*cardiomegaly"):
        make_phantom(0, frozenset({"gout"}))


def test_written_root_is_read_like_the_collection(tmp_path: Path) -> None:
    root = write_phantom_root(tmp_path / "root", train=6, val=2, test=1, seed=5, size=64)
    reports = read_reports(root).reports
    assert [r.uid for r in reports] == [f"CXR{900_001 + n}" for n in range(9)]
    for report in reports:
        assert report.findings
        assert len(report.image_ids) == 2
        for image in report.image_ids:
            assert Image.open(root / "images" / f"{image}.png").size == (64, 64)
    splits = Counter(line.split(",")[1] for line in (root / "r2gen_split.csv").read_text().splitlines()[1:])
    assert splits == {"train": 6, "val": 2, "test": 1}
    views = dict(line.split(",") for line in (root / "views.csv").read_text().splitlines()[1:])
    assert Counter(views.values()) == {"frontal": 9, "lateral": 9}


def test_writing_twice_gives_the_same_bytes(tmp_path: Path) -> None:
    first, second = (write_phantom_root(tmp_path / name, train=2, val=1, size=48) for name in "ab")
    files = sorted(p.relative_to(first) for p in first.rglob("*") if p.is_file())
    assert len(files) == 9
    assert all((first / name).read_bytes() == (second / name).read_bytes() for name in files)


def test_rejects_root_with_files(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("kept")
    with pytest.raises(ValueError, match="not empty"):
        write_phantom_root(tmp_path, train=1, val=0)
    assert [p.name for p in tmp_path.iterdir()] == ["notes.txt"]


def test_command_line_writes_a_data_set(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--out", str(tmp_path / "new"), "--studies", "7", "--size", "48"]) == 0
    assert "5 train, 1 val and 1 test" in capsys.readouterr().out
    with pytest.raises(SystemExit):
        main(["--out", str(tmp_path / "new"), "--studies", "7"])
    assert "not empty" in capsys.readouterr().err


def test_no_template_is_a_sentence_of_the_collection(real_data: Path) -> None:
    corpus = set()
    with tarfile.open(real_data / "openi" / "NLMCXR_reports.tgz") as tar:
        for member in tar:
            file = tar.extractfile(member) if member.isfile() else None
            text = io.TextIOWrapper(file, "utf-8").read() if file else ""
            for section in re.findall(r'Label="(?:FINDINGS|IMPRESSION)">([^<]*)', text):
                corpus.update(normalised(sentence) for sentence in section.split("."))
    filled_templates = set()
    for templates in vars(report_module).values():
        if isinstance(templates, tuple) and all(isinstance(text, str) for text in templates):
            for text in templates:
                for filled in every_filling(text):
                    filled_templates.add(normalised(filled))
    assert len(corpus) > 5000
    assert len(filled_templates) > 50
    assert sorted(filled_templates & corpus) == []  # only the shared sentences are shown, never the corpus


def normalised(text: str) -> str:
    return " ".join(re.findall(r"[a-z]+", text.lower()))


def every_filling(template: str) -> list[str]:
    words = {
        "side": ["right", "left"],
        "zone": ["upper", "middle", "lower"],
        "degree": ["mild", "moderate", "marked"],
        "size": ["small", "moderate", "large", "medium"],
    }
    texts = [template]
    for name, options in words.items():
        texts = [t.replace(f"{{{name}}}", word) for t in texts for word in options]
    return texts
