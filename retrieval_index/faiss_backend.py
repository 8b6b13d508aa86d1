"""How an index finds candidates: it compares the query with every vector, or looks into the cells nearest to it.

`flat` (FAISS `IndexFlatIP`) is exact and what a small collection gets. `ivf` (`IndexIVFFlat`; Jégou et al. 2011,
"Product quantization for nearest neighbor search", section IV, without the quantisation) divides the vectors among
cells by spherical k-means and compares the query with the `PROBES` cells whose centroids are most similar to it. The
vectors are stored whole, so what it returns is exact; what lies in other cells it can miss.

`python -m benchmarks kinds` compares them, and HNSW (Malkov and Yashunin 2018), on 256-dimensional vectors made of the
shipped index's; docs/performance.md holds its table. All of it runs on one thread: FAISS (1.15) would divide a batch,
and from 10,000 vectors on even one query, among threads, and then waits for the scheduler where a core is taken, as it
is in a service that decodes reports. `flat` ends at 20,000 vectors, surely below a millisecond.

So there is no `hnsw`: it finds less for image queries, which its graph was not made for, in the same time; it can be
built reproducibly on one thread only; and a file of it is a graph whose every edge would have to be checked.

A file is FAISS's own (`faiss.read_index` reads it), but FAISS is never given foreign bytes: `parse` reads both
layouts itself, each length checked against the length of the file first.
"""

from __future__ import annotations

import math
import struct
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

FLAT_BELOW = 20_000  # vectors: one query is to take less than a millisecond
PROBES = 64  # cells that a query looks into: recall@5 ≥ .99 from 30,000 to 10⁶ vectors, for image queries too
_TRAINED_ON = 64  # vectors per cell that k-means sees, at most: with 256, recall at 10⁵ vectors is the same
_WORTH_A_CELL = 39  # vectors that FAISS wants per cell for k-means to mean anything
_ITERATIONS = 10
_SEED = 1234

_FLAT, _IVF = b"IxFI", b"IwFl"  # how FAISS begins a file that holds one or the other
_HEADER = struct.Struct("<4siqqqBi")  # magic, D, N, two unused, trained, metric
_LENGTH = struct.Struct("<Q")
_PROBING = struct.Struct("<QQ")  # cells, cells to look into
_LISTS = struct.Struct("<BQ4sQQ4sQ")  # no direct map and its length, "ilar", cells, bytes a vector, "full", cells


def index_kind(count: int) -> Kind:
    """The kind for so many vectors: exact while that surely takes less than a millisecond, cells beyond."""
    return "flat" if count < FLAT_BELOW else "ivf"


def cell_count(count: int) -> int:
    """Cells for so many vectors: the power of two nearest 4·√N (10⁶: 4,096), fewer where cells would be nearly empty.

    Centroids and cells then cost about the same to compare, and k-means is run again only each time that the
    collection has grown fourfold.
    """
    cells: int = 2 ** round(math.log2(4 * math.sqrt(max(count, 1))))
    while cells > 1 and cells * _WORTH_A_CELL > count:
        cells //= 2
    return cells


@dataclass(frozen=True)
class Structure:
    """A FAISS index over N vectors, and for `ivf` the cell of each."""

    faiss_index: Any
    cells: Rows | None = None  # (N,); None: flat

    @property
    def kind(self) -> Kind:
        """Which of the two it is."""
        return "flat" if self.cells is None else "ivf"

    def propose(self, queries: Floats, count: int, widen: int = 1) -> tuple[Floats, Rows, bool]:
        """The `count` candidates most similar to each query, by FAISS's rounded inner products.

        Args:
            queries: (B, D) float32, unit length.
            count: candidates a query.
            widen: how many times `PROBES` cells are looked into.

        Returns:
            Inner products (B, count) and rows (B, count), best first, row -1 where the cells held fewer; and
            whether every vector was looked at. Which cells a query gets does not depend on the others.
        """
        index = self.faiss_index
        if self.cells is None:
            with _one_thread():
                return *index.search(queries, count), True
        options = faiss.SearchParametersIVF()
        options.nprobe = min(index.nlist, index.nprobe * widen)
        products, rows = np.empty((len(queries), count), np.float32), np.empty((len(queries), count), np.int64)
        with _one_thread():
            for query in range(len(queries)):  # a batch would be rounded differently, and could get other cells
                one = slice(query, query + 1)
                index.search(queries[one], count, params=options, D=products[one], I=rows[one])
        return products, rows, options.nprobe == index.nlist


