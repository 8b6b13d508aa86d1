"""The cells of an ablation: their jobs and folders."""

from __future__ import annotations

import json
import logging
from argparse import Namespace
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

from model.network.report_model import writer_class
from training.ablation.cell import Job, Reuse, external_missing
from training.ablation.external_eval import External, check_external
from training.ablation.rows import (
    TABLES,
    Row,
    Scale,
    changes,
    equal_in_all,
    parse_weights,
    read_rows,
    read_scale,
    resolve,
    shared_stages,
)
from training.checks import check_model, trial_shape
from training.cli import open_source
from training.config import RunConfig
from training.run_manifest import differences

log = logging.getLogger("training")
_DATA = ("dataset", "root", "annotation", "images", "soft_scores", "data_licence")  # options that a job takes as given


@dataclass(frozen=True)
class Planned:
    """One row at one seed, and its folder."""

    row: str
    seed: int
    folder: Path
    job: Job

    @property
    def trained(self) -> bool:
        """Whether it has its scores on val."""
        return (self.folder / "result.json").exists()

    @property
    def finished(self) -> bool:
        """Whether nothing is left to do."""
        return self.trained and (self.job.external is None or not external_missing(self.job.external, self.folder))


@dataclass(frozen=True)
class Plan:
    """All cells in the order in which they run: every row at the first seed, then at the next."""

    out: Path
    rows: tuple[str, ...]
    seeds: tuple[int, ...]
    scale: Scale
    external: External | None
    cells: tuple[Planned, ...]
    table: str = "study"  # of which published values are printed

    def changes(self) -> dict[str, tuple[str, ...]]:
        """For each row but the first, the fields in which it differs from the one before."""
        first = {cell.row: cell.job.config for cell in self.cells if cell.seed == self.seeds[0]}
        return {now: changes(first[before], first[now]) for before, now in pairwise(self.rows)}


def make_plan(arguments: Namespace) -> Plan:
    """List the cells that the command line asks for and compare them with the ones in ``--out``.

    Raises:
        ValueError: an option or a file cannot be used, the data set has no training or no validation study, or a cell
            in ``--out`` has other settings.
    """
    external, out, scale = _external(arguments), arguments.out, read_scale(arguments.scale)
    rows = _rows(arguments)
    weights, equal = parse_weights(arguments.backbone_weights), equal_in_all(rows)
    data = {name: getattr(arguments, name) for name in _DATA}
    source = open_source(arguments)
    for note in source.notes:
        log.info("%s", note)
    studies = {split: len(source.split(split)) for split in ("train", "val")}
    for split, count in studies.items():
        if not count:
            raise ValueError(f"the data set has no {split} study; an ablation trains on train and is scored on val")
    common = {
        **data, "precision": arguments.precision, "device": arguments.device, "studies": studies, "external": external,
        "train_limit": scale.train_limit, "evaluate_limit": scale.evaluate_limit, "cache": out / "cache",
    }  # fmt: skip
    cells = []
    for seed in range(1, arguments.seeds + 1):
        before: Planned | None = None
        for row in rows:
            config = resolve(row, seed=seed, scale=scale, weights=weights, equal=equal)
            if arguments.protocol is not None:
                config = config.with_protocol(arguments.protocol)
            reuse = None
            if before is not None and (stages := shared_stages(before.job.config, config)):
                reuse = Reuse(folder=before.folder, row=before.row, stages=stages)
            job = Job.model_validate({**common, "row": row.name, "config": config, "reuse": reuse})
            before = Planned(row.name, seed, out / "cells" / f"{row.name}-seed{seed}", job)
            cells.append(before)
    if arguments.soft_scores is not None and not arguments.soft_scores.is_file():
        raise ValueError(f"--soft-scores {arguments.soft_scores}: no such file")
    _check_weights(cells)
    for name, config in {cell.row: cell.job.config for cell in cells}.items():
        try:
            check_model(config)
        except ValueError as error:
            raise ValueError(f"row {name}: {error}") from error
    _check_before(cells)
    return Plan(
        out, tuple(row.name for row in rows), tuple(range(1, arguments.seeds + 1)), scale, external, tuple(cells),
        arguments.table or "study",
    )  # fmt: skip


