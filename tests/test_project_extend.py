"""The package of docs/extend.md, installed next to this project: trained, evaluated, served; unknown names refused."""

from __future__ import annotations

import csv
import json
import re
import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from PIL import Image

from cxr_report import LoadError, load_bundle
from model.bundle import read_config
from model.config import DecodingConfig
from model.manifest import BundleError
from model.registry import DECODERS, WRITERS, Registry
from tests.support.paths import DRAWN, REPOSITORY
from tests.support.tiny import write_tiny_bundle
from training import evaluate, run, score
from training.config import CEConfig
from training.phantoms import make_phantom
from training.phantoms.dataset import sample_findings
from training.registries import DATASETS, LOSSES, METRIC_GROUPS

pytestmark = pytest.mark.usefixtures("no_java")
GUIDE = (REPOSITORY / "docs" / "extend.md").read_text(encoding="utf-8")
TINY = {
    "preset": "smoke", "image_size": 64, "retrieval_k": 0, "pretrain": None, "retriever": None, "scst": None,
    "backbone_weights": "none",
    "shape": {"backbone": "mobilenet_v3_small", "d_model": 32, "d_ff": 32, "memory_slots": 32, "memory_dim": 32,
              "max_length": 12},
    "ce": {"epochs": 1, "backbone_lr": 1e-4, "loss": "focal", "label_smoothing": 0.1},
    "decoding": {"method": "wide_beam", "language": {"attested": False}},
}  # fmt: skip


def install(folder: Path, entry_points: str) -> Path:
    """A folder for ``sys.path`` with the modules of the guide and the metadata that pip would write."""
    package, info = folder / "my_cxr", folder / "my_cxr-1.0.dist-info"
    package.mkdir(parents=True)
    info.mkdir()
    (package / "__init__.py").write_text("")
    for name, code in re.findall(r"```python\n# my_cxr/(\w+\.py)\n(.*?)```", GUIDE, re.DOTALL):
        (package / name).write_text(code)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: my-cxr\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(entry_points)
    return folder


def guide_entry_points() -> str:
    toml = re.search(r"```toml\n(.*?)```", GUIDE, re.DOTALL)
    assert toml
    return re.sub(r'\[project\.entry-points\."(.*?)"\]', r"[\1]", toml[1].replace(' = "', " = ").replace('"\n', "\n"))


