"""The configuration of a run: a preset, the changes of a file, then those of the options.

A file is YAML, JSON or TOML and holds some values of ``RunConfig``, nested or with dotted names. A
section changes only the values that it names::

    preset: compact
    seed: 2
    ce: {epochs: 4}
    decoding.beam_size: 5
    scst: null

``training.ablation`` changes its rows by the same code.
"""

from __future__ import annotations

import json
import tomllib
from argparse import ArgumentTypeError
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Any, get_args

import yaml
from pydantic import AliasChoices, BaseModel, ValidationError
from pydantic.fields import FieldInfo

from training.config import RunConfig
from training.presets import PRESETS, preset

SUFFIXES = (".yaml", ".yml", ".json", ".toml")
LISTED = "python -m training.run --print-config lists all names"


@dataclass(frozen=True)
class Change:
    """A value by its dotted name in ``RunConfig``; ``source`` is the file or option that it comes from.

    A value of a stage that the preset lacks adds the stage with its defaults; with ``if_present`` it
    is ignored.
    """

    name: str
    value: Any
    source: str
    if_present: bool = False

    def __str__(self) -> str:
        return f"{self.source} {self.name}"


def chosen_config(preset_name: str | None, file: Path | None, options: Iterable[tuple[str, Any, str]]) -> RunConfig:
    """The configuration of a command line: ``options`` are names, values, and the options that give them.

    Raises:
        ValueError: a file, a name or a value cannot be used, or two of them contradict each other.
    """
    named, changes = (None, []) if file is None else read_config(file)
    if named and preset_name and named != preset_name:
        raise ValueError(f"--preset {preset_name} contradicts preset {named} in {file}; give one of them")
    given: dict[str, Change] = {}
    for name, value, option in options:
        for change in named_changes({name: value}, option):
            before = given.setdefault(change.name, change)
            if before is not change and before.value != change.value:
                raise ValueError(f"{before}={before.value} contradicts {change}={change.value}; give one of them")
    return configure(preset_name or named or "retrieval", [*changes, *given.values()])


def configure(preset_name: str, changes: Sequence[Change]) -> RunConfig:
    """A preset with changes, the later ones over the earlier ones.

    Raises:
        ValueError: a value is not valid; the message has its source and name.
    """
    values = preset(preset_name).model_dump(by_alias=False)
    for change in changes:
        _apply(change, values)
    try:
        return RunConfig.model_validate(values)
    except ValidationError as error:
        raise ValueError(explain(error, changes)) from error


def _apply(change: Change, values: dict[str, Any]) -> None:
    *sections, last = change.name.split(".")
    for name in sections:
        if values.get(name) is None:
            if change.if_present:
                return
            values[name] = {}
        if not isinstance(values := values[name], dict):  # of another change, which is refused
            return
    value = _none_where_optional(change)
    kind = _annotation(change.name)
    if isinstance(value, bool) and bool not in (kind, *get_args(kind)) and not is_section(change.name):
        raise ValueError(f"{change}: {json.dumps(value)} is neither a number nor a text")  # pydantic reads 1 or 0
    if value == {} and is_section(change.name):  # adds the section, or changes nothing
        value = values.get(last) or {}
    values[last] = value


def explain(error: ValidationError, changes: Iterable[Change] = ()) -> str:
    """The problems of a configuration in one line, each with its source, name and value."""
    by_name = {change.name: change for change in changes}
    return "; ".join(_problem(one, by_name) for one in error.errors(include_url=False))


def _problem(error: Any, changes: Mapping[str, Change]) -> str:
    name = ""
    for part in error["loc"]:
        found = _field(RunConfig, f"{name}.{part}".strip("."))
        if found is None:
            break
        name = found[0]
    inner = next((change for known, change in changes.items() if known.startswith(f"{name}.")), None) if name else None
    change = changes.get(name) or inner
    where = f"{change.source} {name}: " if change else f"{name}: " if name else ""
    text = error["msg"].removeprefix("Value error, ")
    return f"{where}{text}" + ("" if isinstance(error["input"], dict | BaseModel) else f" (it is {error['input']!r})")


def _none_where_optional(change: Change) -> Any:
    """``none`` and ``null`` as None for a value that may be absent; TOML has no null."""
    kinds = get_args(_annotation(change.name))
    absent = isinstance(change.value, str) and change.value.lower() in ("none", "null")
    return None if absent and type(None) in kinds and str not in kinds else change.value


# --- names ------------------------------------------------------------------------------------------------------------


def named_changes(
    values: Mapping[Any, Any], source: str, prefix: str = "", *, if_present: bool = False
) -> list[Change]:
    """The changes in nested ``values``; raises ValueError for an unknown name, with the nearest ones."""
    changes: list[Change] = []
    for key, value in values.items():
        given = f"{prefix}{key}"
        found = _field(RunConfig, given) if isinstance(key, str) else None
        if found is None or given == "preset":
            raise ValueError(f"{source} {given}: {_unknown(given)}")
        if isinstance(value, Mapping) and value and is_section(found[0]):
            changes += named_changes(value, source, f"{found[0]}.", if_present=if_present)
        else:
            changes.append(Change(found[0], value, source, if_present))
    return changes


def names(model: type[BaseModel] = RunConfig, prefix: str = "") -> Iterator[str]:
    """The dotted names of all values, sections included."""
    for name in model.model_fields:
        yield f"{prefix}{name}"
        if section := _section(model, name):
            yield from names(section, f"{prefix}{name}.")


def is_section(name: str) -> bool:
    """Whether a name is that of a group of values, such as a stage."""
    return _section(RunConfig, name) is not None


