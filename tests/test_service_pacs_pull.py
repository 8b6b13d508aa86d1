"""``POST /studies/{StudyInstanceUID}/report`` with a real Orthanc: choice, formats, storing once, privacy."""

from __future__ import annotations

import io
import json
import logging
import random
import re
import shutil
import subprocess
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from importlib.resources import files
from pathlib import Path
from typing import Any

import httpx
import pydicom
import pytest
from pydicom.uid import DeflatedExplicitVRLittleEndian, ImplicitVRLittleEndian

pytest.importorskip("dicomweb_client", reason="needs pip install '.[pacs]' in the source tree")
pytest.importorskip("highdicom", reason="needs pip install '.[pacs]' in the source tree")

from service.formats.dicom_source import source_image
from service.pacs.prior import MOST_TRIED
from tests.support import dicom as drawn
from tests.support.dicom import ENCODERS, SC, compressed
from tests.support.dicomweb_server import answers, dicomweb_server
from tests.support.formats import dicom, fhir_validators, header
from tests.support.logs import all_log_lines
from tests.support.orthanc import Orthanc, running_orthanc
from tests.support.service import live_server, ready_client

CANARY = "Doe47Jane"
STUDIES = iter(range(1, 1000))
LOSSLESS = [syntax for syntax in ENCODERS if not syntax.endswith((".81", ".91"))]


