"""A small DICOMweb server over files in memory, which tests can make fail in any way."""

from __future__ import annotations

import json
import re
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs

from tests.support.formats import header

Answer = Callable[[BaseHTTPRequestHandler], None]
BOUNDARY = "b0undary"
_PATHS = {
    "studies": re.compile(r"(/dicom-web/studies)"),
    "list": re.compile(r"/dicom-web/studies/([\d.]+)/instances"),
    "metadata": re.compile(r"/dicom-web/studies/[\d.]+/series/[\d.]+/instances/([\d.]+)/metadata"),
    "file": re.compile(r"/dicom-web/studies/[\d.]+/series/[\d.]+/instances/([\d.]+)"),
    "store": re.compile(r"/dicom-web/studies/([\d.]+)"),
}
_JSON = "application/dicom+json"


def multipart(data: bytes) -> tuple[str, bytes]:
    """Content-Type and body of an answer with one file."""
    kind = f'multipart/related; type="application/dicom"; boundary={BOUNDARY}'
    return kind, b"--%s\r\nContent-Type: application/dicom\r\n\r\n%s\r\n--%s--" % (
        BOUNDARY.encode(), data, BOUNDARY.encode()
    )  # fmt: skip


def send(handler: BaseHTTPRequestHandler, status: int, kind: str, body: bytes, **headers: str) -> None:
    """A whole answer."""
    handler.send_response(status)
    for name, value in {"Content-Type": kind, "Content-Length": str(len(body)), **headers}.items():
        handler.send_header(name.replace("_", "-"), value)
    handler.end_headers()
    handler.wfile.write(body)


def answers(status: int = 200, body: bytes = b"[]", kind: str = _JSON, **headers: str) -> Answer:
    """Always the same answer."""
    return lambda handler: send(handler, status, kind, body, **headers)


class DicomwebServer:
    """The state of a server.

    Attributes:
        url: its base address.
        files: what it holds; STOW adds to it.
        answers: kind of request (studies, list, metadata, file, store) -> what is done instead of the right answer.
        requests: method, path and headers of each request.
    """

    def __init__(self, url: str) -> None:
        self.url = url
        self.files: list[bytes] = []
        self.answers: dict[str, Answer] = {}
        self.requests: list[tuple[str, str, dict[str, str]]] = []

    def reset(self, *files: bytes) -> None:
        """Hold these files and answer rightly."""
        self.files, self.answers, self.requests = list(files), {}, []

    def answer(self, handler: BaseHTTPRequestHandler) -> None:
        """Answer one request."""
        path, _, query = handler.path.partition("?")
        self.requests.append((handler.command, handler.path, dict(handler.headers)))
        length = int(handler.headers.get("Content-Length", 0))
        body = handler.rfile.read(length)
        matches = {kind: found for kind, pattern in _PATHS.items() if (found := pattern.fullmatch(path))}
        (kind, found) = next(iter(matches.items()))
        if kind in self.answers:
            self.answers[kind](handler)
        else:
            getattr(self, f"_{kind}")(handler, found[1], query, body)

    def _studies(self, handler: BaseHTTPRequestHandler, _: str, query: str, body: bytes) -> None:
        """The studies of a patient, whatever their dates are."""
        asked = {name: values[0] for name, values in parse_qs(query).items()}
        headers = [header(data) for data in self.files]
        found = [each for each in headers if each.PatientID == asked["PatientID"]]
        send(handler, 200, _JSON, json.dumps([self.json(each) for each in found]).encode())

    def _list(self, handler: BaseHTTPRequestHandler, study: str, query: str, body: bytes) -> None:
        offset = int(re.findall(r"offset=(\d+)", query)[0])
        headers = [header(data) for data in self.files]
        listed = [self.json(each) for each in headers if study == each.StudyInstanceUID]
        send(handler, 200, _JSON, json.dumps(listed[offset:]).encode())

    def _metadata(self, handler: BaseHTTPRequestHandler, uid: str, query: str, body: bytes) -> None:
        send(handler, 200, _JSON, json.dumps([self.json(header(self._found(uid)))]).encode())

    def _file(self, handler: BaseHTTPRequestHandler, uid: str, query: str, body: bytes) -> None:
        send(handler, 200, *multipart(self._found(uid)))

    def _store(self, handler: BaseHTTPRequestHandler, study: str, query: str, body: bytes) -> None:
        start = body.index(b"\r\n\r\n") + 4
        self.files.append(body[start : body.rindex(b"\r\n--")])
        item = {"00081155": {"vr": "UI", "Value": [header(self.files[-1]).SOPInstanceUID]}}
        send(handler, 200, _JSON, json.dumps({"00081199": {"vr": "SQ", "Value": [item]}}).encode())

    def _found(self, uid: str) -> bytes:
        return next(data for data in self.files if header(data).SOPInstanceUID == uid)

    @staticmethod
    def json(dataset: Any) -> dict[str, Any]:
        """DICOM JSON of a header."""
        made: dict[str, Any] = dataset.to_json_dict(suppress_invalid_tags=True)
        return made


@contextmanager
def dicomweb_server() -> Iterator[DicomwebServer]:
    """A running server on loopback."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            try:
                served.answer(self)
            except (BrokenPipeError, ConnectionResetError):
                self.close_connection = True

        do_POST = do_GET  # noqa: N815

        def log_message(self, format: str, *args: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    served = DicomwebServer(f"http://127.0.0.1:{server.server_address[1]}/dicom-web")
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield served
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
