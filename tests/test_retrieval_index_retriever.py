"""The retriever of any vectors: cosine similarity, ids of the caller, files that belong together, named errors."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cxr_report import Retriever
from retrieval_index.index import IndexFormatError
from tests.support.index import by_hand, clustered, normalised

VECTORS = np.random.default_rng(3).standard_normal((50, 8)).astype(np.float32) * 7  # of any length
IDS = [f"p10/s{row}.txt" for row in range(50)]


def test_finds_the_nearest_by_cosine_in_float64() -> None:
    retriever = Retriever.build(VECTORS, IDS)
    queries = np.random.default_rng(4).standard_normal((5, 8)) * 100  # float64
    unit, directions = normalised(VECTORS), normalised(queries)
    for query, matches in zip(directions, retriever.search(queries, 4), strict=True):
        rows = by_hand(unit, query, 4)
        assert [match.id for match in matches] == [IDS[row] for row in rows]
        np.testing.assert_allclose([match.similarity for match in matches], unit[rows] @ query, atol=1e-6)


def test_one_query_excluded_ids_and_more_matches_than_vectors() -> None:
    retriever = Retriever.build(VECTORS[:3], IDS[:3])
    assert retriever.search(VECTORS[1], 1)[0][0].id == IDS[1]
    ((first, *_),) = retriever.search(VECTORS[1], 9, exclude=[IDS[1]])
    assert first.id != IDS[1]
    assert len(retriever.search(VECTORS[1], 9)[0]) == len(retriever) == 3
    assert retriever.dim == 8


@pytest.mark.parametrize("kind", ["flat", "ivf"])
def test_a_saved_index_finds_the_same(kind: Any, tmp_path: Path) -> None:
    vectors = clustered(np.random.default_rng(5), 600)
    built = Retriever.build(vectors, [str(row) for row in range(600)], kind=kind)
    built.save(tmp_path / "index")
    loaded = Retriever.load(tmp_path / "index")
    assert loaded.search(vectors[:20], 5) == built.search(vectors[:20], 5)
    assert loaded.ids == built.ids


@pytest.mark.parametrize(
    ("vectors", "ids", "message"),
    [
        (VECTORS, IDS[:3], "50 vectors for 3 ids"),
        (VECTORS[:2], ["a", "a"], "id 'a' is in row 0 and in row 1"),
        (VECTORS[:2], ["a", 7], r"the id of row 1 is 7; give strings, such as str\(7\)"),
        (VECTORS[:2], "ab", "ids are a str; give a list"),
        (VECTORS[0], IDS, r"vectors are \(8,\) float32; expected numbers of shape \(N, D\)"),
        (np.array([["x"]]), ["a"], "expected numbers"),
        (np.zeros((2, 8)), IDS[:2], "row 0 is zero .2 such rows. and has no direction"),
        (np.array([[1.0], [np.nan]]), IDS[:2], "row 1 is not finite"),
        (np.array([[1.0], [np.inf]]), IDS[:2], "row 1 is not finite"),
        (np.zeros((2, 0)), IDS[:2], "zero|shape"),
    ],
)
def test_refuses_unusable_vectors_and_ids(vectors: Any, ids: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Retriever.build(vectors, ids)


def test_refuses_unusable_queries() -> None:
    retriever = Retriever.build(VECTORS, IDS)
    with pytest.raises(ValueError, match=r"queries have the shape \(1, 7\); expected \(N, 8\)"):
        retriever.search(VECTORS[0, :7])
    with pytest.raises(ValueError, match="k = 0: ask for at least one"):
        retriever.search(VECTORS[0], 0)
    with pytest.raises(ValueError, match="1 excluded ids for 2 queries"):
        retriever.search(VECTORS[:2], exclude=[None])
    with pytest.raises(ValueError, match="kind 'hnsw' is unknown; use flat, ivf"):
        Retriever.build(VECTORS, IDS, kind="hnsw")  # type: ignore[arg-type]


def test_refuses_files_that_do_not_belong_together(tmp_path: Path) -> None:
    with pytest.raises(IndexFormatError, match="No such file or directory; an index of vectors is"):
        Retriever.load(tmp_path)
    Retriever.build(VECTORS, IDS).save(tmp_path)
    ids = tmp_path / "ids.json"
    content = json.loads(ids.read_text())
    for wrong, message in (
        ("{", "save the index again"),
        ("[" * 100_000, "save the index again"),
        ("[]", "belongs to other vectors"),
        (json.dumps({**content, "vectors_sha256": "0" * 64}), "belongs to other vectors than vectors.faiss"),
        (json.dumps({**content, "ids": IDS[:-1]}), "50 vectors for 49 ids"),
        (json.dumps({**content, "ids": None}), "ids are a NoneType"),
    ):
        ids.write_text(wrong)
        with pytest.raises(IndexFormatError, match=message):
            Retriever.load(tmp_path)
