"""``POST /preview``: shows what a draft would read, upright, with the right polarity; stores nothing."""

from __future__ import annotations

import io
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from PIL import Image

from service.routes import preview
from service.routes.preview import PREVIEW_SIDE
from tests.support.dicom import dicom
from tests.support.service import PROBLEM, WAIT_S, encode, live_server, png, ready_client, scene, until


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


def test_renders_one_preview_at_a_time(client: httpx.Client, monkeypatch: pytest.MonkeyPatch) -> None:
    drawing, most, lock, draw = 0, 0, threading.Lock(), preview.thumbnail

    def watched(*args: Any, **options: Any) -> bytes:
        nonlocal drawing, most
        with lock:
            drawing += 1
            most = max(most, drawing)
        time.sleep(0.02)
        picture = draw(*args, **options)
        with lock:
            drawing -= 1
        return picture

    monkeypatch.setattr(preview, "thumbnail", watched)
    with ThreadPoolExecutor(4) as clients:
        sizes = list(clients.map(lambda _: previewed(client, png()).size, range(8)))
    assert sizes == [(90, 120)] * 8
    assert most == 1


def test_slow_previews_do_not_block_drafts(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    go, draw = threading.Event(), preview.thumbnail

    def slow(*args: Any, **options: Any) -> bytes:
        assert go.wait(WAIT_S)
        return draw(*args, **options)

    monkeypatch.setattr(preview, "thumbnail", slow)
    with (
        live_server(bundle, warm_up=False, max_concurrent_requests=2) as live,
        live.client() as service,
        ThreadPoolExecutor(2) as pool,
    ):
        pending = [pool.submit(previewed, service, png()) for _ in range(2)]
        try:
            until(lambda: live.app.state.auxiliary_limiter.in_use == 2)
            assert service.post("/preview", files={"image": ("i", png())}).json()["code"] == "busy"
            assert service.post("/report", files={"frontal": ("f", png())}).status_code == 200
        finally:
            go.set()
        assert [picture.result(WAIT_S).size for picture in pending] == [(90, 120)] * 2
    go.clear()
    with ready_client(bundle, warm_up=False, request_timeout_s=0.3) as service:
        assert service.post("/preview", files={"image": ("i", png())}).json()["code"] == "deadline"
        go.set()
