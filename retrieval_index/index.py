"""The index of reference cases: report embeddings, searched with the embedding of a study's images.

It is a FAISS index with inner product. All vectors have unit length, so the inner product is the
cosine similarity of an image embedding and a report embedding, which contrastive training maximises
for matching pairs. Small collections are searched exactly, in less than a millisecond; large ones
in the nearest cells (`retrieval_index.faiss_backend`).

Many reports are identical, so ties are frequent; the lower row comes first.
"""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Literal

import numpy as np

from model.files import file_sha256, write_atomic
from retrieval_index import faiss_backend
from retrieval_index.cases import Case, CaseFormatError, decode_cases, encode_cases
from retrieval_index.faiss_backend import Floats, Kind, Rows, Structure, index_kind
from retrieval_index.nearest import checked_vectors, nearest
from retrieval_index.pictures import PICTURES_FILE, CasePictures

VECTORS_FILE = "reports.faiss"
CASES_FILE = "cases.jsonl"


class IndexFormatError(ValueError):
    """The files of an index are damaged or inconsistent; the message names the file and the problem."""


@dataclass(frozen=True)
class _State:
    """One immutable state of the index. Each search uses one state."""

    structure: Structure
    vectors: Floats  # (N, D), unit length
    cases: tuple[Case, ...]
    rows: dict[str, int]  # case id -> row

    @cached_property
    def texts(self) -> bool:
        return any(case.findings is not None for case in self.cases)


