"""Tables of the R2Gen split by study and of the view by image: built in, or of a root as CSV."""

from __future__ import annotations

import csv
from collections.abc import Iterator
from functools import cache
from importlib.resources import files
from pathlib import Path

from model.types import View
from training.data.studies import SPLITS, Split


@cache
def builtin_split() -> dict[str, Split]:
    """The R2Gen split: study uid (`CXR123`) -> split, for all 2,955 studies; read only."""
    table: dict[str, Split] = {}
    for name, *numbers in _lines("split.txt"):
        table.update(dict.fromkeys((f"CXR{number}" for number in numbers), _split(name, "split.txt")))
    return table


@cache
def builtin_views() -> dict[str, View | None]:
    """Image id -> view, None where undetermined; images of a study in the order of its XML file."""
    letters = {"F": View.FRONTAL, "L": View.LATERAL, "?": None}
    table: dict[str, View | None] = {}
    for number, *images in _lines("views.txt"):
        for image in images:
            name, _, letter = image.rpartition("=")
            table[f"CXR{number}_{name}"] = letters[letter]
    return table


@cache
def builtin_images() -> dict[str, tuple[str, ...]]:
    """Study uid -> its image ids, in its XML file's order; without the test split."""
    table: dict[str, tuple[str, ...]] = {}
    for image in builtin_views():
        uid = image.partition("_")[0]
        table[uid] = (*table.get(uid, ()), image)
    return table


def read_split(path: Path) -> dict[str, Split]:
    """Read a CSV table `study_id,split`.

    Raises:
        ValueError: a column is missing, a split is unknown, or a study is named twice.
    """
    table: dict[str, Split] = {}
    for line, study, split in _rows(path, "study_id", "split"):
        if study in table:
            raise ValueError(f"{path}:{line}: study {study!r} is named twice; a study has one split")
        table[study] = _split(split, f"{path}:{line}")
    return table


def read_views(path: Path) -> dict[str, View | None]:
    """Read a CSV table `image_id,view` (view: frontal, lateral, or empty for unknown).

    Raises:
        ValueError: a column is missing, or a view is none of these.
    """
    table: dict[str, View | None] = {}
    for line, image, view in _rows(path, "image_id", "view"):
        try:
            table[image] = View(view) if view else None
        except ValueError:
            raise ValueError(f"{path}:{line}: view {view!r}; use frontal, lateral or nothing") from None
    return table


def _split(name: str, where: str) -> Split:
    if name not in SPLITS:
        raise ValueError(f"{where}: split {name!r}; use one of {', '.join(SPLITS)}")
    return name


def _lines(name: str) -> Iterator[list[str]]:
    for line in files("training.data.tables").joinpath(name).read_text("utf-8").splitlines():
        if line and not line.startswith("#"):
            yield line.split()


def _rows(path: Path, key: str, value: str) -> Iterator[tuple[int, str, str]]:
    with path.open(newline="", encoding="utf-8-sig") as file:
        reader = csv.DictReader(file)
        if not {key, value} <= set(reader.fieldnames or ()):
            raise ValueError(f"{path} has the columns {reader.fieldnames}; it needs {key!r} and {value!r}")
        for row in reader:
            yield reader.line_num, (row[key] or "").strip(), (row[value] or "").strip()
