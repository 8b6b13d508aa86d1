"""Kinds of index side by side at one size: why ``retrieval_index`` chooses cells beyond 20,000 cases, and not HNSW."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import faiss

from benchmarks.index import BUNDLE, Floats, K, Maker, embed_images, median_p95_ms, recall, search_times
from retrieval_index.faiss_backend import build, cell_count
from retrieval_index.index import ReportIndex

SIZE, QUERIES = 100_000, 1000
PROBES = (16, 32, 64)
LINKS, EF_BUILD, EF_SEARCH = 32, 200, (64, 256)


@dataclass(frozen=True)
class Line:
    """One kind with one setting. Recall is the share of the exact five; None without images."""

    kind: str
    build_s: float
    median_ms: float
    recall_reports: float
    recall_images: float | None


def compare(size: int = SIZE, *, images: Path | None = None) -> list[Line]:
    """Build each kind over the same ``size`` made cases and search it with the same queries, on one thread.

    Args:
        size: number of cases, at least as many as make cells worth while.
        images: a folder of radiographs; their embeddings become queries of their own.

    Raises:
        ValueError: the folder has no image.
    """
    maker = Maker(ReportIndex.load(BUNDLE / "index"))
    asked = [maker.queries(QUERIES)] + ([] if images is None else [embed_images(images)])
    vectors = maker.cases(size)
    before = faiss.omp_get_max_threads()
    faiss.omp_set_num_threads(1)
    try:
        return list(_lines(vectors, asked))
    finally:
        faiss.omp_set_num_threads(before)


def _lines(vectors: Floats, asked: list[Floats]) -> Iterator[Line]:
    seconds, flat = _timed(lambda: build(vectors, "flat").faiss_index)
    exact = [flat.search(queries, K)[1] for queries in asked]

    def line(kind: str, seconds: float, index: Any) -> Line:
        found = [index.search(queries, K)[1] for queries in asked]
        shares = [recall(mine, best) for mine, best in zip(found, exact, strict=True)]
        taken = search_times(index.search, asked[0])
        return Line(kind, seconds, median_p95_ms(taken)[0], shares[0], shares[1] if len(shares) > 1 else None)

    yield line("flat", seconds, flat)
    seconds, cells = _timed(lambda: build(vectors, "ivf").faiss_index)
    for probes in PROBES:
        cells.nprobe = probes
        yield line(f"ivf, {probes} of {cell_count(len(vectors)):,} cells", seconds, cells)
    del cells
    graph = faiss.IndexHNSWFlat(vectors.shape[1], LINKS, faiss.METRIC_INNER_PRODUCT)
    graph.hnsw.efConstruction = EF_BUILD
    seconds, _ = _timed(lambda: graph.add(vectors))
    for searched in EF_SEARCH:
        graph.hnsw.efSearch = searched
        yield line(f"hnsw, M {LINKS}, efSearch {searched}", seconds, graph)


def as_markdown(lines: list[Line]) -> str:
    """The lines as a Markdown table."""
    table = [
        "| kind | built in, s | one query, ms | recall@5, reports | recall@5, radiographs |",
        "|---|---|---|---|---|",
    ]
    for line in lines:
        seen = "–" if line.recall_images is None else f"{line.recall_images:.4f}"
        table.append(
            f"| {line.kind} | {line.build_s:.1f} | {line.median_ms:.2f} | {line.recall_reports:.4f} | {seen} |"
        )
    return "\n".join(table)


def _timed(call: Callable[[], Any]) -> tuple[float, Any]:
    began = time.perf_counter()
    made = call()
    return time.perf_counter() - began, made
