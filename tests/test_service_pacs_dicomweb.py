"""Studies of broken and hostile DICOMweb servers: each failure is a problem of its own, within its limits."""

from __future__ import annotations

import io
import json
import socket
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any

import httpx
import pydicom
import pytest
from pydantic import ValidationError

pytest.importorskip("dicomweb_client", reason="needs pip install '.[pacs]' in the source tree")
pytest.importorskip("highdicom", reason="needs pip install '.[pacs]' in the source tree")

from service.formats.dicom_source import source_image
from service.pacs import connection
from service.settings import Settings, explain
from service.web.problems import CODES
from tests.support.dicomweb_server import DicomwebServer, answers, dicomweb_server, multipart, send
from tests.support.formats import dicom, header
from tests.support.service import PROBLEM, Live, live_server, png, until

TIMEOUT_S, MAX_BYTES = 1.5, 200_000
FRONTAL, LATERAL = "1.2.840.1", "1.2.840.2"
STUDY = source_image(dicom()).study_instance_uid


def image(uid: str = FRONTAL, **tags: Any) -> bytes:
    return dicom(SOPInstanceUID=uid, SeriesInstanceUID=f"{uid}.9", **tags)


@pytest.fixture(scope="module")
def served(bundle: Path) -> Iterator[tuple[DicomwebServer, Live]]:
    changes = {"dicomweb_timeout_s": TIMEOUT_S, "max_upload_bytes": MAX_BYTES, "log_level": "DEBUG"}
    with (
        dicomweb_server() as server,
        live_server(bundle, warm_up=False, dicomweb_url=f"{server.url}/", **changes) as live,
    ):
        yield server, live


@pytest.fixture
def pacs(served: tuple[DicomwebServer, Live]) -> DicomwebServer:
    served[0].reset(image(), image(LATERAL, ViewPosition="LL"))
    return served[0]


@pytest.fixture
def client(served: tuple[DicomwebServer, Live]) -> Iterator[httpx.Client]:
    with served[1].client() as client:
        yield client


def ask(client: httpx.Client, study: str = STUDY, **form: str) -> httpx.Response:
    files = {name: (None, value) for name, value in form.items()}
    return client.post(f"/studies/{study}/report", files=files or None)


def problem(answer: httpx.Response) -> str:
    body = answer.json()
    assert answer.headers["content-type"] == PROBLEM
    assert answer.status_code == CODES[body["code"]][0], body
    return str(body["code"])


def hang(handler: BaseHTTPRequestHandler) -> None:
    time.sleep(3 * TIMEOUT_S)


def drip_head(handler: BaseHTTPRequestHandler) -> None:
    for _ in range(90):
        handler.wfile.write(b"H")
        handler.wfile.flush()
        time.sleep(0.05)


