"""Download of the official Open-i archives: resumed after an interruption, verified before it is renamed.

The bytes are written to `<dest>.part` and their identity (URL, ETag, Last-Modified, length) to
`<dest>.part.json`. A later call requests only the rest (HTTP Range with If-Range). If the file has
changed on the server, or the server ignores ranges, the download starts from the beginning, so that
two versions are never mixed.
"""

from __future__ import annotations

import gzip
import json
import logging
import os
import re
import sys
import time
import zlib
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import httpx

from model.files import write_atomic

REPORTS_URL = "https://openi.nlm.nih.gov/imgs/collections/NLMCXR_reports.tgz"
IMAGES_URL = "https://openi.nlm.nih.gov/imgs/collections/NLMCXR_png.tgz"

Progress = Callable[[int, int | None], None]  # bytes so far, bytes in total (None: unknown)

logger = logging.getLogger(__name__)


class DownloadError(RuntimeError):
    """A file could not be downloaded or is invalid; the message says whether the next call resumes."""


@dataclass(frozen=True)
class Fingerprint:
    """Identity of a file on the server; files with equal fingerprints have equal content."""

    url: str
    etag: str | None
    last_modified: str | None
    size: int | None  # of the whole file

    @classmethod
    def of(cls, url: str, response: httpx.Response) -> Fingerprint:
        """Fingerprint of the whole file, from a 200 or 206 response."""
        length = response.headers.get("Content-Length", "")
        if response.status_code == 206:
            length = response.headers.get("Content-Range", "").rpartition("/")[2]
        size = int(length) if length.isdigit() else None
        return cls(url, response.headers.get("ETag"), response.headers.get("Last-Modified"), size)

    @property
    def validator(self) -> str | None:
        """Value for If-Range: a strong ETag, else the date; None: a partial file cannot be resumed."""
        return self.etag if self.etag and not self.etag.startswith("W/") else self.last_modified


class _InterruptedError(Exception):
    """The transfer ended early and may be resumed; `connected`: whether the server responded."""

    def __init__(self, reason: object, *, connected: bool = True) -> None:
        super().__init__(str(reason) or type(reason).__name__)
        self.connected = connected


def download(
    url: str,
    dest: Path,
    *,
    progress: Progress | None = None,
    timeout: float = 60.0,
    attempts: int = 5,
    pause: float = 2.0,
    max_bytes: int | None = None,
    check: Callable[[Path], None] | None = None,
) -> Path:
    """Fetch `url` to `dest`, resuming an earlier interrupted call.

    Args:
        url: http or https.
        dest: the file to create. An existing file is returned unchanged, because it was verified by
            its download.
        progress: called after each chunk.
        timeout: seconds without a byte after which a connection counts as broken.
        attempts: maximum number of consecutive failures without a new byte.
        pause: seconds before the first retry, doubled for each further one.
        max_bytes: largest file; a larger one is discarded.
        check: raises ValueError, with what the file is, if it must be discarded.

    Raises:
        DownloadError: not reachable, refused, interrupted too often, of the wrong length, too large,
            damaged gzip data, or refused by `check`.
        ValueError: the URL is neither http nor https.
    """
    if not url.startswith(("http://", "https://")):
        raise ValueError(f"{url!r} is not an http(s) URL")
    if dest.exists():
        return dest
    dest.parent.mkdir(parents=True, exist_ok=True)
    part = dest.with_name(dest.name + ".part")
    failures, furthest, connected = 0, 0, False
    while True:
        try:
            _transfer(url, part, progress, timeout, max_bytes)
            break
        except _InterruptedError as interruption:
            connected = connected or interruption.connected
            if not connected:
                raise DownloadError(
                    f"{url} cannot be reached ({interruption}); check the network, or download the file by other means"
                ) from interruption
            size = part.stat().st_size if part.exists() else 0
            failures = 1 if size > furthest else failures + 1
            furthest = max(furthest, size)
            if failures >= attempts:
                raise DownloadError(
                    f"{url} was interrupted {failures} times in a row, last after {size} bytes ({interruption}); "
                    f"they are kept in {part}, and the same call resumes the download"
                ) from interruption
            logger.warning("%s was interrupted after %d bytes (%s); retrying", url, size, interruption)
            time.sleep(pause * 2 ** (failures - 1))
    _check_gzip(url, part, dest.name)
    if check is not None:
        try:
            check(part)
        except ValueError as error:
            _discard(part)
            raise DownloadError(f"{url} is {error}; it was discarded, check the address") from error
    os.replace(part, dest)
    _sidecar(part).unlink(missing_ok=True)
    return dest


