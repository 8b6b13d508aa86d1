"""Tables of the R2Gen split by study, of the view by image and of findings by study: built in, or CSV files."""

from __future__ import annotations

import csv
from collections.abc import Iterator, Mapping
from functools import cache
from importlib.resources import files
from pathlib import Path

from model.text.labeler import FINDINGS
from model.types import Label, View
from retrieval_index.openi import image_views
from training.data.studies import SPLITS, Split

Labels = Mapping[str, Label | None]
_CELLS: dict[str, Label | None] = {"1": "present", "-1": "uncertain", "0": None, "": None}


@cache
def builtin_split() -> dict[str, Split]:
    """The R2Gen split: study uid (`CXR123`) -> split, for all 2,955 studies; read only."""
    table: dict[str, Split] = {}
    for name, *numbers in _lines("split.txt"):
        table.update(dict.fromkeys((f"CXR{number}" for number in numbers), _split(name, "split.txt")))
    return table


def builtin_views() -> dict[str, View | None]:
    """Image id -> view, of Open-i."""
    return image_views()


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
    for line, row in _rows(path, "study_id", "split"):
        study = row["study_id"]
        if study in table:
            raise ValueError(f"{path}:{line}: study {study!r} is named twice; a study has one split")
        table[study] = _split(row["split"], f"{path}:{line}")
    return table


def read_views(path: Path) -> dict[str, View | None]:
    """Read a CSV table `image_id,view` (view: frontal, lateral, or empty for unknown).

    Raises:
        ValueError: a column is missing, or a view is none of these.
    """
    table: dict[str, View | None] = {}
    for line, row in _rows(path, "image_id", "view"):
        try:
            table[row["image_id"]] = View(row["view"]) if row["view"] else None
        except ValueError:
            raise ValueError(f"{path}:{line}: view {row['view']!r}; use frontal, lateral or nothing") from None
    return table


def read_labels(path: Path) -> dict[str, Labels]:
    """Read a CSV table `study_id, <the 14 findings>` of 1 (present), 0, -1 (uncertain) or empty, such as CheXbert's.

    Raises:
        ValueError: a column is missing, or a cell is none of these.
    """
    table: dict[str, Labels] = {}
    for line, row in _rows(path, "study_id", *FINDINGS):
        try:
            table[row["study_id"]] = {name: _CELLS[row[name].removesuffix(".0")] for name in FINDINGS}
        except KeyError as error:
            raise ValueError(f"{path}:{line}: cell {error}; use 1, 0, -1 or nothing") from None
    return table


def read_present(path: Path) -> dict[str, frozenset[str]]:
    """Study uid -> findings present; raises as ``read_labels``."""
    return {study: frozenset(name for name, label in labels.items() if label == "present")
            for study, labels in read_labels(path).items()}  # fmt: skip


def _split(name: str, where: str) -> Split:
    if name not in SPLITS:
        raise ValueError(f"{where}: split {name!r}; use one of {', '.join(SPLITS)}")
    return name


def _lines(name: str) -> Iterator[list[str]]:
    for line in files("training.data.tables").joinpath(name).read_text("utf-8").splitlines():
        if line and not line.startswith("#"):
            yield line.split()


def _rows(path: Path, *needed: str) -> Iterator[tuple[int, dict[str, str]]]:
    """The rows of a CSV file with the numbers of their lines."""
    with path.open(newline="", encoding="utf-8-sig") as file:
        reader = csv.DictReader(file)
        columns = reader.fieldnames or ()
        if missing := [name for name in needed if name not in columns]:
            raise ValueError(
                f"{path} lacks the columns {', '.join(missing)}; it has {', '.join(columns) or 'no header'}"
            )
        for row in reader:
            yield reader.line_num, {name: (row[name] or "").strip() for name in needed}
