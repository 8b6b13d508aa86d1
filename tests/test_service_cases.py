"""Reference cases over HTTP: off by default, added without training, kept over a restart, deleted."""

from __future__ import annotations

import io
import json
import logging
import shutil
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from model.bundle import WEIGHTS, load_bundle
from model.manifest import write_manifest
from model.network.dual_encoder import embed_reports
from model.text import annotations
from model.types import View
from retrieval_index.index import ReportIndex
from retrieval_index.user_cases import CASES_FILE, PICTURES
from service.inference import runtime
from service.inference.loader import LoadedBundle, load
from service.settings import Settings
from service.web import logging as logs
from tests.support.dicom import dicom
from tests.support.service import AUTHORIZED, KEY, PROBLEM, WAIT_S, Live, encode, live_server, png, scene, until
from tests.support.tiny import REPORTS, largest_file, tiny_model, tiny_tokenizer, write_tiny_bundle
from training.data.studies import ImageRef, Study
from training.stages.index import build_index

TEXT = "The heart is enlarged. XXXX small left pleural effusion. No pneumothorax."
BUNDLE_CASE = "CXR9001_IM-0001"


@contextmanager
def served(bundle: Path, folder: Path | None, **changes: Any) -> Iterator[tuple[Live, httpx.Client]]:
    """A server with a key, and a client that has it."""
    values = {"warm_up": False, "api_key": KEY, "user_cases_dir": folder, **changes}
    with live_server(bundle, **values) as live, live.client() as client:
        client.headers.update(AUTHORIZED)
        yield live, client


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("added") / "cases"


@pytest.fixture(scope="module")
def live(bundle: Path, folder: Path) -> Iterator[Live]:
    with served(bundle, folder) as (live, _):
        yield live


@pytest.fixture(scope="module")
def connected(live: Live) -> Iterator[httpx.Client]:
    with live.client() as client:
        client.headers.update(AUTHORIZED)
        yield client


@pytest.fixture
def client(live: Live, connected: httpx.Client) -> Iterator[httpx.Client]:
    """A client of a server without added cases; added ones are deleted afterwards."""
    yield connected
    for case_id in list(ids(index_of(live)))[len(REPORTS) :]:
        assert connected.delete(f"/cases/{case_id}").status_code == 204
    assert len(index_of(live)) == len(REPORTS)


def index_of(live: Live) -> ReportIndex:
    loaded = live.app.state.runtime.serving().case_index
    assert isinstance(loaded, LoadedBundle)
    assert loaded.index is not None
    return loaded.index


def vector(live: Live, case_id: str) -> np.ndarray[Any, np.dtype[np.float32]]:
    index = index_of(live)
    return index.vectors(np.array(ids(index)[case_id]))


def ids(index: ReportIndex) -> dict[str, int]:
    """Case id -> row."""
    return {index.case(row).case_id: row for row in range(len(index))}


def add(client: httpx.Client, case_id: str, findings: str = TEXT, **rest: Any) -> httpx.Response:
    images = {name: ("Doe^Jane.png", rest.pop(name)) for name in ("frontal", "lateral") if name in rest}
    fields = {"case_id": case_id, "findings": findings, **rest}
    return client.post("/cases", files=images or {"findings": (None, fields.pop("findings"))}, data=fields)


def retrieved(client: httpx.Client) -> dict[str, Any]:
    """Reference cases of a study by id, all that there are."""
    answer = client.post("/report", files={"frontal": ("f", png())}, data={"top_k": "50", "beam_size": "1"})
    assert answer.status_code == 200, answer.text
    return {case["case_id"]: case for case in answer.json()["reference_cases"]}


def refusal(answer: httpx.Response) -> tuple[int, str, str | None]:
    assert answer.headers["content-type"] == PROBLEM
    body = answer.json()
    return answer.status_code, body["code"], body["field"]


