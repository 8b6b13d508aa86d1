"""The tables of sides, regions and degrees of one evaluation; metrics files of 0.3 and older have none."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from training.evaluation.rows import row_title
from training.evaluation.tables import Table, unbroken, with_ends
from training.scoring.annotation_errors import FIELDS, OUTCOMES, OVERALL

PARTS = (*FIELDS, OVERALL)


def agreement_by_row(result: Mapping[str, Any]) -> Table | None:
    """Share of sides, regions and degrees that agree, and how many contradict, for every row."""
    table = result.get("annotations")
    if table is None:
        return None
    rows = {**{name: row for name, row in table.items() if name != "baselines"}, **table["baselines"]}
    shown = [
        [row_title(result, name), _count(row["findings"]), *(_agreement(row[part]) for part in PARTS)]
        for name, row in rows.items()
        if row
    ]
    return Table(["reports", "findings in both", *PARTS], shown)


def errors_of_system(result: Mapping[str, Any]) -> Table | None:
    """The counts of the system by field."""
    table = result.get("annotations")
    if table is None:
        return None
    columns = ("compared", *OUTCOMES)
    rows = [[part, *(_count(table["system"][part][column]) for column in columns), _share(table["system"][part])]
            for part in PARTS]  # fmt: skip
    return Table(["field", *columns, "agreement"], rows)


def _agreement(row: Mapping[str, Any]) -> str:
    """``.812 (.74 to .87), 12 wrong``."""
    wrong = f"{_count(row['wrong'])} wrong"
    return f"{_share(row)}, {unbroken(wrong)}"


def _share(row: Mapping[str, Any]) -> str:
    return with_ends(row["agreement"], row.get("agreement_95"))


def _count(value: float) -> str:
    """A count; one digit for a mean of counts."""
    return f"{value:.0f}" if value == int(value) else f"{value:.1f}"
