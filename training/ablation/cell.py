"""One cell of the ablation: one row at one seed, trained, scored on val, and on the external images if there are any.

A cell is a folder: ``job.json``, the stages of ``training.run`` with their logs, ``bundle``, ``result.json`` and
``draws.npz`` once it is scored, ``external.json`` and ``external.npz``, or ``failed.json`` with the reason. The
ablation runs ``python -m training.ablation.cell FOLDER`` in a separate process, so that a crash affects no other cell.
The command continues where an earlier run of the cell stopped.
"""

from __future__ import annotations

import json
import logging
import os
import shutil
import sys
import threading
import time
from argparse import Namespace
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import Field

from model.config import Count, Frozen
from model.devices import choose_device
from training.ablation.external_eval import External, score_outside
from training.ablation.table import draw_predictions, save_draws
from training.cli import open_source, write_json
from training.config import RunConfig
from training.data.studies import Source, evenly
from training.evaluation.inference import open_bundle
from training.pipeline import run_pipeline
from training.prepared_run import PreparedRun
from training.stages.common import RunInputs
from training.trainer.context import RunContext

log = logging.getLogger("training")

_STAGES = ("pretrain", "retriever", "index", "ce", "scst", "evaluate")  # "bundle" is what "evaluate" scores


class Reuse(Frozen):
    """Stages whose results are taken from the cell of another row."""

    folder: Path
    row: str
    stages: tuple[str, ...]


class Job(Frozen):
    """The work of a cell. Paths, licence, device, ``external`` and ``reuse`` do not change its scores."""

    row: str
    config: RunConfig
    precision: Literal["bf16", "fp32"] = "bf16"
    train_limit: Count | None = None
    evaluate_limit: Count | None = None
    studies: dict[str, int] = Field(default_factory=dict)
    dataset: str | None = None
    root: Path | None = None
    annotation: Path | None = None
    images: Path | None = None
    soft_scores: Path | None = None
    data_licence: str | None = None
    device: str = "auto"
    cache: Path
    external: External | None = None
    reuse: Reuse | None = None

    def identity(self) -> dict[str, Any]:
        """The fields that must equal those of the cell in a folder to continue it."""
        fields = {"row", "config", "precision", "train_limit", "evaluate_limit", "studies"}
        soft = self.soft_scores.name if self.soft_scores and self.config.pretrain else None
        return {**self.model_dump(mode="json", include=fields), "soft_scores": soft}


def open_data(job: Job) -> Source:
    """The data set of a job, with no more than ``train_limit`` training studies, evenly spaced."""
    where = job.model_dump(include={"dataset", "root", "annotation", "images"})
    source = open_source(Namespace(**where), job.config.protocol)
    kept = {study.study_id for study in evenly(source.split("train"), job.train_limit)}
    return replace(source, studies=tuple(s for s in source.studies if s.split != "train" or s.study_id in kept))


def run_cell(job: Job, folder: Path) -> None:
    """Do the remaining work of a cell; errors of the stages are raised."""
    device = choose_device(job.device)
    torch.set_float32_matmul_precision("high" if job.precision == "bf16" else "highest")
    source = open_data(job)
    if not (folder / "result.json").exists():
        _train(job, source, folder, device)
    if job.external is not None and external_missing(job.external, folder):
        bundle, index = open_bundle(folder / "bundle", device)
        result, drawn = score_outside(
            job.external, bundle, index, source.split("train"), device=device, work_dir=job.cache / "external",
            predictions=folder / "evaluate" / "external.jsonl",
        )  # fmt: skip
        save_draws(folder / "external.npz", drawn)
        write_json(folder / "external.json", {"set": job.external.identity(), **result})


def external_missing(external: External, folder: Path) -> bool:
    """Whether a cell has no scores on these external images yet."""
    path = folder / "external.json"
    return not path.exists() or json.loads(path.read_text())["set"] != external.identity()


def _train(job: Job, source: Source, folder: Path, device: torch.device) -> None:
    began = time.monotonic()
    reused = take_over(job.reuse, folder) if job.reuse else ()
    inputs = RunInputs(
        source=source,
        out=folder,  # names the bundle; the trial bundle is the one that is kept
        soft_scores=job.soft_scores if job.config.pretrain is not None else None,
        data_licence=job.data_licence,
        cache_dir=job.cache,
        evaluate_limit=job.evaluate_limit or len(source.split("val")),
    )
    run = PreparedRun.prepare(job.config, inputs, RunContext(device, job.config.seed, job.precision, folder))
    metrics = run_pipeline(run, _STAGES)
    save_draws(folder / "draws.npz", draw_predictions(folder / "evaluate" / "val.jsonl"))
    content = {
        **job.identity(),
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU",
        "seconds": time.monotonic() - began,
        "reused": {"row": job.reuse.row, "stages": reused} if job.reuse and reused else None,
        "weights_million": sum(p.numel() for p in run.model.parameters()) / 1e6,
        "skipped_images": len(run.cache.skipped),
        "metrics": metrics,
    }
    write_json(folder / "result.json", content)
    for checkpoint in folder.glob("*/checkpoint.pt"):
        checkpoint.unlink()  # a finished stage is resumed from its result


def take_over(reuse: Reuse, folder: Path) -> tuple[str, ...]:
    """Link the finished stages of another cell into this one, up to its first unfinished stage; returns their names.

    Both cells can hold the same files, because result files are replaced and never changed in place.
    """
    taken = []
    for stage in reuse.stages:
        finished, target = reuse.folder / stage, folder / stage
        if not (finished / "result.pt").exists():
            break
        if not (target / "result.pt").exists():
            partial = target.with_name(f"{stage}.partial")
            for old in (partial, target):
                shutil.rmtree(old, ignore_errors=True)
            shutil.copytree(finished, partial, copy_function=_link, ignore=shutil.ignore_patterns("checkpoint.pt"))
            partial.rename(target)
        taken.append(stage)
    return tuple(taken)


def _link(source: str, target: str) -> None:
    try:
        os.link(source, target)
    except OSError:  # a file system without links
        shutil.copy2(source, target)


# --- as a process -----------------------------------------------------------------------------------------------------


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point of ``python -m training.ablation.cell FOLDER``; returns the exit code."""
    (name,) = sys.argv[1:] if argv is None else argv
    folder = Path(name)
    logging.basicConfig(
        level=logging.INFO, format="%(asctime)s %(message)s", datefmt="%H:%M:%S",
        handlers=[logging.StreamHandler(sys.stderr), logging.FileHandler(folder / "cell.log", encoding="utf-8")],
    )  # fmt: skip
    try:
        run_cell(Job.model_validate_json((folder / "job.json").read_bytes()), folder)
    except KeyboardInterrupt:
        return 130
    except Exception as error:  # the table names it, and the other cells are run
        log.exception("the cell failed")
        write_failure(folder, f"{type(error).__name__}: {error}")
        return 1
    return 0


def write_failure(folder: Path, reason: str) -> None:
    """Record why a cell has no scores."""
    write_json(folder / "failed.json", {"reason": reason})


def end_with_parent() -> None:
    """End this process soon after the one that started it, so that a killed ablation leaves no cell running."""
    parent = os.getppid()

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(0.5)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


if __name__ == "__main__":
    end_with_parent()
    raise SystemExit(main())
