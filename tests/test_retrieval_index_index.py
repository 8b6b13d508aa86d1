"""The index: exact search, ties, leave-one-out, adding and removing cases, rejected arguments."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from retrieval_index import faiss_backend
from retrieval_index.cases import Case
from retrieval_index.faiss_backend import Kind
from retrieval_index.index import ReportIndex
from tests.support.index import Floats, by_hand, cases, search_while_adding, unit

both_kinds = pytest.mark.parametrize("kind", ["flat", "ivf"])


@pytest.fixture
def vectors() -> Floats:
    """300 vectors, many of them equal, as those of reports."""
    rng = np.random.default_rng(0)
    return unit(rng, 40)[rng.integers(0, 40, 300)]


@pytest.fixture
def index(vectors: Floats) -> ReportIndex:
    return ReportIndex.build(vectors, cases(len(vectors)))


def test_search_is_exact_and_ties_go_to_the_lower_row(index: ReportIndex, vectors: Floats) -> None:
    queries = np.concatenate([unit(np.random.default_rng(1), 50), vectors[:50]])
    similarity, rows = index.search(queries, 5)
    assert similarity.dtype == np.float32
    assert rows.dtype == np.int64
    assert rows.tolist() == [by_hand(vectors, query, 5) for query in queries]
    np.testing.assert_allclose(similarity, np.take_along_axis(queries @ vectors.T, rows, 1), atol=1e-6)


@both_kinds
def test_batched_search_equals_single_search_bit_for_bit(kind: Kind, vectors: Floats) -> None:
    index = ReportIndex.build(vectors, cases(300), kind=kind)
    queries = np.concatenate([unit(np.random.default_rng(2), 290), vectors])  # more than one block
    similarity, rows = index.search(queries, 7)
    for query, one_similarity, one_rows in zip(queries, similarity, rows, strict=True):
        alone = index.search(query[None], 7)
        assert alone[0].tobytes() == one_similarity.tobytes()
        assert alone[1].tobytes() == one_rows.tobytes()


@both_kinds
def test_ties_over_the_whole_index_go_to_the_lower_row(kind: Kind, tmp_path: Path) -> None:
    """Of equal vectors, k-means leaves one cell."""
    same = np.tile(unit(np.random.default_rng(3), 1), (500, 1))
    built = ReportIndex.build(same, cases(500), kind=kind)
    built.save(tmp_path)
    for index in (built, ReportIndex.load(tmp_path)):
        assert index.search(same[:1], 5, exclude=["case-1"])[1].tolist() == [[0, 2, 3, 4, 5]]


def test_leave_one_out_never_returns_the_study_and_still_returns_k(index: ReportIndex, vectors: Floats) -> None:
    _, rows = index.search(vectors, 5, exclude=[f"case-{row}" for row in range(len(vectors))])
    assert rows.shape == (300, 5)
    assert (rows >= 0).all()
    assert rows.tolist() == [by_hand(vectors, query, 5, excluded=row) for row, query in enumerate(vectors)]
    _, mixed = index.search(vectors[:3], 5, exclude=["case-0", None, "not in the index"])
    assert mixed.tolist() == [rows[0].tolist(), by_hand(vectors, vectors[1], 5), by_hand(vectors, vectors[2], 5)]


@both_kinds
def test_pads_where_there_are_fewer_cases_than_k(kind: Kind) -> None:
    vectors = np.eye(3, dtype=np.float32)
    index = ReportIndex.build(vectors, cases(3), kind=kind)
    similarity, rows = index.search(vectors[:2], 5, exclude=[None, "case-1"])
    assert rows.tolist() == [[0, 1, 2, -1, -1], [0, 2, -1, -1, -1]]
    assert similarity.tolist() == [[1, 0, 0, 0, 0], [0, 0, 0, 0, 0]]
    similarity, rows = index.search(np.zeros((0, 3), np.float32), 2)
    assert similarity.shape == rows.shape == (0, 2)


def test_empty_index_returns_padding() -> None:
    empty = ReportIndex.build(np.zeros((0, 4), np.float32), [])
    assert (len(empty), empty.dim) == (0, 4)
    assert empty.search(np.eye(4, dtype=np.float32), 2)[1].tolist() == [[-1, -1]] * 4


def test_vectors_and_case_by_row(index: ReportIndex, vectors: Floats) -> None:
    rows = np.array([[0, -1], [299, 7]])
    found = index.vectors(rows)
    assert found.shape == (2, 2, 16)
    assert (found[0, 1] == 0).all()
    np.testing.assert_array_equal(found[[0, 1, 1], [0, 0, 1]], vectors[[0, 299, 7]])
    assert index.case(7).case_id == "case-7"
    for row in (-1, 300):
        with pytest.raises(IndexError, match=f"row {row}: the index has 0 to 299"):
            index.case(row)
    for bad in (-2, 300):
        with pytest.raises(IndexError, match="the index has 0 to 299"):
            index.vectors(np.array([0, bad]))


def test_added_cases_are_found_as_in_a_new_index(index: ReportIndex, vectors: Floats) -> None:
    new = unit(np.random.default_rng(4), 10)
    index.add(new, cases(10, start=300))
    whole = ReportIndex.build(np.concatenate([vectors, new]), cases(310))
    assert len(index) == 310
    assert index.case(305).case_id == "case-305"
    queries = unit(np.random.default_rng(5), 20)
    for got, expected in zip(index.search(queries, 6), whole.search(queries, 6), strict=True):
        np.testing.assert_array_equal(got, expected)
    assert index.search(new, 1)[1][:, 0].tolist() == list(range(300, 310))


def test_rejected_addition_changes_nothing(index: ReportIndex, vectors: Floats) -> None:
    new = unit(np.random.default_rng(6), 2)
    with pytest.raises(ValueError, match="case case-5 is in row 5 already"):
        index.add(new, [Case("fresh"), Case("case-5")])
    with pytest.raises(ValueError, match=r"shape \(2, 8\); expected \(N, 16\)"):
        index.add(np.eye(8, dtype=np.float32)[:2], cases(2, start=300))
    with pytest.raises(ValueError, match="2 vectors for 1 cases"):
        index.add(new, [Case("fresh")])
    assert len(index) == 300
    assert index.search(vectors[:1], 1, exclude=["fresh"])[1].shape == (1, 1)


def test_removed_cases_are_not_found(index: ReportIndex, vectors: Floats) -> None:
    gone = [0, 7, 299]
    kept = np.delete(np.arange(300), gone)
    before = index.snapshot()
    index.remove([f"case-{row}" for row in gone])
    whole = ReportIndex.build(vectors[kept], [Case(f"case-{row}") for row in kept])
    assert len(index) == 297
    queries = np.concatenate([unit(np.random.default_rng(5), 20), vectors[gone]])
    for got, expected in zip(index.search(queries, 6), whole.search(queries, 6), strict=True):
        np.testing.assert_array_equal(got, expected)
    assert index.case(0).case_id == "case-1"
    assert index.find("case-7") is None
    assert index.find("case-8") == Case("case-8", "Text 8.", {"Edema": "absent"})
    assert (len(before), before.case(7).case_id) == (300, "case-7")
    with pytest.raises(ValueError, match="1 of the cases to remove are not in the index, such as 'case-7'"):
        index.remove(["case-8", "case-7"])
    assert len(index) == 297


def test_index_can_be_emptied_and_filled_again(vectors: Floats) -> None:
    index = ReportIndex.build(vectors[:2], [Case("a", "Text."), Case("b")])
    assert index.has_texts
    index.remove(["a"])
    assert not index.has_texts
    index.remove(["b"])
    assert index.search(vectors[:1], 1)[1].tolist() == [[-1]]
    index.add(vectors[:1], [Case("a")])
    assert index.search(vectors[:1], 1)[1].tolist() == [[0]]


def test_index_copies_its_vectors(vectors: Floats) -> None:
    given = vectors.copy()
    index = ReportIndex.build(given, cases(len(given)))
    given[:] = 0
    np.testing.assert_array_equal(index.vectors(np.arange(300)), vectors)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda q: q[0], r"shape \(16,\); expected \(N, 16\)"),
        (lambda q: q[:, :8], r"shape \(3, 8\)"),
        (lambda q: q * 2, "row 0 has length 2 .*divide each by its L2 norm"),
        (lambda q: np.where(np.arange(3)[:, None] == 1, np.nan, q), r"row 1 is not finite \(1 such"),
    ],
)
def test_rejects_malformed_queries(index: ReportIndex, change: object, message: str) -> None:
    assert callable(change)
    with pytest.raises(ValueError, match=message):
        index.search(change(unit(np.random.default_rng(7), 3)), 5)


def test_rejects_malformed_arguments(index: ReportIndex, vectors: Floats) -> None:
    with pytest.raises(ValueError, match="k = 0"):
        index.search(vectors[:1], 0)
    with pytest.raises(ValueError, match="1 excluded ids for 2 queries"):
        index.search(vectors[:2], 1, exclude=["case-0"])
    with pytest.raises(ValueError, match="row 0 already"):
        ReportIndex.build(vectors[:2], [Case("a"), Case("a")])


@pytest.mark.parametrize(("flat_below", "kind"), [(20_000, "flat"), (310, "ivf")])
def test_searches_from_threads_are_correct_while_cases_are_added(
    flat_below: int, kind: Kind, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At 310 cases the kind of the index changes."""
    monkeypatch.setattr(faiss_backend, "FLAT_BELOW", flat_below)
    index = ReportIndex.build(unit(np.random.default_rng(7), 300), cases(300))
    search_while_adding(index, unit(np.random.default_rng(8), 32))
    assert (len(index), index.kind) == (320, kind)
