"""Reference cases that a service's operator added, in a directory independent of any bundle.

`cases.jsonl` has one line per case; `pictures/` has the thumbnails under random names. To add a
case, its pictures are written atomically, then its line is appended; each step is flushed to the
disk. A crash can therefore leave only an incomplete line or a picture without a line; both are
removed when the directory is next opened. To remove a case, the other lines are rewritten, then its
pictures are deleted. Vectors are not stored, because they depend on the bundle.

Only one process at a time can use the directory. Only the owner can read its files. A file that
was edited by hand is checked like a new case; links and special files are refused.
"""

from __future__ import annotations

import errno
import json
import logging
import os
import re
import secrets
import stat
import threading
import unicodedata
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, BinaryIO

from model.files import sync, try_lock, write_atomic
from model.types import View
from retrieval_index.cases import FIELDS, Case

CASES_FILE, PICTURES, LOCK_FILE = "cases.jsonl", "pictures", "lock"
_PICTURE = re.compile(r"[0-9a-f]{32}\.jpg")
_UNFINISHED = re.compile(r"\..+\.tmp")
_VIEWS = {view.value for view in View}
_FOLDER_MODE, _FILE_MODE = 0o700, 0o600
MAX_FINDINGS_BYTES = 8 * 1024
_MAX_LINE_BYTES = 128 * 1024  # 8 KiB of findings and 2 KiB of URL, escaped as \u0000, and the labels
_MAX_PICTURE_BYTES = 1024 * 1024
_INVISIBLE = ("Cc", "Cf", "Cn", "Co")  # Unicode categories of control, format, unassigned and private characters
_IGNORABLE = re.compile("[\u034f\u115f\u1160\u17b4\u17b5\u180b-\u180f\u3164\ufe00-\ufe0f\uffa0\U000e0100-\U000e01ef]")
log = logging.getLogger(__name__)


def has_invisible(text: str) -> bool:
    """Whether a text has control, format, unassigned, private or default-ignorable characters."""
    return bool(_IGNORABLE.search(text)) or any(unicodedata.category(character) in _INVISIBLE for character in text)


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
                "Name a directory that this user may write to, without links in it"
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
            with _open_regular(self._folder / PICTURES / entry.files[view]) as file:
                if len(data := file.read(_MAX_PICTURE_BYTES + 1)) > _MAX_PICTURE_BYTES:
                    raise OSError(errno.EFBIG, os.strerror(errno.EFBIG))
                return data
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
        entries: dict[str, _Entry] = {}
        size = number = 0
        with _open_regular(self._path) as lines:
            while (line := lines.readline(_MAX_LINE_BYTES)).endswith(b"\n"):
                number, size = number + 1, size + len(line)
                entry = self._decode(line, number)
                if entry.case.case_id in entries:
                    raise self._not_a_case(number)
                entries[entry.case.case_id] = entry
        if len(line) == _MAX_LINE_BYTES:
            raise self._not_a_case(number + 1)
        if line:
            log.warning("%s: removed an incomplete last case (%d bytes)", self._path, len(line))
            os.truncate(self._path, size)
        return entries, size

    def _decode(self, line: bytes, number: int) -> _Entry:
        try:
            return _decoded(line)
        except (ValueError, TypeError, RecursionError) as error:
            raise self._not_a_case(number) from error

    def _not_a_case(self, number: int) -> UserCaseStoreError:
        """The error of a line; it quotes nothing of the line."""
        return UserCaseStoreError(
            f"{self._path}, line {number} is not a case that POST /cases accepts and no earlier line has; "
            "restore the file from a copy, or remove the line"
        )

    def _append(self, line: bytes) -> None:
        """Write and flush a whole line, or nothing."""
        with self._path.open("r+b", buffering=0) as lines:
            if os.fstat(lines.fileno()).st_size < self._size:
                raise OSError(errno.ESTALE, f"{CASES_FILE} was changed by another program")
            lines.truncate(self._size)  # in case the removal of a failed line failed
            lines.seek(self._size)
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
        view in _VIEWS and isinstance(name, str) and _PICTURE.fullmatch(name) for view, name in files.items()
    ):
        raise ValueError("not the fields of an added case")
    entry = _Entry(Case(**record, images=tuple(files)), files)
    findings = entry.case.findings or ""
    if not findings.strip() or len(findings.encode()) > MAX_FINDINGS_BYTES or has_invisible(findings):
        raise ValueError("not the findings of an added case")
    return entry


def _open_regular(path: Path) -> BinaryIO:
    """Open a regular file for reading; raises OSError for a link, a pipe or a device, without waiting for it."""
    file = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    if not stat.S_ISREG(os.fstat(file).st_mode):
        os.close(file)
        raise OSError(errno.EINVAL, "Not a regular file")
    return os.fdopen(file, "rb")


def _lock_folder(folder: Path) -> int:
    """Lock the folder; the system releases the lock when the process ends."""
    lock = os.open(folder / LOCK_FILE, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, _FILE_MODE)
    try:
        free = try_lock(lock)
    except OSError:
        os.close(lock)
        raise
    if not free:
        os.close(lock)
        raise UserCaseStoreError(
            f"another process uses the added cases in {folder}; give each service a separate directory, "
            "or stop the other one first"
        )
    return lock
