"""Large collections (`ivf`): the choice of the kind, recall, exact similarities, growth."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from retrieval_index import faiss_backend as backend
from retrieval_index.cases import Case
from retrieval_index.index import ReportIndex
from tests.support.index import Floats, by_hand, cases, clustered, unit

COUNT, DIM = 5000, 32


@pytest.fixture(scope="module")
def vectors() -> Floats:
    return clustered(np.random.default_rng(0), COUNT, DIM)


@pytest.fixture(scope="module")
def queries() -> Floats:
    """Vectors that are not in the index."""
    return clustered(np.random.default_rng(1), 200, DIM)


@pytest.fixture
def index(vectors: Floats) -> ReportIndex:
    return ReportIndex.build(vectors, cases(COUNT), kind="ivf")


@pytest.fixture
def flat(vectors: Floats) -> ReportIndex:
    return ReportIndex.build(vectors, cases(COUNT))


def structure(index: ReportIndex) -> backend.Structure:
    return index._state.structure


def recall(index: ReportIndex, exact: ReportIndex, queries: Floats, k: int = 5) -> float:
    pairs = zip(index.search(queries, k)[1].tolist(), exact.search(queries, k)[1].tolist(), strict=True)
    return float(np.mean([len(set(found) & set(wanted)) / k for found, wanted in pairs]))


# --- the kind -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("count", "kind", "cells"),
    [(0, "flat", 1), (2069, "flat", 32), (19_999, "flat", 512), (20_000, "ivf", 512), (10**5, "ivf", 1024),
     (3 * 10**5, "ivf", 2048), (10**6, "ivf", 4096)],
)  # fmt: skip
def test_kind_and_cells_depend_on_the_size(count: int, kind: str, cells: int) -> None:
    assert backend.index_kind(count) == kind
    assert backend.cell_count(count) == cells


def test_build_uses_the_kind_for_the_size(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backend, "FLAT_BELOW", 401)
    vectors = unit(np.random.default_rng(2), 401)
    assert ReportIndex.build(vectors[:400], cases(400)).kind == "flat"
    assert ReportIndex.build(vectors, cases(401)).kind == "ivf"
    assert ReportIndex.build(vectors, cases(401), kind="flat").kind == "flat"


def test_rejects_unknown_and_impossible_kinds(vectors: Floats) -> None:
    with pytest.raises(ValueError, match="kind 'hnsw' is unknown; use auto, flat or ivf"):
        ReportIndex.build(vectors, cases(COUNT), kind="hnsw")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="at least one vector"):
        ReportIndex.build(vectors[:0], [], kind="ivf")


# --- search -------------------------------------------------------------------------------------------------------


def test_recall_of_held_out_queries(index: ReportIndex, flat: ReportIndex, queries: Floats) -> None:
    found = structure(index).faiss_index
    assert (found.nlist, found.nprobe) == (128, backend.PROBES)  # half of the cells are skipped
    assert recall(index, flat, queries) >= 0.99


def test_recall_of_queries_far_from_all_cases(index: ReportIndex, flat: ReportIndex, queries: Floats) -> None:
    """Image embeddings lie far from all reports: here they share a large component that no case has."""
    far = queries * 0.3 + np.sqrt(1 - 0.3**2) * unit(np.random.default_rng(3), 1, DIM)
    far /= np.linalg.norm(far, axis=1, keepdims=True)
    assert recall(index, flat, far.astype(np.float32)) >= 0.95


def test_similarities_are_exact(index: ReportIndex, vectors: Floats, queries: Floats) -> None:
    similarity, rows = index.search(queries, 5)
    exact = (vectors[rows].astype(np.float64) * queries[:, None]).sum(2).astype(np.float32)
    np.testing.assert_array_equal(similarity, exact)
    assert (np.diff(similarity, axis=1) <= 0).all()
    assert similarity.dtype == np.float32
    assert rows.dtype == np.int64


def test_searches_more_cells_until_k_cases_are_found(index: ReportIndex, flat: ReportIndex, queries: Floats) -> None:
    structure(index).faiss_index.nprobe = 1
    biggest = max(structure(index).faiss_index.invlists.list_size(cell) for cell in range(128))
    rows = index.search(queries[:20], biggest + 1)[1]
    assert (rows >= 0).all()
    for got, exact in zip(index.search(queries[:3], COUNT + 2), flat.search(queries[:3], COUNT + 2), strict=True):
        np.testing.assert_array_equal(got, exact)  # the whole collection, then padding
    assert index.search(queries[:3], COUNT + 2)[1][:, -2:].tolist() == [[-1, -1]] * 3


def test_ignores_the_padding_of_faiss(vectors: Floats) -> None:
    """FAISS pads proposals of a small cell with row -1, which would index the last and most similar case."""
    index = ReportIndex.build(vectors[:200], cases(200), kind="ivf")
    cells = structure(index).cells
    assert cells is not None
    structure(index).faiss_index.nprobe = 1
    members = np.flatnonzero(cells == cells[-1])
    rows = index.search(vectors[199:200], len(members) - 1)[1][0]
    assert rows.tolist() == members[by_hand(vectors[members], vectors[199], len(members) - 1)].tolist()


def test_leave_one_out_never_returns_the_study_and_still_returns_k(index: ReportIndex, vectors: Floats) -> None:
    similarity, rows = index.search(vectors[:500], 5, exclude=[f"case-{row}" for row in range(500)])
    assert (rows >= 0).all()
    assert not (rows == np.arange(500)[:, None]).any()
    unfiltered = index.search(vectors[:500], 6)[1]
    assert (unfiltered[:, 0] == np.arange(500)).all()
    np.testing.assert_array_equal(rows, unfiltered[:, 1:])
    assert (similarity > 0).all()


def test_ties_go_to_the_lower_row() -> None:
    """More equal vectors than the first search proposes."""
    rng = np.random.default_rng(4)
    vectors = unit(rng, 100)[rng.integers(0, 100, 4000)]
    index = ReportIndex.build(vectors, cases(4000), kind="ivf")
    for query, rows in zip(vectors[:50], index.search(vectors[:50], 5)[1], strict=True):
        assert rows.tolist() == by_hand(vectors, query, 5)


# --- growth -------------------------------------------------------------------------------------------------------


def test_new_cases_go_into_existing_cells(index: ReportIndex, vectors: Floats, queries: Floats) -> None:
    centroids = structure(index).faiss_index.quantizer.reconstruct_n(0, 128)
    cells = structure(index).cells
    index.add(queries, cases(200, start=COUNT))
    grown = structure(index)
    np.testing.assert_array_equal(grown.faiss_index.quantizer.reconstruct_n(0, 128), centroids)
    assert cells is not None
    assert grown.cells is not None
    np.testing.assert_array_equal(grown.cells[:COUNT], cells)
    assert len(index) == COUNT + 200
    assert index.kind == "ivf"
    assert index.search(queries, 1)[1][:, 0].tolist() == list(range(COUNT, COUNT + 200))
    whole = ReportIndex.build(np.concatenate([vectors, queries]), cases(COUNT + 200))
    assert recall(index, whole, clustered(np.random.default_rng(5), 200, DIM)) >= 0.99
    with pytest.raises(ValueError, match="case case-5 is in row 5 already"):
        index.add(queries[:1], [Case("case-5")])
    assert len(index) == COUNT + 200


def test_removing_cases_keeps_the_cells(index: ReportIndex, vectors: Floats, queries: Floats) -> None:
    smaller = index.snapshot()
    cells = structure(smaller).cells
    assert cells is not None
    gone = np.arange(0, COUNT, 1000)
    smaller.remove([f"case-{row}" for row in gone])
    kept = np.delete(np.arange(COUNT), gone)
    np.testing.assert_array_equal(structure(smaller).cells, cells[kept])
    rows = smaller.search(queries, 5)[1]
    before = index.search(queries, 7)[1]  # without the removed cases the order is the same
    for got, expected in zip(rows, before, strict=True):
        assert kept[got].tolist()[:3] == [row for row in expected if row % 1000][:3]


def test_growing_collection_changes_its_kind_and_cells(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backend, "FLAT_BELOW", 401)
    vectors = clustered(np.random.default_rng(6), 3000, DIM)
    index = ReportIndex.build(vectors[:400], cases(400))
    index.add(vectors[400:401], cases(1, start=400))
    whole = ReportIndex.build(vectors[:401], cases(401))
    assert index.kind == whole.kind == "ivf"
    assert backend.to_bytes(structure(index)) == backend.to_bytes(structure(whole))
    index.add(vectors[401:], cases(2599, start=401))
    whole = ReportIndex.build(vectors, cases(3000))
    assert backend.to_bytes(structure(index)) == backend.to_bytes(structure(whole))  # the cells were trained again
    fixed = ReportIndex.build(vectors[:400], cases(400), kind="flat")
    fixed.add(vectors[400:], cases(2600, start=400))
    assert fixed.kind == "flat"


def test_loaded_index_grows_like_the_saved_one(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(backend, "FLAT_BELOW", 1000)
    vectors = clustered(np.random.default_rng(9), 2100, DIM)
    index = ReportIndex.build(vectors[:2000], cases(2000))
    index.save(tmp_path)
    loaded = ReportIndex.load(tmp_path)
    for one in (index, loaded):
        one.add(vectors[2000:], cases(100, start=2000))
    assert backend.to_bytes(structure(loaded)) == backend.to_bytes(structure(index))
    assert loaded.kind == "ivf"