def drip_body(handler: BaseHTTPRequestHandler) -> None:
    handler.wfile.write(b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\nContent-Type: application/json\r\n\r\n")
    for _ in range(90):
        handler.wfile.write(b" ")
        handler.wfile.flush()
        time.sleep(0.05)


def endless(handler: BaseHTTPRequestHandler) -> None:
    handler.wfile.write(b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n\r\n")
    while True:
        handler.wfile.write(b"[" * 2**20)


def cut(handler: BaseHTTPRequestHandler) -> None:
    handler.wfile.write(b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n[")
    handler.close_connection = True


def garbage(handler: BaseHTTPRequestHandler) -> None:
    handler.wfile.write(b"\0\xff" * 100)
    handler.close_connection = True


def always_new(handler: BaseHTTPRequestHandler) -> None:
    """A list of other instances on each page."""
    start = int(handler.path.partition("offset=")[2].partition("&")[0])
    uids = [f"1.2.{number}" for number in range(start + 1, start + 301)]
    send(handler, 200, "application/json", json.dumps([listed(uid) for uid in uids]).encode())


def many_items(handler: BaseHTTPRequestHandler) -> None:
    """A header with a sequence of a million items."""
    items = b"{}," * 1_000_000 + b"{}"
    uid = f'"00080018":{{"vr":"UI","Value":["{handler.path.split("/")[-2]}"]}}'.encode()
    send(handler, 200, "application/json", b'[{%s,"00540220":{"vr":"SQ","Value":[%s]}}]' % (uid, items))


def other_patient(handler: BaseHTTPRequestHandler) -> None:
    """A header that was corrected, of a file that was not."""
    metadata = DicomwebServer.json(header(image(handler.path.split("/")[-2], PatientID="PID-2")))
    send(handler, 200, "application/json", json.dumps([metadata]).encode())


def listed(uid: str, series: str = "1.2.3", **elements: Any) -> dict[str, Any]:
    values = {"00080016": "1.2.840.10008.5.1.4.1.1.2", "00080018": uid, "0020000E": series}
    return {tag: {"vr": "UI", "Value": [value]} for tag, value in values.items()} | elements


def wrong_list(*items: Any) -> Callable[[BaseHTTPRequestHandler], None]:
    return answers(body=json.dumps(items).encode())


@pytest.mark.parametrize(
    ("kind", "answer", "code"),
    [
        ("list", answers(401), "pacs_forbidden"),
        ("file", answers(403), "pacs_forbidden"),
        ("list", answers(404), "no_such_study"),
        ("list", answers(), "no_such_study"),
        ("list", answers(204, b""), "no_such_study"),
        ("metadata", answers(404), "no_such_study"),
        ("file", answers(404), "no_such_study"),
        ("list", answers(500), "pacs_broken"),
        ("list", answers(503), "pacs_broken"),
        ("file", answers(302, Location="/elsewhere"), "pacs_broken"),
        ("list", answers(body=b"<html>"), "pacs_broken"),
        ("list", answers(body=b"[" * 100_000), "pacs_broken"),
        ("list", answers(body=b"7"), "pacs_broken"),
        ("list", answers(body=b'["a"]'), "pacs_broken"),
        ("list", wrong_list(listed("../../../x")), "pacs_broken"),
        ("list", wrong_list(listed("1.2.3", "1.2/../..")), "pacs_broken"),
        ("list", wrong_list({}), "pacs_broken"),
        ("list", wrong_list({"00080018": {"vr": "SQ", "Value": [7]}}), "pacs_broken"),
        ("list", answers(body=b"[" + b"{}," * 1_000_000 + b"{}]"), "pacs_broken"),
        ("metadata", answers(), "pacs_broken"),
        ("metadata", many_items, "pacs_broken"),
        ("metadata", wrong_list(listed("1.2.3")), "pacs_broken"),
        ("metadata", other_patient, "pacs_broken"),
        ("file", answers(kind="text/plain"), "pacs_broken"),
        ("file", answers(kind="multipart/related; boundary=x", body=b"--y\r\n\r\nz"), "pacs_broken"),
        ("file", answers(kind=multipart(b"")[0], body=multipart(image())[1][:900]), "pacs_broken"),
        ("file", answers(kind="application/dicom", body=image("1.2.9")), "pacs_broken"),
        ("file", answers(kind="application/dicom", body=image(StudyInstanceUID="1.2.9")), "pacs_broken"),
        ("file", answers(kind="application/dicom", body=b"\0" * 500), "pacs_broken"),
        ("file", answers(body=b"\x1f\x8b\x08", Content_Encoding="gzip"), "pacs_broken"),
        ("list", cut, "pacs_broken"),
        ("list", garbage, "pacs_broken"),
        ("list", hang, "pacs_timeout"),
        ("list", drip_head, "pacs_timeout"),
        ("file", drip_body, "pacs_timeout"),
        ("list", endless, "study_too_large"),
        ("list", always_new, "study_too_large"),
        ("file", answers(kind="application/dicom", body=bytes(2 * MAX_BYTES)), "study_too_large"),
    ],
)  # fmt: skip
def test_failure_is_a_problem_in_time(
    pacs: DicomwebServer, client: httpx.Client, kind: str, answer: Any, code: str
) -> None:
    pacs.answers[kind] = answer
    started = time.monotonic()
    response = ask(client)
    assert problem(response) == code, response.text
    assert time.monotonic() - started < TIMEOUT_S + 3
    assert pacs.url.split("//")[1] not in response.text, "no problem quotes the address"


def test_instance_without_valid_uid_is_left_out(pacs: DicomwebServer, client: httpx.Client) -> None:
    radiographs = [DicomwebServer.json(header(data)) for data in pacs.files]
    broken = [listed("Doe^Jane"), listed("1.2.3.4", "Doe^Jane"), {}]
    paths = [radiographs[:1] + broken, radiographs[1:], []]
    pacs.answers["list"] = lambda handler: wrong_list(*paths.pop(0))(handler)
    answer = ask(client)
    assert answer.status_code == 200, answer.text
    study = answer.json()["study"]
    assert len(study["images"]) == 2
    left_out = [(each["sop_instance_uid"], each["series_instance_uid"], each["code"]) for each in study["left_out"]]
    assert left_out == [("", "1.2.3", "invalid_uid"), ("1.2.3.4", "", "invalid_uid"), ("", "", "invalid_uid")]
    assert "Doe" not in answer.text


def test_failure_does_not_affect_the_next_request(pacs: DicomwebServer, client: httpx.Client) -> None:
    pacs.answers["file"] = answers(500)
    assert problem(ask(client)) == "pacs_broken"
    del pacs.answers["file"]
    assert ask(client).status_code == 200


def test_more_radiographs_than_headers_that_are_read_are_refused(pacs: DicomwebServer, client: httpx.Client) -> None:
    cr = {"00080016": {"vr": "UI", "Value": ["1.2.840.10008.5.1.4.1.1.1"]}}
    pacs.answers["list"] = wrong_list(*(listed(f"1.2.{n}", **cr) for n in range(1, connection.MAX_HEADERS + 2)))
    assert problem(ask(client)) == "study_too_large"


@pytest.mark.parametrize(
    ("files", "code"),
    [
        ([image(), image(LATERAL, ViewPosition="LL", PatientID="PID-2")], "two_patients"),
        ([image(ViewPosition=""), image(LATERAL, ViewPosition="")], "study_ambiguous"),
        ([image(BodyPartExamined="HAND")], "study_empty"),
        ([image(PresentationIntentType="FOR PROCESSING")], "study_empty"),
    ],
)
def test_study_that_cannot_be_drafted_is_refused(
    pacs: DicomwebServer, client: httpx.Client, files: list[bytes], code: str
) -> None:
    pacs.reset(*files)
    assert problem(ask(client)) == code
    assert not [path for _, path, _ in pacs.requests if path.endswith(f"instances/{FRONTAL}")], "no image is fetched"


def test_named_images_resolve_an_ambiguous_study(pacs: DicomwebServer, client: httpx.Client) -> None:
    pacs.reset(image(ViewPosition=""), image(LATERAL, ViewPosition=""))
    study = ask(client, lateral=FRONTAL, frontal=LATERAL).json()["study"]
    assert [(each["view"], each["sop_instance_uid"]) for each in study["images"]] == [
        ("frontal", LATERAL), ("lateral", FRONTAL)
    ]  # fmt: skip
    unknown = ask(client, frontal="1.2.9")
    assert (problem(unknown), unknown.json()["field"]) == ("unknown_value", "frontal")
    assert problem(ask(client, frontal="x/../y")) == "malformed_value"


@pytest.mark.parametrize("study", ["1.2.x", "1..2", "1.2%2F..%2F..", "%2E%2E", "1" * 65, "1.02"])
def test_invalid_study_uid_reaches_no_server(pacs: DicomwebServer, client: httpx.Client, study: str) -> None:
    answer = ask(client, study)
    assert answer.status_code in (404, 422)
    assert answer.json()["code"] in ("malformed_value", "not_found")
    assert pacs.requests == []


def test_formats_and_export_of_a_study(pacs: DicomwebServer, client: httpx.Client) -> None:
    report = ask(client).json()
    uploaded = client.post("/report", files={"frontal": ("f", pacs.files[0]), "lateral": ("l", pacs.files[1])}).json()
    assert "study" not in uploaded
    assert set(report) == {*uploaded, "study"}
    assert report["findings"] == uploaded["findings"]
    for accept in ("text/plain", "application/fhir+json", "application/dicom"):
        answer = client.post(f"/studies/{STUDY}/report", headers={"Accept": accept})
        assert answer.status_code == 200, answer.text
        assert answer.headers["content-type"].startswith(accept)
    exported = client.post("/export", json={"report": report}, headers={"Accept": "application/fhir+json"})
    assert exported.status_code == 200, exported.text
    assert "subject" not in exported.json()
    assert STUDY not in exported.text


def test_server_that_ignores_the_offset_is_read_once(pacs: DicomwebServer, client: httpx.Client) -> None:
    whole = json.dumps([pacs.json(pydicom.dcmread(io.BytesIO(data))) for data in pacs.files])
    pacs.answers["list"] = answers(body=whole.encode())
    assert len(ask(client).json()["study"]["images"]) == 2


@pytest.mark.parametrize("answer", [answers(409), answers(200, b""), answers(202, b"{}"), answers(200, b"{", "text/x")])
def test_report_that_is_not_stored_is_a_problem(pacs: DicomwebServer, client: httpx.Client, answer: Any) -> None:
    pacs.answers["store"] = answer
    assert problem(ask(client, store="true")) == "pacs_not_stored"
    streamed = ask(client, store="true", stream="true")
    assert 'event: problem\ndata: {"type":"urn:problem-type:cxr-report:pacs_not_stored"' in streamed.text


def test_report_is_stored_once(pacs: DicomwebServer, client: httpx.Client) -> None:
    states = [ask(client, store="true").json()["study"]["stored"] for _ in range(2)]
    assert [state["status"] for state in states] == ["stored", "already_stored"]
    assert [method for method, _, _ in pacs.requests].count("POST") == 1
    assert len(pacs.files) == 3


def test_report_that_is_requested_twice_at_a_time_is_stored_once(pacs: DicomwebServer, client: httpx.Client) -> None:
    with ThreadPoolExecutor(3) as threads:
        answers_ = list(threads.map(lambda _: ask(client, store="true"), range(3)))
    states = sorted(answer.json()["study"]["stored"]["status"] for answer in answers_)
    assert states == ["already_stored", "already_stored", "stored"]
    assert len(pacs.files) == 3


@pytest.mark.parametrize("spelling", ["http://LOCALHOST:{}/dicom-web", "http://localhost:{}/dicom-web//"])
def test_address_may_be_spelt_in_any_way(pacs: DicomwebServer, bundle: Path, spelling: str) -> None:
    url = spelling.format(pacs.url.split(":")[2].split("/")[0])
    with live_server(bundle, warm_up=False, dicomweb_url=url) as live, live.client() as client:
        assert ask(client).status_code == 200


def test_pages_of_other_origins_are_refused(pacs: DicomwebServer, client: httpx.Client) -> None:
    for foreign in ({"Sec-Fetch-Site": "cross-site"}, {"Origin": "http://elsewhere"}, {"Origin": "null"}):
        answer = client.post(f"/studies/{STUDY}/report", headers=foreign)
        assert problem(answer) == "cross_origin"
    assert pacs.requests == []
    same = {"Origin": str(client.base_url).rstrip("/")}
    assert client.post(f"/studies/{STUDY}/report", headers=same).status_code == 200


def test_disconnected_client_ends_the_exchange_and_frees_the_slot(
    pacs: DicomwebServer, served: tuple[DicomwebServer, Live]
) -> None:
    admission = served[1].app.state.runtime.admission
    pacs.answers["list"] = hang
    with socket.create_connection(("127.0.0.1", served[1].port)) as connection:
        connection.sendall(f"POST /studies/{STUDY}/report HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\n\r\n".encode())
        until(lambda: pacs.requests)
        assert admission.in_use == 1
    started = time.monotonic()
    until(lambda: admission.in_use == 0)
    assert time.monotonic() - started < TIMEOUT_S / 2


def test_body_is_a_form_with_known_fields(pacs: DicomwebServer, client: httpx.Client) -> None:
    wrong = [
        ({"files": {"patient": (None, "x")}}, "unknown_field"),
        ({"params": {"store": "true"}}, "unknown_field"),
        ({"files": {"store": (None, "yes")}}, "unknown_value"),
        ({"json": {"store": True}}, "not_multipart"),
        ({"files": {"frontal": ("f.png", png())}}, "out_of_range"),
    ]
    for request, code in wrong:
        answer = client.post(f"/studies/{STUDY}/report", **request)  # type: ignore[arg-type]
        assert answer.json()["code"] in (code, "malformed_value"), answer.text
    assert pacs.requests == []


def test_service_without_the_setting_or_the_extra_says_what_is_missing(
    client: httpx.Client, page_server: Live, monkeypatch: pytest.MonkeyPatch
) -> None:
    with page_server.client() as other:
        unset = ask(other)
    assert problem(unset) == "no_pacs"
    assert "REPORT_DICOMWEB_URL" in unset.json()["detail"]
    monkeypatch.setitem(sys.modules, "dicomweb_client", None)  # as if it were not installed
    missing = ask(client)
    assert problem(missing) == "no_pacs"
    assert "pip install '.[pacs]' in the source tree" in missing.json()["detail"]


def test_closed_port_is_an_unreachable_pacs(bundle: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{free.getsockname()[1]}/dicom-web"
        with live_server(bundle, warm_up=False, dicomweb_url=url) as live, live.client() as client:
            assert problem(ask(client)) == "pacs_unreachable"


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"dicomweb_url": "ftp://pacs/dicom-web"}, "REPORT_DICOMWEB_URL: write an address"),
        ({"dicomweb_url": "http://user:pass@pacs/dicom-web"}, "REPORT_DICOMWEB_CREDENTIALS_FILE"),
        ({"dicomweb_url": "http://pacs/dicom-web?x=1"}, "without user, query"),
        ({"dicomweb_credentials_file": "/nowhere", "dicomweb_url": "http://pacs"}, "cannot be read"),
        ({"dicomweb_credentials_file": __file__, "dicomweb_url": "http://pacs"}, "line 1"),
        ({"dicomweb_timeout_s": 0}, "REPORT_DICOMWEB_TIMEOUT_S"),
    ],
)
def test_wrong_setting_is_named_without_its_secret(settings: dict[str, Any], words: str) -> None:
    with pytest.raises(ValidationError) as wrong:
        Settings(**settings)
    assert words in explain(wrong.value)
    assert "pass" not in explain(wrong.value)


def test_credentials_need_a_server(tmp_path: Path) -> None:
    (tmp_path / "credentials").write_text("user:secret\n")
    with pytest.raises(ValidationError, match="without REPORT_DICOMWEB_URL"):
        Settings(dicomweb_credentials_file=tmp_path / "credentials")


def test_credentials_are_sent_and_nothing_else_identifies_the_client(
    pacs: DicomwebServer, bundle: Path, tmp_path: Path
) -> None:
    for secret, expected in (("user:secret", "Basic dXNlcjpzZWNyZXQ="), ("t0ken.x", "Bearer t0ken.x")):
        (tmp_path / "credentials").write_text(f"{secret}\n")
        changes = {"dicomweb_url": pacs.url, "dicomweb_credentials_file": tmp_path / "credentials"}
        with live_server(bundle, warm_up=False, **changes) as live, live.client() as client:
            pacs.requests.clear()
            client.cookies.set("session", "abc")
            assert ask(client, store="true").status_code == 200
        assert {headers["Authorization"] for _, _, headers in pacs.requests} == {expected}
        assert {headers["Accept-Encoding"] for _, _, headers in pacs.requests} == {"identity"}
        assert not any("Cookie" in headers for _, _, headers in pacs.requests)
