"""Downloads from a local server that resumes, ignores ranges, closes connections or changes its file."""

from __future__ import annotations

import gzip
import hashlib
import random
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from retrieval_index.download import DownloadError, download
from tests.support.http import Request, http_server
from tests.support.service import free_port

CONTENT = gzip.compress(random.Random(0).randbytes(3 << 20), compresslevel=1, mtime=0)
OTHER = gzip.compress(random.Random(1).randbytes(3 << 20), compresslevel=1, mtime=0)


@dataclass
class Server:
    """Behaviour of the server, and the requests that it received."""

    content: bytes = CONTENT
    etag: str | None = '"one"'
    modified: str | None = None
    ranges: bool = True
    check_if_range: bool = True
    announce_length: bool = True
    break_after: list[int] = field(default_factory=list)  # bytes of the next bodies after which it closes
    answer: list[int] = field(default_factory=list)  # status of the next answers
    requested: list[str | None] = field(default_factory=list)  # Range header of each request
    url: str = ""


@pytest.fixture
def server() -> Iterator[Server]:
    state = Server()

    def respond(request: Request) -> None:
        asked = request.headers.get("Range")
        state.requested.append(asked)
        if state.answer:
            request.send_error(state.answer.pop(0))
            return
        content, start = state.content, 0
        if_range = request.headers.get("If-Range")
        fresh = not state.check_if_range or if_range in (None, state.etag, state.modified)
        if asked and state.ranges and fresh:
            match = re.fullmatch(r"bytes=(\d+)-", asked)
            assert match
            start = int(match.group(1))
            if start >= len(content):
                request.send_error(416)
                return
            request.send_response(206)
            request.send_header("Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}")
        else:
            request.send_response(200)
        if state.announce_length:
            request.send_header("Content-Length", str(len(content) - start))
        if state.etag:
            request.send_header("ETag", state.etag)
        if state.modified:
            request.send_header("Last-Modified", state.modified)
        request.end_headers()
        body = content[start:]
        if state.break_after:
            body = body[: state.break_after.pop(0)]
        request.wfile.write(body)

    with http_server(respond) as url:
        state.url = f"{url}/NLMCXR_reports.tgz"
        yield state


@pytest.fixture
def dest(tmp_path: Path) -> Path:
    return tmp_path / "down" / "file.tgz"


def fetch(server: Server, dest: Path, attempts: int = 5) -> Path:
    return download(server.url, dest, attempts=attempts, pause=0.0, timeout=5.0)


def start_and_lose(server: Server, dest: Path, after: int) -> None:
    """A first run that ends after `after` bytes."""
    server.break_after = [after]
    with pytest.raises(DownloadError, match=rf"was interrupted 1 times in a row, last after {after} bytes"):
        fetch(server, dest, attempts=1)
    assert not dest.exists()


def assert_complete(dest: Path, content: bytes = CONTENT) -> None:
    assert hashlib.sha256(dest.read_bytes()).digest() == hashlib.sha256(content).digest()
    assert [path.name for path in dest.parent.iterdir()] == [dest.name]


def test_download_is_complete_and_reports_progress(server: Server, dest: Path) -> None:
    seen: list[tuple[int, int | None]] = []
    assert download(server.url, dest, progress=lambda done, total: seen.append((done, total))) == dest
    assert_complete(dest)
    assert seen[-1] == (len(CONTENT), len(CONTENT))
    assert [done for done, _ in seen] == sorted({done for done, _ in seen})
    assert fetch(server, dest) == dest
    assert server.requested == [None]  # an existing file is not fetched again


def test_second_run_requests_the_rest_only(server: Server, dest: Path) -> None:
    start_and_lose(server, dest, after=1_000_000)
    fetch(server, dest)
    assert server.requested == [None, "bytes=1000000-"]
    assert_complete(dest)