@pytest.fixture(scope="module")
def credentials(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("credentials") / "orthanc"
    file.write_text("pull:secret\n")
    return file


@pytest.fixture(scope="module")
def orthanc(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Orthanc]:
    with running_orthanc(tmp_path_factory.mktemp("orthanc")) as orthanc:
        yield orthanc


@pytest.fixture(scope="module")
def client(orthanc: Orthanc, bundle: Path, credentials: Path) -> Iterator[httpx.Client]:
    pacs = {"dicomweb_url": orthanc.dicomweb, "dicomweb_credentials_file": credentials}
    with ready_client(bundle, warm_up=False, **pacs) as client:
        yield client


class Study:
    """A study with its files, which have UIDs below its UID."""

    def __init__(self) -> None:
        self.uid = f"1.2.826.0.1.3680043.8.498.77.{next(STUDIES)}"

    def image(self, number: int, view: str | None = "PA", **tags: Any) -> bytes:
        return dicom(**self.identity(number), ViewPosition=view, **tags)

    def identity(self, number: int) -> dict[str, str]:
        series = f"{self.uid}.{number}"
        return {"StudyInstanceUID": self.uid, "SeriesInstanceUID": series, "SOPInstanceUID": f"{series}.1"}

    def ask(self, client: httpx.Client, accept: str = "application/json", **form: str) -> httpx.Response:
        files = {name: (None, value) for name, value in form.items()}
        answer = client.post(f"/studies/{self.uid}/report", files=files or None, headers={"Accept": accept})
        assert answer.status_code == 200, answer.text
        return answer

    def reports(self, orthanc: Orthanc) -> list[pydicom.Dataset]:
        read = (pydicom.dcmread(io.BytesIO(data)) for data in orthanc.files("SR"))
        return [report for report in read if report.StudyInstanceUID == self.uid]


def validate(report: pydicom.Dataset, folder: Path) -> None:
    """Check a report by dcmtk and dicom3tools, where they are installed."""
    file = folder / "report.dcm"
    report.save_as(file)
    for command in filter(shutil.which, ("dsrdump", "dciodvfy")):
        done = subprocess.run([command, str(file)], capture_output=True, timeout=60)
        assert done.returncode == 0, done.stderr.decode("utf-8", "replace")


def uids(study: dict[str, Any]) -> dict[str, str]:
    return {each["view"]: each["sop_instance_uid"] for each in study["images"]}


def test_answer_names_the_instances_that_were_read_and_why_others_were_not(
    orthanc: Orthanc, client: httpx.Client
) -> None:
    study = Study()
    orthanc.upload(
        study.image(1, AcquisitionDate="20260301"),
        study.image(2, "LL"),
        study.image(3, AcquisitionDate="20260302"),
        study.image(4, "LLD"),
        study.image(5, PresentationIntentType="FOR PROCESSING"),
    )
    answer = study.ask(client, top_k="2").json()
    assert answer["findings"]
    assert len(answer["reference_cases"]) == 2
    assert answer["study"]["study_instance_uid"] == study.uid
    assert uids(answer["study"]) == {"frontal": f"{study.uid}.3.1", "lateral": f"{study.uid}.2.1"}
    codes = {each["sop_instance_uid"].removeprefix(study.uid): each["code"] for each in answer["study"]["left_out"]}
    assert codes == {".1.1": "repeated_view", ".4.1": "other_view", ".5.1": "for_processing"}
    assert all(each["reason"].endswith(".") for each in answer["study"]["left_out"])
    assert answer["study"]["stored"] is None
    assert set(answer["timings_ms"]) >= {"fetch", "images", "decode", "total"}
    assert study.reports(orthanc) == []


def test_draft_equals_that_of_the_uploaded_files(orthanc: Orthanc, client: httpx.Client) -> None:
    study = Study()
    frontal, lateral = study.image(1), study.image(2, "LL")
    orthanc.upload(frontal, lateral)
    pulled = study.ask(client, include="evidence").json()
    uploaded = client.post(
        "/report", files={"frontal": ("f", frontal), "lateral": ("l", lateral)}, data={"include": "evidence"}
    ).json()
    assert "study" not in uploaded
    different = {"report_id", "timings_ms", "study"}
    assert {name: value for name, value in pulled.items() if name not in different} == {
        name: value for name, value in uploaded.items() if name not in different
    }
    exported = client.post("/export", json={"report": pulled}, headers={"Accept": "text/plain"})
    assert exported.status_code == 200, exported.text


@pytest.mark.parametrize("syntax", [ImplicitVRLittleEndian, DeflatedExplicitVRLittleEndian, *LOSSLESS])
def test_reads_every_transfer_syntax_and_captures(orthanc: Orthanc, client: httpx.Client, syntax: str) -> None:
    study = Study()
    tags = {**study.identity(1), "ViewPosition": "PA", "Modality": "OT", "PatientID": "PID-471"}
    plain = syntax not in LOSSLESS
    made = drawn.dataset(drawn.film(bits=8), sop_class=SC, **({"syntax": syntax} if plain else {}), **tags)
    made.file_meta.MediaStorageSOPInstanceUID = made.SOPInstanceUID
    orthanc.upload(drawn.encode(made) if plain else compressed(made, syntax))
    assert uids(study.ask(client).json()["study"]) == {"frontal": f"{study.uid}.1.1"}


def test_report_is_stored_once_and_a_grown_study_gets_a_successor(
    orthanc: Orthanc, client: httpx.Client, tmp_path: Path
) -> None:
    study = Study()
    orthanc.upload(study.image(1))
    first = [study.ask(client, store="true").json()["study"]["stored"] for _ in range(2)]
    assert [each["status"] for each in first] == ["stored", "already_stored"]
    (report,) = study.reports(orthanc)
    assert first[0]["sop_instance_uid"] == first[1]["sop_instance_uid"] == report.SOPInstanceUID
    assert (report.PreliminaryFlag, report.VerificationFlag, report.Modality) == ("PRELIMINARY", "UNVERIFIED", "SR")
    assert (report.PatientName, report.AccessionNumber) == ("Müller^Jürgen", "ACC-815")
    assert report.SeriesInstanceUID != f"{study.uid}.1"
    orthanc.upload(study.image(2, "LL"))
    second = study.ask(client, store="true", stream="true")
    assert '"status":"stored"' in second.text
    (successor,) = (each for each in study.reports(orthanc) if each.SOPInstanceUID != report.SOPInstanceUID)
    predecessor = successor.PredecessorDocumentsSequence[0].ReferencedSeriesSequence[0].ReferencedSOPSequence[0]
    assert predecessor.ReferencedSOPInstanceUID == report.SOPInstanceUID
    validate(successor, tmp_path)


def test_every_study_has_one_report_although_the_pacs_restarts(
    orthanc: Orthanc, client: httpx.Client, tmp_path: Path
) -> None:
    studies = [Study() for _ in range(8)]
    orthanc.upload(*(study.image(number, view) for study in studies for number, view in ((1, "PA"), (2, "LL"))))
    asked = [*studies, *studies]
    random.Random(18).shuffle(asked)

    def store(study: Study) -> str:
        for _ in range(100):
            answer = client.post(f"/studies/{study.uid}/report", files={"store": (None, "true")})
            if answer.status_code == 200:
                return str(answer.json()["study"]["stored"]["status"])
            assert answer.json()["code"] in ("pacs_unreachable", "pacs_broken", "pacs_timeout"), answer.text
            time.sleep(0.1)
        raise AssertionError("no answer after the restart")

    with ThreadPoolExecutor(3) as threads:
        running = [threads.submit(store, study) for study in asked]
        running[3].result()
        orthanc.stop()
        orthanc.start()
        states = [each.result() for each in running]
    assert "stored" in states
    for study in studies:
        (report,) = study.reports(orthanc)
        validate(report, tmp_path)


def test_formats_are_those_of_the_upload_with_the_identity(orthanc: Orthanc, client: httpx.Client) -> None:
    study = Study()
    orthanc.upload(study.image(1), study.image(2, "LL"))
    resource = study.ask(client, "application/fhir+json").json()
    assert resource["subject"]["identifier"]["value"] == "PID-471"
    assert resource["basedOn"][0]["identifier"]["value"] == "ACC-815"
    assert resource["imagingStudy"][0]["identifier"]["value"] == f"urn:oid:{study.uid}"
    for valid in fhir_validators():
        valid(resource)
    assert "Model: tiny" in study.ask(client, "text/plain").text
    unstored = pydicom.dcmread(io.BytesIO(study.ask(client, "application/dicom").content))
    assert (unstored.StudyInstanceUID, unstored.PatientName) == (study.uid, "Müller^Jürgen")
    assert study.reports(orthanc) == []
    stored = study.ask(client, "application/dicom", store="true")
    assert stored.headers["content-type"] == "application/dicom"
    named = f"; sop-instance-uid={pydicom.dcmread(io.BytesIO(stored.content)).SOPInstanceUID}"
    assert stored.headers["x-stored-report"] == f"stored{named}"
    assert study.ask(client, "text/plain", store="true").headers["x-stored-report"] == f"already_stored{named}"
    resource = study.ask(client, "application/fhir+json", store="true").json()
    (extension,) = (each for each in resource["extension"] if each["url"].endswith(":stored-report"))
    parts = {part["url"]: part.get("valueCode") or part["valueOid"] for part in extension["extension"]}
    assert parts["status"] == "already_stored"
    assert named.endswith(parts["sopInstanceUid"].removeprefix("urn:oid:"))
    for valid in fhir_validators():
        valid(resource)
    (report,) = study.reports(orthanc)
    for answer in (stored, study.ask(client, "application/dicom", store="true")):
        assert pydicom.dcmread(io.BytesIO(answer.content)) == report, "the answer is the stored report"
    (last,) = [line for line in study.ask(client, stream="true").text.split("\n\n") if line.startswith("event: report")]
    assert uids(json.loads(last.partition("data: ")[2])["study"]) == {
        "frontal": f"{study.uid}.1.1", "lateral": f"{study.uid}.2.1"
    }  # fmt: skip


def test_wrong_credentials_and_unknown_studies_are_problems(
    orthanc: Orthanc, client: httpx.Client, bundle: Path, tmp_path: Path
) -> None:
    unknown = client.post("/studies/1.2.3/report")
    assert (unknown.status_code, unknown.json()["code"]) == (404, "no_such_study")
    (tmp_path / "token").write_text("a-wrong-token\n")
    changes = {"dicomweb_url": orthanc.dicomweb, "dicomweb_credentials_file": tmp_path / "token"}
    with ready_client(bundle, warm_up=False, **changes) as other:
        refused = other.post("/studies/1.2.3/report")
    assert (refused.status_code, refused.json()["code"]) == (502, "pacs_forbidden")
    assert "a-wrong-token" not in refused.text


def test_prior_is_the_newest_earlier_chest_study_of_the_same_patient(orthanc: Orthanc, client: httpx.Client) -> None:
    patient, current, newest = "PID*7", Study(), Study()

    def upload(study: Study, date: str, view: str = "PA", **tags: Any) -> None:
        given = {"PatientID": patient.replace("*", "-"), "PatientBirthDate": "19700101", "IssuerOfPatientID": "A"}
        orthanc.upload(study.image(1, view, **{**given, "StudyDate": date, "StudyTime": "120000", **tags}))

    upload(current, "20260110")
    assert client.get(f"/studies/{current.uid}/prior").json() == {
        "status": "none", "study_date": "2026-01-10", "prior": None
    }  # fmt: skip
    upload(Study(), "20250101")
    upload(newest, "20251224", "LL", Modality="CR", IssuerOfPatientID=None)
    upload(Study(), "20260109", BodyPartExamined="HAND")
    upload(Study(), "20260108", IssuerOfPatientID="B")
    upload(Study(), "20260107", PatientBirthDate="19700102")
    upload(Study(), "20260106", PatientID="PID-8")
    upload(Study(), "20260110", StudyTime="120001")
    upload(Study(), "20260111")
    found = client.get(f"/studies/{current.uid}/prior")
    prior = {"study_instance_uid": newest.uid, "study_date": "2025-12-24", "views": ["lateral"]}
    assert found.json() == {"status": "found", "study_date": "2026-01-10", "prior": prior}
    assert "PID" not in found.text
    assert client.get(f"/studies/{newest.uid}/images").status_code == 200
    for unusable in (patient, "PID 7", None):
        study = Study()
        upload(study, "20270101", PatientID=unusable)
        assert client.get(f"/studies/{study.uid}/prior").json()["status"] == "not_identified", unusable
    assert client.get("/studies/1.2.3/prior").json()["code"] == "no_such_study"
    foreign = client.get(f"/studies/{current.uid}/prior", headers={"Sec-Fetch-Site": "cross-site"})
    assert foreign.json()["code"] == "cross_origin"


def canary_images(study: Study) -> list[bytes]:
    texts = ("PatientID", "InstitutionName", "StudyDescription", "PatientComments", "StationName", "ImageComments")
    tags = {"PatientName": f"{CANARY}^A", "AccessionNumber": CANARY, "ReferringPhysicianName": f"{CANARY}^B"}
    return [
        study.image(
            number, view, **tags, **dict.fromkeys(texts, CANARY), PatientBirthDate=CANARY, BodyPartExamined=CANARY
        )
        for number, view in ((1, "PA"), (2, "LL"), (3, CANARY))
    ]


@pytest.mark.filterwarnings("ignore:Invalid value:UserWarning")
def test_identity_is_in_no_log_line_metric_or_problem(bundle: Path, caplog: pytest.LogCaptureFixture) -> None:
    study, keep = Study(), lambda record: not record.name.startswith(("httpx", "httpcore"))
    images = canary_images(study)
    canary = {"X_Patient": CANARY, "Warning": CANARY, "Location": f"/{CANARY}", "Set_Cookie": CANARY}
    texts = []
    with (
        all_log_lines(caplog, keep=keep) as streams,
        dicomweb_server() as pacs,
        live_server(bundle, warm_up=False, dicomweb_url=pacs.url, log_level="DEBUG") as live,
        live.client() as client,
    ):
        logging.getLogger("urllib3").setLevel(logging.DEBUG)
        pacs.reset(*images)
        good = study.ask(client, store="true")
        assert good.json()["study"]["stored"]["status"] == "stored"
        later = [Study().image(1, PatientID=CANARY, StudyDate=f"202701{day:02}") for day in range(1, MOST_TRIED + 1)]
        pacs.reset(*images, *later, Study().image(1, PatientID=CANARY, PatientBirthDate=None, StudyDate="20250101"))
        prior = client.get(f"/studies/{study.uid}/prior")
        assert prior.json()["status"] == "found", "later studies, which this server lists too, are not tried"
        texts.append(prior.text)
        for kind, answer in (
            ("list", answers(500, CANARY.encode(), **canary)),
            ("list", answers(302, b"", **canary)),
            ("list", answers(body=json.dumps([CANARY]).encode(), **canary)),
            ("list", answers(body=json.dumps([{"00080018": {"vr": "UI", "Value": [CANARY]}}]).encode())),
            ("metadata", answers(body=f'[{{"{CANARY}"'.encode(), **canary)),
            ("file", answers(kind="application/dicom", body=images[0][:600], **canary)),
            ("file", answers(kind=f"multipart/{CANARY}", body=CANARY.encode(), **canary)),
            ("store", answers(409, CANARY.encode(), CANARY, **canary)),
        ):
            pacs.reset(*images)
            pacs.answers[kind] = answer
            problem = client.post(f"/studies/{study.uid}/report", files={"store": (None, "true")})
            assert problem.status_code == 502, problem.text
            texts.append(problem.text)
        pacs.reset(images[0], study.image(2, "LL", PatientID=f"{CANARY}2"))
        texts.append(client.post(f"/studies/{study.uid}/report").text)
        pacs.reset(*canary_images(Study()))
        texts += [good.text, client.get("/metrics").text]
    assert '"code":"two_patients"' in texts[-3]
    for text in (*texts, *(stream.getvalue() for stream in streams.values())):
        assert CANARY not in text
    for stream in streams.values():
        assert study.uid not in stream.getvalue()
        assert "POST /studies/{StudyInstanceUID}/report 502" in stream.getvalue()


def test_deflate_bomb_is_refused(orthanc: Orthanc, client: httpx.Client) -> None:
    study = Study()
    bomb = study.image(1, syntax=DeflatedExplicitVRLittleEndian, EncapsulatedDocument=bytes(60_000_000))
    assert len(bomb) < 200_000
    orthanc.upload(bomb)
    refused = client.post(f"/studies/{study.uid}/report")
    assert (refused.status_code, refused.json()["code"]) == (422, "truncated")


def test_source_of_an_orthanc_file_equals_that_of_the_upload(orthanc: Orthanc) -> None:
    data = Study().image(1)
    orthanc.upload(data)
    stored = [each for each in orthanc.files("DX") if header(each).SOPInstanceUID == header(data).SOPInstanceUID]
    assert vars(source_image(stored[0])) == vars(source_image(data))


def test_page_states_how_many_earlier_studies_were_searched() -> None:
    words = files("service").joinpath("static/words.en.js").read_text("utf-8")
    (found,) = re.findall(r'"prior.none": "(.*)"', words)
    assert MOST_TRIED == 5
    assert "at most five" in found, "an older chest study may exist"
