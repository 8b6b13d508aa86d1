"""No patient data in logs, errors and metrics: canaries in every part of a request."""

from __future__ import annotations

import socket
from pathlib import Path

import httpx
import pytest
from PIL import Image, PngImagePlugin

from tests.support.dicom import dicom
from tests.support.logs import all_log_lines
from tests.support.service import KEY, Live, encode, live_server, png, scene
from tests.support.tiny import REPORTS

PARTS = (
    "file name", "png text", "exif", "dicom", "field", "value", "query name", "query", "path", "static path", "method",
    "boundary", "body", "content type", "encoding", "part header", "part type", "websocket", "garbage",
    "X-Request-ID", "X-Patient", "User-Agent", "Authorization", "X-API-Key", "X-Forwarded-For", "Forwarded", "Cookie",
    "traceparent", "tracestate", "baggage", "Referer", "Origin", "Accept-Language", "If-None-Match",
)  # fmt: skip
CANARY = {part: f"Doe{number:02d}Jane" for number, part in enumerate(PARTS)}
HEADERS = {part: CANARY[part] for part in PARTS[PARTS.index("X-Request-ID") :]}
# The contract quotes these to the sender: the name of an unknown field, and a value that is not a number.
QUOTED = {CANARY["field"], CANARY["query name"], CANARY["value"]}


def canary_png() -> bytes:
    info = PngImagePlugin.PngInfo()
    info.add_text("PatientName", CANARY["png text"])
    info.add_itxt("PatientID", CANARY["png text"], zip=True)
    return encode(Image.fromarray(scene()), pnginfo=info, exif=canary_exif())


def canary_exif() -> Image.Exif:
    exif = Image.Exif()
    for tag in (0x010E, 0x013B, 0x8298):  # ImageDescription, Artist, Copyright
        exif[tag] = CANARY["exif"]
    return exif


def canary_jpeg() -> bytes:
    return encode(Image.fromarray(scene()), "JPEG", exif=canary_exif(), comment=CANARY["exif"].encode())


def canary_dicom() -> bytes:
    """A valid file with the canary in every text element."""
    texts = ("PatientID", "AccessionNumber", "InstitutionName", "StudyDescription", "PatientComments")
    coded = ("BodyPartExamined", "PresentationLUTShape", "PatientOrientation", "ViewPosition")
    return dicom(scene(), PatientName=f"{CANARY['dicom']}^A", **dict.fromkeys((*texts, *coded), CANARY["dicom"]))


def wrong_dicoms() -> list[bytes]:
    """Invalid files with the canary in the invalid part."""
    canary = CANARY["dicom"]
    return [
        canary_dicom()[:-500],
        canary_dicom()[:600],
        dicom(scene(), PatientName=canary, photometric=canary.upper()),
        dicom(scene(), PatientName=canary, sop_class="1.2.840.10008.5.1.4.1.1.2"),
        dicom(scene(), PatientName=canary, WindowCenter=1700, WindowWidth=3200).replace(b"1700", canary[:4].encode()),
    ]


def multipart(part: str, boundary: str = "b") -> dict[str, object]:
    content = f"--{boundary}\r\n{part}\r\n\r\n{CANARY['body']}\r\n--{boundary}--\r\n".encode()
    return {"content": content, "headers": {"Content-Type": f"multipart/form-data; boundary={boundary}"}}


