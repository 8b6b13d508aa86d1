"""`python -m service` and `python -m service.report`: the same pipeline from the shell, precise errors, exit codes."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import httpx
import pytest
import uvicorn

from service import __main__ as serve
from service import report
from service.schemas.examples import DISCLAIMER
from service.schemas.models import ReportResponse
from tests.support.dicom import dicom, film
from tests.support.formats import facts, facts_of_fhir
from tests.support.paths import REPOSITORY
from tests.support.service import WAIT_S, answer, free_port, png
from tests.support.tiny import REPORTS

START_S = 400.0  # a new process imports torch, which takes minutes where all cores are taken


@pytest.fixture
def images(tmp_path: Path) -> tuple[str, str]:
    frontal, lateral = tmp_path / "frontal.png", tmp_path / "lateral.png"
    frontal.write_bytes(png(90, 120))
    lateral.write_bytes(png(100, 80))
    return str(frontal), str(lateral)


def run(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    try:
        status = report.main(list(arguments))
    except SystemExit as end:
        status = int(str(end.code))
    captured = capsys.readouterr()
    return status, captured.out, captured.err


def test_json_equals_http_response(
    client: httpx.Client, bundle: Path, images: tuple[str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    status, out, _ = run(capsys, *images, "--bundle", str(bundle), "--device", "cpu", "--json", "--top-k", "4")
    assert status == 0
    printed = ReportResponse.model_validate_json(out)
    files = {name: ("f", Path(path).read_bytes()) for name, path in zip(("frontal", "lateral"), images, strict=True)}
    over_http = ReportResponse.model_validate(client.post("/report", files=files, data={"top_k": "4"}).json())
    for name in ("findings", "labels", "reference_cases", "model"):
        assert getattr(printed, name) == getattr(over_http, name), name
    assert len(printed.reference_cases) == 4


def test_prints_text_by_default(bundle: Path, images: tuple[str, str], capsys: pytest.CaptureFixture[str]) -> None:
    status, out, _ = run(capsys, images[0], "--bundle", str(bundle), "--device", "cpu")
    assert status == 0
    assert "Reference cases:" in out
    assert any(text in out for text in REPORTS)
    assert "missing_view" in out
    assert DISCLAIMER in out


def test_prints_fhir_and_json(bundle: Path, images: tuple[str, str], capsys: pytest.CaptureFixture[str]) -> None:
    given = (*images, "--bundle", str(bundle), "--device", "cpu", "--format")
    status, out, _ = run(capsys, *given, "fhir")
    assert status == 0
    fhir_facts = facts_of_fhir(json.loads(out))
    status, out, _ = run(capsys, *given, "json")
    assert status == 0
    assert {**facts(ReportResponse.model_validate_json(out)), "report_id": fhir_facts["report_id"]} == fhir_facts
    status, _, err = run(capsys, *given, "dicom")
    assert status == 2
    assert "'text'" in err


def test_reader_that_closes_the_pipe_is_no_error(
    bundle: Path, images: tuple[str, str], monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """As in ``python -m service.report … | head -1``."""
    read, write = os.pipe()
    os.close(read)
    with os.fdopen(write, "w", encoding="utf-8") as pipe:
        monkeypatch.setattr(sys, "stdout", pipe)
        assert report.main([*images, "--bundle", str(bundle), "--device", "cpu"]) == 0
    assert "Broken" not in capfd.readouterr().err


def test_drafts_a_lateral_alone(bundle: Path, images: tuple[str, str], capsys: pytest.CaptureFixture[str]) -> None:
    status, out, _ = run(capsys, "-", images[1], "--bundle", str(bundle), "--json")
    assert status == 0
    assert "frontal" in json.loads(out)["warnings"][0]["message"]


def test_reads_dicom_as_over_http(bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "film.dcm"
    path.write_bytes(dicom(film(), stored=12, ViewPosition="LL"))
    status, out, _ = run(capsys, str(path), "--bundle", str(bundle), "--device", "cpu", "--json")
    assert status == 0
    assert [warning["code"] for warning in json.loads(out)["warnings"]] == ["view_mismatch", "missing_view"]
    path.write_bytes(dicom(film(), sop_class="1.2.840.10008.5.1.4.1.1.2"))
    status, _, err = run(capsys, str(path), "--bundle", str(bundle), "--device", "cpu")
    assert (status, "film.dcm: The DICOM object is CT Image Storage" in err) == (1, True)


def test_errors_name_the_cause(
    bundle: Path, images: tuple[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    text = tmp_path / "notes.txt"
    text.write_text("no image")
    given = ("--bundle", str(bundle))
    for arguments, expected, words in [
        ((str(tmp_path / "none.png"), *given), 1, "none.png: No such file"),
        ((str(text), *given), 1, "notes.txt: These 8 bytes are not an image"),
        ((images[0], str(text), *given), 1, "notes.txt"),
        ((str(tmp_path), *given), 1, "Is a directory"),
        ((images[0], "--bundle", str(tmp_path)), 3, "MANIFEST.json"),
        ((images[0], *given, "--top-k", "51"), 2, "top_k=51 must lie between 1 and 50"),
        ((images[0], *given, "--beam-size", "x"), 2, "invalid int value: 'x'"),
        ((images[0], *given, "--device", "gpu"), 2, "REPORT_DEVICE='gpu'"),
        ((images[0], *given, "--device", "cuda:99"), 3, "CUDA devices"),
        (("-", *given), 2, "neither a frontal nor a lateral"),
        ((), 2, "frontal"),
    ]:
        status, out, err = run(capsys, *arguments)
        assert (status, out) == (expected, ""), arguments
        assert words in err, arguments
    monkeypatch.setenv("REPORT_MAX_UPLOAD_BYTES", "1024")
    large = tmp_path / "large.png"
    large.write_bytes(bytes(2000))
    status, _, err = run(capsys, str(large), *given)
    assert status == 1
    assert "the limit is 1,024 bytes" in err


def test_serve_refuses_wrong_settings(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    assert serve.main(["--port", "http"]) == 2
    assert "REPORT_PORT='http'" in capsys.readouterr().err
    monkeypatch.setenv("REPORT_API_KEY", "hunter2")
    with pytest.raises(SystemExit) as stop:
        uvicorn.Config("service.app:create_app", factory=True, log_config=None).load()
    assert stop.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("REPORT_API_KEY: a key of 7 characters")
    assert "hunter2" not in line


def wait_for(condition: Callable[[], object]) -> None:
    deadline = time.monotonic() + START_S
    while True:
        with suppress(httpx.TransportError):
            if condition():
                return
        assert time.monotonic() < deadline
        time.sleep(0.1)


@pytest.mark.parametrize("how", ["python -m service", "uvicorn --factory"])
def test_serves_with_module_and_with_uvicorn(bundle: Path, how: str) -> None:
    """Swaps the bundle on SIGHUP; on SIGTERM the module also responds to a client that is still sending."""
    module, port = how == "python -m service", free_port()
    arguments = ["service"] if module else ["uvicorn", "service.app:create_app", "--factory"]
    settings = {
        "DEVICE": "cpu",
        "LOG_FORMAT": "json",
        "QUEUE_SIZES": "1",
        "DRAIN_TIMEOUT_S": "4",
        "BUNDLE": str(bundle),
    }
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY), **{f"REPORT_{name}": v for name, v in settings.items()}}
    process = subprocess.Popen(
        [sys.executable, "-m", *arguments, "--port", str(port)], text=True, env=environment, stderr=subprocess.PIPE
    )
    with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=WAIT_S) as client:
        try:
            wait_for(lambda: client.get("/health").status_code == 200)
            answered = client.post("/report?canary=1", files={"frontal": ("f", png())})
            assert answered.status_code == 422
            process.send_signal(signal.SIGHUP)
            wait_for(lambda: 'report_reloads_total{result="done"} 1.0' in client.get("/metrics").text)
            if module:
                with socket.create_connection(("127.0.0.1", port), timeout=WAIT_S) as sending:
                    sending.sendall(
                        b"POST /report HTTP/1.1\r\nHost: x\r\nContent-Length: 5000\r\n"
                        b"Content-Type: multipart/form-data; boundary=b\r\n\r\n--b\r\n"
                    )
                    wait_for(lambda: client.get("/health").json()["queue"]["depth"] == 1)
                    process.send_signal(signal.SIGTERM)
                    began = time.monotonic()
                    response = answer(sending)
                    assert time.monotonic() - began < 4
                assert response.startswith(b"HTTP/1.1 503 ")
                assert json.loads(response.partition(b"\r\n\r\n")[2])["code"] == "stopping"
        finally:
            process.send_signal(signal.SIGTERM)
            while module and process.poll() is None:  # must not change the status
                process.send_signal(signal.SIGHUP)
                time.sleep(0.02)
            _, log = process.communicate(timeout=START_S)
    assert process.returncode in ({0} if module else {0, -signal.SIGTERM, 128 + signal.SIGTERM})
    assert "ready after" in log
    assert "canary" not in log
    assert "REPORT_QUEUE_SIZE meant" in log
    lines = [json.loads(line) for line in log.splitlines()]  # also those of uvicorn
    assert {"uvicorn.error", "service.access"} <= {line["logger"] for line in lines}
    (access,) = [line for line in lines if line["message"].startswith("POST /report 422")]
    assert (access["route"], access["request_id"]) == ("/report", answered.headers["x-request-id"])
