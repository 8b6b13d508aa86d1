"""The index as a collection of thousands gets it: exact search, ties, leave-one-out, growth, honest files."""

from __future__ import annotations

import hashlib
from pathlib import Path

import faiss
import numpy as np
import pytest

from retrieval_index import faiss_backend as kinds
from retrieval_index.cases import Case
from retrieval_index.index import CASES_FILE, VECTORS_FILE, IndexFormatError, ReportIndex
from tests.support.index import Floats, by_hand, cases, search_while_adding, unit


@pytest.fixture
def vectors() -> Floats:
    """300 vectors, many of them equal, as reports are."""
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


def test_batched_search_equals_single_search_bit_for_bit(index: ReportIndex, vectors: Floats) -> None:
    queries = np.concatenate([unit(np.random.default_rng(2), 290), vectors])  # more than one block
    similarity, rows = index.search(queries, 7)
    for query, one_similarity, one_rows in zip(queries, similarity, rows, strict=True):
        alone = index.search(query[None], 7)
        assert alone[0].tobytes() == one_similarity.tobytes()
        assert alone[1].tobytes() == one_rows.tobytes()


def test_a_tie_over_the_whole_index_is_resolved_by_row() -> None:
    same = np.tile(unit(np.random.default_rng(3), 1), (500, 1))
    _, rows = ReportIndex.build(same, cases(500)).search(same[:1], 5, exclude=["case-1"])
    assert rows.tolist() == [[0, 2, 3, 4, 5]]


def test_leave_one_out_never_returns_the_study_and_still_returns_k(index: ReportIndex, vectors: Floats) -> None:
    own = [f"case-{row}" for row in range(len(vectors))]
    _, rows = index.search(vectors, 5, exclude=own)
    assert rows.shape == (300, 5)
    assert (rows >= 0).all()
    assert rows.tolist() == [by_hand(vectors, query, 5, excluded=row) for row, query in enumerate(vectors)]
    _, mixed = index.search(vectors[:3], 5, exclude=["case-0", None, "not in the index"])
    assert mixed.tolist() == [rows[0].tolist(), by_hand(vectors, vectors[1], 5), by_hand(vectors, vectors[2], 5)]


def test_fewer_cases_than_asked_for_are_padded() -> None:
    vectors = np.eye(3, dtype=np.float32)
    similarity, rows = ReportIndex.build(vectors, cases(3)).search(vectors[:2], 5, exclude=[None, "case-1"])
    assert rows.tolist() == [[0, 1, 2, -1, -1], [0, 2, -1, -1, -1]]
    assert similarity.tolist() == [[1, 0, 0, 0, 0], [0, 0, 0, 0, 0]]


def test_an_empty_index_and_an_empty_batch() -> None:
    empty = ReportIndex.build(np.zeros((0, 4), np.float32), [])
    assert (len(empty), empty.dim) == (0, 4)
    assert empty.search(np.eye(4, dtype=np.float32), 2)[1].tolist() == [[-1, -1]] * 4
    similarity, rows = ReportIndex.build(np.eye(4, dtype=np.float32), cases(4)).search(np.zeros((0, 4), np.float32), 2)
    assert similarity.shape == rows.shape == (0, 2)


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


def test_cases_are_added_without_training(index: ReportIndex, vectors: Floats) -> None:
    new = unit(np.random.default_rng(4), 10)
    index.add(new, cases(10, start=300))
    whole = ReportIndex.build(np.concatenate([vectors, new]), cases(310))
    assert len(index) == 310
    assert index.case(305).case_id == "case-305"
    queries = unit(np.random.default_rng(5), 20)
    for got, expected in zip(index.search(queries, 6), whole.search(queries, 6), strict=True):
        np.testing.assert_array_equal(got, expected)
    assert index.search(new, 1)[1][:, 0].tolist() == list(range(300, 310))


def test_a_refused_addition_changes_nothing(index: ReportIndex, vectors: Floats) -> None:
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


def test_an_index_can_be_emptied_and_filled_again(vectors: Floats) -> None:
    index = ReportIndex.build(vectors[:2], [Case("a", "Text."), Case("b")])
    assert index.has_texts
    index.remove(["a"])
    assert not index.has_texts
    index.remove(["b"])
    assert index.search(vectors[:1], 1)[1].tolist() == [[-1]]
    index.add(vectors[:1], [Case("a")])
    assert index.search(vectors[:1], 1)[1].tolist() == [[0]]


def test_the_index_does_not_share_memory_with_its_maker(vectors: Floats) -> None:
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
def test_bad_queries_are_refused(index: ReportIndex, change: object, message: str) -> None:
    assert callable(change)
    with pytest.raises(ValueError, match=message):
        index.search(change(unit(np.random.default_rng(7), 3)), 5)


def test_bad_arguments_are_refused(index: ReportIndex, vectors: Floats) -> None:
    with pytest.raises(ValueError, match="k = 0"):
        index.search(vectors[:1], 0)
    with pytest.raises(ValueError, match="1 excluded ids for 2 queries"):
        index.search(vectors[:2], 1, exclude=["case-0"])
    with pytest.raises(ValueError, match="row 0 already"):
        ReportIndex.build(vectors[:2], [Case("a"), Case("a")])


