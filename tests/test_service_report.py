"""POST /report: drafts every supported image kind; each wrong request gets a specific 4xx problem."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from PIL import Image

from model.images import load_pixels
from model.text.labeler import FINDINGS
from model.types import DraftOptions, StudyView, View
from service.schemas.examples import DISCLAIMER
from service.schemas.models import ReportResponse
from service.settings import MIB
from tests.support.dicom import compressed, dataset, dicom, encapsulated
from tests.support.service import PROBLEM, encode, png, png_claiming, ready_client, scene
from tests.support.tiny import IMAGE_SIZE, REPORTS, open_drafter, write_tiny_bundle

File = tuple[str, bytes, str]


def upload(data: bytes, kind: str = "image/png") -> File:
    return ("image", data, kind)


def draft(client: httpx.Client, **files: bytes) -> ReportResponse:
    answer = client.post("/report", files={name: upload(data) for name, data in files.items()})
    assert answer.status_code == 200, answer.text
    return ReportResponse.model_validate(answer.json())


# --- reports ----------------------------------------------------------------------------------------------------


def test_report_returns_the_draft_of_the_drafter(client: httpx.Client, bundle: Path) -> None:
    frontal, lateral = png(90, 120), png(100, 80)
    drafter = open_drafter(bundle)
    study = [
        StudyView(load_pixels(frontal, IMAGE_SIZE), View.FRONTAL),
        StudyView(load_pixels(lateral, IMAGE_SIZE), View.LATERAL),
    ]
    (expected,) = drafter.draft([study], DraftOptions())

    got = draft(client, frontal=frontal, lateral=lateral)

    assert got.findings == expected.findings != ""
    assert [sentence.text for sentence in got.sentences] == [sentence.text for sentence in expected.sentences]
    assert [s.confidence for s in got.sentences] == pytest.approx([s.confidence for s in expected.sentences], abs=1e-3)
    assert got.labels == expected.labels
    assert list(got.labels) == list(FINDINGS)
    assert [case.case_id for case in got.reference_cases] == [case.case_id for case in expected.reference_cases]
    assert [case.rank for case in got.reference_cases] == [1, 2, 3]
    similarities = [case.similarity for case in got.reference_cases]
    assert similarities == sorted(similarities, reverse=True)
    assert all(case.findings in REPORTS for case in got.reference_cases)
    assert got.warnings == []
    assert got.disclaimer == DISCLAIMER
    assert (got.model.name, got.model.digest) == ("tiny", drafter.bundle.digest)
    assert list(got.timings_ms) == ["upload", "images", "queue", "encode", "retrieve", "decode", "total"]
    assert sum(list(got.timings_ms.values())[:-1]) <= got.timings_ms["total"] + 1


def test_sentences_do_not_depend_on_the_order_of_fields(client: httpx.Client) -> None:
    one, other = png(90, 120), png(100, 80)
    first = client.post("/report", files=[("frontal", upload(one)), ("lateral", upload(other))]).json()
    second = client.post("/report", files=[("lateral", upload(other)), ("frontal", upload(one))]).json()
    assert first["sentences"] == second["sentences"]
    assert first["report_id"] != second["report_id"]


@pytest.mark.parametrize(("sent", "missing"), [("frontal", "lateral"), ("lateral", "frontal")])
def test_single_view_is_drafted_with_a_warning(client: httpx.Client, sent: str, missing: str) -> None:
    got = draft(client, **{sent: png()})
    assert [warning.code for warning in got.warnings] == ["missing_view"]
    assert missing in got.warnings[0].message


@pytest.mark.parametrize(("sent", "cases"), [("1", 1), (" 5 ", 5), ("50", len(REPORTS))])
def test_top_k_is_applied_up_to_the_size_of_the_index(client: httpx.Client, sent: str, cases: int) -> None:
    fields = {"top_k": sent, "beam_size": " 1 "}
    got = client.post("/report", files={"frontal": upload(png())}, data=fields).json()
    assert [case["rank"] for case in got["reference_cases"]] == list(range(1, cases + 1))


@pytest.mark.parametrize(
    ("missing", "code"), [({"retrieval": False}, "no_retrieval"), ({"texts": False}, "texts_not_available")]
)
def test_bundle_without_cases_or_texts_adds_a_warning(tmp_path: Path, missing: dict[str, bool], code: str) -> None:
    with ready_client(write_tiny_bundle(tmp_path / "plain", **missing), warm_up=False) as client:
        got = draft(client, frontal=png(), lateral=png())
        health = client.get("/health").json()
    assert [warning.code for warning in got.warnings] == [code]
    assert got.findings
    assert {case.findings for case in got.reference_cases} <= {None}
    assert all(case.labels for case in got.reference_cases)
    assert health["texts"] is False
    assert (got.model.retrieval_k is None) == (health["cases"] is None) == (got.reference_cases == [])


# --- images of every kind ---------------------------------------------------------------------------------------


def valid_images() -> dict[str, bytes]:
    """One file of each kind; the tests of ``model.images`` read more of them."""
    grey = Image.fromarray(scene())
    wide = (scene().astype(np.uint16) - 40) * 21  # 0..4095: 12 bits in a 16-bit file
    return {
        "16-bit PNG": encode(Image.fromarray(wide * 16)),
        "RGBA PNG": encode(grey.convert("RGBA")),
        "progressive JPEG": encode(grey, "JPEG", quality=95, progressive=True),
        "inverted DICOM": dicom((4095 - wide).astype(np.uint16), stored=12, photometric="MONOCHROME1"),
        "run-length DICOM": compressed(dataset(wide, stored=12), "1.2.840.10008.1.2.5"),
    }


@pytest.mark.parametrize("kind", valid_images())
def test_drafts_every_supported_image_kind(client: httpx.Client, kind: str) -> None:
    assert draft(client, frontal=valid_images()[kind]).findings


def test_warns_about_contradicting_dicom_headers(client: httpx.Client) -> None:
    files = {
        "frontal": dicom(scene(), ViewPosition="LL"),
        "lateral": dicom(scene(), ViewPosition="LAO", BodyPartExamined="HAND", PatientOrientation=["A", "H"]),
    }
    warnings = draft(client, **files).warnings
    assert [warning.code for warning in warnings] == [
        "view_mismatch", "view_mismatch", "not_a_chest", "unusual_orientation"
    ]  # fmt: skip
    assert [warning.message.split(":")[0] for warning in warnings] == ["The frontal image"] + ["The lateral image"] * 3
    right = {"frontal": dicom(scene(), ViewPosition="PA"), "lateral": dicom(scene(), ViewPosition="LL")}
    assert draft(client, **right).warnings == []


# --- wrong requests ---------------------------------------------------------------------------------------------


def wrong_images() -> dict[str, tuple[bytes, int, str]]:
    """One file for each status of the response; the tests of ``model.images`` have one for every code."""
    video = encapsulated(dataset(scene()), "1.2.840.10008.1.2.4.100", b"x")
    return {
        "text": (b"this is a report, not a radiograph" * 10, 422, "not_an_image"),
        "empty": (b"", 422, "empty"),
        "truncated PNG": (png(400, 400)[:1200], 422, "truncated"),
        "GIF": (encode(Image.fromarray(scene()), "GIF"), 415, "unsupported_format"),
        "DICOM of a CT": (dicom(scene(), sop_class="1.2.840.10008.5.1.4.1.1.2"), 422, "not_a_radiograph"),
        "DICOM video": (video, 415, "unsupported_transfer_syntax"),
        "31 x 400": (png(31, 400), 422, "too_small"),
        "30,000 x 30,000 in the header": (png_claiming(30_000, 30_000), 422, "too_large"),
    }


def assert_still_drafts(client: httpx.Client) -> None:
    assert client.post("/report", files={"frontal": upload(png())}, data={"beam_size": "1"}).status_code == 200


def problem(answer: httpx.Response, status: int, code: str, field: str | None) -> dict[str, Any]:
    assert answer.status_code == status, answer.text
    assert answer.headers["content-type"] == PROBLEM
    body: dict[str, Any] = answer.json()
    assert body["status"] == status
    assert body["code"] == code
    assert body["type"].endswith(code)
    assert body["field"] == field
    assert body["title"]
    assert len(body["detail"]) > 15
    return body


@pytest.mark.parametrize("kind", wrong_images())
def test_rejects_wrong_image_naming_its_field(client: httpx.Client, kind: str) -> None:
    data, status, code = wrong_images()[kind]
    for field, other in (("frontal", png()), ("lateral", png()), ("frontal", b"no image")):
        files = {"frontal": upload(other), "lateral": upload(other), field: upload(data)}
        body = problem(client.post("/report", files=files), status, code, field)
        assert "image.png" not in body["detail"]
    assert_still_drafts(client)


@pytest.mark.parametrize(
    ("data", "code", "field"),
    [
        ({"top_k": "0"}, "out_of_range", "top_k"),
        ({"top_k": "three"}, "not_a_number", "top_k"),
        ({"top_k": "2.5"}, "not_a_number", "top_k"),
        ({"top_k": "٣"}, "not_a_number", "top_k"),
        ({"top_k": "9" * 31}, "out_of_range", "top_k"),
        ({"top_k": "9" * 5000}, "not_a_number", "top_k"),
        ({"top_k": ""}, "empty", "top_k"),
        ({"beam_size": "9"}, "out_of_range", "beam_size"),
        ({"side": "left"}, "unknown_field", "side"),
        ({"Frontal": "x"}, "unknown_field", "Frontal"),
    ],
)
def test_rejects_wrong_field_value_naming_the_field(
    client: httpx.Client, data: dict[str, str], code: str, field: str
) -> None:
    body = problem(client.post("/report", files={"frontal": upload(png())}, data=data), 422, code, field)
    assert field in body["detail"]


def test_rejects_unknown_file_field(client: httpx.Client) -> None:
    body = problem(client.post("/report", files={"image": upload(png())}), 422, "unknown_field", "image")
    assert "frontal, lateral, top_k, beam_size, include, stream, refine" in body["detail"]


def test_quotes_long_and_unprintable_field_names_shortened(client: httpx.Client) -> None:
    answer = client.post("/report", files={"a\u202e" + "b" * 500: upload(png())})
    assert answer.status_code == 422
    assert len(answer.json()["detail"]) < 200
    assert "\u202e" not in answer.json()["detail"]


def test_rejects_duplicate_file_field_and_a_path_instead_of_a_file(client: httpx.Client) -> None:
    answer = client.post("/report", files=[("frontal", upload(png())), ("frontal", upload(png()))])
    problem(answer, 422, "duplicate_field", "frontal")
    answer = client.post("/report", files={"lateral": upload(png())}, data={"frontal": "scans/one.png"})
    body = problem(answer, 422, "not_a_file", "frontal")
    assert "@" in body["detail"]
    assert "scans" not in body["detail"]


def test_rejects_query_parameters(client: httpx.Client) -> None:
    body = problem(client.post("/report?top_k=3", files={"frontal": upload(png())}), 422, "unknown_field", None)
    assert "'top_k'" in body["detail"]


MULTIPART = {"Content-Type": "multipart/form-data; boundary=b"}
OPEN = b'--b\r\nContent-Disposition: form-data; name="frontal"; filename="f"\r\n\r\n'


@pytest.mark.parametrize(
    ("headers", "body", "status", "code"),
    [
        ({"Content-Type": "application/json"}, b"{}", 415, "not_multipart"),
        ({"Content-Type": "application/x-www-form-urlencoded"}, b"top_k=3", 415, "not_multipart"),
        ({"Content-Type": "image/png"}, b"\x89PNG", 415, "not_multipart"),
        ({}, b"frontal", 415, "not_multipart"),
        ({"Content-Type": "multipart/form-data"}, b"--b--", 400, "malformed_multipart"),
        ({"Content-Type": "multipart/form-data; boundary=" + "b" * 300}, b"", 400, "malformed_multipart"),
        (MULTIPART, b"", 400, "malformed_multipart"),
        (MULTIPART, b"no boundary here", 400, "malformed_multipart"),
        (MULTIPART, bytes(100_000) + b"\r\n" + OPEN, 400, "malformed_multipart"),
        (MULTIPART, OPEN + b"data without an end", 400, "malformed_multipart"),
        (MULTIPART, b"--b\r\nContent-Disposition: form-data\r\n\r\nx\r\n--b--", 400, "malformed_multipart"),
        (MULTIPART, b"--b\r\n\r\nx\r\n--b--", 400, "malformed_multipart"),
        (MULTIPART, b"--b\r\nX: " + b"y" * 20_000 + b"\r\n\r\nx\r\n--b--", 400, "malformed_multipart"),
        (MULTIPART, b'--b\r\nContent-Disposition: form-data; name="top_k"\r\n\r\n3\r\n--b--\r\n', 422, "missing_image"),
        ({**MULTIPART, "Content-Encoding": "gzip"}, b"\x1f\x8b", 415, "unsupported_encoding"),
    ],
)
def test_rejects_malformed_bodies(
    client: httpx.Client, headers: dict[str, str], body: bytes, status: int, code: str
) -> None:
    problem(client.post("/report", content=body, headers=headers), status, code, None)
    assert_still_drafts(client)


@pytest.mark.parametrize("preamble", [b"", b"\r\n", b"A message\r\n", b"- --b --b\n\r\r\n", bytes(10_000) + b"\r\n"])
@pytest.mark.parametrize("size", [1, 997, MIB])
def test_ignores_what_precedes_the_first_boundary(client: httpx.Client, preamble: bytes, size: int) -> None:
    body = preamble + OPEN + png() + b"\r\n--b--\r\n"
    chunks = (body[start : start + size] for start in range(0, len(body), size))
    assert client.post("/report", content=chunks, headers=MULTIPART).status_code == 200


@pytest.mark.parametrize("preamble", [b"", b"\n", b"A message\n"])
@pytest.mark.parametrize("size", [1, MIB])
def test_names_line_ends_of_lf_alone(client: httpx.Client, preamble: bytes, size: int) -> None:
    body = preamble + OPEN.replace(b"\r\n", b"\n") + png() + b"\n--b--\n"
    chunks = (body[start : start + size] for start in range(0, len(body), size))
    answer = problem(client.post("/report", content=chunks, headers=MULTIPART), 400, "malformed_multipart", None)
    assert answer["detail"].startswith("The multipart body ends its lines with LF; RFC 2046 requires CRLF. Send")


def test_empty_part_without_a_file_name_is_a_file_not_chosen(client: httpx.Client) -> None:
    not_chosen = b'--b\r\nContent-Disposition: form-data; name="%s"; filename=""\r\n\r\n%s\r\n'
    lateral, end = not_chosen % (b"lateral", b""), b"\r\n--b--\r\n"
    assert client.post("/report", content=lateral + OPEN + png() + end, headers=MULTIPART).status_code == 200
    problem(client.post("/report", content=lateral + b"--b--", headers=MULTIPART), 422, "missing_image", None)
    problem(client.post("/report", content=lateral + OPEN + end, headers=MULTIPART), 422, "empty", "frontal")
    chosen = not_chosen % (b"frontal", png()) + b"--b--"
    assert client.post("/report", content=chosen, headers=MULTIPART).status_code == 200


def test_single_quotes_are_no_part_of_names(client: httpx.Client) -> None:
    body = (
        OPEN.replace(b'"', b"'") + png() + b"\r\n--b\r\nContent-Disposition: form-data; name='top_k'\r\n\r\n2\r\n--b--"
    )
    answer = client.post("/report", content=body, headers=MULTIPART)
    assert answer.status_code == 200
    assert len(answer.json()["reference_cases"]) == 2


def test_ignores_one_empty_part_with_an_empty_name(client: httpx.Client) -> None:
    nameless, form = b'--b\r\nContent-Disposition: form-data; name=""\r\n\r\n%s\r\n', OPEN + png() + b"\r\n--b--"
    assert client.post("/report", content=nameless % b"" + form, headers=MULTIPART).status_code == 200
    filled = client.post("/report", content=nameless % b"x" + form, headers=MULTIPART)
    assert problem(filled, 422, "unknown_field", "")["detail"].startswith("The field '' is not known")
    twice = client.post("/report", content=nameless % b"" + nameless % b"" + form, headers=MULTIPART)
    problem(twice, 422, "duplicate_field", "")


def test_refusal_of_an_extended_name_says_so(client: httpx.Client) -> None:
    body = OPEN.replace(b'name="frontal"', b"name*=utf-8''frontal") + png() + b"\r\n--b--"
    answer = problem(client.post("/report", content=body, headers=MULTIPART), 400, "malformed_multipart", None)
    assert answer["detail"].startswith("A part has name* instead of name")


def test_rejects_files_and_bodies_above_the_limit(bundle: Path) -> None:
    with ready_client(bundle, max_upload_bytes=100_000) as client:
        large = {"frontal": upload(bytes(100_001)), "lateral": upload(png())}
        body = problem(client.post("/report", files=large), 413, "upload_too_large", "frontal")
        assert "100,000" in body["detail"]
        problem(client.post("/report", files={"frontal": upload(bytes(MIB))}), 413, "upload_too_large", None)
        assert client.post("/report", files={"frontal": upload(png())}).status_code == 200


@pytest.mark.parametrize("path", ["/nothing", "/static/nothing.js", "/static/../app.py", "/docs", "/reports"])
def test_rejects_unknown_path(client: httpx.Client, path: str) -> None:
    problem(client.get(path), 404, "not_found", None)


@pytest.mark.parametrize(("method", "path", "allowed"), [("GET", "/report", "POST"), ("POST", "/health", "GET")])
def test_rejects_wrong_method(client: httpx.Client, method: str, path: str, allowed: str) -> None:
    answer = client.request(method, path)
    problem(answer, 405, "method_not_allowed", None)
    assert allowed in answer.headers["allow"]
