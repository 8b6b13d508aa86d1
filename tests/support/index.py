"""Vectors and cases for the tests of the index."""

from __future__ import annotations

import tempfile
import threading
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from model.manifest import write_manifest
from retrieval_index.cases import Case, read_cases
from retrieval_index.index import ReportIndex
from retrieval_index.pictures import PICTURES_FILE, make_pictures
from tests.support.service import png

Floats = npt.NDArray[np.float32]


def write_index_bundle(bundle: Path, cases: Sequence[Case]) -> Path:
    """A bundle with an index of these cases; its other files hold nothing."""
    ReportIndex.build(np.eye(8, dtype=np.float32)[: len(cases)], cases).save(bundle / "index")
    (bundle / "config.json").write_text("{}")
    (bundle / "model.safetensors").write_bytes(bytes(range(256)))
    write_manifest(bundle)
    return bundle


def add_picture(bundle: Path, view: str = "lateral") -> str:
    """Add a small picture of the first case to a bundle; returns the id of the case."""
    case_id = read_cases(bundle / "index" / "cases.jsonl")[0].case_id
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "CXR1-1.png").write_bytes(png(90, 120))
        make_pictures(Path(folder), {"CXR1-1": (case_id, view)}, bundle / "index" / PICTURES_FILE)
    write_manifest(bundle)
    return case_id


def normalised(vectors: npt.NDArray[np.floating]) -> Floats:
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)


def unit(rng: np.random.Generator, rows: int, dim: int = 16) -> Floats:
    return normalised(rng.standard_normal((rows, dim)).astype(np.float32))


def clustered(rng: np.random.Generator, rows: int, dim: int = 32) -> Floats:
    """Unit vectors around 300 centres, which are the same for every `rng`."""
    centres = unit(np.random.default_rng(99), 300, dim)
    return normalised(centres[rng.integers(0, 300, rows)] + 0.1 * rng.standard_normal((rows, dim)))


def cases(count: int, start: int = 0) -> list[Case]:
    return [Case(f"case-{row}", f"Text {row}.", {"Edema": "absent"}) for row in range(start, start + count)]


def search_while_adding(index: ReportIndex, queries: Floats) -> None:
    """Four threads search while 20 cases far from every query are added one by one; no answer may change."""
    far = normalised(-queries.mean(0, keepdims=True))
    expected, before = index.search(queries, 3)[1], len(index)
    wrong: list[str] = []

    def search() -> None:
        for _ in range(30):
            if (index.search(queries, 3)[1] != expected).any():
                wrong.append("another answer")

    threads = [threading.Thread(target=search) for _ in range(4)]
    for thread in threads:
        thread.start()
    for row in range(20):
        index.add(far, cases(1, start=before + row))
    for thread in threads:
        thread.join()
    assert wrong == []
    assert len(index) == before + 20


def by_hand(vectors: Floats, query: Floats, k: int, excluded: int | None = None) -> list[int]:
    """Rows by descending cosine, ties by row, in float64."""
    scores = (vectors.astype(np.float64) * query).sum(1).astype(np.float32)
    ranked = sorted(range(len(vectors)), key=lambda row: (-scores[row], row))
    return [row for row in ranked if row != excluded][:k]
