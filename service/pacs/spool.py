"""What the node holds of a study until its draft is sent: in memory, or in files of a private directory.

A file is complete and on the disk before ``put`` returns: it is written under another name, synchronised and renamed.
"""

from __future__ import annotations

import logging
import os
import threading
import uuid
from collections.abc import Iterable
from pathlib import Path
from typing import Protocol

log = logging.getLogger(__name__)


class Store(Protocol):
    """Holds bytes under tokens that ``put`` invents."""

    def put(self, data: bytes) -> str: ...

    def get(self, token: str) -> bytes: ...

    def remove(self, tokens: Iterable[str]) -> None: ...

    def sizes(self) -> dict[str, int]: ...


class MemoryStore:
    """Keeps nothing on disk; its content ends with the process."""

    def __init__(self) -> None:
        self._held: dict[str, bytes] = {}

    def put(self, data: bytes) -> str:
        token = uuid.uuid4().hex
        self._held[token] = data
        return token

    def get(self, token: str) -> bytes:
        return self._held[token]

    def remove(self, tokens: Iterable[str]) -> None:
        for token in tokens:
            self._held.pop(token, None)

    def sizes(self) -> dict[str, int]:
        return {token: len(data) for token, data in list(self._held.items())}


class Spool:
    """Files of mode 0600 in a directory of mode 0700."""

    def __init__(self, directory: Path) -> None:
        self._directory = make_private(directory)
        for unfinished in directory.glob("*.part"):
            unfinished.unlink()
        self._folder = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
        self._sizes = {path.name: path.stat().st_size for path in directory.iterdir()}
        self._lock = threading.Lock()

    def put(self, data: bytes) -> str:
        token = uuid.uuid4().hex
        part = self._directory / f"{token}.part"
        try:
            with open(os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            part.rename(self._directory / token)
        except OSError:
            part.unlink(missing_ok=True)
            raise
        os.fsync(self._folder)
        with self._lock:
            self._sizes[token] = len(data)
        return token

    def get(self, token: str) -> bytes:
        try:
            return (self._directory / token).read_bytes()
        except FileNotFoundError:
            raise KeyError(token) from None

    def remove(self, tokens: Iterable[str]) -> None:
        for token in tokens:
            try:
                (self._directory / token).unlink(missing_ok=True)
            except OSError as error:  # the next start removes what the queue does not name
                log.error("a file of the spool could not be removed: %s", type(error).__name__)
            with self._lock:
                self._sizes.pop(token, None)

    def sizes(self) -> dict[str, int]:
        with self._lock:
            return dict(self._sizes)


def make_private(directory: Path) -> Path:
    """Create a directory that only this user may enter.

    Raises:
        OSError: it cannot be created or belongs to another user.
    """
    directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    directory.chmod(0o700)
    return directory
