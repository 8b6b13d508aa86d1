"""Download of the official Open-i archives: resumed after an interruption, verified before it is renamed.

Bytes go to `<dest>.part`, and what identifies them (URL, ETag, Last-Modified, length) to `<dest>.part.json`. A later
call asks only for the rest (HTTP Range with If-Range), so a file that changed on the server, or a server that ignores
ranges, leads to a fresh start and never to a mixture of two files.
"""

from __future__ import annotations

import errno
import gzip
import http.client
import json
import logging
import os
import re
import sys
import time
import urllib.error
import urllib.request
import zlib
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from urllib.parse import urlsplit

from model.files import write_atomic

REPORTS_URL = "https://openi.nlm.nih.gov/imgs/collections/NLMCXR_reports.tgz"
IMAGES_URL = "https://openi.nlm.nih.gov/imgs/collections/NLMCXR_png.tgz"
CHUNK = 1 << 18

Progress = Callable[[int, int | None], None]  # bytes so far, bytes in all (None: the server did not say)

logger = logging.getLogger(__name__)


class DownloadError(RuntimeError):
    """A file could not be fetched or did not survive its checks; says whether calling again resumes."""


@dataclass(frozen=True)
class Fingerprint:
    """What tells whether the bytes at hand and the bytes on the server belong to one file."""

    url: str
    etag: str | None
    last_modified: str | None
    size: int | None  # of the whole file

    @property
    def validator(self) -> str | None:
        """Value for If-Range: a strong ETag, else the date; None: a partial file cannot be trusted."""
        return self.etag if self.etag and not self.etag.startswith("W/") else self.last_modified


class _Interrupted(Exception):  # noqa: N818 - a state of the transfer, never seen outside
    """The transfer ended early and may be taken up again; `connected` tells whether the server answered."""

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
) -> Path:
    """Fetch `url` to `dest`, going on where an earlier call stopped.

    Args:
        url: http or https.
        dest: the file to make. When it is there already it is returned as it is: it was verified on arrival.
        progress: called after each chunk.
        timeout: seconds without a byte after which a connection counts as broken.
        attempts: how often in a row a transfer may break off without a new byte.
        pause: seconds before the first repetition, doubled for each further one.

    Raises:
        DownloadError: not reachable, refused, broken off too often, of the wrong length, or damaged gzip data.
        ValueError: the URL is neither http nor https.
    """
    if urlsplit(url).scheme not in ("http", "https"):
        raise ValueError(f"{url!r} is no http(s) URL")
    if dest.exists():
        return dest
    dest.parent.mkdir(parents=True, exist_ok=True)
    part = dest.with_name(dest.name + ".part")
    failures, furthest, connected = 0, 0, False
    while True:
        try:
            _transfer(url, part, progress, timeout)
            break
        except _Interrupted as interruption:
            connected = connected or interruption.connected
            if not connected:
                raise DownloadError(
                    f"{url} cannot be reached ({interruption}); check the network, or fetch the file by other means"
                ) from interruption
            size = part.stat().st_size if part.exists() else 0
            failures = 1 if size > furthest else failures + 1
            furthest = max(furthest, size)
            if failures >= attempts:
                raise DownloadError(
                    f"{url} broke off {failures} times in a row, last after {size} bytes ({interruption}); they are "
                    f"kept in {part}, and the same call takes it up from there"
                ) from interruption
            logger.warning("%s broke off after %d bytes (%s); trying again", url, size, interruption)
            time.sleep(pause * 2 ** (failures - 1))
    _check_gzip(url, part, dest.name)
    os.replace(part, dest)
    _sidecar(part).unlink(missing_ok=True)
    return dest


def text_progress(label: str) -> Progress:
    """A progress callback that rewrites one line on standard error: bytes, share and rate."""
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