def test_resumes_broken_connections_within_one_run(server: Server, dest: Path) -> None:
    server.break_after = [100_000, 0, 500_000]
    fetch(server, dest, attempts=3)
    assert server.requested == [None, "bytes=100000-", "bytes=100000-", "bytes=600000-"]
    assert_complete(dest)


@pytest.mark.parametrize(
    ("changes", "ranges"),
    [
        ({"etag": 'W/"weak"', "modified": "Tue, 02 Feb 2016 21:33:00 GMT"}, [None, "bytes=1000-"]),
        ({"etag": None}, [None, None]),  # no validator: the download starts again
        ({"ranges": False}, [None, "bytes=1000-"]),
    ],
)
def test_resumes_only_with_a_validator_and_range_support(
    server: Server, dest: Path, changes: dict[str, Any], ranges: list[str | None]
) -> None:
    for name, value in changes.items():
        setattr(server, name, value)
    start_and_lose(server, dest, after=1000)
    fetch(server, dest)
    assert server.requested == ranges
    assert_complete(dest)


@pytest.mark.parametrize("check_if_range", [True, False])
def test_never_mixes_two_versions_of_a_file(server: Server, dest: Path, check_if_range: bool) -> None:
    start_and_lose(server, dest, after=1_000_000)
    server.content, server.etag, server.check_if_range = OTHER, '"two"', check_if_range
    fetch(server, dest)
    assert_complete(dest, OTHER)


def test_does_not_continue_the_part_of_another_url(server: Server, dest: Path) -> None:
    start_and_lose(server, dest, after=1000)
    download(server.url + "?v=2", dest)
    assert server.requested == [None, None]
    assert_complete(dest)


@pytest.mark.parametrize("more", [b"", b"more"])  # killed before the rename; the part of another file
def test_accepts_a_complete_part_and_discards_a_longer_one(server: Server, dest: Path, more: bytes) -> None:
    start_and_lose(server, dest, after=1000)
    dest.with_name("file.tgz.part").write_bytes(CONTENT + more)
    fetch(server, dest)
    assert server.requested[:2] == [None, f"bytes={len(CONTENT + more)}-"]
    assert (len(server.requested) == 2) == (more == b"")
    assert_complete(dest)


@pytest.mark.parametrize("damage", ["a hole", "a short body without a length"])
def test_discards_damaged_content(server: Server, dest: Path, damage: str) -> None:
    if damage == "a hole":
        server.content = CONTENT[:500_000] + bytes(64) + CONTENT[500_064:]
    else:
        server.announce_length, server.break_after = False, [1000]
    with pytest.raises(DownloadError, match="a damaged gzip file"):
        fetch(server, dest)
    assert list(dest.parent.iterdir()) == []


def test_retries_server_errors_but_not_client_errors(server: Server, dest: Path) -> None:
    server.answer = [404]
    with pytest.raises(DownloadError, match="HTTP 404 Not Found; check the address"):
        fetch(server, dest)
    assert len(server.requested) == 1
    server.answer = [503, 500]
    fetch(server, dest)
    assert len(server.requested) == 4
    assert_complete(dest)


def test_gives_up_after_failures_without_new_bytes(server: Server, dest: Path) -> None:
    server.break_after = [1000, 0, 0, 0, 0, 0, 0]
    with pytest.raises(DownloadError, match=r"was interrupted 3 times in a row.*1000 bytes .*resumes the download"):
        fetch(server, dest, attempts=3)
    assert len(server.requested) == 3


def test_unreachable_server_fails_without_retries(dest: Path) -> None:
    with pytest.raises(DownloadError, match=r"cannot be reached .*check the network"):
        download(f"http://127.0.0.1:{free_port()}/x.tgz", dest, pause=60.0)


def test_rejects_other_schemes(dest: Path) -> None:
    with pytest.raises(ValueError, match=r"'file:///etc/hosts' is not an http\(s\) URL"):
        download("file:///etc/hosts", dest)
