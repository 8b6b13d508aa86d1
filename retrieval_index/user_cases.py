"""Reference cases that a service's operator added, in a directory independent of any bundle.

`cases.jsonl` has one line per case; `pictures/` has the thumbnails under random names. To add a
case, its pictures are written atomically, then its line is appended; each step is flushed to the
disk. A crash can therefore leave only an incomplete line or a picture without a line; both are
removed when the directory is next opened. To remove a case, the other lines are rewritten, then its
pictures are deleted. Vectors are not stored, because they depend on the bundle.

Only one process at a time can use the directory. Only the owner can read its files.
"""

from __future__ import annotations

import json
import logging
import os
import re
import secrets
import threading
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from model.files import sync, write_atomic
from retrieval_index.cases import FIELDS, Case

CASES_FILE, PICTURES, LOCK_FILE = "cases.jsonl", "pictures", "lock"
_PICTURE = re.compile(r"[0-9a-f]{32}\.jpg")
_UNFINISHED = re.compile(r"\..+\.tmp")
_FOLDER_MODE, _FILE_MODE = 0o700, 0o600
log = logging.getLogger(__name__)


class UserCaseStoreError(RuntimeError):
    """The directory cannot be used; the message gives the reason and the remedy."""


@dataclass(frozen=True)
class _Entry:
    case: Case
    files: Mapping[str, str]  # view -> name in `pictures/`


