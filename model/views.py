"""The two projections of a chest study, in the order in which the model reads them."""

from __future__ import annotations

from enum import StrEnum


class View(StrEnum):
    """Projection of one radiograph. The order of the members is the order of encoding: frontals first."""

    FRONTAL = "frontal"
    LATERAL = "lateral"

    @property
    def row(self) -> int:
        """Row of this view in the view-embedding table: 0 frontal, 1 lateral."""
        return 0 if self is View.FRONTAL else 1
