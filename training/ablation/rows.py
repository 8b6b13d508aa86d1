"""The rows of the ablation: presets, a common scale, and stages that rows share."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import Field, TypeAdapter, ValidationError

from model.config import Count, Frozen
from training.config import PretrainConfig, RunConfig
from training.presets import preset
from training.run_manifest import differences
from training.stage_results import STAGES

ROWS = ("baseline", "densenet", "densenet-lr", "retrieval", "retrieval-scst")
CHANGE = {
    "baseline": "ResNet-101",
    "densenet": "DenseNet-121 instead of ResNet-101",
    "densenet-lr": "a quarter of the visual learning rate",
    "retrieval": "reports of the nearest training cases in addition to the patch tokens",
    "retrieval-scst": "self-critical sequence training from the checkpoint that cross-entropy selected",
}

# Fields of the configuration that no stage before the one named here reads; any other field is read from the start.
_FIRST_READ_BY = {
    "feature_variants": "retriever",
    "retriever": "retriever",
    "ce": "retriever",  # its view dropout
    "decoding": "ce",
    "scst": "scst",
    "weights_dtype": "evaluate",
}
_ROWS_DECIDE = ("preset", "seed", "shape.backbone", "backbone_weights", "retrieval_k", "ce.backbone_lr")


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


def resolve(row: str, *, seed: int, scale: Scale, weights: Mapping[str, str] | str | None = None) -> RunConfig:
    """The configuration of one cell.

    ``weights`` of the backbone: ``none``, ``imagenet`` or a file for every row, or a file by backbone name; None
    keeps the preset's.

    Raises:
        ValueError: the scale names no field of the configuration, or one that makes the rows differ, or a value that
            does not fit; or ``weights`` leaves a backbone out.
    """
    if row not in ROWS:
        raise ValueError(f"row {row!r} is unknown; choose from {', '.join(ROWS)}")
    values = preset(row).model_dump()
    values["seed"] = seed
    if scale.pretrain is not None:
        values["pretrain"] = scale.pretrain.model_dump()
    for name, value in scale.overrides.items():
        _override(values, name, value, scale.name)
    backbone = values["shape"]["backbone"]
    if isinstance(weights, str):
        values["backbone_weights"] = weights
    elif weights is not None:
        if backbone not in weights:
            raise ValueError(f"--backbone-weights names no file for {backbone}; add --backbone-weights {backbone}=FILE")
        values["backbone_weights"] = weights[backbone]
    try:
        return RunConfig.model_validate(values)
    except ValidationError as error:
        raise ValueError(f"scale {scale.name} does not fit row {row}: {error}") from error


def _override(values: dict[str, Any], name: str, value: object, scale: str) -> None:
    if name in _ROWS_DECIDE or name not in _NAMES:
        reason = "rows and seeds decide it" if name in _ROWS_DECIDE else f"choose from {', '.join(sorted(_NAMES))}"
        raise ValueError(f"scale {scale} cannot set {name!r}: {reason}")
    *sections, last = name.split(".")
    for section in sections:
        if values[section] is None:
            return
        values = values[section]
    values[last] = value


def _names(values: Mapping[str, Any], prefix: str = "") -> Iterator[str]:
    """Dotted names of all plain fields of a dumped configuration."""
    for name, value in values.items():
        yield from _names(value, f"{prefix}{name}.") if isinstance(value, dict) else [f"{prefix}{name}"]


_NAMES = frozenset(_names(preset("retrieval-scst").model_dump()))  # the row that has every stage


def changes(before: RunConfig, now: RunConfig) -> tuple[str, ...]:
    """Dotted names of the fields that differ between two rows; a stage that one row lacks is one name."""
    found = differences(before.model_dump(mode="json"), now.model_dump(mode="json"))
    return tuple(name for name, _, _ in found if name != "preset")


def shared_stages(before: RunConfig, now: RunConfig) -> tuple[str, ...]:
    """Stages with the same results in both rows: all before the first that reads a changed field.

    Empty if none of them would do any work.
    """
    fields = {name.partition(".")[0] for name in changes(before, now)}
    first = min((STAGES.index(_FIRST_READ_BY.get(name, STAGES[0])) for name in fields), default=len(STAGES))
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
