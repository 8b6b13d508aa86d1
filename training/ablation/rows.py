"""The rows of the ablation: presets or rows of a file, a common scale, and stages that rows share."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import Field, TypeAdapter, ValidationError

from model.config import Count, Frozen
from training.config import PretrainConfig, RunConfig
from training.config_changes import (
    Change,
    configure,
    is_section,
    named_changes,
    preset_and_changes,
    read_mapping,
)
from training.presets import PRESETS, WRITER_PRESETS, preset
from training.run_manifest import differences
from training.stage_results import STAGES

ROWS = ("r2gencmn", "baseline", "densenet", "densenet-lr", "retrieval", "retrieval-scst")
EVOLUTION = (*WRITER_PRESETS, "retrieval", "retrieval-scst")  # earlier systems; ``cmn`` is ``densenet-lr``
TABLES: Mapping[str, tuple[str, ...]] = {"study": ROWS, "evolution": EVOLUTION}
TITLE = {
    "r2gencmn": "baseline, as published",
    "cnn-rnn": "cnn-rnn (Shin et al., 2016)",
    "coattention": "coattention (Jing et al., 2018)",
    "r2gen": "r2gen (Chen et al., 2020)",
    "cmn": "cmn (Chen et al., 2021)",
}
CHANGE = {
    "coattention": "tags, attention to images and tags, a sentence and a word LSTM",
    "r2gen": "a Transformer with a relational memory",
    "cmn": "one memory that images and words read",
    "baseline": "ResNet-101, trained by the recipe of the rows below",
    "densenet": "DenseNet-121 instead of ResNet-101",
    "densenet-lr": "a quarter of the visual learning rate",
    "retrieval": "reports of the nearest training cases in addition to the patch tokens",
    "retrieval-scst": "self-critical sequence training from the checkpoint that cross-entropy selected",
}

# Fields and sections that no stage before the one named here reads; any other field is read from the start.
_FIRST_READ_BY = {
    "shape.writer": "retriever",  # by the weights that its result holds
    "retrieval_k": "retriever",
    "feature_variants": "retriever",
    "retriever": "retriever",
    "ce": "retriever",  # its view dropout
    "decoding": "ce",
    "scst": "scst",
    "weights_dtype": "evaluate",
}
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,47}")  # of a row; with its seed the name of a bundle
_ROWS_DECIDE = ("preset", "seed", "shape.writer", "retrieval_k")
_ROWS_MAY_DECIDE = ("shape.backbone", "backbone_weights", "ce.backbone_lr")  # a scale only where all rows are equal


@dataclass(frozen=True)
class Row:
    """A row of the table: the preset of that name, or a preset with changes."""

    name: str
    preset: str
    changes: tuple[Change, ...] = ()


def read_rows(path: Path) -> tuple[Row, ...]:
    """The rows of a file, in its order: names, each with the content of a file for ``training.run --config``.

    A row may leave out ``preset`` where its name is that of a preset.

    Raises:
        ValueError: the file, a name or a value cannot be used.
    """
    rows = []
    for name, content in read_mapping(path, "--rows").items():
        source = f"--rows {path}: row {name}:"
        if not isinstance(name, str) or not _NAME.fullmatch(name):
            raise ValueError(f"{source} its name must be 1 to 48 letters, digits, dots, hyphens or underscores")
        if not isinstance(content, dict | None):
            raise ValueError(f"{source} must hold a preset and changes, such as  {{preset: baseline, ce.epochs: 3}}")
        base, changes = preset_and_changes(content or {}, source)
        if base is None and name not in PRESETS:
            raise ValueError(f"{source} names no preset; add one of {', '.join(PRESETS)}, such as  preset: baseline")
        if any(change.name == "seed" for change in changes):
            raise ValueError(f"{source} must not set seed; --seeds decides it")
        rows.append(Row(name, base or name, tuple(changes)))
    if not rows:
        raise ValueError(f"--rows {path} names no row")
    return tuple(rows)


class Scale(Frozen):
    """Changes for a smaller machine, the same in every row."""

    name: str
    # values by dotted name, ``ce.epochs``; those of a stage that a row does not have are ignored
    overrides: dict[str, int | float | str | None] = Field(default_factory=dict)
    pretrain: PretrainConfig | None = None  # of every row, where ImageNet weights are not available
    train_limit: Count | None = None  # training studies, evenly spaced over the split; None takes all
    evaluate_limit: Count | None = None  # the first validation studies, scored at the end; None takes all


SCALES: Mapping[str, Scale] = {
    scale.name: scale
    for scale in TypeAdapter(tuple[Scale, ...]).validate_json(Path(__file__).with_name("scales.json").read_bytes())
}


def read_scale(name: str) -> Scale:
    """A scale by name, or from a JSON file with the fields of ``Scale``; raises ValueError without either."""
    if name in SCALES:
        return SCALES[name]
    path = Path(name)
    if not path.is_file():
        raise ValueError(f"--scale {name}: no such scale or file; use one of {', '.join(SCALES)}, or a JSON file")
    try:
        return Scale.model_validate_json(path.read_bytes())
    except ValidationError as error:
        raise ValueError(f"--scale {path}: {error}") from error


def equal_in_all(rows: Sequence[Row]) -> frozenset[str]:
    """The values that rows may decide, and these rows do not: a scale may change them."""
    configs = [configure(row.preset, row.changes).model_dump() for row in rows]
    return frozenset(name for name in _ROWS_MAY_DECIDE if len({_value(config, name) for config in configs}) == 1)


def _value(values: Any, name: str) -> Any:
    for part in name.split("."):
        values = values[part]
    return values


def resolve(
    row: Row, *, seed: int, scale: Scale, weights: Mapping[str, str] | str | None = None,
    equal: Collection[str] = (),
) -> RunConfig:  # fmt: skip
    """The configuration of one cell: the preset, the scale, then the changes of the row.

    ``weights`` of the backbone: ``none``, ``imagenet`` or a file for every row, or a file by backbone name; None
    keeps that of the preset or the scale. A row may name others. ``equal``: see ``equal_in_all``.

    Raises:
        ValueError: the scale names no value of the configuration, or one that makes the rows differ; a value is not
            valid; or ``weights`` leaves a backbone out.
    """
    given = {change.name for change in row.changes if change.value != {}}
    common = [change for change in scale_changes(scale, equal)
              if not any(f"{change.name}.".startswith(f"{name}.") for name in given)]  # fmt: skip
    added = [*row.changes, *common, Change("seed", seed, "--seeds")]
    if weights is not None and "backbone_weights" not in given:
        backbone = next((change.value for change in (*row.changes, *common) if change.name == "shape.backbone"),
                        preset(row.preset).shape.backbone)  # fmt: skip
        if not isinstance(weights, str) and backbone not in weights:
            raise ValueError(f"--backbone-weights names no file for {backbone}; add --backbone-weights {backbone}=FILE")
        chosen = weights if isinstance(weights, str) else weights[backbone]
        added.append(Change("backbone_weights", chosen, "--backbone-weights"))
    try:
        return configure(row.preset, added)
    except ValueError as error:
        raise ValueError(f"row {row.name}: {error}") from error


def scale_changes(scale: Scale, equal: Collection[str] = ()) -> list[Change]:
    """The changes of a scale; raises ValueError for those that rows decide, other than ``equal``."""
    source = f"scale {scale.name}:"
    changes = named_changes({"pretrain": scale.pretrain.model_dump()}, source) if scale.pretrain is not None else []
    for change in named_changes(scale.overrides, source, if_present=True):
        decided = change.name in _ROWS_DECIDE or (change.name in _ROWS_MAY_DECIDE and change.name not in equal)
        if decided or is_section(change.name):
            raise ValueError(f"scale {scale.name} cannot set {change.name!r}: rows and seeds decide it")
        changes.append(change)
    return changes


def changes(before: RunConfig, now: RunConfig) -> tuple[str, ...]:
    """Dotted names of the fields that differ between two rows; a stage that one row lacks is one name."""
    found = differences(before.model_dump(mode="json"), now.model_dump(mode="json"))
    return tuple(name for name, _, _ in found if name != "preset")


def shared_stages(before: RunConfig, now: RunConfig) -> tuple[str, ...]:
    """Stages with the same results in both rows: all before the first that reads a changed field.

    Empty if none of them would do any work.
    """
    read_by = (_FIRST_READ_BY.get(name) or _FIRST_READ_BY.get(name.partition(".")[0]) for name in changes(before, now))
    first = min((STAGES.index(stage or STAGES[0]) for stage in read_by), default=len(STAGES))
    shared = STAGES[: min(first, STAGES.index("evaluate"))]
    return shared if now.pretrain is not None or len(shared) > 1 else ()


def parse_weights(given: Sequence[str] | None) -> Mapping[str, str] | str | None:
    """``--backbone-weights``, once for all rows or as ``BACKBONE=FILE`` for each backbone; else ValueError."""
    if not given:
        return None
    pairs = dict(entry.split("=", 1) for entry in given if "=" in entry)
    if not pairs and len(given) == 1:
        return given[0]
    if len(pairs) != len(given):
        raise ValueError(
            f"--backbone-weights {' '.join(given)}: give it once (none, imagenet, or a file), or as BACKBONE=FILE for "
            "each backbone: resnet101=FILE densenet121=FILE"
        )
    return pairs