@pytest.fixture
def addon(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = install(tmp_path / "site", guide_entry_points())
    monkeypatch.syspath_prepend(str(folder))
    return folder


def write_folder(root: Path) -> Path:
    """The data set that ``open_folder`` of the guide reads."""
    root.mkdir()
    rng, rows = np.random.default_rng(0), []
    for number, split in enumerate(["train"] * 10 + ["val"] * 3 + ["test"] * 3):
        study = make_phantom(number, sample_findings(rng), size=64)
        for view, pixels in (("frontal", study.frontal), ("lateral", study.lateral)):
            Image.fromarray(pixels).save(root / f"{number}-{view}.png")
        rows.append([f"s{number}", split, study.report, f"{number}-frontal.png", f"{number}-lateral.png"])
    with (root / "reports.csv").open("w", newline="") as file:
        csv.writer(file).writerows([["id", "split", "report", "frontal", "lateral"], *rows])
    return root


def test_a_package_adds_one_of_each_without_a_change_here(
    addon: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    root, out = write_folder(tmp_path / "data"), tmp_path / "bundle"
    (tmp_path / "tiny.yaml").write_text(yaml.safe_dump(TINY))
    data = ["--dataset", "folder", "--root", str(root), "--device", "cpu"]
    assert run.main([*data, "--config", str(tmp_path / "tiny.yaml"), "--out", str(out)]) == 0
    result = tmp_path / "test.json"
    arguments = ["--bundle", str(out), *data, "--split", "test", "--no-meteor", "--out", str(result)]
    assert evaluate.main([*arguments, "--draws", "10"]) == 0
    metrics = json.loads(result.read_text())
    assert metrics["dataset"] == "folder"
    rows = (metrics["system"], metrics["system_full"], metrics["baselines"]["constant"])
    assert all(row["length_ratio"] > 0 for row in rows)
    assert "length_ratio" in capsys.readouterr().out

    frontal = DRAWN / "normal-frontal.png"
    by_name = load_bundle(out, device="cpu").draft(frontal, beam_size=None)
    assert by_name.findings == load_bundle(out, device="cpu").draft(frontal, beam_size=8).findings
    monkeypatch.setattr(sys, "path", [path for path in sys.path if path != str(addon)])
    with pytest.raises(LoadError, match="decoding method 'wide_beam' is unknown; use beam, greedy, rerank, consensus"):
        load_bundle(out, device="cpu")


def test_a_loss_of_a_package_is_the_loss_of_the_stage(addon: Path) -> None:
    import torch

    logits, targets = torch.randn(2, 3, 5), torch.tensor([[1, 2, 0], [3, 0, 0]])
    plain, focal = (LOSSES.get(name)(logits, targets, 0.0) for name in ("cross_entropy", "focal"))
    nll = -logits.log_softmax(-1).gather(2, targets.unsqueeze(2)).squeeze(2)[targets != 0]
    torch.testing.assert_close(plain, nll.sum())
    torch.testing.assert_close(focal, ((1 - (-nll).exp()) ** 2 * nll).sum())


def test_a_score_of_texts_has_the_metrics_of_packages(addon: Path, tmp_path: Path) -> None:
    texts = {"a": "the heart is large .", "b": "no effusion ."}
    (tmp_path / "texts.json").write_text(json.dumps(texts))
    files = ["--predictions", str(tmp_path / "texts.json"), "--references", str(tmp_path / "texts.json")]
    assert score.main([*files, "--no-meteor", "--draws", "0", "--out", str(tmp_path / "out")]) == 0
    assert json.loads((tmp_path / "out" / "metrics.json").read_text())["system"]["length_ratio"] == 1


# --- names --------------------------------------------------------------------------------------------------------


def test_unknown_names_are_refused_with_the_known_ones(addon: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(ValueError, match="loss 'fokal' is unknown; use cross_entropy, focal, or install the package"):
        CEConfig(loss="fokal")
    with pytest.raises(ValueError, match="use beam, greedy, rerank, consensus, wide_beam, or install"):
        DecodingConfig(method="wide")
    with pytest.raises(ValueError, match="metric 'blue' is unknown; use bleu, meteor, rouge, cider, findings"):
        METRIC_GROUPS.get("blue")
    with pytest.raises(SystemExit):
        run.main(["--dataset", "folders", "--root", "x", "--out", "y"])
    assert "choose from 'openi', 'r2gen', 'folder'" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("group", "change"),
    [("decoders", "decoding.method=gone"), ("losses", "ce.loss=gone"), ("writers", "shape.writer=gone")],
)
def test_entry_that_cannot_be_imported_is_refused_before_any_stage(
    group: str, change: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.syspath_prepend(str(install(tmp_path / "site", f"[cxr_report.{group}]\ngone = my_cxr.gone:x\n")))
    assert run.main(["--preset", "baseline", "--set", change, "--print-config"]) == 2
    assert "'gone' (my_cxr.gone:x) cannot be imported" in caplog.text


@pytest.mark.parametrize(
    ("part", "field", "message"),
    [("decoding", "method", r"decoding\.method: decoding method 'mine' is"), ("model", "writer", "writer 'mine' is")],
)
def test_bundle_of_a_package_that_is_not_installed_is_refused_in_one_line(
    part: str, field: str, message: str, bundle: Path, tmp_path: Path
) -> None:
    copy = shutil.copytree(bundle, tmp_path / "copy")
    config = json.loads((copy / "config.json").read_text())
    (copy / "config.json").write_text(json.dumps({**config, part: {**config[part], field: "mine"}}))
    with pytest.raises(BundleError, match=rf"config\.json: .*{message}") as refused:
        read_config(copy)
    assert "\n" not in str(refused.value)


def test_a_package_adds_a_writer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    site = install(tmp_path / "site", "[cxr_report.writers]\nbounded = my_cxr.writer:BoundedState\n")
    monkeypatch.syspath_prepend(str(site))
    path = write_tiny_bundle(tmp_path / "B", writer="bounded")
    assert read_config(path).model.writer == "bounded"
    assert load_bundle(path, device="cpu").draft(DRAWN / "normal-frontal.png").sentences
    monkeypatch.setattr(sys, "path", [folder for folder in sys.path if folder != str(site)])
    with pytest.raises(LoadError, match="writer 'bounded' is unknown; use cnn-rnn, r2gen, cmn, coattention, or inst"):
        load_bundle(path, device="cpu")


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        ("[cxr_report.datasets]\nopeni = my_cxr.dataset:open_folder\n", r"data set 'openi' is defined twice .*rename"),
        ("[cxr_report.datasets]\nother = my_cxr.missing:x\n", "data set 'other' .my_cxr.missing:x. cannot be imported"),
        ("[cxr_report.datasets]\nother = my_cxr.dataset:x\n", "cannot be imported: .*correct the entry point"),
    ],
)
def test_wrong_entry_points_are_named(
    entries: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(str(install(tmp_path, entries)))
    with pytest.raises(ValueError, match=message):
        DATASETS.get("other")


def test_two_metrics_of_one_name_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(install(tmp_path, "[cxr_report.metrics]\nCIDEr = my_cxr.metric:length_ratio\n")))
    from training.scoring.metrics import score

    with pytest.raises(ValueError, match="metric group 'CIDEr' returns CIDEr, which another group returns too"):
        score([("a b .", "a .")])


@pytest.mark.parametrize("registry", [DECODERS, WRITERS, LOSSES, METRIC_GROUPS, DATASETS], ids=lambda one: one.group)
def test_built_in_entries_can_be_loaded(registry: Registry[Any]) -> None:
    assert registry.built_in()
    assert all(callable(registry.get(name)) for name in registry.built_in())
