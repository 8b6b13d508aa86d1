"""Exact similarities of the nearest vectors, in an order that depends on no other query of the batch."""

from __future__ import annotations

import numpy as np

from retrieval_index.faiss_backend import Floats, Rows, Structure

NORM_TOLERANCE = 1e-3  # allowed deviation of a vector's length from 1
_ROUNDING = 1e-5  # above the float32 error of an inner product of unit vectors
_QUERIES_AT_ONCE = 256


def nearest(structure: Structure, vectors: Floats, queries: Floats, k: int, excluded: Rows) -> tuple[Floats, Rows]:
    """The k most similar of `vectors` (N, D) for each of `queries` (B, D); ties go to the lower row.

    Args:
        structure: of `vectors`.
        vectors: unit length.
        queries: unit length.
        k: at least 1.
        excluded: (B,) a row that each query never gets, or -1.

    Returns:
        Cosine similarity (B, k) float32 and rows (B, k) int64, best first; padded with similarity 0
        and row -1.
    """
    similarity = np.zeros((len(queries), k), np.float32)  # (B, k)
    rows = np.full((len(queries), k), -1, np.int64)  # (B, k)
    for start in range(0, len(queries), _QUERIES_AT_ONCE):
        part = slice(start, start + _QUERIES_AT_ONCE)
        _search_into(structure, vectors, queries[part], excluded[part], similarity[part], rows[part])
    return similarity, rows


def _search_into(
    structure: Structure, vectors: Floats, queries: Floats, excluded: Rows, similarity: Floats, rows: Rows
) -> None:
    """Fill `similarity` and `rows` (B, k) of one block of queries.

    FAISS orders ties arbitrarily, and its rounding depends on the batch. It therefore only proposes
    candidates, k + 1 or more, until the last is clearly worse than the k-th. Then their cosines are
    computed in float64.
    """
    k, total = rows.shape[1], len(vectors)
    pending = np.arange(len(queries))
    widen = 1
    while len(pending) and total:
        proposed = min(total, 2 * (k + 1) * widen)  # one more for the excluded case, the rest for ties
        coarse, candidates, whole = structure.propose(queries[pending], proposed, widen)  # (P, proposed) each
        usable = (candidates >= 0) & (candidates != excluded[pending, None])
        enough = np.cumsum(usable, axis=1) >= k
        kth = np.where(enough.any(1), coarse[np.arange(len(pending)), enough.argmax(1)], -np.inf)
        settled = (coarse[:, -1] < kth - _ROUNDING) | (whole and proposed == total)
        for query, row in zip(pending[settled], np.flatnonzero(settled), strict=True):
            found = candidates[row][usable[row]]
            exact = (vectors[found].astype(np.float64) * queries[query]).sum(1).astype(np.float32)
            best = np.lexsort((found, -exact))[:k]
            similarity[query, : len(best)] = exact[best]
            rows[query, : len(best)] = found[best]
        pending = pending[~settled]
        widen *= 4


def checked_vectors(vectors: Floats, dim: int | None, name: str, *, copy: bool = True) -> Floats:
    """A contiguous float32 copy (N, D) of `vectors`; raises ValueError unless finite and of unit length."""
    array: Floats = np.array(vectors, np.float32, order="C", ndmin=1, copy=copy or None)
    if array.ndim != 2 or array.shape[1] == 0 or dim not in (None, array.shape[1]):
        raise ValueError(f"{name} have the shape {array.shape}; expected (N, {'D' if dim is None else dim})")
    if bad := np.flatnonzero(~np.isfinite(array).all(1)).tolist():
        raise ValueError(f"{name}: row {bad[0]} is not finite ({len(bad)} such rows)")
    lengths = np.sqrt(np.einsum("nd,nd->n", array, array))  # np.linalg.norm would copy the vectors
    if bad := np.flatnonzero(np.abs(lengths - 1) > NORM_TOLERANCE).tolist():
        raise ValueError(
            f"{name}: row {bad[0]} has length {lengths[bad[0]]:.4g} ({len(bad)} such rows); divide each by its L2 norm"
        )
    return array
