"""Search in the index of reference cases: what ships, and a curve to 10⁶ cases.

    python -m benchmarks index --out DIR [--sizes 2069 10000 …] [--images DIR]

The collections of the curve are made of the shipped index: a report embedding, drawn anew for every case, plus noise,
divided by its length. The noise points where real reports differ: its covariance is that of the differences between
each embedding and its five nearest, scaled by ``NOISE``, so that it varies along some forty directions and not along
all 256. At ``NOISE`` = 0.75 the nearest of 2,000 made cases is about as similar to a query as that of the real reports
(median cosine .94, real .96; any two: .73, real .75), and cases of one origin stay nearer than those of another.
Queries are made the same way from 200 embeddings that no case was made of. ``--images`` adds what the service asks
with: embeddings of radiographs, which lie far from all reports (cosine .3 to the nearest) and are harder to answer.

One case of the curve after the other is written to ``index-curve.csv``; sizes that stand there are not measured again.
"""

from __future__ import annotations

import csv
import itertools
import logging
import resource
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import numpy.typing as npt

from benchmarks.table import Row, below, times
from retrieval_index.cases import Case
from retrieval_index.faiss_backend import FLAT_BELOW, PROBES, cell_count
from retrieval_index.index import VECTORS_FILE, ReportIndex

log = logging.getLogger(__name__)
BUNDLE = Path(__file__).resolve().parent.parent / "bundles/iu-xray"
SIZES = (2069, 10_000, 30_000, 100_000, 300_000, 1_000_000)
CSV, PLOT = "index-curve.csv", "index-curve.png"
NOISE = 0.75
K = 5
_HELD_OUT = 200  # embeddings that only queries are made of
_NEIGHBOURS = 5
_QUERIES, _TIMED, _IMAGES = 1000, 300, 300
_CHUNK = 65_536
_SEED = 7

Floats = npt.NDArray[np.float32]
Rows = npt.NDArray[np.int64]


def rows() -> list[Row]:
    """The row of the main table: one query against the shipped index."""
    index = ReportIndex.load(BUNDLE / "index")
    queries = Maker(index).queries(_TIMED)
    return [
        below(
            1e-3,
            figure=f"search of {len(index):,} cases, one query, k = {K}",
            value=median(search_times(index.search, queries)),
            note=f"{index.kind}, median of {_TIMED}",
        )
    ]


class Maker:
    """Makes cases and queries of an index's vectors; the same ones every time, smaller collections being prefixes."""

    def __init__(self, index: ReportIndex) -> None:
        vectors = np.unique(index.vectors(np.arange(len(index))), axis=0)  # many reports are the same
        vectors = vectors[np.random.default_rng(_SEED).permutation(len(vectors))]
        self._held_out, self._origins = vectors[:_HELD_OUT], vectors[_HELD_OUT:]
        similarity = self._origins @ self._origins.T
        np.fill_diagonal(similarity, -np.inf)
        nearest = np.argpartition(-similarity, _NEIGHBOURS, axis=1)[:, :_NEIGHBOURS]
        difference = (self._origins[:, None] - self._origins[nearest]).reshape(-1, index.dim)
        # a difference has twice the covariance of what either of the two brings
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
        """(count, D) float32, unit length, made of embeddings that no case is made of."""
        return self._noisy(self._held_out, np.random.default_rng((_SEED, 2)))[:count]

    def _noisy(self, origins: Floats, rng: np.random.Generator) -> Floats:
        """(_CHUNK, D)."""
        drawn = origins[rng.integers(0, len(origins), _CHUNK)]
        drawn += rng.standard_normal(drawn.shape, dtype=np.float32) @ self._noise
        drawn /= np.linalg.norm(drawn, axis=1, keepdims=True)
        return drawn


@dataclass(frozen=True)
class Point:
    """One line of the CSV: a size, searched exactly and as ``retrieval_index`` chooses."""

    vectors: int
    kind: str
    cells: int  # 0: flat
    probes: int
    exact_build_s: float
    build_s: float
    load_s: float  # both files, checks included
    bytes: int  # of reports.faiss
    exact_median_ms: float  # one query, k = 5
    exact_p95_ms: float
    median_ms: float
    p95_ms: float
    recall_5: float  # share of the exact five that are found, held-out queries
    recall_5_images: float | None  # image embeddings