def test_added_case_is_retrieved_with_text_and_pictures(live: Live, client: httpx.Client) -> None:
    assert client.get("/health").json()["cases"] == len(REPORTS)
    rest = {"source_url": "https://pacs.example.org/42", "frontal": png(500, 400), "lateral": dicom(scene())}
    answer = add(client, "teaching-42", **rest)
    assert answer.status_code == 201, answer.text
    case = answer.json()
    assert answer.headers["location"] == "cases/teaching-42"
    assert case == client.get("/cases/teaching-42").json()
    assert case["findings"] == TEXT.replace("XXXX", "[redacted]")
    assert {name: label for name, label in case["labels"].items() if label} == {
        "Cardiomegaly": "present", "Pleural Effusion": "present", "Pneumothorax": "absent",
    }  # fmt: skip
    assert (case["source_url"], case["added"]) == ("https://pacs.example.org/42", True)
    assert case["images"] == {view: f"cases/teaching-42/{view}" for view in ("frontal", "lateral")}
    assert client.get("/health").json()["cases"] == len(REPORTS) + 1
    cases = retrieved(client)
    assert len(cases) == len(REPORTS) + 1
    assert {name: cases["teaching-42"][name] for name in case if name != "added"} == {
        name: value for name, value in case.items() if name != "added"
    }
    assert cases[BUNDLE_CASE]["images"] == {}
    shipped = client.get(f"/cases/{BUNDLE_CASE}").json()
    assert (shipped["findings"], shipped["images"], shipped["added"]) == (REPORTS[1], {}, False)
    assert refusal(client.get(f"/cases/{BUNDLE_CASE}/frontal")) == (404, "no_such_case", None)
    picture = client.get(f"/{case['images']['frontal']}")
    assert picture.status_code == 200
    assert picture.headers["content-type"] == "image/jpeg"
    assert picture.headers["cache-control"] == "private, no-store"
    assert Image.open(io.BytesIO(picture.content)).size == (320, 256)


def test_added_training_report_gets_the_same_vector(live: Live, client: httpx.Client, tmp_path: Path) -> None:
    studies = [
        Study(f"s{row}", f"s{row}", "train", report, (ImageRef(f"i{row}", View.FRONTAL),))
        for row, report in enumerate(REPORTS)
    ]
    trained = build_index(tiny_model(), studies, tiny_tokenizer(), tmp_path, public=False)
    for row, report in enumerate(REPORTS):
        assert add(client, f"again-{row}", report).status_code == 201
        np.testing.assert_allclose(vector(live, f"again-{row}"), trained.vectors(np.array(row)), atol=1e-5)


def test_findings_may_be_a_file_and_lines_are_joined(client: httpx.Client) -> None:
    files = {"case_id": (None, " a.B_c-1 "), "findings": ("report.txt", "The heart\r\nis   enlarged.\n")}
    answer = client.post("/cases", files=files)
    assert answer.status_code == 201
    assert (answer.json()["case_id"], answer.json()["findings"]) == ("a.B_c-1", "The heart is enlarged.")


@pytest.mark.parametrize("case_id", ["../up", "a/b", "..", ".hidden", "-x", "a b", "é", "x" * 65, "a\nb", "%2e%2e"])
def test_rejects_ids_that_could_be_paths(client: httpx.Client, case_id: str) -> None:
    code = "out_of_range" if len(case_id) > 64 else "malformed_value"
    assert refusal(add(client, case_id)) == (422, code, "case_id")