def build(vectors: Floats, kind: Kind) -> Structure:
    """Index `vectors` (N, D), float32, unit length.

    Equal vectors give an equal structure, whatever the number of cores: k-means is seeded and runs on one thread. (On
    another kind of processor FAISS and its BLAS may round sums differently, and with them the centroids of `ivf`.)

    Raises:
        ValueError: `ivf` without a vector.
    """
    if kind == "flat":
        index = faiss.IndexFlatIP(vectors.shape[1])
        index.add(vectors)
        return Structure(index)
    if not len(vectors):
        raise ValueError("an ivf index needs at least one vector to begin with; leave kind at auto")
    wanted = cell_count(len(vectors))
    options = {"niter": _ITERATIONS, "seed": _SEED, "max_points_per_centroid": _TRAINED_ON, "spherical": True}
    kmeans = faiss.Kmeans(vectors.shape[1], wanted, **options)
    with _one_thread():
        kmeans.train(vectors)
    centroids = np.asarray(kmeans.centroids, np.float32).reshape(wanted, -1)
    used, cells = np.unique(_nearest(centroids, vectors), return_inverse=True)  # equal vectors leave cells empty
    return _build_ivf(vectors, np.ascontiguousarray(centroids[used]), cells.astype(np.int64), PROBES)


def with_added(old: Structure, vectors: Floats, kind: Kind) -> Structure:
    """The structure of all `vectors` (N, D), of which `old` holds the first.

    Cells stay as they are, and new vectors go where they are nearest, until `cell_count` asks for others.
    """
    if (cells := _cells_to_keep(old, len(vectors), kind)) is None:
        return build(vectors, kind)
    centroids = _centroids(old)
    cells = np.concatenate([cells, _nearest(centroids, vectors[len(cells) :])])
    return _build_ivf(vectors, centroids, cells, old.faiss_index.nprobe)


def with_removed(old: Structure, vectors: Floats, rows: Rows, kind: Kind) -> Structure:
    """The structure of `vectors` (N, D), which are those of `rows` (N,) in `old`; cells stay as in `with_added`."""
    if (cells := _cells_to_keep(old, len(vectors), kind)) is None:
        return build(vectors, kind)
    return _build_ivf(vectors, _centroids(old), cells[rows], old.faiss_index.nprobe)


def to_bytes(structure: Structure) -> memoryview:
    """The bytes of FAISS's own file format; equal structures give equal bytes."""
    data: memoryview = faiss.serialize_index(structure.faiss_index).data
    return data


def parse(data: bytes, name: str) -> tuple[Floats, Structure]:
    """Read what `to_bytes` wrote: the vectors (N, D), whatever values they have, and their structure.

    `name` stands for the file in messages.

    Raises:
        ValueError: another kind of index or metric, or lengths that contradict each other or the file's. Nothing is
            allocated that the file does not hold.
    """
    reader = _Reader(data, name)
    if data[:4] == _FLAT:
        dim, count = reader.header(_FLAT)
        vectors = reader.matrix(count, dim)
        reader.end()
        return vectors, build(vectors, "flat")
    if data[:4] != _IVF:
        raise ValueError(
            f"{name} begins with {data[:4]!r}; an inner-product index begins with {_FLAT!r} (flat) or {_IVF!r} (ivf)"
        )
    return _parse_ivf(reader)


def _parse_ivf(reader: _Reader) -> tuple[Floats, Structure]:
    """An IndexIVFFlat: header, centroids as a flat index, then each cell's vectors and their rows."""
    name = reader.name
    dim, count = reader.header(_IVF)
    cells, probes = reader.unpack(_PROBING)
    if not 1 <= probes <= cells <= count:
        raise ValueError(f"{name} looks into {probes} of {cells} cells for {count} vectors")
    if reader.header(_FLAT) != (dim, cells):
        raise ValueError(f"{name} announces {cells} cells of width {dim}, but holds other centroids")
    centroids = reader.matrix(cells, dim)
    if not np.isfinite(centroids).all():
        raise ValueError(f"{name} has centroids that are not finite")
    if (lists := reader.unpack(_LISTS)) != (0, 0, b"ilar", cells, 4 * dim, b"full", cells):
        raise ValueError(f"{name} has cells of another layout: {lists}")
    sizes = reader.array("<u8", cells).astype(object)  # Python's integers: their sum cannot wrap around
    if sizes.sum() != count or reader.left != count * (4 * dim + 8):
        raise ValueError(f"{name} announces {count} vectors; its cells have {sizes.sum()}, in {reader.left} bytes")
    vectors, cell_of = np.empty((count, dim), np.float32), np.full(count, -1, np.int64)
    for cell, size in enumerate(sizes):
        values, rows = reader.array("<f4", size * dim), reader.array("<i8", size)
        if size and not (rows.min() >= 0 and rows.max() < count):
            raise ValueError(f"{name}: cell {cell} has rows from {rows.min()} to {rows.max()} of {count} vectors")
        vectors[rows], cell_of[rows] = values.reshape(size, dim), cell
    if (missing := np.flatnonzero(cell_of < 0)).size:  # as many vectors as rows: a missing one means another is twice
        raise ValueError(f"{name}: row {missing[0]} is in no cell ({missing.size} such rows)")
    return vectors, _build_ivf(vectors, centroids, cell_of, probes)


