"""The index as a retriever of any vectors: build, search, save and load, with ids of the caller.

from cxr_report import Retriever

retriever = Retriever.build(vectors, ids)           # (N, D) float32, of any length
for match in retriever.search(query, k=5)[0]:
    print(match.id, match.similarity)
retriever.save(Path("my-index"))
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from model.files import write_atomic
from retrieval_index import faiss_backend
from retrieval_index.faiss_backend import Floats, Kind, Structure, index_kind
from retrieval_index.index import IndexFormatError
from retrieval_index.nearest import checked_vectors, nearest

VECTORS_FILE, IDS_FILE = "vectors.faiss", "ids.json"


class Match(NamedTuple):
    """A found vector: its id, and the cosine similarity with the query, -1 to 1."""

    id: str
    similarity: float


class Retriever:
    """Vectors with unique ids, searched by cosine similarity. Immutable. Made by `build` or `load`."""

    def __init__(self, structure: Structure, vectors: Floats, ids: Sequence[str]) -> None:
        self._structure, self._vectors, self.ids = structure, vectors, tuple(ids)
        self._rows = {name: row for row, name in enumerate(self.ids)}

    @classmethod
    def build(cls, vectors: npt.NDArray[Any], ids: Sequence[str], *, kind: Kind | None = None) -> Retriever:
        """Index `vectors` (N, D); the vector in row i has the id `ids[i]`.

        Args:
            vectors: finite numbers; copied and divided by their L2 norm.
            ids: unique strings.
            kind: `flat` is exact, `ivf` is faster from 20,000 vectors; None chooses by N.

        Raises:
            ValueError: a wrong shape, a vector that is not finite or zero, an id that is no string
                or repeats, or the numbers differ; the message names the row.
        """
        unit = _unit(vectors, None, "vectors")
        problem = _problem(ids, len(unit))
        if problem:
            raise ValueError(problem)
        if kind not in (None, "flat", "ivf"):
            raise ValueError(f"kind {kind!r} is unknown; use flat, ivf or None")
        return cls(faiss_backend.build(unit, kind or index_kind(len(unit))), unit, ids)

    @property
    def dim(self) -> int:
        """Width D of the vectors."""
        return int(self._vectors.shape[1])

    def __len__(self) -> int:
        return len(self.ids)

    def search(
        self, queries: npt.NDArray[Any], k: int = 5, *, exclude: Sequence[str | None] | None = None
    ) -> list[list[Match]]:
        """The k most similar vectors of each query, best first, fewer if there are not k; ties in the order of `build`.

        Args:
            queries: (B, D), or (D,) for one query.
            k: at least 1.
            exclude: for each query an id that it never gets, such as its own, or None.

        Raises:
            ValueError: a wrong shape, a query that is not finite or zero, k below 1, or the numbers
                of excluded ids and queries differ.
        """
        unit = _unit(np.atleast_2d(queries), self.dim, "queries")
        if k < 1:
            raise ValueError(f"k = {k}: ask for at least one vector")
        exclude = [None] * len(unit) if exclude is None else exclude
        if len(exclude) != len(unit):
            raise ValueError(f"{len(exclude)} excluded ids for {len(unit)} queries; give one (or None) per query")
        excluded = np.array([-1 if name is None else self._rows.get(name, -1) for name in exclude], np.int64)
        similarity, rows = nearest(self._structure, self._vectors, unit, k, excluded)
        return [
            [Match(self.ids[row], float(value)) for value, row in zip(*found, strict=True) if row >= 0]
            for found in zip(similarity, rows, strict=True)
        ]

    def save(self, folder: Path) -> None:
        """Write `vectors.faiss`, then `ids.json`, each atomically; a folder with two versions does not load."""
        data = faiss_backend.to_bytes(self._structure)
        write_atomic(folder / VECTORS_FILE, data)
        content = {"vectors_sha256": hashlib.sha256(data).hexdigest(), "ids": self.ids}
        write_atomic(folder / IDS_FILE, json.dumps(content).encode())

    @classmethod
    def load(cls, folder: Path) -> Retriever:
        """Read the output of `save`.

        Raises:
            IndexFormatError: a file is missing or damaged, or the two do not belong together.
        """
        remedy = "save the index again"
        try:
            data, content = (folder / VECTORS_FILE).read_bytes(), json.loads((folder / IDS_FILE).read_bytes())
            if not isinstance(content, dict) or content.get("vectors_sha256") != hashlib.sha256(data).hexdigest():
                raise ValueError(f"{IDS_FILE} belongs to other vectors than {VECTORS_FILE}")
            vectors, structure = faiss_backend.parse(data, VECTORS_FILE)
            vectors = checked_vectors(vectors, None, f"vectors of {VECTORS_FILE}", copy=False)
            if problem := _problem(content.get("ids"), len(vectors)):
                raise ValueError(f"{IDS_FILE}: {problem}")
            return cls(structure, vectors, content["ids"])
        except OSError as error:
            raise IndexFormatError(f"{error.filename}: {error.strerror}; an index of vectors is {VECTORS_FILE} and "
                                   f"{IDS_FILE}, which save writes") from error  # fmt: skip
        except (ValueError, RecursionError) as error:
            raise IndexFormatError(f"{folder}: {error}; {remedy}") from error


def _problem(ids: object, count: int) -> str | None:
    """What is wrong with the ids of `count` vectors, or None."""
    if isinstance(ids, str) or not isinstance(ids, Sequence):
        return f"ids are a {type(ids).__name__}; give a list of strings"
    if len(ids) != count:
        return f"{count} vectors for {len(ids)} ids; give one id per vector"
    seen: dict[str, int] = {}
    for row, name in enumerate(ids):
        if not isinstance(name, str):
            return f"the id of row {row} is {name!r}; give strings, such as str({name!r})"
        if (first := seen.setdefault(name, row)) != row:
            return f"id {name!r} is in row {first} and in row {row}; ids are unique"
    return None


def _unit(vectors: npt.NDArray[Any], dim: int | None, name: str) -> Floats:
    """A float32 copy (N, D) with rows of unit length."""
    array = np.asarray(vectors)
    if array.ndim != 2 or array.dtype.kind not in "fiu":
        raise ValueError(f"{name} are {array.shape} {array.dtype}; expected numbers of shape (N, {dim or 'D'})")
    lengths = np.linalg.norm(array.astype(np.float64), axis=1, keepdims=True)
    if zero := np.flatnonzero(lengths == 0).tolist():
        raise ValueError(f"{name}: row {zero[0]} is zero ({len(zero)} such rows) and has no direction; leave it out")
    with np.errstate(invalid="ignore"):  # checked_vectors names rows that are not finite
        return checked_vectors((array / lengths).astype(np.float32), dim, name, copy=False)
