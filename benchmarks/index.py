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
from collections.abc import Callable, Sequence
from dataclasses import astuple, dataclass, fields
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import faiss
import numpy as np
import numpy.typing as npt
import torch

from benchmarks.measure import Row, below, in_turn, markdown
from benchmarks.server import BUNDLE
from model.bundle import load_bundle
from model.files import write_atomic
from model.images import load_pixels
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


class Comparison:
    """Searches of index after index with the same queries; the exact neighbours come from ``exact``."""

    def __init__(self, maker: Maker, images: Path | None) -> None:
        """``images`` is a folder of radiographs, whose embeddings become additional queries."""
        self.queries = [maker.queries(_QUERIES)] + ([] if images is None else [embed_images(images)])
        self.exact: list[Any] = []

    def point(
        self, kind: str, size: int, build_s: float, search: Search, load_s: float | None = None, *, exact: bool = False
    ) -> Point:
        """Measure one index; with ``exact`` its results become those that recall is computed from."""
        found = [search(queries, K)[1] for queries in self.queries]
        if exact:
            self.exact = found
        recalls = [
            round(float(np.mean([len({*one} & {*best}) / K for one, best in zip(mine, wanted, strict=True)])), 4)
            for mine, wanted in zip(found, self.exact, strict=True)
        ]
        middle, p95 = (np.percentile(search_times(search, self.queries[0]), [50, 95]).round(7) * 1e3).tolist()
        recall_images = recalls[1] if recalls[1:] else None
        point = Point(size, kind, round(build_s, 4), load_s, middle, p95, recalls[0], recall_images)
        log.info("%s", point)
        return point


def search_times(search: Search, queries: Floats) -> list[float]:
    """Seconds of searches with one query each."""
    following = itertools.cycle(queries[:, None])
    return in_turn([lambda: search(next(following), K)], rounds=_TIMED, warm_up=20)[0]


def rows() -> list[Row]:
    """The row of the main table: one query against the shipped index."""
    index = ReportIndex.load(BUNDLE / "index")
    taken = median(search_times(index.search, Maker(index).queries(_TIMED)))
    name = f"search of {len(index):,} cases, one query, k = {K}"
    return [below(1e-3, Row(name, taken, note=f"{index.kind}, median of {_TIMED}"))]


def curve(out: Path, sizes: Sequence[int] = SIZES, *, images: Path | None = None) -> list[Point]:
    """Search each size exactly and as ``retrieval_index`` chooses; write ``index-curve.csv`` and ``index-curve.png``.

    10⁶ cases take some minutes on two cores and about 5 GB of memory.
    """
    maker = Maker(ReportIndex.load(BUNDLE / "index"))
    compared = Comparison(maker, images)
    exact: list[Point] = []
    chosen: list[Point] = []
    for size in sorted(sizes):
        vectors, cases = maker.cases(size), [Case(f"case-{row}") for row in range(size)]
        build_s, index = _timed(partial(ReportIndex.build, vectors, cases, kind="flat"))
        exact.append(compared.point("exact", size, build_s, index.search, exact=True))
        del index  # before the next one is built: at 10⁶ each takes 2 GB
        build_s, index = _timed(partial(ReportIndex.build, vectors, cases))
        with tempfile.TemporaryDirectory() as folder:
            index.save(Path(folder))
            del index
            load_s, index = _timed(partial(ReportIndex.load, Path(folder)))
        chosen.append(compared.point(index.kind, size, build_s, index.search, load_s))
        del index, vectors
    text = io.StringIO()
    table = csv.writer(text, lineterminator="\n")
    table.writerow(field.name for field in fields(Point))
    table.writerows(astuple(point) for pair in zip(exact, chosen, strict=True) for point in pair)
    write_atomic(out / "index-curve.csv", text.getvalue().encode())
    from benchmarks import plots  # matplotlib, which the row of the table does not need

    plots.index_curve(exact, chosen, out / "index-curve.png", exact_below=FLAT_BELOW)
    return chosen


def kinds(size: int = KINDS_SIZE, *, images: Path | None = None) -> list[Point]:
    """Kinds of index on one thread: why ``retrieval_index`` uses cells from 20,000 cases on, and not HNSW."""
    threads = faiss.omp_get_max_threads()
    faiss.omp_set_num_threads(1)
    try:
        maker = Maker(ReportIndex.load(BUNDLE / "index"))
        compared, vectors = Comparison(maker, images), maker.cases(size)
        build_s, index = _timed(lambda: build(vectors, "flat").faiss_index)
        points = [compared.point("flat", size, build_s, index.search, exact=True)]
        build_s, index = _timed(lambda: build(vectors, "ivf").faiss_index)
        for index.nprobe in PROBES:
            name = f"ivf, {index.nprobe} of {cell_count(size):,} cells"
            points.append(compared.point(name, size, build_s, index.search))
        index = faiss.IndexHNSWFlat(vectors.shape[1], LINKS, faiss.METRIC_INNER_PRODUCT)
        index.hnsw.efConstruction = EF_BUILD
        build_s, _ = _timed(lambda: index.add(vectors))
        for index.hnsw.efSearch in EF_SEARCH:
            name = f"hnsw, M {LINKS}, efSearch {index.hnsw.efSearch}"
            points.append(compared.point(name, size, build_s, index.search))
        return points
    finally:
        faiss.omp_set_num_threads(threads)


def as_markdown(points: Sequence[Point]) -> str:
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
        drawn = origins[rng.integers(0, len(origins), _CHUNK)]
        drawn += rng.standard_normal(drawn.shape, dtype=np.float32) @ self._noise
        drawn /= np.linalg.norm(drawn, axis=1, keepdims=True)
        return drawn


def embed_images(folder: Path) -> Floats:
    """Embeddings of up to 300 radiographs, each as a lone frontal: (Q, D) float32, unit length."""
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


def _timed(call: Callable[[], Any]) -> tuple[float, Any]:
    began = time.perf_counter()
    made = call()
    return time.perf_counter() - began, made