@pytest.mark.parametrize(
    "path", ["..", "..%2f..%2fetc%2fpasswd", "%2e%2e/lock", "a/..%2flock", "a/../lock", "a//frontal"]
)
def test_paths_as_case_ids_are_not_found(live: Live, path: str) -> None:
    request = f"GET /cases/{path} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {KEY}\r\nConnection: close\r\n\r\n"
    with socket.create_connection(("127.0.0.1", live.port), timeout=WAIT_S) as connection:
        connection.sendall(request.encode())
        assert connection.recv(65536).startswith(b"HTTP/1.1 404")


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"case_id": ""}, (422, "missing_field", "case_id")),
        ({"findings": "  "}, (422, "missing_field", "findings")),
        ({"findings": "Zzyzx xxxx."}, (422, "no_known_word", "findings")),
        ({"findings": "The heart\x00"}, (422, "malformed_value", "findings")),
        ({"findings": "The heart \u202eis\u202c normal"}, (422, "malformed_value", "findings")),
        ({"findings": "No ef\u200bfusion"}, (422, "malformed_value", "findings")),
        ({"findings": "The heart\ufe01\U000e0141 is normal"}, (422, "malformed_value", "findings")),
        ({"findings": b"The heart \xff"}, (422, "malformed_value", "findings")),
        ({"findings": "heart " * 1400}, (422, "out_of_range", "findings")),
        ({"source_url": "ftp://example.org/x"}, (422, "malformed_value", "source_url")),
        ({"source_url": "javascript:alert(1)"}, (422, "malformed_value", "source_url")),
        ({"source_url": "https://[::1"}, (422, "malformed_value", "source_url")),
        ({"source_url": "https://user@example.org"}, (422, "malformed_value", "source_url")),
        ({"source_url": "https://example.org/a b"}, (422, "malformed_value", "source_url")),
        ({"labels": "{}"}, (422, "unknown_field", "labels")),
        ({"case_id": BUNDLE_CASE}, (409, "case_exists", "case_id")),
    ],
)
def test_rejects_wrong_case_fields_naming_them(
    client: httpx.Client, fields: dict[str, Any], expected: tuple[int, str, str]
) -> None:
    sent = {"case_id": "c", "findings": TEXT, **fields}
    answer = client.post("/cases", files={name: (None, value) for name, value in sent.items()})
    assert refusal(answer) == expected


def test_rejects_wrong_case_images_and_stores_nothing(client: httpx.Client, folder: Path) -> None:
    assert refusal(add(client, "c", frontal=b"Doe^Jane")) == (422, "not_an_image", "frontal")
    assert refusal(add(client, "c", frontal=png(), lateral=png()[:-40])) == (422, "truncated", "lateral")
    assert (folder / CASES_FILE).read_bytes() == b""
    assert list((folder / PICTURES).iterdir()) == []


def test_adding_cases_needs_a_directory(keyed: httpx.Client) -> None:
    for method, path in (("POST", "/cases"), ("DELETE", f"/cases/{BUNDLE_CASE}")):
        answer = keyed.request(method, path, headers=AUTHORIZED)
        assert refusal(answer) == (403, "cases_off", None)
        assert "REPORT_USER_CASES_DIR" in answer.json()["detail"]
    assert keyed.get(f"/cases/{BUNDLE_CASE}", headers=AUTHORIZED).status_code == 200


def test_bundle_without_index_accepts_no_cases(tmp_path: Path) -> None:
    bare = write_tiny_bundle(tmp_path / "bare", retrieval=False)
    with served(bare, tmp_path / "cases") as (_, client):
        assert refusal(add(client, "c")) == (409, "no_retrieval", None)
        assert refusal(client.get("/cases/c")) == (404, "no_such_case", None)
        assert client.get("/health").json()["cases"] is None


def test_case_that_cannot_be_embedded_is_not_stored(bundle_copy: Path, tmp_path: Path) -> None:
    weights = {
        name: torch.zeros_like(tensor) if name.startswith("text_tower") else tensor
        for name, tensor in load_file(bundle_copy / WEIGHTS).items()
    }
    save_file(weights, bundle_copy / WEIGHTS)
    write_manifest(bundle_copy)
    with served(bundle_copy, tmp_path / "cases") as (_, client):
        assert refusal(add(client, "c", frontal=png())) == (500, "internal", None)
        assert (tmp_path / "cases" / CASES_FILE).read_bytes() == b""


