"""No patient data in logs: canaries in file names, fields, addresses, headers and images turn up nowhere."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest
from PIL import Image, PngImagePlugin

from service import logs
from tests.helpers import REPORTS, write_tiny_bundle
from tests.service_helpers import encode, png, ready_client, scene

CANARY = "Canary-Doe-Jane-1958"
SERVER_SIDE = ("service", "model", "retrieval_index", "uvicorn", "python_multipart", "PIL", "fastapi", "starlette")


def canary_png() -> bytes:
    info = PngImagePlugin.PngInfo()
    info.add_text("PatientName", CANARY)
    return encode(Image.fromarray(scene()), pnginfo=info)


def test_canaries_turn_up_in_no_log(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    for name in SERVER_SIDE:
        caplog.set_level(logging.DEBUG, name)
    bundle = write_tiny_bundle(tmp_path / "tiny")
    with ready_client(bundle, log_level="DEBUG") as client:
        client.headers["X-Patient"] = CANARY
        client.headers["User-Agent"] = CANARY
        good = client.post("/report", files={"frontal": (f"{CANARY}.png", canary_png(), "image/png")})
        assert good.status_code == 200
        wrong = [
            client.post("/report", files={"frontal": (f"{CANARY}.png", CANARY.encode() * 10)}),
            client.post("/report", files={"frontal": (f"{CANARY}.png", canary_png()[:-40])}),
            client.post("/report", files={CANARY: ("f", png())}),
            client.post("/report", files={"frontal": ("f", png())}, data={"top_k": CANARY}),
            client.post("/report", files={"lateral": ("f", png())}, data={"frontal": f"/scans/{CANARY}.png"}),
            client.post(f"/report?patient={CANARY}", files={"frontal": ("f", png())}),
            client.post("/report", content=CANARY.encode(), headers={"Content-Type": f"multipart/{CANARY}"}),
            client.post(
                "/report", content=CANARY.encode(), headers={"Content-Type": "multipart/form-data; boundary=b"}
            ),
            client.get(f"/{CANARY}"),
            client.get(f"/static/{CANARY}.css"),
        ]
        assert [answer.status_code for answer in wrong] == [422, 422, 422, 422, 422, 422, 415, 400, 404, 404]
        for answer in wrong:
            assert f"{CANARY}.png" not in answer.text  # no error quotes a file's name
    mine = [record for record in caplog.records if record.name.split(".")[0] in SERVER_SIDE]
    assert len(mine) > 12
    text = "\n".join(f"{record.getMessage()} {record.exc_info} {record.__dict__.get('scope')}" for record in mine)
    assert CANARY not in text
    findings = good.json()["findings"]
    assert findings
    for private in (findings, *(sentence["text"] for sentence in good.json()["sentences"]), *REPORTS):
        assert private not in text


def test_the_access_line_says_what_is_needed(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "service")
    with ready_client(write_tiny_bundle(tmp_path / "tiny")) as client:
        client.post("/report", files={"frontal": ("f", png())}, data={"beam_size": "1"})
        client.get("/nothing?x=1")
        client.get("/static/page.css?x=1")
    lines = [record.getMessage() for record in caplog.records if record.name == "service.access"]
    assert any(line.startswith("POST /report 200 ") and line.endswith(" bytes") for line in lines)
    assert any(line.startswith("GET (no route) 404 ") for line in lines)
    assert any(line.startswith("GET /static 200 ") for line in lines)
    assert not any(line.startswith("GET /health 200") for line in lines)  # probes come often: only at DEBUG


def test_uvicorns_own_access_log_is_silent() -> None:
    logs.configure("INFO")
    assert logging.getLogger("uvicorn.access").disabled


def test_the_answer_is_not_to_be_stored(tmp_path: Path) -> None:
    with ready_client(write_tiny_bundle(tmp_path / "tiny")) as client:
        answers = [client.post("/report", files={"frontal": ("f", png())}), client.get("/health"), client.get("/no")]
    assert [answer.headers["cache-control"] for answer in answers] == ["no-store"] * 3
