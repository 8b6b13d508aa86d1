"""Large collections: cells, what they find, how they grow, and damaged files."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import faiss
import numpy as np
import pytest

from retrieval_index import faiss_backend as kinds
from retrieval_index.cases import Case
from retrieval_index.index import CASES_FILE, VECTORS_FILE, IndexFormatError, ReportIndex
from tests.support.index import Floats, by_hand, cases, clustered, search_while_adding, unit
from tests.support.paths import REPOSITORY

COUNT, DIM = 5000, 32
CENTROIDS_AT = 37 + 16 + 45  # header, cells and probes, the header of the flat index of centroids


@pytest.fixture(scope="module")
def vectors() -> Floats:
    return clustered(np.random.default_rng(0), COUNT, DIM)


@pytest.fixture(scope="module")
def queries() -> Floats:
    """Not in the index."""
    return clustered(np.random.default_rng(1), 200, DIM)


@pytest.fixture
def index(vectors: Floats) -> ReportIndex:
    return ReportIndex.build(vectors, cases(COUNT), kind="ivf")


@pytest.fixture
def flat(vectors: Floats) -> ReportIndex:
    return ReportIndex.build(vectors, cases(COUNT))


def structure(index: ReportIndex) -> kinds.Structure:
    return index._state.structure


def recall(index: ReportIndex, exact: ReportIndex, queries: Floats, k: int = 5) -> float:
    pairs = zip(index.search(queries, k)[1].tolist(), exact.search(queries, k)[1].tolist(), strict=True)
    return float(np.mean([len(set(found) & set(wanted)) / k for found, wanted in pairs]))


# --- which kind ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("count", "kind", "cells"),
    [(0, "flat", 1), (2069, "flat", 32), (19_999, "flat", 512), (20_000, "ivf", 512), (10**5, "ivf", 1024),
     (3 * 10**5, "ivf", 2048), (10**6, "ivf", 4096)],
)  # fmt: skip
def test_the_kind_depends_on_the_size(count: int, kind: str, cells: int) -> None:
    assert kinds.index_kind(count) == kind
    assert kinds.cell_count(count) == cells


def test_build_uses_the_kind_for_the_size(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kinds, "FLAT_BELOW", 401)
    vectors = unit(np.random.default_rng(2), 401)
    assert ReportIndex.build(vectors[:400], cases(400)).kind == "flat"
    assert ReportIndex.build(vectors, cases(401)).kind == "ivf"
    assert ReportIndex.build(vectors, cases(401), kind="flat").kind == "flat"


def test_rejects_unknown_and_impossible_kinds(vectors: Floats) -> None:
    with pytest.raises(ValueError, match="kind 'hnsw' is unknown; use auto, flat or ivf"):
        ReportIndex.build(vectors, cases(COUNT), kind="hnsw")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="at least one vector"):
        ReportIndex.build(vectors[:0], [], kind="ivf")


# --- what is found ------------------------------------------------------------------------------------------------


def test_recall_of_held_out_queries(index: ReportIndex, flat: ReportIndex, queries: Floats) -> None:
    found = structure(index).faiss_index
    assert (found.nlist, found.nprobe) == (128, kinds.PROBES)  # half of the cells are never looked at
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


def test_batched_search_equals_single_search_bit_for_bit(index: ReportIndex, queries: Floats) -> None:
    similarity, rows = index.search(queries, 7)
    for query, one_similarity, one_rows in zip(queries, similarity, rows, strict=True):
        alone = index.search(query[None], 7)
        assert alone[0].tobytes() == one_similarity.tobytes()
        assert alone[1].tobytes() == one_rows.tobytes()


def test_searches_more_cells_until_k_cases_are_found(index: ReportIndex, flat: ReportIndex, queries: Floats) -> None:
    structure(index).faiss_index.nprobe = 1
    biggest = max(structure(index).faiss_index.invlists.list_size(cell) for cell in range(128))
    rows = index.search(queries[:20], biggest + 1)[1]
    assert (rows >= 0).all()
    for got, exact in zip(index.search(queries[:3], COUNT + 2), flat.search(queries[:3], COUNT + 2), strict=True):
        np.testing.assert_array_equal(got, exact)  # the whole collection, then padding
    assert index.search(queries[:3], COUNT + 2)[1][:, -2:].tolist() == [[-1, -1]] * 3


def test_ignores_the_padding_of_faiss(vectors: Floats) -> None:
    """A cell that holds k cases, but fewer than are proposed; row -1 would be the last, most similar of all."""
    index = ReportIndex.build(vectors[:200], cases(200), kind="ivf")
    cells = structure(index).cells
    assert cells is not None
    structure(index).faiss_index.nprobe = 1
    members = np.flatnonzero(cells == cells[-1])
    rows = index.search(vectors[199:200], len(members) - 1)[1][0]
    assert rows.tolist() == members[by_hand(vectors[members], vectors[199], len(members) - 1)].tolist()


def test_fewer_cases_than_asked_for_are_padded() -> None:
    vectors = np.eye(3, dtype=np.float32)
    tiny = ReportIndex.build(vectors, cases(3), kind="ivf")
    similarity, rows = tiny.search(vectors[:2], 5, exclude=[None, "case-1"])
    assert rows.tolist() == [[0, 1, 2, -1, -1], [0, 2, -1, -1, -1]]
    assert similarity.tolist() == [[1, 0, 0, 0, 0], [0, 0, 0, 0, 0]]
    assert tiny.search(np.zeros((0, 3), np.float32), 2)[1].shape == (0, 2)


def test_leave_one_out_never_returns_the_study_and_still_returns_k(index: ReportIndex, vectors: Floats) -> None:
    own = [f"case-{row}" for row in range(500)]
    similarity, rows = index.search(vectors[:500], 5, exclude=own)
    assert (rows >= 0).all()
    assert not (rows == np.arange(500)[:, None]).any()
    with_own = index.search(vectors[:500], 6)[1]
    assert (with_own[:, 0] == np.arange(500)).all()
    np.testing.assert_array_equal(rows, with_own[:, 1:])
    assert (similarity > 0).all()


def test_ties_go_to_the_lower_row() -> None:
    """Word for word equal reports, more of each than a search proposes at first."""
    rng = np.random.default_rng(4)
    vectors = unit(rng, 100)[rng.integers(0, 100, 4000)]
    index = ReportIndex.build(vectors, cases(4000), kind="ivf")
    for query, rows in zip(vectors[:50], index.search(vectors[:50], 5)[1], strict=True):
        assert rows.tolist() == by_hand(vectors, query, 5)


def test_a_collection_of_one_text_is_one_cell(tmp_path: Path) -> None:
    same = np.tile(unit(np.random.default_rng(10), 1), (500, 1))
    index = ReportIndex.build(same, cases(500), kind="ivf")
    assert structure(index).faiss_index.nlist == 1  # k-means was asked for 8; empty ones are left out
    index.save(tmp_path)
    for one in (index, ReportIndex.load(tmp_path)):
        assert one.search(same[:1], 5, exclude=["case-1"])[1].tolist() == [[0, 2, 3, 4, 5]]


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


def test_the_cells_stay_while_cases_are_removed(index: ReportIndex, vectors: Floats, queries: Floats) -> None:
    own = index.snapshot()
    cells = structure(own).cells
    assert cells is not None
    gone = np.arange(0, COUNT, 1000)
    own.remove([f"case-{row}" for row in gone])
    kept = np.delete(np.arange(COUNT), gone)
    np.testing.assert_array_equal(structure(own).cells, cells[kept])
    rows = own.search(queries, 5)[1]
    before = index.search(queries, 7)[1]  # without those that went, the first five are the same
    for got, expected in zip(rows, before, strict=True):
        assert kept[got].tolist()[:3] == [row for row in expected if row % 1000][:3]


def test_a_growing_collection_changes_its_kind_and_its_cells(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kinds, "FLAT_BELOW", 401)
    vectors = clustered(np.random.default_rng(6), 3000, DIM)
    index = ReportIndex.build(vectors[:400], cases(400))
    index.add(vectors[400:401], cases(1, start=400))
    whole = ReportIndex.build(vectors[:401], cases(401))
    assert index.kind == whole.kind == "ivf"
    assert kinds.to_bytes(structure(index)) == kinds.to_bytes(structure(whole))
    index.add(vectors[401:], cases(2599, start=401))
    whole = ReportIndex.build(vectors, cases(3000))
    assert kinds.to_bytes(structure(index)) == kinds.to_bytes(structure(whole))  # the cells were trained again
    fixed = ReportIndex.build(vectors[:400], cases(400), kind="flat")
    fixed.add(vectors[400:], cases(2600, start=400))
    assert fixed.kind == "flat"


def test_searches_from_several_threads_while_the_kind_changes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kinds, "FLAT_BELOW", 310)
    vectors = unit(np.random.default_rng(7), 300)
    index = ReportIndex.build(vectors, cases(300))
    search_while_adding(index, unit(np.random.default_rng(8), 32))
    assert (len(index), index.kind) == (320, "ivf")


# --- files --------------------------------------------------------------------------------------------------------


def test_an_index_round_trips_and_its_bytes_are_reproducible(
    index: ReportIndex, vectors: Floats, queries: Floats, tmp_path: Path
) -> None:
    index.save(tmp_path / "a")
    ReportIndex.build(vectors, cases(COUNT), kind="ivf").save(tmp_path / "b")
    loaded = ReportIndex.load(tmp_path / "a")
    loaded.save(tmp_path / "c")
    assert sorted(path.name for path in (tmp_path / "a").iterdir()) == [CASES_FILE, VECTORS_FILE]
    for name in (VECTORS_FILE, CASES_FILE):
        assert len({(tmp_path / folder / name).read_bytes() for folder in "abc"}) == 1
    assert (loaded.kind, loaded.dim, len(loaded)) == ("ivf", DIM, COUNT)
    np.testing.assert_array_equal(loaded.vectors(np.arange(COUNT)), vectors)
    assert [loaded.case(row) for row in range(COUNT)] == cases(COUNT)
    for got, expected in zip(loaded.search(queries, 5), index.search(queries, 5), strict=True):
        np.testing.assert_array_equal(got, expected)


def test_a_loaded_index_grows_as_the_saved_one_does(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(kinds, "FLAT_BELOW", 1000)
    vectors = clustered(np.random.default_rng(9), 2100, DIM)
    index = ReportIndex.build(vectors[:2000], cases(2000))
    index.save(tmp_path)
    loaded = ReportIndex.load(tmp_path)
    for one in (index, loaded):
        one.add(vectors[2000:], cases(100, start=2000))
    assert kinds.to_bytes(structure(loaded)) == kinds.to_bytes(structure(index))
    assert loaded.kind == "ivf"


def test_faiss_reads_the_file_itself(index: ReportIndex, queries: Floats, tmp_path: Path) -> None:
    index.save(tmp_path)
    theirs = faiss.read_index(str(tmp_path / VECTORS_FILE))
    assert isinstance(theirs, faiss.IndexIVFFlat)
    assert (theirs.ntotal, theirs.nprobe, theirs.metric_type) == (COUNT, 64, faiss.METRIC_INNER_PRODUCT)
    assert theirs.search(queries, 1)[1].tolist() == index.search(queries, 1)[1].tolist()


def test_flat_files_are_those_of_faiss(vectors: Floats, flat: ReportIndex, tmp_path: Path) -> None:
    flat.save(tmp_path)
    theirs = faiss.IndexFlatIP(DIM)
    theirs.add(vectors)
    whole = (tmp_path / VECTORS_FILE).read_bytes()
    assert whole == faiss.serialize_index(theirs).tobytes()
    shipped = REPOSITORY / "bundles/iu-xray/index"
    index = ReportIndex.load(shipped)
    index.save(tmp_path)
    assert index.kind == "flat"
    for name in (VECTORS_FILE, CASES_FILE):
        assert (tmp_path / name).read_bytes() == (shipped / name).read_bytes()


def test_an_empty_flat_file_loads(tmp_path: Path) -> None:
    ReportIndex.build(np.zeros((0, 4), np.float32), []).save(tmp_path)
    assert (len(ReportIndex.load(tmp_path)), ReportIndex.load(tmp_path).dim) == (0, 4)


def _ivf(
    vectors: Floats, metric: int = faiss.METRIC_INNER_PRODUCT, ids: np.ndarray | None = None
) -> faiss.IndexIVFFlat:
    quantizer = faiss.IndexFlat(DIM, metric)
    index = faiss.IndexIVFFlat(quantizer, DIM, 4, metric)
    index.train(vectors)
    index.add_with_ids(vectors, np.arange(len(vectors)) if ids is None else ids)
    return index


def _hnsw(vectors: Floats) -> faiss.IndexHNSWFlat:
    index = faiss.IndexHNSWFlat(DIM, 8, faiss.METRIC_INNER_PRODUCT)
    index.add(vectors)
    return index


@pytest.mark.parametrize(
    ("other", "message"),
    [
        (lambda v: _ivf(v, faiss.METRIC_L2), "FAISS metric 1; expected inner product, 0"),
        (_hnsw, "is an IndexHNSWFlat; expected an IndexFlatIP or IndexIVFFlat"),
        (lambda v: _ivf(v[:150]), "150 vectors for 200 cases"),
        (lambda v: _ivf(v * np.float32(1.01)), r"row 0 has length 1\.01"),
    ],
)
def test_other_indexes_are_refused(
    vectors: Floats, tmp_path: Path, other: Callable[[Floats], faiss.Index], message: str
) -> None:
    ReportIndex.build(vectors[:200], cases(200)).save(tmp_path)
    (tmp_path / VECTORS_FILE).write_bytes(faiss.serialize_index(other(vectors[:200])).tobytes())
    with pytest.raises(IndexFormatError, match=f"{message}.*build the index again"):
        ReportIndex.load(tmp_path)


@pytest.fixture
def saved(vectors: Floats, tmp_path: Path) -> Path:
    """200 cases in 4 cells."""
    ReportIndex.build(vectors[:200], cases(200), kind="ivf").save(tmp_path)
    return tmp_path


def test_rejects_truncated_files(saved: Path) -> None:
    whole = (saved / VECTORS_FILE).read_bytes()
    for kept in [*range(0, 150), *range(150, len(whole), 397), len(whole) - 1]:
        (saved / VECTORS_FILE).write_bytes(whole[:kept])
        with pytest.raises(IndexFormatError, match="not readable by FAISS"):
            ReportIndex.load(saved)


def test_files_with_damaged_headers_are_rejected_or_load_unchanged(saved: Path, vectors: Floats) -> None:
    whole = (saved / VECTORS_FILE).read_bytes()
    lists = CENTROIDS_AT + 4 * 4 * DIM  # after the centroids: direct map, layout, sizes of the cells
    for position in [*range(4, CENTROIDS_AT), *range(lists, lists + 41 + 4 * 8)]:
        for value in (0x00, 0x7F, 0xFF):
            data = bytearray(whole)
            if data[position] == value:
                continue
            data[position] = value
            (saved / VECTORS_FILE).write_bytes(data)
            try:
                loaded = ReportIndex.load(saved)
            except IndexFormatError:
                continue
            np.testing.assert_array_equal(loaded.vectors(np.arange(200)), vectors[:200])  # bytes without a meaning
            assert loaded.search(vectors[:20], 1)[1][:, 0].tolist() == list(range(20))


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (lambda rows: np.where(rows == 7, -1, rows), "has rows from -1"),
        (lambda rows: np.where(rows == 7, 200, rows), "to 200 of 200 vectors"),
        (lambda rows: np.where(rows == 7, 8, rows), "1 of 200 rows are in no cell"),
    ],
)
def test_rejects_rows_that_are_not_a_permutation(
    saved: Path, vectors: Floats, rows: Callable[[np.ndarray], np.ndarray], message: str
) -> None:
    index = _ivf(vectors[:200], ids=rows(np.arange(200)))
    (saved / VECTORS_FILE).write_bytes(faiss.serialize_index(index).tobytes())
    with pytest.raises(IndexFormatError, match=message):
        ReportIndex.load(saved)


def test_the_bytes_do_not_depend_on_the_number_of_threads(vectors: Floats) -> None:
    before = faiss.omp_get_max_threads()
    built = []
    try:
        for threads in (1, 4):
            faiss.omp_set_num_threads(threads)
            built.append(kinds.to_bytes(kinds.build(vectors, "ivf")).tobytes())
            assert faiss.omp_get_max_threads() == threads  # as the caller had it
    finally:
        faiss.omp_set_num_threads(before)
    assert built[0] == built[1]