def _transfer(url: str, part: Path, progress: Progress | None, timeout: float) -> None:
    """One connection: append to `part`, or fill it anew; returns when the file is complete."""
    known = _read_fingerprint(part, url)
    at_hand = part.stat().st_size if part.exists() and known is not None and known.validator else 0
    request = urllib.request.Request(url, headers={"Accept-Encoding": "identity", "User-Agent": "cxr-report"})
    if at_hand and known is not None and known.validator:
        request.add_header("Range", f"bytes={at_hand}-")
        request.add_header("If-Range", known.validator)
    try:
        with urllib.request.urlopen(request, timeout=timeout) as response:
            resumed = response.status == 206
            now = _fingerprint(url, response)
            if resumed and (now != known or _range_start(response) != at_hand):
                part.unlink()  # the server sent a part of some other file
                raise _Interrupted("the file on the server has changed; starting again")
            if not resumed:
                at_hand = 0
                write_atomic(_sidecar(part), json.dumps(asdict(now)).encode())
            with part.open("ab" if resumed else "wb") as file:
                while chunk := response.read(CHUNK):
                    file.write(chunk)
                    at_hand += len(chunk)
                    if progress is not None:
                        progress(at_hand, now.size)
                file.flush()
                os.fsync(file.fileno())
    except urllib.error.HTTPError as error:
        error.close()
        if error.code == 416 and known is not None and at_hand == known.size:
            return  # all of it arrived before the interruption
        if error.code == 416:
            part.unlink(missing_ok=True)
            raise _Interrupted("shorter on the server than here; starting again") from error
        if error.code >= 500 or error.code in (408, 429):
            raise _Interrupted(f"HTTP {error.code}") from error
        raise DownloadError(f"{url} answered HTTP {error.code} {error.reason}; check the address") from error
    except urllib.error.URLError as error:
        raise _Interrupted(error.reason, connected=False) from error
    except (OSError, http.client.HTTPException) as error:
        if isinstance(error, OSError) and (error.filename is not None or error.errno == errno.ENOSPC):
            raise  # the disk, not the network
        raise _Interrupted(error) from error
    if now.size is not None and at_hand < now.size:
        raise _Interrupted(f"{now.size - at_hand} bytes short")
    if now.size is not None and at_hand > now.size:
        part.unlink()
        raise DownloadError(f"{url} sent {at_hand} bytes where it announced {now.size}; discarded, try again")


def _fingerprint(url: str, response: http.client.HTTPResponse) -> Fingerprint:
    """Identity of the whole file behind a 200 or 206 answer."""
    length = response.headers.get("Content-Length")
    if response.status == 206:
        length = (response.headers.get("Content-Range") or "").rpartition("/")[2]
    size = int(length) if length is not None and length.isdigit() else None
    return Fingerprint(url, response.headers.get("ETag"), response.headers.get("Last-Modified"), size)


def _range_start(response: http.client.HTTPResponse) -> int | None:
    match = re.match(r"bytes (\d+)-", response.headers.get("Content-Range") or "")
    return int(match.group(1)) if match else None


def _sidecar(part: Path) -> Path:
    return part.with_name(part.name + ".json")


def _read_fingerprint(part: Path, url: str) -> Fingerprint | None:
    """What `part` is a part of, or None where that is unknown or another URL."""
    try:
        known = Fingerprint(**json.loads(_sidecar(part).read_bytes()))
    except (OSError, ValueError, TypeError):
        return None
    return known if known.url == url else None


def _check_gzip(url: str, part: Path, name: str) -> None:
    """Decompress a `.tgz` or `.gz` once to its checksum; a damaged one is removed."""
    if not name.endswith((".tgz", ".gz")):
        return
    try:
        with gzip.open(part) as file:
            while file.read(1 << 22):
                pass
    except (OSError, EOFError, zlib.error) as error:
        part.unlink()
        _sidecar(part).unlink(missing_ok=True)
        raise DownloadError(f"{url} is no intact gzip file ({error}); it was discarded, try again") from error