def test_added_cases_survive_a_restart_unless_deleted(bundle: Path, tmp_path: Path) -> None:
    with served(bundle, tmp_path / "cases") as (live, client):
        add(client, "gone", frontal=png())
        before = add(client, "kept", frontal=png(), source_url="http://example.org:8080/x").json()
        client.delete("/cases/gone")
        where = vector(live, "kept")
        similarity = retrieved(client)["kept"]["similarity"]
    with served(bundle, tmp_path / "cases") as (live, client):
        assert client.get("/cases/kept").json() == before
        np.testing.assert_allclose(vector(live, "kept"), where, atol=1e-6)
        assert retrieved(client)["kept"]["similarity"] == pytest.approx(similarity, abs=1e-4)
        assert client.get("/cases/kept/frontal").content.startswith(b"\xff\xd8")
        assert refusal(add(client, "kept")) == (409, "case_exists", "case_id")
        assert client.get("/cases/gone").status_code == 404


def test_deleted_case_is_gone_at_once(client: httpx.Client, folder: Path) -> None:
    for case_id in ("one", "two"):
        assert add(client, case_id, frontal=png()).status_code == 201
    assert client.delete("/cases/one").status_code == 204
    assert annotations._annotate.cache_info().currsize == 0, "no sentence of it is kept"
    assert {"one", "two"} & set(retrieved(client)) == {"two"}
    for answer in (client.get("/cases/one"), client.get("/cases/one/frontal"), client.delete("/cases/one")):
        assert refusal(answer) == (404, "no_such_case", None)
    assert refusal(client.delete(f"/cases/{BUNDLE_CASE}")) == (409, "case_of_bundle", None)
    assert client.get("/health").json()["cases"] == len(REPORTS) + 1
    assert len(list((folder / PICTURES).iterdir())) == 1
    assert b"one" not in (folder / CASES_FILE).read_bytes()


def test_reloaded_bundle_embeds_added_cases_again(tmp_path: Path) -> None:
    path = write_tiny_bundle(tmp_path / "tiny")
    with served(path, tmp_path / "cases") as (live, client):
        add(client, "kept")
        before = vector(live, "kept")
        shutil.rmtree(path)
        write_tiny_bundle(path, seed=7)
        assert client.post("/reload").json()["cases"] == len(REPORTS) + 1
        after = load_bundle(path)
        expected = embed_reports(after.model.text_tower, after.tokenizer, [TEXT])[0]
        np.testing.assert_allclose(vector(live, "kept"), expected, atol=1e-5)
        assert np.abs(before - expected).max() > 0.01
        assert "kept" in retrieved(client)