def _rows(arguments: Namespace) -> tuple[Row, ...]:
    """The rows of ``--rows``, else those of ``--table``, or some of them."""
    if arguments.rows is not None:
        for option in ("presets", "table"):
            if getattr(arguments, option) is not None:
                raise ValueError(f"--{option} chooses rows of a table, and --rows gives others; leave one out")
        return read_rows(arguments.rows)
    table = arguments.table or "study"
    for name in arguments.presets or ():
        if name not in TABLES[table]:
            raise ValueError(f"--presets {name}: table {table} has the rows {', '.join(TABLES[table])}; choose from "
                             "these, or another --table")  # fmt: skip
    names = [row for row in TABLES[table] if arguments.presets is None or row in arguments.presets]
    return tuple(Row(name, name) for name in names)


def _external(arguments: Namespace) -> External | None:
    images, labels, annotation = (
        path and path.resolve()
        for path in (arguments.external_images, arguments.external_labels, arguments.external_annotation)
    )
    if images is None:
        if labels or annotation:
            raise ValueError("--external-labels and --external-annotation need --external-images DIR")
        return None
    external = External(images=images, labels=labels, annotation=annotation, limit=arguments.external_limit)
    log.info("%s", check_external(external))
    return external


def _check_weights(cells: Sequence[Planned]) -> None:
    backbones: dict[str, set[str]] = {}
    for cell in cells:
        backbones.setdefault(cell.job.config.backbone_weights, set()).add(cell.job.config.shape.backbone)
    for weights, names in backbones.items():
        if weights in ("none", "imagenet"):
            continue
        if len(names) > 1:
            each = " ".join(f"--backbone-weights {name}=FILE" for name in sorted(names))
            raise ValueError(f"--backbone-weights {weights}: one file cannot fit {' and '.join(sorted(names))}; {each}")
        if not Path(weights).is_file():
            raise ValueError(f"--backbone-weights {weights}: no such file; use imagenet, none, or a file")


def _check_before(cells: Sequence[Planned]) -> None:
    """Refuse to put cells of two different ablations into one table."""
    for cell in cells:
        path = cell.folder / "job.json"
        if not path.exists():
            continue
        made = Job.model_validate_json(path.read_bytes()).identity()
        found = [f"{name} ({old} -> {new})" for name, old, new in differences(made, cell.job.identity())]
        if found:
            raise ValueError(
                f"{cell.folder} has other settings: {', '.join(found)}. Run the ablation with the old settings, choose "
                "another --out, or remove that folder"
            )


def describe(plan: Plan) -> dict[str, Any]:
    """The size of the ablation in words, for the first lines of the report."""
    job, configs = plan.cells[-1].job, [cell.job.config for cell in plan.cells]
    weights = {cell.job.config.backbone_weights for cell in plan.cells}
    devices = {json.loads((c.folder / "result.json").read_text())["device"] for c in plan.cells if c.trained}
    return {
        "scale": plan.scale.name,
        "image size": _each(f"{config.image_size} px" for config in configs),
        "training studies": min(job.studies["train"], job.train_limit or job.studies["train"]),
        "validation studies scored": min(job.studies["val"], job.evaluate_limit or job.studies["val"]),
        "epochs": _each((part for config in configs for part in _epochs(config)), ", "),
        "model": _each(writer_class(shape).dimensions(shape) for shape in map(trial_shape, configs)),
        "backbones start from": ", ".join(sorted(Path(one).name if "/" in one else one for one in weights)),
        "seeds": len(plan.seeds),
        "precision": job.precision,
        "device": ", ".join(sorted(devices)) or None,
    }


def _epochs(config: RunConfig) -> Iterator[str]:
    if config.pretrain is not None:
        yield "pretrain " + ", ".join(f"{count} at {px} px" for px, count in config.pretrain.epochs_by_size)
    yield f"CE {config.ce.epochs}"
    if config.retriever is not None:
        yield f"retriever {config.retriever.epochs}"
    if config.scst is not None:
        yield f"SCST {config.scst.epochs} with {config.scst.samples} samples"


def _each(texts: Iterable[str], separator: str = " or ") -> str:
    """The different texts, in their order."""
    return separator.join(dict.fromkeys(texts))
