"""The two kinds of FAISS index over the report embeddings: `flat` and `ivf`.

`flat` (`IndexFlatIP`) compares the query with every vector. It is exact and used for small
collections. `ivf` (`IndexIVFFlat`; Jégou et al. 2011, "Product quantization for nearest neighbor
search", section IV, without the quantisation) divides the vectors among cells by spherical k-means
and compares the query with the vectors of the `PROBES` cells whose centroids are most similar to
it. Vectors are stored in full, so its similarities are exact; it can miss vectors in other cells.

FAISS uses one thread. With several, FAISS (1.15) divides a batch, and from 10,000 vectors even one
query, among threads, which wait for the scheduler on a busy machine. `flat` is used below 20,000
vectors, where a query takes less than a millisecond.

HNSW (Malkov and Yashunin 2018) is not offered: in the same time it has a lower recall for image
queries, for which its graph was not built, and it is reproducible only on one thread.
docs/performance.md compares the three (`python -m benchmarks kinds`).
"""

from __future__ import annotations

import math
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import faiss
import numpy as np
import numpy.typing as npt

Kind = Literal["flat", "ivf"]
Floats = npt.NDArray[np.float32]
Rows = npt.NDArray[np.int64]

FLAT_BELOW = 20_000  # vectors; a query of a flat index then takes less than a millisecond
PROBES = 64  # cells searched per query: recall@5 ≥ .99 for 30,000 to 10⁶ vectors
_MAX_TRAINED_PER_CELL = 64  # vectors per cell for k-means; with 256, recall at 10⁵ vectors is the same
_MIN_PER_CELL = 39  # vectors per cell below which FAISS warns that k-means is unreliable
_ITERATIONS = 10
_SEED = 1234
_parsing = threading.Lock()


def index_kind(count: int) -> Kind:
    """The kind for a number of vectors: `flat` below `FLAT_BELOW`, else `ivf`."""
    return "flat" if count < FLAT_BELOW else "ivf"


def cell_count(count: int) -> int:
    """Cells for a number of vectors: the power of two nearest 4·√N (10⁶: 4,096), fewer if cells would be nearly empty.

    Comparing centroids then costs about as much as comparing vectors, and k-means runs again only
    after the collection has grown fourfold.
    """
    cells: int = 2 ** round(math.log2(4 * math.sqrt(max(count, 1))))
    while cells > 1 and cells * _MIN_PER_CELL > count:
        cells //= 2
    return cells


@dataclass(frozen=True)
class Structure:
    """A FAISS index over N vectors, and for `ivf` the cell of each."""

    faiss_index: Any
    cells: Rows | None = None  # (N,); None: flat

    @property
    def kind(self) -> Kind:
        """`flat` or `ivf`."""
        return "flat" if self.cells is None else "ivf"

    def propose(self, queries: Floats, count: int, widen: int = 1) -> tuple[Floats, Rows, bool]:
        """The `count` candidates most similar to each query, by FAISS's inner products, which are rounded.

        Args:
            queries: (B, D) float32, unit length.
            count: candidates per query.
            widen: factor on the number of searched cells.

        Returns:
            Inner products (B, count) and rows (B, count), best first, padded with row -1; and
            whether every vector was compared. The cells of a query do not depend on the other
            queries.
        """
        index = self.faiss_index
        if self.cells is None:
            with _one_thread():
                return *index.search(queries, count), True
        options = faiss.SearchParametersIVF()
        options.nprobe = min(index.nlist, index.nprobe * widen)
        products, rows = np.empty((len(queries), count), np.float32), np.empty((len(queries), count), np.int64)
        with _one_thread():
            for query in range(len(queries)):  # a batch rounds differently and could select other cells
                one = slice(query, query + 1)
                index.search(queries[one], count, params=options, D=products[one], I=rows[one])
        return products, rows, options.nprobe == index.nlist


def build(vectors: Floats, kind: Kind) -> Structure:
    """Index `vectors` (N, D), float32, unit length.

    Equal vectors give an equal structure: k-means is seeded and runs on one thread. On another type
    of processor, FAISS may round sums differently and give other centroids.

    Raises:
        ValueError: `ivf` without vectors.
    """
    if kind == "flat":
        index = faiss.IndexFlatIP(vectors.shape[1])
        index.add(vectors)
        return Structure(index)
    if not len(vectors):
        raise ValueError("an ivf index needs at least one vector; leave kind at auto")
    wanted = cell_count(len(vectors))
    options = {"niter": _ITERATIONS, "seed": _SEED, "max_points_per_centroid": _MAX_TRAINED_PER_CELL, "spherical": True}
    kmeans = faiss.Kmeans(vectors.shape[1], wanted, **options)
    with _one_thread():
        kmeans.train(vectors)
    centroids = np.asarray(kmeans.centroids, np.float32).reshape(wanted, -1)
    used, cells = np.unique(_nearest(centroids, vectors), return_inverse=True)  # equal vectors leave cells empty
    return _build_ivf(vectors, np.ascontiguousarray(centroids[used]), cells.astype(np.int64), PROBES)


def with_added(old: Structure, vectors: Floats, kind: Kind) -> Structure:
    """The structure of all `vectors` (N, D), of which `old` holds the first.

    New vectors are added to the nearest existing cell, unless `cell_count` gives another number of
    cells.
    """
    if (cells := _cells_to_keep(old, len(vectors), kind)) is None:
        return build(vectors, kind)
    centroids = _centroids(old)
    cells = np.concatenate([cells, _nearest(centroids, vectors[len(cells) :])])
    return _build_ivf(vectors, centroids, cells, old.faiss_index.nprobe)


