"""Protocol of an index of reference cases; ``retrieval_index.index.ReportIndex`` implements it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol

import numpy as np
import numpy.typing as npt


class Case(Protocol):
    """One reference case."""

    @property
    def case_id(self) -> str:
        """Study id of the case."""

    @property
    def findings(self) -> str | None:
        """Findings text; None if texts may not be redistributed."""

    @property
    def labels(self) -> Mapping[str, str | None]:
        """Finding -> present, absent, uncertain or None."""

    @property
    def source_url(self) -> str | None:
        """Page that publishes the case."""

    @property
    def images(self) -> Sequence[str]:
        """Views with a small picture."""


class CaseIndex(Protocol):
    """Vectors of training reports, searched by inner product."""

    @property
    def dim(self) -> int:
        """Width of the vectors."""

    def __len__(self) -> int: ...

    def snapshot(self) -> CaseIndex:
        """An immutable view of the index: its rows remain valid when cases are added or removed."""

    def search(
        self, queries: npt.NDArray[np.float32], k: int, *, exclude: Sequence[str | None] | None = None
    ) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.int64]]:
        """(B, D) normalised queries -> similarity (B, k) and rows (B, k), best first, padded with row -1.

        ``exclude[b]`` is a case id that query b never gets (leave-one-out).
        """

    def vectors(self, rows: npt.NDArray[np.int64]) -> npt.NDArray[np.float32]:
        """rows (...) -> (..., D), zeros where a row is -1."""

    def case(self, row: int) -> Case:
        """The ``Case`` of a row."""