class ReportIndex:
    """Report embeddings and their cases, by row. Thread-safe.

    Made by `build` or `load`. Satisfies `model.protocols.CaseIndex`.
    """

    def __init__(
        self, state: _State, *, kind: Kind | Literal["auto"] = "auto", pictures: CasePictures | None = None
    ) -> None:
        self._state = state
        self._wanted = kind
        self._pictures = pictures
        self._write_lock = threading.Lock()

    @classmethod
    def build(cls, vectors: Floats, cases: Sequence[Case], *, kind: Kind | Literal["auto"] = "auto") -> ReportIndex:
        """Index `vectors` (N, D), L2-normalised; row i belongs to `cases[i]`.

        Args:
            vectors: float32, of the text tower.
            cases: one per vector.
            kind: `auto` chooses by N (`faiss_backend.index_kind`), again whenever cases are added.

        Raises:
            ValueError: the numbers differ, an id repeats, a vector is not finite or not of unit
                length, the kind is unknown, or `ivf` has no vector.
        """
        if kind not in ("auto", "flat", "ivf"):
            raise ValueError(f"kind {kind!r} is unknown; use auto, flat or ivf")
        vectors, cases = checked_vectors(vectors, None, "vectors"), tuple(cases)
        rows = _rows(vectors, cases)
        structure = faiss_backend.build(vectors, index_kind(len(vectors)) if kind == "auto" else kind)
        return cls(_State(structure, vectors, cases, rows), kind=kind)

    def add(self, vectors: Floats, cases: Sequence[Case]) -> None:
        """Append cases with their vectors (M, D) from the same text tower.

        Existing rows keep their numbers. A call copies the index, so add many cases at once; if a
        larger collection needs another kind or more cells, these are trained (seconds at 10⁵
        vectors). Concurrent searches use the previous state.

        Raises:
            ValueError: as for `build`, or a case id is in the index already; the index is then
                unchanged.
        """
        with self._write_lock:
            old = self._state
            vectors = checked_vectors(vectors, self.dim, "vectors")
            if len(vectors) != len(cases):
                raise ValueError(f"{len(vectors)} vectors for {len(cases)} cases; give one vector per case")
            vectors, cases = np.concatenate([old.vectors, vectors]), old.cases + tuple(cases)
            rows = _rows(vectors, cases)
            structure = faiss_backend.with_added(old.structure, vectors, self._kind_for(len(vectors)))
            self._state = _State(structure, vectors, cases, rows)

    def remove(self, case_ids: Collection[str]) -> None:
        """Remove cases. Later rows get lower numbers: use a `snapshot` for several reads. A call copies the index.

        Raises:
            ValueError: an id is unknown, or an `ivf` index would become empty; the index is then
                unchanged.
        """
        with self._write_lock:
            old = self._state
            if missing := [case_id for case_id in case_ids if case_id not in old.rows]:
                raise ValueError(f"{len(missing)} of the cases to remove are not in the index, such as {missing[0]!r}")
            gone = {old.rows[case_id] for case_id in case_ids}
            kept = np.array([row for row in range(len(old.cases)) if row not in gone], np.int64)
            vectors, cases = old.vectors[kept], tuple(old.cases[row] for row in kept)
            structure = faiss_backend.with_removed(old.structure, vectors, kept, self._kind_for(len(vectors)))
            self._state = _State(structure, vectors, cases, _rows(vectors, cases))

    def snapshot(self) -> ReportIndex:
        """An immutable view of the current index. No data is copied."""
        return ReportIndex(self._state, kind=self._wanted)

    def _kind_for(self, count: int) -> Kind:
        return index_kind(count) if self._wanted == "auto" else self._wanted

    @property
    def kind(self) -> Kind:
        """`flat`: searched exactly; `ivf`: in the nearest cells."""
        return self._state.structure.kind

    @property
    def dim(self) -> int:
        """Width D of the vectors."""
        return int(self._state.vectors.shape[1])

    def __len__(self) -> int:
        return len(self._state.cases)

    def search(self, queries: Floats, k: int, *, exclude: Sequence[str | None] | None = None) -> tuple[Floats, Rows]:
        """Find the k most similar cases of each query, independently of the other queries; ties go to the lower row.

        A `flat` index is exact. An `ivf` index searches the 64 cells nearest to the query, more if
        they hold fewer than k cases: similarities are exact, but a case in a more distant cell can
        be missed. Measured recall@5 is at least .99 for 30,000 to 10⁶ cases, for held-out reports
        and image embeddings (`python -m benchmarks index`).

        Args:
            queries: (B, D) float32, L2-normalised.
            k: number of cases, at least 1.
            exclude: per query the id of a case to exclude, or None: in training a study must not
                retrieve its own report. An unknown id excludes nothing.

        Returns:
            Cosine similarity (B, k) float32 and rows (B, k) int64, best first; padded with
            similarity 0 and row -1 if there are fewer than k cases.

        Raises:
            ValueError: a wrong shape, a query that is not finite or not of unit length, k below 1,
                or the numbers of excluded ids and queries differ.
        """
        state = self._state
        queries = checked_vectors(queries, state.vectors.shape[1], "queries")
        if k < 1:
            raise ValueError(f"k = {k}: ask for at least one case")
        if exclude is not None and len(exclude) != len(queries):
            raise ValueError(f"{len(exclude)} excluded ids for {len(queries)} queries; give one (or None) per query")
        excluded = [-1] * len(queries)
        if exclude is not None:
            excluded = [-1 if case_id is None else state.rows.get(case_id, -1) for case_id in exclude]
        return nearest(state.structure, state.vectors, queries, k, np.array(excluded, np.int64))

    def vectors(self, rows: Rows) -> Floats:
        """The vectors of `rows` (...), as (..., D) float32; zeros where a row is -1.

        Raises:
            IndexError: a row is below -1 or beyond the index.
        """
        state = self._state
        rows = np.asarray(rows, np.int64)
        if rows.size and (rows.min() < -1 or rows.max() >= len(state.cases)):
            raise IndexError(f"rows from {rows.min()} to {rows.max()}; the index has 0 to {len(state.cases) - 1}")
        found = np.zeros((*rows.shape, state.vectors.shape[1]), np.float32)
        found[rows >= 0] = state.vectors[rows[rows >= 0]]
        return found

    def case(self, row: int) -> Case:
        """The case of a row.

        Raises:
            IndexError: the row is negative, such as the padding of a search, or beyond the index.
        """
        cases = self._state.cases
        if not 0 <= row < len(cases):
            raise IndexError(f"row {row}: the index has 0 to {len(cases) - 1}")
        return cases[row]

    def find(self, case_id: str) -> Case | None:
        """The case with this id, or None."""
        state = self._state
        row = state.rows.get(case_id)
        return None if row is None else state.cases[row]

    def picture(self, case_id: str, view: str) -> bytes | None:
        """The small picture, a JPEG file, of a case of a hydrated bundle; None if there is none."""
        return None if self._pictures is None else self._pictures.picture(case_id, view)

    @property
    def has_texts(self) -> bool:
        """Whether any case has its findings."""
        return self._state.texts

    def save(self, folder: Path) -> None:
        """Write `reports.faiss` and `cases.jsonl` into `folder`, each atomically; equal indexes give equal bytes."""
        state = self._state
        write_atomic(folder / VECTORS_FILE, faiss_backend.to_bytes(state.structure))
        write_atomic(folder / CASES_FILE, encode_cases(state.cases))

    @classmethod
    def load(cls, folder: Path, *, expected_sha256: Mapping[str, str] | None = None) -> ReportIndex:
        """Read the output of `save`.

        Args:
            folder: with `reports.faiss` and `cases.jsonl`, maybe with the `pictures.zip` of `hydrate`.
            expected_sha256: file name -> hex digest; compared before any file is parsed.

        Raises:
            IndexFormatError: a file is missing, has another hash or cannot be parsed; a vector is
                not finite or not of unit length; the numbers of vectors and cases differ.
        """
        data = {name: _read(folder / name, expected_sha256) for name in (VECTORS_FILE, CASES_FILE)}
        try:
            cases = tuple(decode_cases(data[CASES_FILE], CASES_FILE))
            pictures = _open_pictures(folder / PICTURES_FILE, expected_sha256)
            if pictures is not None:
                cases = tuple(replace(case, images=pictures.views(case.case_id)) for case in cases)
            vectors, structure = faiss_backend.parse(data[VECTORS_FILE], VECTORS_FILE)
            vectors = checked_vectors(vectors, None, f"vectors of {VECTORS_FILE}", copy=False)
            return cls(_State(structure, vectors, cases, _rows(vectors, cases)), pictures=pictures)
        except CaseFormatError as error:
            raise IndexFormatError(f"{folder}: {error}") from error
        except ValueError as error:
            raise IndexFormatError(f"{folder}: {error}; build the index again") from error


