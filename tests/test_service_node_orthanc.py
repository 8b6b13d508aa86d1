"""The DICOM node with a real Orthanc: kills and restarts lose and repeat nothing; STOW-RS; studies that grow."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pydicom
import pytest

pytest.importorskip("pynetdicom", reason="needs pip install '.[pacs]' in the source tree")
from benchmarks.pacs.checks import PROGRAMS, faults_of_reports
from benchmarks.pacs.peers import draw_studies
from benchmarks.pacs.proof import prove
from service.pacs.dicomweb import Pacs
from service.pacs.queue import read_worklist
from service.settings import Settings
from tests.support.orthanc import CREDENTIALS, Orthanc, running_orthanc
from tests.support.pacs import TITLE, image, new_study, node_settings, parsed, running_node, send
from tests.support.service import Live, free_port, until

NODE_PORT = free_port()  # Orthanc sends N-EVENT-REPORTs to it


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Orthanc]:
    with running_orthanc(tmp_path_factory.mktemp("orthanc"), modalities={TITLE: ("127.0.0.1", NODE_PORT)}) as orthanc:
        yield orthanc


@pytest.fixture
def orthanc(server: Orthanc) -> Orthanc:
    """The server without any study."""
    server.clear()
    return server


def dicomweb(orthanc: Orthanc, folder: Path) -> Pacs:
    (folder / "credentials").write_text(":".join(CREDENTIALS))
    return Pacs(Settings(dicomweb_url=orthanc.dicomweb, dicomweb_credentials_file=folder / "credentials"))


def require_programs() -> None:
    if missing := [name for name in PROGRAMS if shutil.which(name) is None]:
        pytest.skip(f"needs {', '.join(missing)}: apt install orthanc orthanc-dicomweb dcmtk dicom3tools")


def test_kills_and_restarts_lose_no_study_and_repeat_none(tmp_path: Path, page_server: Live, orthanc: Orthanc) -> None:
    require_programs()
    made = prove(tmp_path, page_server.url, orthanc, studies=6, kills=2, restarts=1, quiet_s=5, hostile=100)
    assert made.faults == []
    assert (made.reports, len(made.kills), made.restarts) == (6, 2, 1)


def test_kill_loses_and_repeats_no_report_that_goes_by_stow(
    tmp_path: Path, page_server: Live, orthanc: Orthanc
) -> None:
    require_programs()
    made = prove(tmp_path, page_server.url, orthanc, studies=3, kills=1, restarts=0, stow=True, quiet_s=2)
    assert made.faults == []
    assert (made.reports, made.kills) == (3, ["drafts and sends"])


def test_proof_detects_lost_repeated_foreign_and_invalid_reports(
    tmp_path: Path, page_server: Live, orthanc: Orthanc
) -> None:
    require_programs()
    drawn = draw_studies(tmp_path, 2)
    (first, files), second = next(iter(drawn.items())), list(drawn)[1]
    with running_node(
        node_settings(
            tmp_path / "node",
            page_server.url,
            orthanc.dicom_port,
            destination=f"ORTHANC@127.0.0.1:{orthanc.dicom_port}",
        )
    ) as node:
        assert send(node.server.port, *(path.read_bytes() for path in files)) == [0, 0]
        until(lambda: node.queue.counts()["sent"])
    (report,) = orthanc.files("SR")
    only = {first: files}
    assert faults_of_reports([report], only, tmp_path) == []
    assert faults_of_reports([report, report], only, tmp_path) == ["a study has 2 reports"]
    assert faults_of_reports([report], drawn, tmp_path) == ["a study has 0 reports"]
    moved, invalid = parsed(report), parsed(report)
    moved.StudyInstanceUID = second
    del invalid.VerificationFlag
    for changed, fault in ((moved, "a report is not about the images of its study"), (invalid, "dciodvfy: Error")):
        data = pydicom.filebase.DicomBytesIO()
        changed.save_as(data, enforce_file_format=True)
        assert any(each.startswith(fault) for each in faults_of_reports([data.getvalue()], drawn, tmp_path))


def test_report_of_a_grown_study_reads_the_earlier_image_from_the_archive(
    tmp_path: Path, page_server: Live, orthanc: Orthanc
) -> None:
    study = new_study()
    frontal, lateral = image(study), image(study, "LL")
    orthanc.upload(frontal)
    settings = node_settings(tmp_path / "node", page_server.url, 9, destination="dicomweb")
    with running_node(settings, dicomweb(orthanc, tmp_path)) as node:
        send(node.server.port, frontal)
        until(lambda: node.queue.counts()["sent"])
        send(node.server.port, lateral)
        until(lambda: len(orthanc.files("SR")) == 2)
        until(lambda: node.queue.counts()["sent"])
        until(lambda: not node.store.sizes())
    reports = [parsed(data) for data in orthanc.files("SR")]
    (newest,) = [report for report in reports if "PredecessorDocumentsSequence" in report]
    series = newest.CurrentRequestedProcedureEvidenceSequence[0].ReferencedSeriesSequence
    read = {item.ReferencedSOPInstanceUID for each in series for item in each.ReferencedSOPSequence}
    assert read == {parsed(frontal).SOPInstanceUID, parsed(lateral).SOPInstanceUID}


def test_report_that_is_stored_twice_is_one_instance(tmp_path: Path, page_server: Live, orthanc: Orthanc) -> None:
    settings = node_settings(tmp_path / "node", page_server.url, 9, destination="dicomweb")
    with running_node(settings, dicomweb(orthanc, tmp_path)) as node:
        send(node.server.port, image(new_study()))
        until(lambda: node.queue.counts()["sent"])
        (report,) = orthanc.files("SR")
        node._destination.store(report)
    assert len(orthanc.files("SR")) == 1
    assert read_worklist(settings.queue_file, 9)[1]["failed"] == 0


def test_report_is_sent_once_the_archive_has_committed_to_it(
    tmp_path: Path, page_server: Live, orthanc: Orthanc
) -> None:
    archive = f"ORTHANC@127.0.0.1:{orthanc.dicom_port}"
    settings = node_settings(
        tmp_path, page_server.url, 9, destination=archive, peers="MODALITY,ORTHANC", port=NODE_PORT, commitment=True
    )
    with running_node(settings) as node:
        send(NODE_PORT, image(new_study()))
        until(lambda: node.queue.counts()["sent"])
        assert len(orthanc.files("SR")) == 1
        assert node.store.sizes() == {}