def with_removed(old: Structure, vectors: Floats, rows: Rows, kind: Kind) -> Structure:
    """The structure of `vectors` (N, D), which are those of `rows` (N,) in `old`; see `with_added`."""
    if (cells := _cells_to_keep(old, len(vectors), kind)) is None:
        return build(vectors, kind)
    return _build_ivf(vectors, _centroids(old), cells[rows], old.faiss_index.nprobe)


def to_bytes(structure: Structure) -> memoryview:
    """The bytes of FAISS's file format; equal structures give equal bytes."""
    data: memoryview = faiss.serialize_index(structure.faiss_index).data
    return data


def parse(data: bytes, name: str) -> tuple[Floats, Structure]:
    """Read the output of `to_bytes`: the vectors (N, D), whose values are not checked, and their structure.

    `name` is the file's name in messages.

    Raises:
        ValueError: FAISS cannot read it, another kind of index or metric, or rows that are not 0 to
            N - 1.
    """
    try:
        with _parsing:  # the limits are global; they bound FAISS's allocations and loops by the size of the file
            faiss.set_deserialization_vector_byte_limit(len(data))
            faiss.set_deserialization_loop_limit(len(data))
            index: Any = faiss.deserialize_index(np.frombuffer(data, np.uint8))
    except (RuntimeError, MemoryError) as error:
        raise ValueError(f"{name} ({len(data)} bytes) is not readable by FAISS {faiss.__version__}: {error}") from error
    if type(index) not in (faiss.IndexFlatIP, faiss.IndexIVFFlat):
        raise ValueError(f"{name} is an {type(index).__name__}; expected an IndexFlatIP or IndexIVFFlat")
    if index.metric_type != faiss.METRIC_INNER_PRODUCT:
        raise ValueError(
            f"{name} has FAISS metric {index.metric_type}; expected inner product, {faiss.METRIC_INNER_PRODUCT}"
        )
    if isinstance(index, faiss.IndexFlatIP):
        return index.reconstruct_n(0, index.ntotal), Structure(index)
    quantizer = faiss.downcast_index(index.quantizer)
    consistent = (
        index.is_trained
        and type(quantizer) is faiss.IndexFlatIP
        and quantizer.d == index.d
        and index.nprobe >= 1
        and index.code_size == 4 * index.d
        and quantizer.ntotal == index.nlist
        and np.isfinite(quantizer.reconstruct_n(0, index.nlist)).all()
        and index.invlists.compute_ntotal() == index.ntotal
    )
    if not consistent:
        raise ValueError(f"{name}: cells, vectors and width are inconsistent")
    return _ivf_rows(index, name)


def _ivf_rows(index: Any, name: str) -> tuple[Floats, Structure]:
    """The vectors of an IndexIVFFlat in the order of their rows."""
    lists, count = index.invlists, index.ntotal
    vectors, cells = np.empty((count, index.d), np.float32), np.full(count, -1, np.int64)
    for cell in range(index.nlist):
        if size := lists.list_size(cell):
            rows = faiss.rev_swig_ptr(lists.get_ids(cell), size)
            if rows.min() < 0 or rows.max() >= count:
                raise ValueError(f"{name}: cell {cell} has rows from {rows.min()} to {rows.max()} of {count} vectors")
            codes = faiss.rev_swig_ptr(lists.get_codes(cell), size * index.code_size)
            vectors[rows], cells[rows] = codes.view(np.float32).reshape(size, index.d), cell
    if missing := int((cells < 0).sum()):  # others occur twice, because there are N entries
        raise ValueError(f"{name}: {missing} of {count} rows are in no cell")
    return vectors, Structure(index, cells)


def _cells_to_keep(old: Structure, count: int, kind: Kind) -> Rows | None:
    """The cells of `old` if `count` vectors need the same number; otherwise None."""
    if old.cells is None or kind == "flat" or cell_count(count) != cell_count(len(old.cells)):
        return None
    return old.cells


def _centroids(structure: Structure) -> Floats:
    index = structure.faiss_index
    centroids: Floats = index.quantizer.reconstruct_n(0, index.nlist)
    return centroids


def _nearest(centroids: Floats, vectors: Floats) -> Rows:
    """The cell of each vector, (N,): the index of the most similar centroid."""
    index = faiss.IndexFlatIP(centroids.shape[1])
    index.add(centroids)
    with _one_thread():
        found: Rows = index.search(vectors, 1)[1][:, 0]
    return found


def _build_ivf(vectors: Floats, centroids: Floats, cells: Rows, probes: int) -> Structure:
    """The IndexIVFFlat with row i in cell `cells[i]`; the rows of a cell are in order."""
    quantizer = faiss.IndexFlatIP(centroids.shape[1])
    quantizer.add(centroids)
    index = faiss.IndexIVFFlat(quantizer, centroids.shape[1], len(centroids), faiss.METRIC_INNER_PRODUCT)
    lists: Any = index.invlists
    order = np.argsort(cells, kind="stable")
    bounds = np.searchsorted(cells, np.arange(1, len(centroids)), sorter=order)
    for cell, rows in enumerate(
        np.split(order, bounds)
    ):  # one cell at a time, because growing lists need twice the memory
        if len(rows):
            codes = np.ascontiguousarray(vectors[rows]).view(np.uint8)
            lists.add_entries(cell, len(rows), faiss.swig_ptr(rows), faiss.swig_ptr(codes))
    index.ntotal = len(vectors)
    index.nprobe = min(probes, len(centroids))
    return Structure(index, cells)


@contextmanager
def _one_thread() -> Iterator[None]:
    """Restrict FAISS to the calling thread. OpenMP stores this number per thread, so others are not affected."""
    before = faiss.omp_get_max_threads()
    faiss.omp_set_num_threads(1)
    try:
        yield
    finally:
        faiss.omp_set_num_threads(before)