def curve(out: Path, sizes: Sequence[int] = SIZES, *, images: Path | None = None) -> list[Point]:
    """Measure each size and write ``index-curve.csv`` and ``index-curve.png`` into ``out``.

    10⁶ cases take some minutes on two cores and about 5 GB of memory.

    Args:
        out: is made; the sizes in an earlier CSV there are kept.
        sizes: numbers of cases.
        images: a folder of radiographs (PNG, JPEG); their embeddings become queries of their own.

    Raises:
        ValueError: the folder has no image, or the CSV in ``out`` has other columns.
    """
    out.mkdir(parents=True, exist_ok=True)
    points = {point.vectors: point for point in _read(out / CSV)}
    missing = [size for size in sorted(sizes) if size not in points]
    if missing:
        maker = Maker(ReportIndex.load(BUNDLE / "index"))
        from_images = None if images is None else embed_images(images)
        began, done = time.perf_counter(), 0
        for size in missing:
            points[size] = _measure(maker, size, from_images)
            done += size
            rate = done / (time.perf_counter() - began)
            _write(out / CSV, [points[key] for key in sorted(points)])
            log.info("%s", points[size])
            log.info("  %d cases/s; %d cases to go; peak memory %.1f GiB", rate, sum(missing) - done, _peak_gib())
    measured = [points[size] for size in sorted(points)]
    plot(measured, out / PLOT)
    return measured


def _measure(maker: Maker, size: int, images: Floats | None) -> Point:
    queries, cases = maker.queries(_QUERIES), [Case(f"case-{row}") for row in range(size)]
    vectors = maker.cases(size)
    log.info("%d cases made", size)
    exact_build_s, exact = _timed(ReportIndex.build, vectors, cases, kind="flat")
    exact_times = search_times(exact.search, queries)
    best = [exact.search(asked, K)[1] for asked in (queries, images) if asked is not None]
    del exact  # before the next one is built: at 10⁶ each takes 2 GB
    log.info("  exact: built in %.1f s, %.2f ms a query", exact_build_s, median(exact_times) * 1e3)
    build_s, index = _timed(ReportIndex.build, vectors, cases)
    del vectors
    log.info("  %s: built in %.1f s", index.kind, build_s)
    with tempfile.TemporaryDirectory() as folder:
        index.save(Path(folder))
        kind, size_on_disk = index.kind, (Path(folder) / VECTORS_FILE).stat().st_size
        del index
        load_s, index = _timed(ReportIndex.load, Path(folder))
    own_times = search_times(index.search, queries)
    shares = [recall(index.search(asked, K)[1], wanted)
              for asked, wanted in zip((queries, images), best, strict=False) if asked is not None]  # fmt: skip
    cells = cell_count(size) if kind == "ivf" else 0
    exact_median, exact_p95 = median_p95_ms(exact_times)
    own_median, own_p95 = median_p95_ms(own_times)
    return Point(
        vectors=size,
        kind=kind,
        cells=cells,
        probes=min(cells, PROBES),
        exact_build_s=round(exact_build_s, 4),
        build_s=round(build_s, 4),
        load_s=round(load_s, 4),
        bytes=size_on_disk,
        exact_median_ms=exact_median,
        exact_p95_ms=exact_p95,
        median_ms=own_median,
        p95_ms=own_p95,
        recall_5=shares[0],
        recall_5_images=shares[1] if images is not None else None,
    )


