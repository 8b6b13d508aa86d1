"""Tables of findings by study, such as CheXbert's: CSV ``study_id, <the 14 findings>``."""

from __future__ import annotations

import csv
from collections.abc import Mapping
from pathlib import Path

from model.text.labeler import FINDINGS
from model.types import Label

Labels = Mapping[str, Label | None]

_CELLS: dict[str, Label | None] = {"1": "present", "-1": "uncertain", "0": None, "": None}


def read_labels(path: Path) -> dict[str, Labels]:
    """Study uid -> label by finding, from cells 1, 0, -1 or empty.

    Raises:
        ValueError: a column is missing, or a cell is none of these.
    """
    table: dict[str, Labels] = {}
    with path.open(newline="", encoding="utf-8-sig") as file:
        reader = csv.DictReader(file)
        missing = sorted({"study_id", *FINDINGS} - set(reader.fieldnames or ()))
        if missing:
            raise ValueError(f"{path} lacks the columns {', '.join(missing)}; it needs study_id and the 14 findings")
        for row in reader:
            try:
                table[row["study_id"]] = {name: _CELLS[row[name].removesuffix(".0")] for name in FINDINGS}
            except KeyError as error:
                raise ValueError(f"{path}:{reader.line_num}: cell {error}; use 1, 0, -1 or nothing") from None
    return table


def read_present(path: Path) -> dict[str, frozenset[str]]:
    """Study uid -> findings present; raises as ``read_labels``."""
    return {study: frozenset(name for name, label in labels.items() if label == "present")
            for study, labels in read_labels(path).items()}  # fmt: skip
