"""Results of a long command as JSON lines, in a file that a killed process can continue."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, Self

from tqdm import tqdm

from model.files import try_lock

log = logging.getLogger("training")


class ResumableLines:
    """A file with an identity in its first line, and a key and its results in each other line.

    A result is a JSON value, or has sets, which become sorted lists. A new result is returned as a later run reads it.
    The file is locked while it is open.
    """

    def __init__(self, path: Path, identity: str, *, resume: bool = True) -> None:
        """Open ``path``, or start it again where its identity differs, or without ``resume``.

        Raises:
            OSError: another process fills the file.
        """
        self._path, self._results = path, dict[str, list[Any]]()
        path.parent.mkdir(parents=True, exist_ok=True)
        self._file = path.open("a+b")
        if not try_lock(self._file.fileno()):
            self._file.close()
            raise BlockingIOError(f"another command writes {path}; wait until it ends, or choose another --work")
        head = json.dumps({"identity": identity}).encode() + b"\n"
        end = self._read(head) if resume else 0
        self._file.truncate(end)
        if end == 0:
            self._write(head)

    def _read(self, head: bytes) -> int:
        """Take the results of an earlier run with the same head, up to a line that its end truncated.

        Returns:
            The length of the lines that were read.
        """
        self._file.seek(0)
        if self._file.readline() != head:
            return 0
        end = len(head)
        for line in self._file:
            try:
                entry = json.loads(line) if line.endswith(b"\n") else {}
                self._results[entry["key"]] = entry["results"]
            except (ValueError, TypeError, KeyError):
                break
            end += len(line)
        return end

    def get(self, key: str, compute: Callable[[], list[Any]]) -> list[Any]:
        """The results of ``key``: those of an earlier run, else computed and appended."""
        if key not in self._results:
            line = json.dumps({"key": key, "results": compute()}, default=sorted).encode() + b"\n"
            self._write(line)
            self._results[key] = json.loads(line)["results"]
        return self._results[key]

    def fill(
        self, count: int, key: Callable[[slice], str], compute: Callable[[slice], list[Any]], *, batch: int,
        description: str, progress: bool = True,
    ) -> list[Any]:  # fmt: skip
        """The results of ``count`` studies, computed in batches; ``key`` and ``compute`` get ``slice(start, stop)``."""
        batches = [slice(start, min(start + batch, count)) for start in range(0, count, batch)]
        keys = [key(rows) for rows in batches]
        done = sum(rows.stop - rows.start for rows, name in zip(batches, keys, strict=True) if name in self._results)
        if done:
            log.info("%s: resumed %d of %d studies", description, done, count)
        with tqdm(
            total=count, initial=done, desc=description, unit="study", mininterval=1, disable=not progress
        ) as bar:
            for rows, name in zip(batches, keys, strict=True):
                if name not in self._results:
                    self.get(name, partial(compute, rows))
                    bar.update(rows.stop - rows.start)
        return [result for name in keys for result in self._results[name]]

    def remove(self) -> None:
        """Delete the file, once everything that is made of the results is written."""
        self._path.unlink(missing_ok=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def _write(self, line: bytes) -> None:
        self._file.write(line)
        self._file.flush()