def embed_images(folder: Path) -> Floats:
    """Embeddings of up to 300 radiographs of a folder, each taken alone as a frontal: (Q, D) float32, unit length.

    Raises:
        ValueError: there is no PNG or JPEG in it.
    """
    import torch

    from model.bundle import load_bundle
    from model.images.read import load_pixels

    files = sorted(path for path in folder.iterdir() if path.suffix.lower() in {".png", ".jpg", ".jpeg"})
    if not files:
        raise ValueError(f"{folder} holds no .png, .jpg or .jpeg; name a folder of radiographs")
    bundle = load_bundle(BUNDLE)
    found = []
    with torch.inference_mode():
        for path in files[:: -(-len(files) // _IMAGES)]:
            pixels = load_pixels(path.read_bytes(), bundle.config.preprocessing.image_size)
            image = torch.from_numpy(pixels)[None, None, None].float() / 255  # (1, 1, 1, S, S)
            patches = bundle.model.encode_images(
                image, torch.zeros(1, 1, dtype=torch.int64), torch.ones(1, 1, dtype=torch.bool)
            )
            found.append(bundle.model.embed_study(patches).float().numpy())
    return np.concatenate(found)


def plot(points: Sequence[Point], path: Path) -> None:
    """Time, recall and cost over size as a PNG."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    sizes = [point.vectors for point in points]
    figure, (speed, recall, cost) = pyplot.subplots(1, 3, figsize=(15, 4.8), constrained_layout=True)

    def line(axes: Any, name: str, label: str, style: str, **more: Any) -> None:
        axes.plot(sizes, [getattr(point, name) for point in points], style, label=label, **more)

    line(speed, "exact_median_ms", "exact, median", "o-", color="tab:gray")
    line(speed, "exact_p95_ms", "exact, 95th percentile", ":", color="tab:gray")
    line(speed, "median_ms", "chosen kind, median", "o-", color="tab:blue")
    line(speed, "p95_ms", "chosen kind, 95th percentile", ":", color="tab:blue")
    speed.axhline(1, color="tab:red", linewidth=1)
    speed.text(sizes[0], 1.08, "1 ms", color="tab:red")
    speed.set(title="One query, k = 5", ylabel="milliseconds", yscale="log")
    line(recall, "recall_5", "held-out reports", "o-", color="tab:blue")
    if all(point.recall_5_images is not None for point in points):
        line(recall, "recall_5_images", "radiographs", "s-", color="tab:orange")
    recall.axhline(0.99, color="tab:red", linewidth=1)
    recall.text(sizes[0], 0.9902, "goal .99", color="tab:red")
    recall.set(title="Recall@5 of the chosen kind", ylabel="share of the exact five", ylim=(0.98, 1.001))
    line(cost, "exact_build_s", "build, exact", "o-", color="tab:gray")
    line(cost, "build_s", "build, chosen kind", "o-", color="tab:blue")
    line(cost, "load_s", "load, chosen kind", "s-", color="tab:green")
    cost.set(title="Build and load", ylabel="seconds", yscale="log")
    for axes in (speed, recall, cost):
        axes.set(xscale="log", xlabel="cases in the index")
        axes.axvline(FLAT_BELOW, color="black", linewidth=1, linestyle="--", label="exact below")
        axes.grid(alpha=0.3, which="both")
        axes.legend(fontsize=9)
    figure.savefig(path, dpi=120)
    pyplot.close(figure)


def search_times(search: Callable[[Floats, int], object], queries: Floats) -> list[float]:
    """Seconds of ``_TIMED`` searches with one query each, (1, D)."""
    following: Iterator[Floats] = itertools.cycle(queries[:, None])
    return times(lambda: search(next(following), K), repeats=_TIMED, warm_up=20)


def median_p95_ms(taken: Sequence[float]) -> tuple[float, float]:
    """Median and 95th percentile of seconds, in milliseconds."""
    return round(median(taken) * 1e3, 4), round(float(np.percentile(taken, 95)) * 1e3, 4)


def recall(found: Rows, wanted: Rows) -> float:
    """Share of the wanted rows that were found, (Q, k) each."""
    shares = [len({*one} & {*other}) / K for one, other in zip(found, wanted, strict=True)]
    return round(float(np.mean(shares)), 4)


def _timed(make: Callable[..., ReportIndex], *given: Any, **options: Any) -> tuple[float, ReportIndex]:
    began = time.perf_counter()
    index = make(*given, **options)
    return time.perf_counter() - began, index


def _read(path: Path) -> list[Point]:
    """The points of an earlier run."""
    if not path.is_file():
        return []
    with path.open(newline="") as file:
        reader = csv.DictReader(file)
        if reader.fieldnames != (names := [field.name for field in fields(Point)]):
            raise ValueError(
                f"{path} has the columns {reader.fieldnames}, not {names}; remove it or choose another --out"
            )
        kinds: dict[str, Callable[[str], Any]] = {
            "kind": str,
            "recall_5_images": lambda text: float(text) if text else None,
        }
        whole = {"vectors", "cells", "probes", "bytes"}
        return [
            Point(**{name: kinds.get(name, int if name in whole else float)(text) for name, text in line.items()})
            for line in reader
        ]


def _write(path: Path, points: Sequence[Point]) -> None:
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, [field.name for field in fields(Point)])
        writer.writeheader()
        writer.writerows(asdict(point) for point in points)


def _peak_gib() -> float:
    """The most memory that this process had, in GiB."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (2**30 if sys.platform == "darwin" else 2**20)  # macOS counts bytes, Linux KiB
