"""A part of ``python -m benchmarks gpu``: what it is given, and what it returns."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch

from benchmarks.measure import HEADER, Row
from benchmarks.server import BUNDLE


@dataclass(frozen=True)
class Job:
    """Where and how long a part measures; ``deadline`` is a time of ``time.monotonic``, the same in all processes."""

    device: str  # cuda, or cpu in a dry run
    dry_run: bool  # tiny sizes
    deadline: float

    @property
    def seconds_left(self) -> float:
        return self.deadline - time.monotonic()

    @contextmanager
    def bundle(self, **tiny: Any) -> Iterator[Path]:
        """The shipped bundle; in a dry run an untrained one, with the arguments of ``write_tiny_bundle``."""
        if not self.dry_run:
            yield BUNDLE
            return
        from tests.support.tiny import write_tiny_bundle

        with tempfile.TemporaryDirectory() as folder:
            yield write_tiny_bundle(Path(folder) / "tiny", **tiny)

    @property
    def torch_device(self) -> torch.device:
        return torch.device(self.device)


@dataclass(frozen=True)
class Outcome:
    """What a part measured: a table and remarks for the page, numbers for the JSON.

    ``peak_bytes``, if set, replaces the peak that PyTorch counted in the process of the part.
    """

    head: Sequence[str]
    rows: Sequence[Sequence[str]]
    notes: Sequence[str] = ()
    values: Mapping[str, Any] = field(default_factory=dict)
    peak_bytes: int | None = None


@dataclass(frozen=True)
class Part:
    """One measurement. Parts share the time by ``weight``."""

    name: str
    title: str
    weight: float
    run: Callable[[Job], Outcome]


def speed_table(rows: Sequence[Row]) -> Outcome:
    """Rows of the speed table as an outcome."""
    return Outcome(HEADER, [row.cells() for row in rows], values={"rows": [asdict(row) for row in rows]})