def wrong_requests(client: httpx.Client) -> list[httpx.Response]:
    """Answers to one invalid request for each check of the service, each with a canary."""
    name, good = f"{CANARY['file name']}.png", {"frontal": ("f", png())}
    form = 'Content-Disposition: form-data; name="frontal"'
    posts: list[dict[str, object]] = [
        {"files": {"frontal": (name, CANARY["body"].encode() * 10)}},
        {"files": {"frontal": (name, canary_png()[:-40])}},
        {"files": {"frontal": (name, canary_jpeg()[:-400])}},
        {"files": {"frontal": (name, canary_dicom()[:-500], "application/dicom")}},
        {"files": {"frontal": (name, canary_dicom()[200:])}},
        {"files": {CANARY["field"]: (name, png())}},
        {"files": good, "data": {"top_k": CANARY["value"]}},
        {"files": {"lateral": ("f", png())}, "data": {"frontal": f"/scans/{CANARY['body']}.png"}},
        {"files": good, "params": {CANARY["query name"]: CANARY["query"]}},
        {"content": CANARY["body"].encode(), "headers": {"Content-Type": f"multipart/{CANARY['content type']}"}},
        {"content": CANARY["body"].encode(), "headers": {"Content-Type": CANARY["content type"]}},
        {"files": good, "headers": {"Content-Encoding": CANARY["encoding"]}},
        multipart(form, CANARY["boundary"])
        | {"headers": {"Content-Type": f"multipart/form-data; boundary={CANARY['boundary']}x"}},
        multipart(f"X-{CANARY['part header']}: {CANARY['part header']}"),
        multipart(f"Bad {CANARY['part header']} header"),
        multipart(f'{form}; filename="{name}"\r\nContent-Type: {CANARY["part type"]}'),
    ]
    posts += [{"files": {"lateral": (name, data)}} for data in wrong_dicoms()]
    answers = [client.post("/report", **post) for post in posts]  # type: ignore[arg-type]
    answers += [
        client.get(f"/{CANARY['path']}?{CANARY['query name']}={CANARY['query']}"),
        client.get(f"/static/{CANARY['static path']}.css"),
        client.get(f"/static/../{CANARY['static path']}/%2e%2e/x"),
        client.request(CANARY["method"], "/report"),
        client.put(f"/health?p={CANARY['query']}"),
        client.options("/report", headers={"Access-Control-Request-Method": CANARY["method"]}),
    ]
    return answers


def raw_requests(live: Live) -> None:
    """A WebSocket request and bytes that are not HTTP."""
    path = f"/{CANARY['websocket']}?{CANARY['query name']}={CANARY['query']}"
    upgrade = (
        f"GET {path} HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
        f"X-Forwarded-For: {CANARY['X-Forwarded-For']}\r\n"
        "Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n\r\n"
    )
    refused = (b"403", b"404")  # by uvicorn's WebSocket protocol; an ignored offer of an unknown path
    for data, statuses in ((upgrade, refused), (f"{CANARY['garbage']}\r\n\r\n", (b"400",))):
        with socket.create_connection(("127.0.0.1", live.port), timeout=30) as connection:
            connection.sendall(data.encode())
            answer = connection.recv(65536)
        assert answer.split(b" ", 2)[1] in statuses, answer
        assert not found(answer.decode())


def found(text: str) -> list[str]:
    return [part for part, canary in CANARY.items() if canary in text]


@pytest.mark.parametrize(("http", "keyed"), [("httptools", True), ("h11", False)], ids=["keyed", "h11"])
def test_no_upload_content_in_logs_errors_or_metrics(
    bundle: Path, caplog: pytest.LogCaptureFixture, http: str, keyed: bool
) -> None:
    changes = {"api_key": KEY, "cors_origins": "https://pacs.example.org"} if keyed else {}
    with (
        all_log_lines(caplog, keep=lambda record: not record.name.startswith(("httpx", "httpcore"))) as streams,
        live_server(bundle, http=http, log_level="DEBUG", **changes) as live,  # type: ignore[arg-type]
        live.client() as client,
    ):
        client.headers.update(HEADERS)
        if keyed:
            refused = client.post("/report", files={"frontal": (f"{CANARY['file name']}.png", canary_png())})
            assert refused.status_code == 401
            assert not found(refused.text)
            client.headers["X-API-Key"] = KEY
        good = [
            client.post("/report", files={"frontal": (f"{CANARY['file name']}.png", data)})
            for data in (canary_png(), canary_jpeg(), canary_dicom())
        ]
        wrong = wrong_requests(client)
        raw_requests(live)
        metrics = client.get("/metrics")
    assert [answer.status_code for answer in good] == [200, 200, 200]
    assert [answer.status_code for answer in wrong] == [
        *(422, 422, 422, 422, 422, 422, 422, 422, 422, 415, 415, 415, 400, 400, 400, 422),
        *(422,) * len(wrong_dicoms()),
        *(404, 404, 404, 405 if http == "h11" else 400, 405, 400 if keyed else 405),
    ]  # fmt: skip
    for answer in (*good, *wrong):
        assert {CANARY[part] for part in found(answer.text)} <= QUOTED, answer.text
        assert not found(str(answer.headers))
    if metrics.status_code != 404:
        assert metrics.status_code == 200
        assert not found(metrics.text)
    for form, stream in streams.items():
        text = stream.getvalue()
        assert text.count("POST /report 422") >= 8, form
        assert not found(text), form
        assert KEY not in text
        for answer in good:
            for private in (answer.json()["findings"], *(part["text"] for part in answer.json()["sentences"])):
                assert private
                assert private not in text
        assert not any(report in text for report in REPORTS)
