"""``GET /examples``: the studies of the folder, and nothing else of it."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path

import httpx
import pytest

from retrieval_index.examples import DRAWINGS, LIST, STUDIES
from service.schemas.example_studies import ExamplesResponse
from tests.support.service import KEY, PROBLEM, png, ready_client

FILES = STUDIES[0].files


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two studies, one of which lacks an image, and files that no study has."""
    folder = tmp_path_factory.mktemp("there") / "examples"
    folder.mkdir()
    for file in (*FILES.values(), STUDIES[1].files["frontal"], "unlisted.png", "..png"):
        (folder / file).write_bytes(png())
    (folder.parent / "secret.png").write_bytes(png())
    (folder / LIST).write_text(json.dumps({"examples": [asdict(study) for study in STUDIES[:2]]}))
    return folder


@pytest.fixture(scope="module")
def client(bundle: Path, folder: Path) -> Iterator[httpx.Client]:
    with ready_client(bundle, warm_up=False, examples_dir=folder, api_key=KEY) as client:
        yield client


def test_lists_complete_examples_without_a_key(client: httpx.Client) -> None:
    answer = client.get("/examples")
    assert (answer.status_code, answer.headers["cache-control"]) == (200, "no-store")
    (example,) = ExamplesResponse.model_validate_json(answer.text).examples
    assert (example.id, example.kind, example.label, example.licence) == ("CXR24", "study", "normal", "CC BY-NC-ND 4.0")
    assert example.images == {view: f"examples/{file}" for view, file in FILES.items()}


def test_sends_an_image_unaltered_with_its_type_and_policy(client: httpx.Client, folder: Path) -> None:
    answer = client.get(f"/examples/{FILES['frontal']}")
    assert answer.content == (folder / FILES["frontal"]).read_bytes()
    assert answer.headers["content-type"] == "image/png"
    assert answer.headers["cache-control"] == "public, max-age=3600"
    assert answer.headers["x-content-type-options"] == "nosniff"
    assert "default-src 'none'" in answer.headers["content-security-policy"]
    assert answer.headers["cross-origin-resource-policy"] == "same-origin"


@pytest.mark.parametrize(
    "file",
    [
        *("unlisted.png", "..png", STUDIES[1].files["frontal"], LIST, "none.png", "", "%00", f"{FILES['frontal']}%00"),
        *(
            "..%2fsecret.png",
            "%2e%2e%2fsecret.png",
            "..%5csecret.png",
            "%2fetc%2fpasswd",
            f"x%2f..%2f{FILES['frontal']}",
        ),
    ],
)
def test_sends_no_file_that_no_example_has(client: httpx.Client, file: str) -> None:
    answer = client.get(f"/examples/{file}")
    assert (answer.status_code, answer.headers["content-type"], answer.json()["code"]) == (404, PROBLEM, "not_found")


def test_examples_that_are_fetched_later_are_offered_and_a_damaged_list_is_a_warning(
    bundle: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with ready_client(bundle, warm_up=False, examples_dir=tmp_path / "later") as client:
        assert client.get("/examples").json() == {"examples": []}
        (tmp_path / "later").mkdir()
        for file in DRAWINGS[0].files.values():
            (tmp_path / "later" / file).write_bytes(png())
        (tmp_path / "later" / LIST).write_text(json.dumps({"examples": [asdict(DRAWINGS[0])]}))
        assert [each["kind"] for each in client.get("/examples").json()["examples"]] == ["drawing"]
        (tmp_path / "later" / LIST).write_text("{")
        with caplog.at_level(logging.WARNING):
            assert client.get("/examples").json() == {"examples": []}
        assert "remove it and run python -m retrieval_index.examples" in caplog.text


def test_service_without_a_folder_has_no_examples(bundle: Path) -> None:
    with ready_client(bundle, warm_up=False) as client:
        assert client.get("/examples").json() == {"examples": []}
        assert client.get(f"/examples/{FILES['frontal']}").status_code == 404