class UserCaseStore:
    """The cases of one directory, which is locked until `close`. Thread-safe."""

    def __init__(self, folder: Path) -> None:
        """Create the directory if necessary, lock it and read it.

        Raises:
            UserCaseStoreError: another process uses it, it is not writable, or a line is not a
                case.
        """
        self._folder, self._path = folder, folder / CASES_FILE
        self._write_lock = threading.Lock()
        try:
            folder.mkdir(mode=_FOLDER_MODE, parents=True, exist_ok=True)
            (folder / PICTURES).mkdir(mode=_FOLDER_MODE, exist_ok=True)
            self._lock = _lock_folder(folder)
            try:
                self._entries, self._size = self._read()
                self._tidy()
            except BaseException:
                os.close(self._lock)
                raise
        except OSError as error:
            raise UserCaseStoreError(
                f"the added cases in {folder} cannot be used: {error.strerror}. "
                "Name a directory that this user may write to"
            ) from error

    def __len__(self) -> int:
        return len(self._entries)

    def __contains__(self, case_id: object) -> bool:
        return case_id in self._entries

    def cases(self) -> tuple[Case, ...]:
        """All cases, in the order of their addition."""
        return tuple(entry.case for entry in self._entries.values())

    def add(self, case: Case, pictures: Mapping[str, bytes]) -> Case:
        """Store a case.

        Args:
            case: its id must be new.
            pictures: view -> JPEG file.

        Returns:
            The case with the views of its pictures.

        Raises:
            ValueError: the id exists already.
            OSError: the disk is full or fails; the case is then not stored.
        """
        with self._write_lock:
            if case.case_id in self._entries:
                raise ValueError("a case with this id exists already")
            files = {view: f"{secrets.token_hex(16)}.jpg" for view in pictures}
            entry = _Entry(replace(case, images=tuple(pictures)), files)
            try:
                for view, name in files.items():
                    write_atomic(self._folder / PICTURES / name, pictures[view], mode=_FILE_MODE)
                sync(self._folder / PICTURES)
                self._append(_encoded(entry))
            except BaseException:
                self._discard(files.values())
                raise
            self._entries = {**self._entries, case.case_id: entry}
            return entry.case

    def remove(self, case_id: str) -> None:
        """Delete a case and its pictures.

        Raises:
            KeyError: there is no such case.
            OSError: the disk is full or fails; the case is then kept.
        """
        with self._write_lock:
            entries = dict(self._entries)
            entry = entries.pop(case_id)
            lines = b"".join(map(_encoded, entries.values()))
            write_atomic(self._path, lines, mode=_FILE_MODE)
            self._entries, self._size = entries, len(lines)
            sync(self._folder)
            self._discard(entry.files.values())

    def picture(self, case_id: str, view: str) -> bytes | None:
        """The picture of a view as a JPEG file, or None."""
        entry = self._entries.get(case_id)
        if entry is None or view not in entry.files:
            return None
        try:
            return (self._folder / PICTURES / entry.files[view]).read_bytes()
        except OSError as error:  # removed concurrently or manually
            log.warning("a picture of an added case cannot be read: %s", error.strerror)
            return None

    def close(self) -> None:
        """Release the directory."""
        with self._write_lock:
            os.close(self._lock)

    # -- files -------------------------------------------------------------------------------------------------------

    def _read(self) -> tuple[dict[str, _Entry], int]:
        """The entries of the file and their length in bytes; an incomplete last line is removed."""
        if not self._path.exists():
            if any(_PICTURE.fullmatch(path.name) for path in (self._folder / PICTURES).iterdir()):
                raise UserCaseStoreError(
                    f"{self._folder / PICTURES} has pictures, but there is no {self._path}; restore that file from "
                    "a copy, or empty the folder of pictures"
                )
            write_atomic(self._path, b"", mode=_FILE_MODE)
            sync(self._folder)
        data = self._path.read_bytes()
        end = data.rfind(b"\n") + 1
        if incomplete_bytes := len(data) - end:
            log.warning("%s: removed an incomplete last case (%d bytes)", self._path, incomplete_bytes)
            os.truncate(self._path, end)
        entries: dict[str, _Entry] = {}
        for number, line in enumerate(data[:end].splitlines(), start=1):
            try:
                entry = _decoded(line)
                if entry.case.case_id in entries:
                    raise ValueError("its id occurs in an earlier line")
            except (ValueError, TypeError) as error:
                raise UserCaseStoreError(
                    f"{self._path}, line {number} is not a case; restore the file from a copy, or remove the line"
                ) from error
            entries[entry.case.case_id] = entry
        return entries, end

    def _append(self, line: bytes) -> None:
        """Write and flush a whole line, or nothing."""
        with self._path.open("ab", buffering=0) as lines:
            lines.truncate(self._size)  # in case the removal of a failed line failed
            try:
                remaining = memoryview(line)
                while remaining:
                    remaining = remaining[lines.write(remaining) :]
                os.fsync(lines.fileno())
            except BaseException:
                lines.truncate(self._size)
                raise
        self._size += len(line)

    def _discard(self, names: Iterable[str]) -> None:
        for name in names:
            (self._folder / PICTURES / name).unlink(missing_ok=True)

    def _tidy(self) -> None:
        """Remove files that an interrupted change left: pictures without a case and temporary files."""
        known = {name for entry in self._entries.values() for name in entry.files.values()}
        leftovers = [
            path
            for path in (self._folder / PICTURES).iterdir()
            if (_PICTURE.fullmatch(path.name) and path.name not in known) or _UNFINISHED.fullmatch(path.name)
        ]  # keep other files
        leftovers += self._folder.glob(f".{CASES_FILE}.*.tmp")
        for path in leftovers:
            path.unlink()
        if leftovers:
            log.warning("%s: removed %d files of an interrupted change", self._folder, len(leftovers))


def _encoded(entry: _Entry) -> bytes:
    record = {name: getattr(entry.case, name) for name in FIELDS} | {"images": dict(entry.files)}
    return (json.dumps(record, ensure_ascii=False, sort_keys=True) + "\n").encode()


def _decoded(line: bytes) -> _Entry:
    """Parse a line; raises ValueError or TypeError if it is not a case."""
    record: Any = json.loads(line)
    files: Any = record.pop("images") if isinstance(record, dict) and set(record) == {*FIELDS, "images"} else None
    if not isinstance(files, dict) or not all(
        isinstance(name, str) and _PICTURE.fullmatch(name) for name in files.values()
    ):
        raise ValueError("not the fields of an added case")
    return _Entry(Case(**record, images=tuple(files)), files)


def _lock_folder(folder: Path) -> int:
    """Lock the folder; the system releases the lock when the process ends."""
    import fcntl  # not on Windows

    lock = os.open(folder / LOCK_FILE, os.O_RDWR | os.O_CREAT, _FILE_MODE)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        os.close(lock)
        raise UserCaseStoreError(
            f"another process uses the added cases in {folder}; give each service a separate directory, "
            "or stop the other one first"
        ) from error
    except OSError:
        os.close(lock)
        raise
    return lock
