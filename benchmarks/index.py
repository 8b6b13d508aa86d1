"""Search in the index of reference cases: the shipped one, up to 10⁶ cases, and kinds of index.

    python -m benchmarks index --out DIR [--sizes 2069 10000 …] [--images DIR]
    python -m benchmarks kinds [--images DIR]

The large collections are made from the shipped index: a report embedding, sampled with replacement,
plus noise, normalised. The noise has the covariance of the differences between each embedding and
its five nearest, scaled by ``NOISE``, so that it varies along some forty directions, as real
reports do. At ``NOISE`` = 0.75 the nearest of 2,000 made cases is about as similar to a query as
that of the real reports (median cosine .94, real .96; any two: .73, real .75). Queries are made in
the same way from 200 embeddings that no case is made from. ``--images`` adds what the service
searches with: embeddings of radiographs, which lie far from all reports (cosine .3 to the nearest).
"""

from __future__ import annotations

import csv
import io
import itertools
import logging
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import astuple, dataclass, fields
from pathlib import Path
from statistics import median
from typing import Any

import faiss
import numpy as np
import numpy.typing as npt

from benchmarks import plots
from benchmarks.server import BUNDLE
from benchmarks.table import Row, below, markdown, times
from model.files import write_atomic
from retrieval_index.cases import Case
from retrieval_index.faiss_backend import FLAT_BELOW, build, cell_count
from retrieval_index.index import ReportIndex

log = logging.getLogger(__name__)
SIZES = (2069, 10_000, 30_000, 100_000, 300_000, 1_000_000)
KINDS_SIZE = 100_000
PROBES, LINKS, EF_BUILD, EF_SEARCH = (16, 32, 64), 32, 200, (64, 256)
NOISE = 0.75
K = 5
_HELD_OUT, _NEIGHBOURS = 200, 5
_QUERIES, _TIMED, _IMAGES = 1000, 300, 300
_CHUNK, _SEED = 65_536, 7

Floats = npt.NDArray[np.float32]
Search = Callable[[Floats, int], Any]  # (Q, D), k -> similarities (Q, k), rows (Q, k)


@dataclass(frozen=True)
class Point:
    """One kind of index at one size. Recall is the share of the exact five; None without images."""

    vectors: int
    kind: str
    build_s: float
    load_s: float | None  # from disk, checks included
    median_ms: float  # one query, k = 5, one thread
    p95_ms: float
    recall_reports: float
    recall_images: float | None


def rows() -> list[Row]:
    """The row of the main table: one query against the shipped index."""
    index = ReportIndex.load(BUNDLE / "index")
    taken = median(search_times(index.search, Maker(index).queries(_TIMED)))
    name = f"search of {len(index):,} cases, one query, k = {K}"
    return [below(1e-3, Row(name, taken, note=f"{index.kind}, median of {_TIMED}"))]


def curve(out: Path, sizes: Sequence[int] = SIZES, *, images: Path | None = None) -> list[Point]:
    """Search each size exactly and as ``retrieval_index`` chooses; write ``index-curve.csv`` and ``index-curve.png``.

    10⁶ cases take some minutes on two cores and about 5 GB of memory.

    Args:
        out: folder.
        sizes: numbers of cases.
        images: a folder of radiographs (PNG, JPEG); their embeddings become additional queries.

    Raises:
        ValueError: the folder has no image.
    """
    maker, asked = _queries(images)
    exact: list[Point] = []
    chosen: list[Point] = []
    for size in sorted(sizes):
        for points in zip((exact, chosen), _at_size(maker.cases(size), asked), strict=True):
            points[0].append(points[1])
            log.info("%s", points[1])
    text = io.StringIO()
    table = csv.writer(text, lineterminator="\n")
    table.writerow(field.name for field in fields(Point))
    table.writerows(astuple(point) for pair in zip(exact, chosen, strict=True) for point in pair)
    write_atomic(out / "index-curve.csv", text.getvalue().encode())
    plots.index_curve(exact, chosen, out / "index-curve.png", exact_below=FLAT_BELOW)
    return chosen


