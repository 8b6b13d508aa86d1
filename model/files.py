"""Atomic writes of files and folders, file locks and file hashes."""

from __future__ import annotations

import hashlib
import os
import shutil
import tempfile
from pathlib import Path


def write_atomic(path: Path, data: bytes | memoryview, *, mode: int = 0o644) -> None:
    """Write ``data`` to a temporary file, flush it to disk, rename it to ``path``; creates missing folders."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".tmp", dir=path.parent)
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(data)
        os.chmod(name, mode)
        install_file(Path(name), path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise


def install_file(temporary: Path, path: Path, *, previous: Path | None = None) -> None:
    """Flush a written file to disk and rename it to ``path``; an existing file is kept as ``previous``, if given."""
    sync(temporary)
    if previous is not None and path.exists():
        os.replace(path, previous)
    os.replace(temporary, path)


def replace_folder(new: Path, path: Path) -> None:
    """Rename folder ``new`` to ``path``. An existing one is restored on failure, else removed."""
    if not path.exists():
        os.rename(new, path)
        return
    old = path.with_name(f".{path.name}.old-{os.getpid()}")
    os.rename(path, old)
    try:
        os.rename(new, path)
    except OSError:
        os.rename(old, path)
        raise
    shutil.rmtree(old, ignore_errors=True)


def sync(path: Path) -> None:
    """Flush a file, or the entries of a folder, to disk, so that a rename survives a power failure."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def try_lock(handle: int) -> bool:
    """Lock an open file, or return False where another process has it. The system releases it when the process ends."""
    import fcntl  # not on Windows

    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def file_sha256(path: Path) -> str:
    """SHA-256 of a file's content, in hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
