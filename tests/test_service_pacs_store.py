"""``Pacs.store_file``, with which the DICOM node stores a report, and the parser of multipart answers."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator

import pytest

pytest.importorskip("dicomweb_client", reason="needs pip install '.[pacs]' in the source tree")
pytest.importorskip("highdicom", reason="needs pip install '.[pacs]' in the source tree")

from service.formats.dicom_source import source_image
from service.pacs.connection import _only_part
from service.pacs.dicomweb import Pacs
from service.pacs.structured_report import write_report
from service.settings import Settings
from service.web.problems import Problem
from tests.support.dicomweb_server import DicomwebServer, answers, dicomweb_server
from tests.support.formats import dicom, example


@pytest.fixture
def server() -> Iterator[DicomwebServer]:
    with dicomweb_server() as server:
        yield server


@pytest.fixture(scope="module")
def report() -> bytes:
    return write_report(example(), [source_image(dicom())])


def store(server: DicomwebServer, report: bytes) -> None:
    asyncio.run(Pacs(Settings(dicomweb_url=server.url)).store_file(report))


def test_report_is_stored_and_its_answer_is_read(server: DicomwebServer, report: bytes) -> None:
    store(server, report)
    assert len(server.files) == 1


def test_report_that_the_pacs_refuses_as_repeated_counts_as_stored(server: DicomwebServer, report: bytes) -> None:
    server.answers["store"] = answers(409)
    with pytest.raises(Problem, match="pacs_not_stored"):
        store(server, report)
    server.files.append(report)
    store(server, report)
    assert len(server.files) == 1


@pytest.mark.parametrize(
    "parameters",
    ["boundary=x", 'boundary="x"', "boundary=x ; type=y", 'type="application/dicom";  Boundary="x"; start="<1>"'],
)
def test_part_of_a_multipart_answer_is_its_bytes(parameters: str) -> None:
    body = b"preamble\r\n--x \r\nContent-Type: application/dicom\r\n\r\n\r\n--y\0\r\n\r\n--x--"
    assert _only_part(f"multipart/related; {parameters}", body) == b"\r\n--y\0\r\n"
