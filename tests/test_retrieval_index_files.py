"""Files of an index: byte-reproducible, readable by FAISS, verified; damaged and foreign files are rejected."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path

import faiss
import numpy as np
import pytest

from retrieval_index import faiss_backend
from retrieval_index.faiss_backend import Kind
from retrieval_index.index import CASES_FILE, VECTORS_FILE, IndexFormatError, ReportIndex
from tests.support.index import Floats, cases, clustered
from tests.support.paths import REPOSITORY

COUNT, DIM = 5000, 32
FEW = 200  # cases of the index that is damaged: 4 cells
CENTROIDS_AT = 37 + 16 + 45  # header, cells and probes, header of the flat index of centroids
SIZES_AT = CENTROIDS_AT + 4 * 4 * DIM  # after the centroids: direct map, layout, sizes of the cells
HEADERS = {"flat": range(4, 45), "ivf": [*range(4, CENTROIDS_AT), *range(SIZES_AT, SIZES_AT + 41 + 4 * 8)]}
both_kinds = pytest.mark.parametrize("kind", ["flat", "ivf"])


@pytest.fixture(scope="module")
def vectors() -> Floats:
    return clustered(np.random.default_rng(0), COUNT, DIM)


@pytest.fixture(scope="module")
def queries() -> Floats:
    """Vectors that are not in the index."""
    return clustered(np.random.default_rng(1), 200, DIM)


def save(vectors: Floats, folder: Path, kind: Kind = "flat") -> dict[str, str]:
    """Saves an index of the first `FEW` vectors; the SHA-256 of its files."""
    ReportIndex.build(vectors[:FEW], cases(FEW), kind=kind).save(folder)
    return {name: hashlib.sha256((folder / name).read_bytes()).hexdigest() for name in (VECTORS_FILE, CASES_FILE)}


@both_kinds
def test_index_round_trips_and_its_bytes_are_reproducible(
    kind: Kind, vectors: Floats, queries: Floats, tmp_path: Path
) -> None:
    index = ReportIndex.build(vectors, cases(COUNT), kind=kind)
    index.save(tmp_path / "a")
    ReportIndex.build(vectors, cases(COUNT), kind=kind).save(tmp_path / "b")
    loaded = ReportIndex.load(tmp_path / "a")
    loaded.save(tmp_path / "c")
    assert sorted(path.name for path in (tmp_path / "a").iterdir()) == [CASES_FILE, VECTORS_FILE]
    for name in (VECTORS_FILE, CASES_FILE):
        assert len({(tmp_path / folder / name).read_bytes() for folder in "abc"}) == 1
    assert (loaded.kind, loaded.dim, len(loaded)) == (kind, DIM, COUNT)
    np.testing.assert_array_equal(loaded.vectors(np.arange(COUNT)), vectors)
    assert [loaded.case(row) for row in range(COUNT)] == cases(COUNT)
    for found, expected in zip(loaded.search(queries, 5), index.search(queries, 5), strict=True):
        np.testing.assert_array_equal(found, expected)


def test_faiss_reads_an_ivf_file(vectors: Floats, queries: Floats, tmp_path: Path) -> None:
    index = ReportIndex.build(vectors, cases(COUNT), kind="ivf")
    index.save(tmp_path)
    read = faiss.read_index(str(tmp_path / VECTORS_FILE))
    assert isinstance(read, faiss.IndexIVFFlat)
    assert (read.ntotal, read.nprobe, read.metric_type) == (COUNT, 64, faiss.METRIC_INNER_PRODUCT)
    assert read.search(queries, 1)[1].tolist() == index.search(queries, 1)[1].tolist()


def test_flat_file_equals_that_of_faiss_and_the_shipped_index_round_trips(vectors: Floats, tmp_path: Path) -> None:
    save(vectors, tmp_path)
    assert (tmp_path / VECTORS_FILE).read_bytes() == faiss.serialize_index(_flat(vectors[:FEW])).tobytes()
    shipped = REPOSITORY / "bundles/iu-xray/index"
    index = ReportIndex.load(shipped)
    index.save(tmp_path)
    assert index.kind == "flat"
    for name in (VECTORS_FILE, CASES_FILE):
        assert (tmp_path / name).read_bytes() == (shipped / name).read_bytes()


def test_empty_flat_file_loads(tmp_path: Path) -> None:
    ReportIndex.build(np.zeros((0, 4), np.float32), []).save(tmp_path)
    assert (len(ReportIndex.load(tmp_path)), ReportIndex.load(tmp_path).dim) == (0, 4)


def test_bytes_do_not_depend_on_the_number_of_threads(vectors: Floats) -> None:
    before = faiss.omp_get_max_threads()
    built = []
    try:
        for threads in (1, 4):
            faiss.omp_set_num_threads(threads)
            built.append(faiss_backend.to_bytes(faiss_backend.build(vectors, "ivf")).tobytes())
            assert faiss.omp_get_max_threads() == threads  # the caller's setting is kept
    finally:
        faiss.omp_set_num_threads(before)
    assert built[0] == built[1]


def test_checks_the_hash_before_parsing(vectors: Floats, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hashes = save(vectors, tmp_path)
    ReportIndex.load(tmp_path, expected_sha256=hashes)
    data = bytearray((tmp_path / VECTORS_FILE).read_bytes())
    data[-1] ^= 1
    (tmp_path / VECTORS_FILE).write_bytes(data)

    def parse(*_: object) -> None:
        raise AssertionError("unchecked bytes were parsed")

    monkeypatch.setattr(faiss_backend, "parse", parse)
    with pytest.raises(IndexFormatError, match=r"reports\.faiss has SHA-256 .*, expected"):
        ReportIndex.load(tmp_path, expected_sha256=hashes)
    with pytest.raises(IndexFormatError, match="expected None"):
        ReportIndex.load(tmp_path, expected_sha256={})


def _flat(vectors: Floats, metric: int = faiss.METRIC_INNER_PRODUCT) -> faiss.Index:
    index = faiss.IndexFlatIP(DIM) if metric == faiss.METRIC_INNER_PRODUCT else faiss.IndexFlatL2(DIM)
    index.add(np.ascontiguousarray(vectors, np.float32))
    return index


def _ivf(vectors: Floats, metric: int = faiss.METRIC_INNER_PRODUCT, wrong_row: int | None = None) -> faiss.IndexIVFFlat:
    """Four cells; row 7 has the number `wrong_row`."""
    index = faiss.IndexIVFFlat(faiss.IndexFlat(DIM, metric), DIM, 4, metric)
    index.train(vectors)
    rows = np.arange(len(vectors))
    index.add_with_ids(vectors, rows if wrong_row is None else np.where(rows == 7, wrong_row, rows))
    return index


def _hnsw(vectors: Floats) -> faiss.IndexHNSWFlat:
    index = faiss.IndexHNSWFlat(DIM, 8, faiss.METRIC_INNER_PRODUCT)
    index.add(vectors)
    return index


def _with_centroids(vectors: Floats, width: int, value: float = 1.0) -> faiss.IndexIVFFlat:
    index, centroids = _ivf(vectors), faiss.IndexFlatIP(width)
    centroids.add(np.full((4, width), value, np.float32))
    index.quantizer = centroids
    return index


def _with_nan(vectors: Floats) -> Floats:
    return np.where(np.arange(len(vectors))[:, None] == 4, np.nan, vectors)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda v: _flat(v, faiss.METRIC_L2), "IndexFlatL2; expected"),
        (lambda v: _ivf(v, faiss.METRIC_L2), "FAISS metric 1; expected inner product, 0"),
        (_hnsw, "is an IndexHNSWFlat; expected an IndexFlatIP or IndexIVFFlat"),
        (lambda v: _flat(v[:150]), "150 vectors for 200 cases"),
        (lambda v: _ivf(v[:150]), "150 vectors for 200 cases"),
        (lambda v: _flat(v * np.float32(1.01)), r"row 0 has length 1\.01"),
        (lambda v: _ivf(v * np.float32(1.01)), r"row 0 has length 1\.01"),
        (lambda v: _flat(_with_nan(v)), "row 4 is not finite"),
        *((lambda v, w=width: _with_centroids(v, w), "width are inconsistent") for width in (2, 2 * DIM)),
        *((lambda v, x=x: _with_centroids(v, DIM, x), "are inconsistent") for x in (np.nan, np.inf)),
        (lambda v: _ivf(v, wrong_row=-1), "has rows from -1"),
        (lambda v: _ivf(v, wrong_row=200), "to 200 of 200 vectors"),
        (lambda v: _ivf(v, wrong_row=8), "1 of 200 rows are in no cell"),
    ],
)
def test_rejects_foreign_and_inconsistent_indexes(
    vectors: Floats, tmp_path: Path, make: Callable[[Floats], faiss.Index], message: str
) -> None:
    save(vectors, tmp_path)
    (tmp_path / VECTORS_FILE).write_bytes(faiss.serialize_index(make(vectors[:FEW])).tobytes())
    with pytest.raises(IndexFormatError, match=f"{message}.*build the index again"):
        ReportIndex.load(tmp_path)


def test_rejects_missing_files_and_malformed_cases(vectors: Floats, tmp_path: Path) -> None:
    save(vectors, tmp_path)
    (tmp_path / CASES_FILE).write_text("{}\n")
    with pytest.raises(IndexFormatError, match="line 1: the case lacks case_id"):
        ReportIndex.load(tmp_path)
    (tmp_path / VECTORS_FILE).unlink()
    with pytest.raises(IndexFormatError, match="No such file"):
        ReportIndex.load(tmp_path)


@both_kinds
def test_rejects_truncated_files(kind: Kind, vectors: Floats, tmp_path: Path) -> None:
    save(vectors, tmp_path, kind)
    whole = (tmp_path / VECTORS_FILE).read_bytes()
    for kept in [*range(150), *range(150, len(whole), 397), len(whole) - 1]:
        (tmp_path / VECTORS_FILE).write_bytes(whole[:kept])
        with pytest.raises(IndexFormatError, match="not readable by FAISS"):
            ReportIndex.load(tmp_path)


@both_kinds
def test_files_with_damaged_headers_are_rejected_or_load_unchanged(kind: Kind, vectors: Floats, tmp_path: Path) -> None:
    save(vectors, tmp_path, kind)
    whole = (tmp_path / VECTORS_FILE).read_bytes()
    for position in HEADERS[kind]:
        for value in {0x00, 0x7F, 0xFF} - {whole[position]}:
            (tmp_path / VECTORS_FILE).write_bytes(whole[:position] + bytes([value]) + whole[position + 1 :])
            try:
                loaded = ReportIndex.load(tmp_path)
            except IndexFormatError:
                continue
            np.testing.assert_array_equal(loaded.vectors(np.arange(FEW)), vectors[:FEW])  # bytes without a meaning
            assert loaded.search(vectors[:20], 1)[1][:, 0].tolist() == list(range(20))