def _at_size(vectors: Floats, asked: list[Floats]) -> Iterator[Point]:
    """The exact index, then the chosen kind after a round trip to disk."""
    cases = [Case(f"case-{row}") for row in range(len(vectors))]
    build_s, index = _timed(lambda: ReportIndex.build(vectors, cases, kind="flat"))
    exact = [index.search(queries, K)[1] for queries in asked]
    yield _point("exact", len(vectors), build_s, index.search, asked, exact)
    del index  # before the next one is built: at 10⁶ each takes 2 GB
    build_s, index = _timed(lambda: ReportIndex.build(vectors, cases))
    with tempfile.TemporaryDirectory() as folder:
        index.save(Path(folder))
        del index
        load_s, index = _timed(lambda: ReportIndex.load(Path(folder)))
    yield _point(index.kind, len(vectors), build_s, index.search, asked, exact, load_s)


def kinds(size: int = KINDS_SIZE, *, images: Path | None = None) -> list[Point]:
    """Kinds of index on one thread: why ``retrieval_index`` uses cells from 20,000 cases on, and not HNSW.

    Raises:
        ValueError: the folder ``images`` has no image.
    """
    threads = faiss.omp_get_max_threads()
    faiss.omp_set_num_threads(1)
    try:
        maker, asked = _queries(images)
        return _kinds(maker.cases(size), asked)
    finally:
        faiss.omp_set_num_threads(threads)


def _kinds(vectors: Floats, asked: list[Floats]) -> list[Point]:
    size = len(vectors)
    build_s, index = _timed(lambda: build(vectors, "flat").faiss_index)
    exact = [index.search(queries, K)[1] for queries in asked]
    points = [_point("flat", size, build_s, index.search, asked, exact)]
    build_s, index = _timed(lambda: build(vectors, "ivf").faiss_index)
    for probes in PROBES:
        index.nprobe = probes
        name = f"ivf, {probes} of {cell_count(size):,} cells"
        points.append(_point(name, size, build_s, index.search, asked, exact))
    index = faiss.IndexHNSWFlat(vectors.shape[1], LINKS, faiss.METRIC_INNER_PRODUCT)
    index.hnsw.efConstruction = EF_BUILD
    build_s, _ = _timed(lambda: index.add(vectors))
    for searched in EF_SEARCH:
        index.hnsw.efSearch = searched
        points.append(_point(f"hnsw, M {LINKS}, efSearch {searched}", size, build_s, index.search, asked, exact))
    return points


def as_markdown(points: Sequence[Point]) -> str:
    """The points as a Markdown table."""
    header = ("cases", "kind", "built in, s", "one query, ms", "recall@5, reports", "recall@5, radiographs")
    return markdown(header, [
        (f"{p.vectors:,}", p.kind, f"{p.build_s:.1f}", f"{p.median_ms:.2f}", f"{p.recall_reports:.4f}",
         "–" if p.recall_images is None else f"{p.recall_images:.4f}")
        for p in points
    ])  # fmt: skip