def test_searches_from_several_threads_while_cases_are_added(index: ReportIndex) -> None:
    search_while_adding(index, unit(np.random.default_rng(8), 32))


def test_an_index_round_trips_and_its_bytes_are_reproducible(
    index: ReportIndex, vectors: Floats, tmp_path: Path
) -> None:
    index.save(tmp_path / "a")
    index.save(tmp_path / "b")
    hashes = {
        name: hashlib.sha256((tmp_path / "a" / name).read_bytes()).hexdigest() for name in (VECTORS_FILE, CASES_FILE)
    }
    assert sorted(path.name for path in (tmp_path / "a").iterdir()) == [CASES_FILE, VECTORS_FILE]
    assert all((tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes() for name in hashes)
    loaded = ReportIndex.load(tmp_path / "a", expected_sha256=hashes)
    np.testing.assert_array_equal(loaded.vectors(np.arange(300)), vectors)
    assert [loaded.case(row) for row in range(300)] == cases(300)
    for got, expected in zip(loaded.search(vectors, 5), index.search(vectors, 5), strict=True):
        np.testing.assert_array_equal(got, expected)


def test_the_hash_is_checked_before_anything_is_parsed(
    index: ReportIndex, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    index.save(tmp_path)
    hashes = {name: hashlib.sha256((tmp_path / name).read_bytes()).hexdigest() for name in (VECTORS_FILE, CASES_FILE)}
    data = bytearray((tmp_path / VECTORS_FILE).read_bytes())
    data[-1] ^= 1
    (tmp_path / VECTORS_FILE).write_bytes(data)

    def parsed(*_: object) -> None:
        raise AssertionError("unchecked bytes were parsed")

    monkeypatch.setattr(kinds, "parse", parsed)
    with pytest.raises(IndexFormatError, match=r"reports\.faiss has SHA-256 .*, expected"):
        ReportIndex.load(tmp_path, expected_sha256=hashes)
    with pytest.raises(IndexFormatError, match="expected None"):
        ReportIndex.load(tmp_path, expected_sha256={})


def _write_faiss(folder: Path, index: faiss.Index) -> None:
    (folder / VECTORS_FILE).write_bytes(faiss.serialize_index(index).tobytes())


def _flat(vectors: Floats) -> faiss.Index:
    index = faiss.IndexFlatIP(vectors.shape[1])
    index.add(np.ascontiguousarray(vectors))
    return index


def test_files_that_do_not_belong_together_are_refused(index: ReportIndex, vectors: Floats, tmp_path: Path) -> None:
    index.save(tmp_path)
    _write_faiss(tmp_path, _flat(vectors[:299]))
    with pytest.raises(IndexFormatError, match="299 vectors for 300 cases"):
        ReportIndex.load(tmp_path)
    _write_faiss(tmp_path, _flat(vectors * 1.01))
    with pytest.raises(IndexFormatError, match=r"row 0 has length 1\.01"):
        ReportIndex.load(tmp_path)
    _write_faiss(tmp_path, _flat(np.where(np.arange(300)[:, None] == 4, np.nan, vectors).astype(np.float32)))
    with pytest.raises(IndexFormatError, match="row 4 is not finite"):
        ReportIndex.load(tmp_path)
    other = faiss.IndexFlatL2(16)
    other.add(vectors)
    _write_faiss(tmp_path, other)
    with pytest.raises(IndexFormatError, match="IndexFlatL2; expected"):
        ReportIndex.load(tmp_path)
    (tmp_path / VECTORS_FILE).unlink()
    with pytest.raises(IndexFormatError, match="No such file"):
        ReportIndex.load(tmp_path)
    index.save(tmp_path)
    (tmp_path / CASES_FILE).write_text("{}\n")
    with pytest.raises(IndexFormatError, match="line 1: the case lacks case_id"):
        ReportIndex.load(tmp_path)


def test_damaged_files_are_rejected_without_a_crash(index: ReportIndex, tmp_path: Path) -> None:
    index.save(tmp_path)
    whole = (tmp_path / VECTORS_FILE).read_bytes()
    for kept in (0, 3, 4, 8, 20, 37, 44, 45, 100, len(whole) - 1):
        (tmp_path / VECTORS_FILE).write_bytes(whole[:kept])
        with pytest.raises(IndexFormatError):
            ReportIndex.load(tmp_path)
    for position in range(4, 45):  # the header: width, count, metric, length
        for value in (0x00, 0x7F, 0xFF):
            data = bytearray(whole)
            if data[position] == value:
                continue
            data[position] = value
            (tmp_path / VECTORS_FILE).write_bytes(data)
            try:
                loaded = ReportIndex.load(tmp_path)
            except IndexFormatError:
                continue
            assert len(loaded) == 300  # bytes that carry nothing
            assert loaded.search(loaded.vectors(np.array([0])), 1)[0][0, 0] == pytest.approx(1)