def text_progress(label: str) -> Progress:
    """A progress callback that updates one line on standard error: bytes, share and rate."""
    start = shown = time.monotonic()
    first: int | None = None

    def show(done: int, total: int | None) -> None:
        nonlocal shown, first
        first = done if first is None else first
        now = time.monotonic()
        if now - shown < 0.2 and done != total:
            return
        shown = now
        share = f" of {total / 1e6:.1f} MB, {100 * done / total:.0f} %" if total else " MB"
        rate = (done - first) / 1e6 / max(now - start, 1e-6)
        print(f"\r{label}: {done / 1e6:.1f}{share}, {rate:.1f} MB/s ", end="\n" if done == total else "",
              file=sys.stderr, flush=True)  # fmt: skip

    return show


def _transfer(url: str, part: Path, progress: Progress | None, timeout: float, max_bytes: int | None) -> None:
    """One connection: append to `part` or write it from the start, until the file is complete."""
    known = _read_fingerprint(part, url)
    received = part.stat().st_size if part.exists() and known is not None and known.validator else 0
    headers = {"Accept-Encoding": "identity", "User-Agent": "cxr-report"}
    if received and known is not None and known.validator:
        headers |= {"Range": f"bytes={received}-", "If-Range": known.validator}
    try:
        with httpx.stream("GET", url, headers=headers, timeout=timeout, follow_redirects=True) as response:
            if response.status_code == 416 and known is not None and received == known.size:
                return  # the whole file had arrived before the interruption
            _check_status(url, part, response)
            found = Fingerprint.of(url, response)
            resumed = response.status_code == 206
            if resumed and (found != known or _range_start(response) != received):
                part.unlink()
                raise _InterruptedError("the file on the server has changed; starting again")
            if not resumed:
                received = 0
                write_atomic(_sidecar(part), json.dumps(asdict(found)).encode())
            with part.open("ab" if resumed else "wb") as file:
                for chunk in response.iter_raw():
                    if max_bytes is not None and max(received + len(chunk), found.size or 0) > max_bytes:
                        _discard(part)
                        raise DownloadError(f"{url} is larger than {max_bytes:,} bytes; discarded, check the address")
                    file.write(chunk)
                    received += len(chunk)
                    if progress is not None:
                        progress(received, found.size)
                file.flush()
                os.fsync(file.fileno())
    except (httpx.ConnectError, httpx.ConnectTimeout) as error:
        raise _InterruptedError(error, connected=False) from error
    except httpx.RequestError as error:
        raise _InterruptedError(error) from error
    if found.size is not None and received != found.size:
        part.unlink()
        raise DownloadError(f"{url} sent {received} of {found.size} bytes; discarded, try again")


def _check_status(url: str, part: Path, response: httpx.Response) -> None:
    """Raise _InterruptedError for a temporary error status, DownloadError for a permanent one."""
    status = response.status_code
    if status == 416:
        part.unlink(missing_ok=True)
        raise _InterruptedError("the file on the server is shorter; starting again")
    if status >= 500 or status in (408, 429):
        raise _InterruptedError(f"HTTP {status}")
    if status not in (200, 206):
        raise DownloadError(f"{url} returned HTTP {status} {response.reason_phrase}; check the address")


def _range_start(response: httpx.Response) -> int | None:
    match = re.match(r"bytes (\d+)-", response.headers.get("Content-Range", ""))
    return int(match.group(1)) if match else None


def _discard(part: Path) -> None:
    part.unlink()
    _sidecar(part).unlink(missing_ok=True)


def _sidecar(part: Path) -> Path:
    return part.with_name(part.name + ".json")


def _read_fingerprint(part: Path, url: str) -> Fingerprint | None:
    """The fingerprint for `part`; None if it is unknown or of another URL."""
    try:
        known = Fingerprint(**json.loads(_sidecar(part).read_bytes()))
    except (OSError, ValueError, TypeError):
        return None
    return known if known.url == url else None


def _check_gzip(url: str, part: Path, name: str) -> None:
    """Decompress a `.tgz` or `.gz` up to its checksum, and remove a damaged one."""
    if not name.endswith((".tgz", ".gz")):
        return
    try:
        with gzip.open(part) as file:
            while file.read(1 << 22):
                pass
    except (OSError, EOFError, zlib.error) as error:
        _discard(part)
        raise DownloadError(f"{url} is a damaged gzip file ({error}); it was discarded, try again") from error