class _Reader:
    """Reads one thing after the other; ValueError where the file ends before it."""

    def __init__(self, data: bytes, name: str) -> None:
        self.data, self.name, self.at = data, name, 0

    @property
    def left(self) -> int:
        return len(self.data) - self.at

    def take(self, size: int) -> int:
        """Pass over `size` bytes; where they begin."""
        if size > self.left:
            raise ValueError(f"{self.name} has {len(self.data)} bytes, it announces {self.at + size} or more")
        self.at += size
        return self.at - size

    def unpack(self, layout: struct.Struct) -> tuple[Any, ...]:
        return layout.unpack_from(self.data, self.take(layout.size))

    def array(self, dtype: str, count: int) -> npt.NDArray[Any]:
        """`count` values, not copied."""
        return np.frombuffer(self.data, dtype, count, self.take(count * np.dtype(dtype).itemsize))

    def header(self, kind: bytes) -> tuple[int, int]:
        """Width and number of vectors."""
        magic, dim, count, _, _, _, metric = self.unpack(_HEADER)
        if magic != kind or dim < 1 or count < 0:
            raise ValueError(f"{self.name} announces {count} vectors of width {dim} in {magic!r}, expected is {kind!r}")
        if metric != faiss.METRIC_INNER_PRODUCT:
            raise ValueError(f"{self.name} has FAISS metric {metric}, inner product is {faiss.METRIC_INNER_PRODUCT}")
        return dim, count

    def matrix(self, count: int, dim: int) -> Floats:
        """The values of a flat index, (count, dim)."""
        (values,) = self.unpack(_LENGTH)
        if values != count * dim:
            raise ValueError(f"{self.name} announces {count} vectors of width {dim}, but {values} values")
        return self.array("<f4", values).astype(np.float32).reshape(count, dim)

    def end(self) -> None:
        if self.left:
            raise ValueError(f"{self.name} goes on for {self.left} bytes behind its last vector")


def _cells_to_keep(old: Structure, count: int, kind: Kind) -> Rows | None:
    """The cells of `old`, where `count` vectors want as many; None where they want others or none."""
    if old.cells is None or kind == "flat" or cell_count(count) != cell_count(len(old.cells)):
        return None
    return old.cells


def _centroids(structure: Structure) -> Floats:
    index = structure.faiss_index
    centroids: Floats = index.quantizer.reconstruct_n(0, index.nlist)
    return centroids


def _nearest(centroids: Floats, vectors: Floats) -> Rows:
    """The cell of each vector, (N,): that of the most similar centroid."""
    index = faiss.IndexFlatIP(centroids.shape[1])
    index.add(centroids)
    with _one_thread():
        found: Rows = index.search(vectors, 1)[1][:, 0]
    return found


def _build_ivf(vectors: Floats, centroids: Floats, cells: Rows, probes: int) -> Structure:
    """The IndexIVFFlat whose cell `cells[i]` holds row i, rows in order."""
    quantizer = faiss.IndexFlatIP(centroids.shape[1])
    quantizer.add(centroids)
    index = faiss.IndexIVFFlat(quantizer, centroids.shape[1], len(centroids), faiss.METRIC_INNER_PRODUCT)
    lists: Any = index.invlists
    order = np.argsort(cells, kind="stable")
    bounds = np.searchsorted(cells, np.arange(1, len(centroids)), sorter=order)
    for cell, rows in enumerate(np.split(order, bounds)):  # cell by cell: lists that grow take twice the memory
        if len(rows):
            codes = np.ascontiguousarray(vectors[rows]).view(np.uint8)
            lists.add_entries(cell, len(rows), faiss.swig_ptr(rows), faiss.swig_ptr(codes))
    index.ntotal = len(vectors)
    index.nprobe = min(probes, len(centroids))
    return Structure(index, cells)


@contextmanager
def _one_thread() -> Iterator[None]:
    """FAISS works on the calling thread alone; OpenMP keeps that number per thread, so others keep theirs.

    Divided among threads, work this small waits for the slowest: milliseconds wherever something else computes too.
    """
    before = faiss.omp_get_max_threads()
    faiss.omp_set_num_threads(1)
    try:
        yield
    finally:
        faiss.omp_set_num_threads(before)
