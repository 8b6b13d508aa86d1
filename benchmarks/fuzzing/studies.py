"""Requests for studies of a PACS and for the worklist, and the PACS with one drawn study and the queue behind them."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from hypothesis import strategies as st

from benchmarks.raw_http import RawRequest, form

STUDY = "1.2.826.0.1.3680043.8.498.18"  # the only one of the PACS
_wrong = ["1.2.3", f"{STUDY}.1", "1..2", "01.2", "0" * 65, "..", "%2e%2e", f"{STUDY}%00", f"{STUDY};x", "%C3%A9", "*"]
_uids = st.sampled_from([STUDY] * 6 + _wrong)
_views = st.sampled_from([f"{STUDY}.1.1", f"{STUDY}.2.1", STUDY, "", "1.2.3", "Doe^Jane", "9" * 5000]).map(str.encode)
_fields = {
    "frontal": _views, "lateral": _views, "store": st.sampled_from([b"true", b"false", b"1", b""]),
    "top_k": st.sampled_from([b"1", b"3", b"-1"]), "beam_size": st.just(b"1"),
    "stream": st.sampled_from([b"true", b"false"]), "include": st.just(b"evidence"), "studyuid": st.just(b"1"),
}  # fmt: skip
_types = ("*/*", "application/json", "application/fhir+json", "text/plain", "application/dicom", "text/html", "\xff")
_sites = ("Sec-Fetch-Site: cross-site", "Sec-Fetch-Site: none", "Origin: null", "Origin: http://service")
_headers = st.sampled_from([""] * 6 + [f"{line}\r\n" for line in _sites])
_limits = st.sampled_from(["", "?limit=1", "?limit=0", "?limit=9999", "?limit=x", "?limit=1&limit=2", "?%00"])


@st.composite
def studies(draw: st.DrawFn) -> RawRequest:
    """One request for a draft, the images, the earlier study or the worklist."""
    what = draw(st.sampled_from(["report"] * 3 + ["images", "prior", "worklist", "reports", "report/"]))
    method = draw(st.sampled_from(["POST" if what.startswith("report") else "GET"] * 5 + ["PUT", "HEAD", "OPTIONS"]))
    path = f"/worklist{draw(_limits)}" if what == "worklist" else f"/studies/{draw(_uids)}/{what}"
    head = f"{method} {path} HTTP/1.1\r\nHost: service\r\nConnection: close\r\n{draw(_headers)}"
    head += f"Accept: {draw(st.sampled_from(_types))}\r\n"
    body = b""
    if method == "POST" and draw(st.booleans()):
        names = draw(st.lists(st.sampled_from(sorted(_fields)), unique=True, max_size=3))
        values = ((name, draw(_fields[name])) for name in names)
        body = form(values).replace(b'; filename="frontal"', b"").replace(b'; filename="lateral"', b"")
        head += "Content-Type: multipart/form-data; boundary=b0undary\r\n"
    return RawRequest(f"{head}Content-Length: {len(body)}\r\n\r\n".encode("latin-1") + body)


@contextmanager
def pacs_and_queue() -> Iterator[dict[str, str]]:
    """The settings of a service that reads the study from a PACS, and a worklist."""
    from service.pacs.queue import StudyQueue
    from tests.support.dicomweb_server import dicomweb_server
    from tests.support.formats import dicom

    with tempfile.TemporaryDirectory() as folder, dicomweb_server() as pacs:
        for number, view in enumerate(("PA", "LL"), 1):
            series = f"{STUDY}.{number}"
            pacs.files.append(
                dicom(StudyInstanceUID=STUDY, SeriesInstanceUID=series, SOPInstanceUID=f"{series}.1", ViewPosition=view)
            )
        file = Path(folder) / "queue.sqlite"
        queue = StudyQueue(file)
        queue.received(STUDY, f"{STUDY}.1", f"{STUDY}.1.1", "token", quiet_s=60)
        queue.close()
        yield {"dicomweb_url": pacs.url, "worklist": str(file)}
