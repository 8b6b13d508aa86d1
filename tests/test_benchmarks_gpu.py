"""``python -m benchmarks gpu``: the dry run, resumption, and parts that fail."""

from __future__ import annotations

import json
import logging
import multiprocessing
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks import __main__ as benchmarks
from benchmarks.gpu import command, drafts, needs, stages
from benchmarks.gpu.part import Job
from benchmarks.gpu.parts import PRELOADED, parts
from model.config import DecodingConfig
from model.drafter import Drafter
from model.network.backbone import Backbone
from tests.support.paths import REPOSITORY
from tests.support.tiny import IMAGE_SIZE, open_drafter, write_tiny_bundle
from training.data.augment import to_float

BY_NAME = {part.name: part for part in parts(dry_run=True)}


def job(seconds: float = 300.0) -> Job:
    return Job("cpu", dry_run=True, deadline=time.monotonic() + seconds)


def run(out: Path) -> dict[str, Any]:
    """The content of ``gpu.json`` after a dry run that measured every part."""
    assert benchmarks.main(["gpu", "--dry-run", "--minutes", "60", "--out", str(out)]) == 0
    content: dict[str, Any] = json.loads((out / "gpu.json").read_text())
    return content


def test_dry_run_measures_every_part_and_a_second_run_only_what_failed(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    first = run(tmp_path)
    assert first["run"]["dry_run"]
    assert [*first["parts"]] == [*BY_NAME]
    assert {part["state"] for part in first["parts"].values()} == {"done"}
    page = (tmp_path / "gpu.html").read_text()
    assert "Dry run on CPU: no figure here counts." in page
    assert all(part.title in page for part in BY_NAME.values())
    assert first["parts"]["drafts"]["rows"][0][1:3] == ["2", "2"]  # all equal
    (reading,) = first["parts"]["service-2"]["values"]["readings"]
    assert reading["answers_per_second"] > 0
    assert [*reading["outcomes"]] == ["answered"]
    for stage in ("pretrain", "ce", "scst"):
        assert first["parts"][f"smoke-{stage}"]["values"]["stages"][0]["steps_per_second"] > 0

    first["parts"]["index"] = {"title": "search", "state": "failed", "error": "cut"}
    (tmp_path / "gpu.json").write_text(json.dumps(first))
    with caplog.at_level(logging.INFO):
        second = run(tmp_path)
    assert f"{len(BY_NAME) - 1} of {len(BY_NAME)} parts are done already" in caplog.text
    assert second["parts"]["index"]["state"] == "done"
    assert second["parts"]["writing"] == first["parts"]["writing"]


def test_results_of_another_device_are_not_continued(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "gpu.json").write_text(json.dumps({"schema_version": 1, "run": {"device": "other"}, "parts": {}}))
    assert benchmarks.main(["gpu", "--dry-run", "--out", str(tmp_path)]) == 2
    assert "is of another run" in caplog.text


@pytest.mark.skipif(torch.cuda.is_available(), reason="without a GPU only")
def test_refuses_to_measure_without_a_gpu(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    assert benchmarks.main(["gpu", "--out", str(tmp_path)]) == 2
    assert "0 CUDA devices are usable" in caplog.text
    assert not (tmp_path / "gpu.json").exists()


def test_parts_that_get_no_time_are_recorded(tmp_path: Path) -> None:
    assert benchmarks.main(["gpu", "--dry-run", "--minutes", "0", "--out", str(tmp_path)]) == 1
    content = json.loads((tmp_path / "gpu.json").read_text())
    assert {part["state"] for part in content["parts"].values()} == {"not run"}
    assert "not run: no time was left" in (tmp_path / "gpu.html").read_text()


def test_part_that_takes_too_long_or_dies_is_recorded() -> None:
    context = multiprocessing.get_context("forkserver")
    record = command.measure(BY_NAME["index"], job(0.3), context)
    assert record["state"] == "failed"
    assert "it took more than its 0 s" in record["error"]


def test_part_without_its_package_or_with_an_error_is_recorded(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def record_of(name: str) -> dict[str, Any]:
        receiver, sender = multiprocessing.Pipe(duplex=False)
        command._run_part(sender, name, job())
        record: dict[str, Any] = receiver.recv()
        return record

    with monkeypatch.context() as patched:
        patched.delitem(sys.modules, "benchmarks.cider", raising=False)
        patched.setitem(sys.modules, "pycocoevalcap.cider.cider", None)
        record = record_of("cider")
    assert record["state"] == "failed"
    assert record["error"].startswith("the package pycocoevalcap.cider.cider is missing")
    monkeypatch.chdir(tmp_path)  # the shipped bundle is not here
    record = record_of("index")
    assert record["state"] == "failed"
    assert "reports.faiss" in record["error"]


# --- what a machine with only PyTorch needs ---------------------------------------------------------------------------


def test_carried_packages_are_pinned_and_leave_out_what_the_machine_has() -> None:
    names = needs.needed()
    assert {"faiss-cpu", "pydantic-core", "locust", "websocket-client"} <= {*names}
    assert not {"torch", "torchvision", "numpy", "pillow", "scipy", "imagecodecs"} & {*names}
    assert {*names} <= needs.pins().keys()
    assert {*needs.needed(["Locust", "flask_cors"])} <= {*names} - {"locust", "flask-cors"}


def test_parts_import_nothing_but_the_carried_packages_and_touch_no_device_before_the_fork() -> None:
    code = (
        "import importlib, sys, torch\n"
        "def touched(*_): raise SystemExit('the device was touched')\n"
        "torch.cuda.is_available = torch.cuda.device_count = torch.cuda._lazy_init = touched\n"
        "from importlib.machinery import PathFinder\n"
        "from importlib.metadata import packages_distributions\n"
        "from benchmarks.gpu import needs\n"
        "allowed = {'cxr-report', *needs.needed(), *needs._with_requirements(needs.PRESENT, set())}\n"
        "owners = packages_distributions()\n"
        "class Carried(PathFinder):\n"
        "    @classmethod\n"
        "    def find_spec(cls, name, path=None, target=None):\n"
        "        owned = {needs._normal(one) for one in owners.get(name.partition('.')[0], ())}\n"
        "        return None if owned and not owned & allowed else super().find_spec(name, path, target)\n"
        "sys.meta_path = [Carried if finder is PathFinder else finder for finder in sys.meta_path]\n"
        "modules = ('benchmarks.generator', 'torch.utils.tensorboard', 'service.__main__', 'service.app')\n"
        f"for name in (*modules, *{PRELOADED!r}): importlib.import_module(name)\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=REPOSITORY)


# --- drafts on two devices --------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def drafters(tmp_path_factory: pytest.TempPathFactory) -> tuple[Drafter, Drafter]:
    """The same untrained bundle twice; the second one has slightly other weights."""
    decoding = DecodingConfig(method="consensus", candidates=24, min_length=6)
    path = write_tiny_bundle(tmp_path_factory.mktemp("gpu") / "tiny", decoding=decoding, full_stops=2.0)
    reference, other = open_drafter(path), open_drafter(path)
    with torch.no_grad():
        weight = other.bundle.model.to_words.weight
        weight += 0.05 * torch.randn(weight.shape, generator=torch.Generator().manual_seed(0))
    return reference, other


def test_equal_devices_have_no_differences(drafters: tuple[Drafter, Drafter]) -> None:
    reference, _ = drafters
    for study, views in enumerate(drafts.drawn(2, IMAGE_SIZE)):
        found = drafts.compare(study, reference, reference, views)
        assert found.equal
        assert found.cases_equal
        assert found.choices == []
        assert found.words == []
        assert found.embedding == found.source == 0.0


def test_margin_is_how_far_the_word_of_the_first_device_leads(drafters: tuple[Drafter, Drafter]) -> None:
    found = [drafts.compare(study, *drafters, views) for study, views in enumerate(drafts.drawn(3, IMAGE_SIZE))]
    made = [choice for one in found for choice in one.choices]
    sampled = [choice for choice in made if choice.candidate]
    assert len(sampled) > 10
    assert all(choice.cpu != choice.cuda for choice in made)
    assert all(-1e-4 < choice.margin < 2 for choice in sampled)  # with other noise some would be far below 0
    outcome = drafts.outcome(found, 3)
    assert outcome.rows[2][1:3] == (f"{75 - len(made)}", "75")
    assert "TF32 is off" in outcome.notes[-1]


def test_names_the_passages_that_differ() -> None:
    first, second = "The heart is large. No effusion seen", "The heart is normal. No effusion"
    assert drafts.passages(first.split(), second.split()) == [("large.", "normal."), ("seen", "")]


# --- stages -----------------------------------------------------------------------------------------------------------


def steps_of(count: int, **limits: Any) -> tuple[float, int]:
    weight = torch.zeros(1, requires_grad=True)
    optimizer = torch.optim.SGD([weight], lr=0.1)

    def train() -> None:
        for _ in range(count):
            weight.grad = torch.ones(1)
            optimizer.step()

    return stages.steps_per_second(train, **limits)


def test_counts_steps_after_the_warm_up_until_enough_or_the_deadline() -> None:
    later, earlier = time.monotonic() + 60, time.monotonic() - 1
    assert steps_of(100, warm_up=2, steps=5, deadline=later)[1] == 5
    assert steps_of(6, warm_up=2, steps=50, deadline=later)[1] == 3
    assert steps_of(100, warm_up=2, steps=50, deadline=earlier)[1] == 1
    with pytest.raises(RuntimeError, match="took 3 steps, 2 of them to warm up"):
        steps_of(3, warm_up=2, steps=5, deadline=later)


def test_settled_features_of_an_untrained_resnet_fit_into_float16() -> None:
    torch.manual_seed(0)
    backbone, pixels = Backbone("resnet101").eval(), torch.randint(256, (4, 96, 96), dtype=torch.uint8)

    def largest() -> float:
        with torch.no_grad():
            return float(backbone(to_float(pixels))[0].max())

    assert largest() > torch.finfo(torch.float16).max
    stages._settle(backbone, pixels)
    assert largest() < 1000
    assert not backbone.training
