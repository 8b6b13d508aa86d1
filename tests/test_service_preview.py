"""``POST /preview``: shows what a draft would read, upright, with the right polarity; stores nothing."""

from __future__ import annotations

import io
import os
import signal
from pathlib import Path

import httpx
import numpy as np
import pytest
from PIL import Image

from service.routes.preview import PREVIEW_SIDE
from tests.support.dicom import dicom
from tests.support.service import PROBLEM, encode, live_server, png, scene, start_decoder, until


def previewed(client: httpx.Client, data: bytes) -> Image.Image:
    answer = client.post("/preview", files={"image": ("image", data)})
    assert answer.status_code == 200, answer.text
    assert answer.headers["content-type"] == "image/jpeg"
    assert answer.headers["cache-control"] == "private, no-store"
    return Image.open(io.BytesIO(answer.content))


def test_dicom_preview_equals_the_read_image(client: httpx.Client) -> None:
    grey = scene().astype(np.uint16) * 16
    for film in (
        dicom(4095 - grey, stored=12, photometric="MONOCHROME1", ViewPosition="PA", PatientName="Doe^Jane"),
        dicom(grey, stored=12, photometric="MONOCHROME2"),
    ):
        picture = previewed(client, film)
        assert picture.size == (90, 120)
        seen = np.asarray(picture.convert("L")).astype(int)
        assert seen[30, 27] > 240, "the disc is white and where it was"
        assert abs(seen[30, 70] - seen[90, 70]) > 60
        assert "exif" not in picture.info
        assert "Doe" not in repr(picture.info)


def test_large_image_is_reduced(client: httpx.Client) -> None:
    assert previewed(client, png(1000, 2 * PREVIEW_SIDE)).size == (500, PREVIEW_SIDE)


@pytest.mark.parametrize(
    ("files", "status", "code"),
    [
        ({"image": ("i", b"GIF89a" + bytes(40))}, 415, "unsupported_format"),
        ({"image": ("i", b"")}, 422, "empty"),
        ({"image": ("i", encode(Image.new("L", (8, 8))))}, 422, "too_small"),
        ({"frontal": ("i", png())}, 422, "unknown_field"),
    ],
)
def test_rejects_what_a_draft_would_reject(
    client: httpx.Client, files: dict[str, tuple[str, bytes]], status: int, code: str
) -> None:
    answer = client.post("/preview", files=files)
    assert (answer.status_code, answer.headers["content-type"], answer.json()["code"]) == (status, PROBLEM, code)


def test_rejects_preview_without_an_image(client: httpx.Client) -> None:
    answer = client.post("/preview", content=b"--b--\r\n", headers={"Content-Type": "multipart/form-data; boundary=b"})
    assert (answer.status_code, answer.json()["code"]) == (422, "missing_image")


def test_hanging_decoder_ends_at_the_deadline(bundle: Path) -> None:
    with live_server(bundle, warm_up=False, decode_workers=1, request_timeout_s=1) as live, live.client() as service:
        start_decoder(service)
        (pid,) = live.app.state.runtime.decoder.pids
        os.kill(pid, signal.SIGSTOP)
        answer = service.post("/preview", files={"image": ("i", png())})
        assert (answer.status_code, answer.json()["code"]) == (503, "deadline")
        start_decoder(service)
        assert pid not in live.app.state.runtime.decoder.pids


def test_preview_ends_when_its_client_leaves(bundle: Path) -> None:
    with live_server(bundle, warm_up=False, decode_workers=1) as live, live.client() as service:
        runtime = live.app.state.runtime
        assert previewed(service, png()).size == (90, 120)
        (pid,) = runtime.decoder.pids
        os.kill(pid, signal.SIGSTOP)
        with pytest.raises(httpx.ReadTimeout):
            service.post("/preview", files={"image": ("i", png())}, timeout=0.5)
        until(lambda: runtime.admission.in_use == 0)
        assert previewed(service, png()).size == (90, 120)
        assert pid not in runtime.decoder.pids