def test_changes_during_a_reload_apply_to_the_new_bundle(
    bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loading, go = threading.Event(), threading.Event()
    with served(bundle, tmp_path / "cases") as (live, client):
        add(client, "goes")

        def load_slowly(settings: Settings) -> LoadedBundle:
            loading.set()
            assert go.wait(WAIT_S)
            return load(settings)

        monkeypatch.setattr(runtime, "load", load_slowly)
        swap = threading.Thread(target=client.post, args=("/reload",), daemon=True)
        swap.start()
        assert loading.wait(WAIT_S)
        old = index_of(live)
        assert add(client, "meanwhile").status_code == 201
        assert client.delete("/cases/goes").status_code == 204
        go.set()
        swap.join(WAIT_S)
        assert index_of(live) is not old
        assert {"meanwhile", "goes"} & set(retrieved(client)) == {"meanwhile"}


def test_case_of_the_bundle_hides_an_added_case_of_the_same_id(
    tmp_path: Path, bundle: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = tmp_path / "cases"
    with served(bundle, folder) as (_, client):
        add(client, "later")
    lines = (folder / CASES_FILE).read_text().replace("later", BUNDLE_CASE)
    (folder / CASES_FILE).write_text(lines)
    with caplog.at_level(logging.WARNING, "service"), served(bundle, folder) as (_, client):
        assert client.get(f"/cases/{BUNDLE_CASE}").json()["added"] is False
        assert client.delete(f"/cases/{BUNDLE_CASE}").status_code == 204  # the hidden one
        assert client.get(f"/cases/{BUNDLE_CASE}").status_code == 200
    assert "1 added cases are not served: cases of this bundle have the same ids" in caplog.text


def test_full_disk_stores_and_serves_no_case(live: Live, client: httpx.Client, folder: Path) -> None:
    with largest_file(20):
        answers = [add(client, "c", frontal=png()), add(client, "d")]
    for answer in answers:
        assert refusal(answer) == (507, "cases_disk", None)
        assert "File too large in REPORT_USER_CASES_DIR" in answer.json()["detail"]
    assert (folder / CASES_FILE).read_bytes() == b""
    assert list((folder / PICTURES).iterdir()) == []
    assert len(index_of(live)) == len(REPORTS)
    assert add(client, "c", frontal=png()).status_code == 201


def test_reports_a_cases_directory_that_is_in_use_or_unusable(
    live: Live, bundle: Path, folder: Path, tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("")
    for path, words in (
        (folder, f"another process uses the added cases in {folder}"),
        (tmp_path / "file", f"the added cases in {tmp_path / 'file'} cannot be used"),
    ):
        with live_server(bundle, wait=False, warm_up=False, user_cases_dir=path) as second, second.client() as client:
            until(lambda client=client: client.get("/health").json()["code"] == "failed")
            assert f"REPORT_USER_CASES_DIR: {words}" in client.get("/health").json()["detail"]


def test_names_a_line_that_was_edited_wrongly_and_quotes_nothing(
    bundle: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = tmp_path / "cases"
    with served(bundle, folder) as (_, client):
        add(client, "c", "The heart is large. Doe42Jane")
    (folder / CASES_FILE).write_text((folder / CASES_FILE).read_text().replace('"c"', '"../Doe42Jane"'))
    with live_server(bundle, wait=False, warm_up=False, user_cases_dir=folder) as live, live.client() as client:
        until(lambda: client.get("/health").json()["code"] == "failed")
        detail = client.get("/health").json()["detail"]
    assert "cases.jsonl, line 1 is not a case that POST /cases accepts" in detail
    assert "Doe42Jane" not in detail + caplog.text


def test_no_file_name_reaches_log_directory_or_picture(
    client: httpx.Client, folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    canary = "Doe42Jane"
    exif = Image.Exif()
    exif[0x010E] = canary
    photograph = encode(Image.fromarray(scene()), "JPEG", exif=exif, comment=canary.encode())
    study = {"frontal": photograph, "lateral": dicom(scene(), PatientName=canary, PatientID=canary)}
    with caplog.at_level(logging.DEBUG):
        add(client, "c", f"The heart of {canary} is enlarged.", **study)
        kept = [path.read_bytes() for path in (folder / PICTURES).iterdir()]
        shown = [client.get(f"/cases/c/{view}").content for view in study]
        add(client, canary, frontal=canary.encode())
        for case_id in (canary, canary, f"{canary}/x"):
            add(client, case_id)
        add(client, "d", f"{canary} zzyzx")
        client.get(f"/cases/{canary}x")
        client.delete(f"/cases/{canary}")
    assert sorted(kept) == sorted(shown)
    assert len(kept) == 2
    for data in kept:
        assert canary.encode() not in data
        assert b"Exif" not in data
    form = logs.TextLines()
    lines = [form.format(record) for record in caplog.records if not record.name.startswith(("httpx", "httpcore"))]
    assert any("a case was added" in line for line in lines)
    assert any("POST /cases 201" in line for line in lines)
    assert [line for line in lines if canary in line] == []
    assert canary not in client.get("/metrics").text
    assert {path.name for path in folder.iterdir()} == {CASES_FILE, "lock", PICTURES}
    assert json.loads((folder / CASES_FILE).read_text().splitlines()[0])["findings"].count(canary) == 1