def _rows(vectors: Floats, cases: tuple[Case, ...]) -> dict[str, int]:
    """The row of each case id; raises ValueError if one repeats or the numbers of vectors and cases differ."""
    if len(vectors) != len(cases):
        raise ValueError(f"{len(vectors)} vectors for {len(cases)} cases; give one vector per case")
    rows: dict[str, int] = {}
    for row, case in enumerate(cases):
        if (first := rows.setdefault(case.case_id, row)) != row:
            raise ValueError(f"case {case.case_id} is in row {first} already; remove it or give it another id")
    return rows


def _open_pictures(path: Path, expected_sha256: Mapping[str, str] | None) -> CasePictures | None:
    """The pictures; None without the file, or if no digest of it is expected."""
    if not path.is_file() or (expected_sha256 is not None and path.name not in expected_sha256):
        return None
    if expected_sha256 is not None and (actual := file_sha256(path)) != expected_sha256[path.name]:
        raise ValueError(f"{path.name} has SHA-256 {actual}, expected {expected_sha256[path.name]}")
    return CasePictures(path)


def _read(path: Path, expected_sha256: Mapping[str, str] | None) -> bytes:
    try:
        data = path.read_bytes()
    except OSError as error:
        raise IndexFormatError(
            f"{path} cannot be read: {error.strerror}; an index is {VECTORS_FILE} and {CASES_FILE}"
        ) from error
    if expected_sha256 is not None:
        expected, actual = expected_sha256.get(path.name), hashlib.sha256(data).hexdigest()
        if actual != expected:
            raise IndexFormatError(f"{path} has SHA-256 {actual}, expected {expected}; restore the file")
    return data
