"""A memory-mapped array on disk that a killed process can continue to fill."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from tqdm import tqdm

from model.files import try_lock, write_atomic

log = logging.getLogger(__name__)


class ResumableArray:
    """``NAME.npy`` and ``NAME.json``, which holds an identity and the progress saved last.

    ``NAME.lock`` is locked while the array is allocated or filled.
    """

    def __init__(self, path: Path, identity: str, dtype: npt.DTypeLike, shape: tuple[int, ...]) -> None:
        """Open ``path``, or allocate it where it is missing or has a different identity.

        Raises:
            OSError: another process fills the array.
        """
        self._path, self._state_path, self._identity = path, path.with_suffix(".json"), identity
        self._dtype, self._shape = dtype, shape
        path.parent.mkdir(parents=True, exist_ok=True)
        stored = self._read_progress()
        self.progress: dict[str, Any] = stored or {}  # given to ``save`` last
        if stored is None:
            with self._locked():
                self._open()

    def read(self) -> npt.NDArray[Any]:
        """The array, memory-mapped, read-only."""
        array: npt.NDArray[Any] = np.load(self._path, mmap_mode="r")
        return array

    @contextmanager
    def writing(self) -> Iterator[np.memmap[Any, Any]]:
        """The array, memory-mapped, to be filled; call ``save`` from time to time.

        Raises:
            OSError: another process fills the array.
        """
        with self._locked():
            self._open()  # another process may have filled or replaced the files
            yield np.load(self._path, mmap_mode="r+")

    def save(self, array: np.memmap[Any, Any], **progress: Any) -> None:
        """Flush ``array`` to disk, then store the progress."""
        array.flush()
        write_atomic(self._state_path, json.dumps({"identity": self._identity, **progress}).encode())
        self.progress = progress

    def fill(
        self, compute: Callable[[slice], npt.NDArray[Any]], *, batch: int, save_every: int, description: str
    ) -> npt.NDArray[Any]:
        """Fill the rows that are missing, in order, and return the complete array.

        ``compute`` gets ``slice(start, stop)`` and returns (stop - start, ...). ``start`` is a multiple of ``batch``,
        so a resumed array sees the same slices. ``save`` is called every ``save_every`` batches.
        """
        count = len(self.read())
        if self.progress.get("done", 0) == count:
            return self.read()
        with self.writing() as array:
            done = self.progress.get("done", 0)
            with tqdm(total=count, initial=done, desc=description, unit="img", mininterval=1) as bar:
                for start in range(done, count, batch):
                    rows = slice(start, min(start + batch, count))
                    array[rows] = compute(rows)
                    bar.update(rows.stop - start)
                    if (start // batch) % save_every == save_every - 1 or rows.stop == count:
                        self.save(array, done=rows.stop)
            return self.read()

    @contextmanager
    def _locked(self) -> Iterator[None]:
        with self._path.with_suffix(".lock").open("ab") as file:
            if not try_lock(file.fileno()):
                raise BlockingIOError(
                    f"another command fills {self._path}; wait until it ends, or choose another --work"
                )
            yield

    def _open(self) -> None:
        stored = self._read_progress()
        if stored is None:
            self._state_path.unlink(missing_ok=True)
            _allocate(self._path, self._dtype, self._shape)
        self.progress = stored or {}

    def _read_progress(self) -> dict[str, Any] | None:
        """None where there is no array or state, the state cannot be read, or it has a different identity."""
        if not self._path.exists():
            return None
        try:
            state = json.loads(self._state_path.read_text())
        except FileNotFoundError:
            return None
        except ValueError:
            log.warning("%s cannot be read; %s is computed again", self._state_path, self._path.name)
            return None
        if not isinstance(state, dict) or state.pop("identity", None) != self._identity:
            return None
        return state


def _allocate(path: Path, dtype: npt.DTypeLike, shape: tuple[int, ...]) -> None:
    """Create a file of zeros with all of its disk space reserved: a full disk would end a write to a
    sparse memory map by SIGBUS.
    """
    path.unlink(missing_ok=True)
    try:
        np.lib.format.open_memmap(path, mode="w+", dtype=dtype, shape=shape).flush()
        if hasattr(os, "posix_fallocate") and path.stat().st_size:
            with path.open("r+b") as file:
                os.posix_fallocate(file.fileno(), 0, path.stat().st_size)
    except OSError as error:
        path.unlink(missing_ok=True)
        error.filename = error.filename or str(path)
        raise