class Maker:
    """Makes cases and queries from an index's vectors; deterministic, smaller collections are prefixes."""

    def __init__(self, index: ReportIndex) -> None:
        vectors = np.unique(index.vectors(np.arange(len(index))), axis=0)  # many reports are equal
        vectors = vectors[np.random.default_rng(_SEED).permutation(len(vectors))]
        self._held_out, self._origins = vectors[:_HELD_OUT], vectors[_HELD_OUT:]
        similarity = self._origins @ self._origins.T
        np.fill_diagonal(similarity, -np.inf)
        nearest = np.argpartition(-similarity, _NEIGHBOURS, axis=1)[:, :_NEIGHBOURS]
        difference = (self._origins[:, None] - self._origins[nearest]).reshape(-1, index.dim)
        # a difference of two has twice the covariance of one
        values, axes = np.linalg.eigh(difference.T @ difference / (2 * len(difference)))
        self._noise = (axes * np.sqrt(values.clip(0))).T.astype(np.float32) * np.float32(NOISE)  # (D, D)

    def cases(self, count: int) -> Floats:
        """(count, D) float32, unit length."""
        made = np.empty((count, self._noise.shape[1]), np.float32)
        for chunk, start in enumerate(range(0, count, _CHUNK)):
            part = made[start : start + _CHUNK]
            part[:] = self._noisy(self._origins, np.random.default_rng((_SEED, 1, chunk)))[: len(part)]
        return made

    def queries(self, count: int) -> Floats:
        """(count, D) float32, unit length, from embeddings that no case is made from."""
        return self._noisy(self._held_out, np.random.default_rng((_SEED, 2)))[:count]

    def _noisy(self, origins: Floats, rng: np.random.Generator) -> Floats:
        """(_CHUNK, D)."""
        drawn = origins[rng.integers(0, len(origins), _CHUNK)]
        drawn += rng.standard_normal(drawn.shape, dtype=np.float32) @ self._noise
        drawn /= np.linalg.norm(drawn, axis=1, keepdims=True)
        return drawn


def embed_images(folder: Path) -> Floats:
    """Embeddings of up to 300 radiographs, each as a lone frontal: (Q, D) float32, unit length.

    Raises:
        ValueError: the folder has no PNG or JPEG.
    """
    import torch

    from model.bundle import load_bundle
    from model.images import load_pixels

    files = sorted(path for path in folder.iterdir() if path.suffix.lower() in {".png", ".jpg", ".jpeg"})
    if not files:
        raise ValueError(f"{folder} holds no .png, .jpg or .jpeg; name a folder of radiographs")
    bundle = load_bundle(BUNDLE)
    found = []
    with torch.inference_mode():
        for path in files[:: -(-len(files) // _IMAGES)]:
            pixels = load_pixels(path.read_bytes(), bundle.config.preprocessing.image_size)
            image = torch.from_numpy(pixels)[None, None, None].float() / 255  # (1, 1, 1, S, S)
            views, present = torch.zeros(1, 1, dtype=torch.int64), torch.ones(1, 1, dtype=torch.bool)
            patches = bundle.model.encode_images(image, views, present)
            found.append(bundle.model.embed_study(patches).float().numpy())
    return np.concatenate(found)


def search_times(search: Search, queries: Floats) -> list[float]:
    """Seconds of searches with one query each."""
    following: Iterator[Floats] = itertools.cycle(queries[:, None])
    return times(lambda: search(next(following), K), repeats=_TIMED, warm_up=20)


def _queries(images: Path | None) -> tuple[Maker, list[Floats]]:
    maker = Maker(ReportIndex.load(BUNDLE / "index"))
    return maker, [maker.queries(_QUERIES)] + ([] if images is None else [embed_images(images)])


def _point(
    kind: str, size: int, build_s: float, search: Search, asked: list[Floats], exact: list[Any],
    load_s: float | None = None,
) -> Point:  # fmt: skip
    found = [search(queries, K)[1] for queries in asked]
    recalls = [
        round(float(np.mean([len({*one} & {*best}) / K for one, best in zip(mine, wanted, strict=True)])), 4)
        for mine, wanted in zip(found, exact, strict=True)
    ]
    middle, p95 = np.percentile(search_times(search, asked[0]), [50, 95]).round(7).tolist()
    return Point(
        size, kind, round(build_s, 4), load_s, middle * 1e3, p95 * 1e3, recalls[0], recalls[1] if recalls[1:] else None
    )


def _timed(call: Callable[[], Any]) -> tuple[float, Any]:
    began = time.perf_counter()
    made = call()
    return time.perf_counter() - began, made