def _unknown(name: str) -> str:
    if name == "preset":
        return "a file names the preset, at its top; on the command line use --preset"
    last = name.rpartition(".")[2]
    known = {known: known.rpartition(".")[2] for known in names()}
    near = [one for one, end in known.items() if end == last][:4] or get_close_matches(name, known, n=1, cutoff=0.75)
    if not near:
        ends = get_close_matches(last, set(known.values()), n=1, cutoff=0.75)
        near = [one for one, end in known.items() if end in ends][:4]
    return "no such value; " + (f"did you mean {' or '.join(near)}? " if near else "") + LISTED


def _field(model: type[BaseModel], name: str) -> tuple[str, FieldInfo] | None:
    """The current name of a value, and its field; old names of ``model.config`` are accepted."""
    first, _, rest = name.partition(".")
    for known, field in model.model_fields.items():
        if first not in (known, *_aliases(field)):
            continue
        if not rest:
            return known, field
        section = _section(model, known)
        found = _field(section, rest) if section else None
        return (f"{known}.{found[0]}", found[1]) if found else None
    return None


def _aliases(field: FieldInfo) -> tuple[Any, ...]:
    return tuple(field.validation_alias.choices) if isinstance(field.validation_alias, AliasChoices) else ()


def _section(model: type[BaseModel], name: str) -> type[BaseModel] | None:
    """The model of a section; None for a plain value."""
    found = _field(model, name)
    kinds = (found[1].annotation, *get_args(found[1].annotation)) if found else ()
    return next((kind for kind in kinds if isinstance(kind, type) and issubclass(kind, BaseModel)), None)


def _annotation(name: str) -> Any:
    found = _field(RunConfig, name)
    return found[1].annotation if found else None


# --- files and options ------------------------------------------------------------------------------------------------


class _UniqueKeys(yaml.SafeLoader):
    """YAML without repeated keys, of which PyYAML keeps the last."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        keys = [self.construct_object(key, deep=True) for key, _ in node.value]
        if repeated := [key for number, key in enumerate(keys) if key in keys[:number]]:
            raise yaml.constructor.ConstructorError(None, None, f"{repeated[0]} occurs twice", node.start_mark)
        return super().construct_mapping(node, deep)


def read_mapping(path: Path, option: str) -> dict[Any, Any]:
    """The content of a YAML, JSON or TOML file; raises ValueError where it is no mapping."""
    if path.suffix.lower() not in SUFFIXES:
        raise ValueError(f"{option} {path}: its name must end in one of {', '.join(SUFFIXES)}")
    try:
        text = path.read_text(encoding="utf-8")
        content = tomllib.loads(text) if path.suffix.lower() == ".toml" else yaml.load(text, _UniqueKeys)
    except OSError as error:
        raise ValueError(f"{option} {path}: {error.strerror}") from error
    except (ValueError, yaml.YAMLError, RecursionError) as error:
        raise ValueError(f"{option} {path} cannot be read: {' '.join(str(error).split())}") from error
    if not isinstance(content, dict | None):
        raise ValueError(f"{option} {path} must hold names and values, such as  ce: {{epochs: 3}}")
    return content or {}


def read_config(path: Path) -> tuple[str | None, list[Change]]:
    """The preset and the changes of a file for ``--config``; ``run.json`` of a run is such a file too."""
    content = read_mapping(path, "--config")
    if isinstance(content.get("config"), dict):
        content = content["config"]
    return preset_and_changes(content, f"--config {path}:")


def preset_and_changes(content: Mapping[Any, Any], source: str) -> tuple[str | None, list[Change]]:
    """The preset that ``content`` names, if it does, and its changes."""
    name = content.get("preset")
    if name is not None and name not in PRESETS:
        near = get_close_matches(str(name), PRESETS, n=1)
        choices = f"did you mean {near[0]}?" if near else f"choose one of {', '.join(PRESETS)}"
        raise ValueError(f"{source} preset {name!r} is unknown; {choices}")
    return name, named_changes({key: value for key, value in content.items() if key != "preset"}, source)


def assignment(text: str) -> tuple[str, Any]:
    """Type of ``--set``: ``NAME=VALUE``, where the value is JSON, or else a string."""
    name, equals, value = text.partition("=")
    if not equals or not name:
        raise ArgumentTypeError(f"{text!r} must be NAME=VALUE")
    try:
        return name, json.loads(value)
    except ValueError:
        return name, value


# --- output -----------------------------------------------------------------------------------------------------------


class _Dumper(yaml.SafeDumper):
    """YAML with one value a line."""


_Dumper.add_representer(list, lambda dumper, row: dumper.represent_sequence("tag:yaml.org,2002:seq", row, True))


def as_yaml(config: RunConfig) -> str:
    """The whole configuration, as ``--config`` reads it."""
    return yaml.dump(config.model_dump(mode="json", by_alias=False), Dumper=_Dumper, sort_keys=False,
                     default_flow_style=False, width=1000, allow_unicode=True)  # fmt: skip


def described_changes(config: RunConfig) -> list[str]:
    """One line for each value that differs from the preset's."""
    before, now = (_leaves(one.model_dump(mode="json", by_alias=False)) for one in (preset(config.preset), config))
    lines = []
    for name, value in now.items():
        was = json.dumps(before[name]) if name in before else "set" if value is None else "absent"
        if name not in before or before[name] != value:
            lines.append(f"{name} = {json.dumps(value)} ({was} in preset {config.preset})")
    return lines


def _leaves(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, value in values.items():
        found |= _leaves(value, f"{prefix}{name}.") if isinstance(value, dict) else {f"{prefix}{name}": value}
    return found
