"""Measure the maps of a bundle's drafts: evidence maps and attention (``training.evaluation.map_measures``).

    python -m training.evaluate_maps --bundle B --dataset openi --root DIR --split val --limit 60 --out maps.json

The result holds no text. Until the command ends, ``*.work`` holds the finished drafts, from which the next run
continues.
"""

from __future__ import annotations

import argparse
import logging
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, get_args

import numpy as np
import torch

from model.bundle import Bundle
from model.command_line import CommandParser
from model.devices import choose_device
from model.drafter import Drafter
from model.protocols import CaseIndex
from model.types import DraftOptions
from training.cli import add_common_arguments, not_negative, open_source, positive, run_command, write_json
from training.data.pixel_cache import build_pixel_cache
from training.data.selection import Half
from training.data.studies import Source
from training.evaluation import inference
from training.evaluation.map_measures import HEART_BOX, MEASURES, MapScores, heart_patches, score_study
from training.evaluation.plan import DEFAULT_OPTIONS, InferenceOptions, Outputs, SplitName
from training.scoring.bootstrap import DRAWS

log = logging.getLogger("training")


def evaluate_maps(
    bundle: Bundle, index: CaseIndex | None, source: Source, work_dir: Path, *, split: SplitName = "val",
    limit: int | None = None, half: Half | None = None, patches: int = 5, draws: int = DRAWS, seed: int = 1,
    options: InferenceOptions = DEFAULT_OPTIONS,
) -> dict[str, Any]:  # fmt: skip
    """Draft each study of a split and measure the maps of its sentences.

    Args:
        bundle, index: the system and its reference cases; None for a bundle without retrieval.
        source: the data set.
        work_dir: for decoded images and finished drafts.
        split, limit, half: the studies.
        patches: how many are erased.
        draws: of the bootstrap over studies; 0 for no intervals.
        seed: of the draws and of the random patches.
        options: how drafts are computed; their maps are added.

    Raises:
        ValueError: no study can be drafted, or the bundle has no finding classifier.
    """
    if bundle.model.finding_head is None:
        raise ValueError(f"bundle {bundle.config.name} has no finding classifier; train one with the stage pretrain")
    options = replace(options, draft=DraftOptions(attention=True, evidence=True))
    drafter = Drafter(bundle, index, device=options.device, precision=options.precision)
    wanted, skipped = inference.wanted_studies(source, split, limit, half)
    with inference.kept_drafts(drafter, work_dir, options) as kept:
        folder = work_dir / f"evaluate-{split}-{len(wanted)}"
        cache = build_pixel_cache(source, wanted, drafter.image_size, folder, resample=drafter.resample)
        studies, _ = inference.with_images(wanted, cache, "both", skipped)
        drafts = inference.DraftWriter(drafter, cache, options, kept).write(studies)
    scores = MapScores()
    for number, (study, draft) in enumerate(zip(studies, drafts, strict=True)):
        random = np.random.default_rng((seed, number))
        views = inference.study_views(study, cache)
        scores.studies.append(score_study(bundle.model, views, draft, patches=patches, random=random))
    grid = drafter.image_size // 32
    result = {
        "schema_version": 1,
        "bundle": {"name": bundle.config.name, "digest": bundle.digest},
        "dataset": source.name,
        "split": split,
        "studies": len(studies),
        "heart_box": dict(zip(("top", "bottom", "left", "right"), HEART_BOX, strict=True)),
        "chance": float(heart_patches(grid).mean()),
        "erased_patches": patches,
        "device": torch.device(options.device).type,
        "seed": seed,
        "maps": scores.summary(draws=draws, seed=seed),
    }
    kept.remove()
    return result


def format_maps(result: dict[str, Any]) -> str:
    """The measures as a table, a line for each map."""
    lines = [f"{'map':20}" + "".join(f"{measure:>28}" for measure in MEASURES)]
    for name, measures in result["maps"].items():
        lines.append(f"{name:20}" + "".join(f"{_cell(measures[measure]):>28}" for measure in MEASURES))
    return "\n".join([*lines, f"{result['studies']} studies; heart by chance {result['chance']:.2f}"])


def _cell(value: dict[str, Any]) -> str:
    if value["mean"] is None:
        return "none"
    low, high = value.get("confidence_95", (None, None))
    return f"{value['mean']:.3f}" + ("" if low is None else f" ({low:.3f} to {high:.3f})")


def _run(arguments: argparse.Namespace) -> int:
    work = arguments.work or arguments.out.with_name(f"{arguments.out.stem}.work")
    Outputs(work_dir=work, metrics=arguments.out).check()
    source = open_source(arguments)
    device = choose_device(arguments.device)
    bundle, index = inference.open_bundle(arguments.bundle, device)
    options = InferenceOptions(device, batch_size=arguments.batch_size, resume=arguments.resume)
    names = ("split", "limit", "patches", "draws", "seed")
    chosen = {name: getattr(arguments, name) for name in names}
    result = evaluate_maps(bundle, index, source, work, half=arguments.split_val, options=options, **chosen)
    write_json(arguments.out, result)
    log.info("wrote %s", arguments.out)
    print(format_maps(result))
    return 0


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point of ``python -m training.evaluate_maps``; returns the exit code."""
    parser = CommandParser(prog="python -m training.evaluate_maps", description="Measure a bundle's maps.")
    add_common_arguments(parser, bundle=True)
    parser.add_argument("--split", choices=get_args(SplitName), default="val", help="test: for the final result only")
    parser.add_argument("--out", type=Path, required=True, help="JSON file to write; holds no text")
    parser.add_argument("--work", type=Path, help="decoded images, used again by the next run (default OUT.work)")
    parser.add_argument("--patches", type=positive, default=5, help="patches to erase (default 5)")
    parser.add_argument("--batch-size", type=positive, default=16)
    parser.add_argument("--draws", type=not_negative, default=DRAWS, help="bootstrap draws; 0: no intervals")
    parser.add_argument("--seed", type=int, default=1, help="of the random patches and of the draws")
    interrupted = "interrupted; the next run continues from the finished drafts"
    arguments = parser.parse_args(argv)
    return run_command(lambda: _run(arguments), interrupted=interrupted)


if __name__ == "__main__":
    raise SystemExit(main())
