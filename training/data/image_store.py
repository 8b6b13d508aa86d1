"""Stores of encoded images: loose files, members of `NLMCXR_png.tgz`, or both in turn.

A store is read in one pass over a set of keys, each once, in the cheapest order. A missing or
unreadable image is returned as None, for the caller to count.
"""

from __future__ import annotations

import logging
import os
import tarfile
import zlib
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Protocol

from model.images import EXTENSIONS

logger = logging.getLogger(__name__)


class ImageStore(Protocol):
    """Encoded image files by key."""

    def iter(self, keys: Collection[str]) -> Iterator[tuple[str, bytes | None]]:
        """Yield each key once, in any order, with its bytes; None where missing or unreadable."""

    def is_dicom(self, key: str) -> bool:
        """Whether the file of an image is a DICOM file, by its name."""

    def description(self) -> str:
        """Name of the source, for log lines and for the identity of caches."""


class LooseImages:
    """Image files on the disk: key -> file, and the folder for messages."""

    def __init__(self, paths: Mapping[str, Path], where: Path) -> None:
        self._paths, self._where = dict(paths), where

    def iter(self, keys: Collection[str]) -> Iterator[tuple[str, bytes | None]]:
        for key in dict.fromkeys(keys):
            data: bytes | None = None
            try:
                data = self._paths[key].read_bytes() if key in self._paths else None
            except OSError as error:
                logger.warning("image %s cannot be read: %s", key, error)
            yield key, data

    def is_dicom(self, key: str) -> bool:
        return key in self._paths and self._paths[key].suffix.lower() == ".dcm"

    def description(self) -> str:
        return f"{len(self._paths)} files in {self._where}"


class TarImages:
    """Images inside a tar file, compressed or not, by file name without extension; read in one pass.

    A file that does not begin like a tar archive raises ValueError.
    """

    def __init__(self, archive: Path) -> None:
        self._archive = archive
        try:
            tarfile.open(archive).close()
        except (tarfile.TarError, EOFError, zlib.error, OSError) as error:
            why = type(error).__name__
            raise ValueError(f"{archive} is no readable tar archive ({why}); download it again") from error

    def iter(self, keys: Collection[str]) -> Iterator[tuple[str, bytes | None]]:
        pending = dict.fromkeys(keys)
        try:
            with tarfile.open(self._archive) as tar:
                for member in tar:
                    if not pending:
                        break
                    key, extension = os.path.splitext(os.path.basename(member.name))
                    if key not in pending or extension.lower() not in EXTENSIONS or not member.isfile():
                        continue
                    file = tar.extractfile(member)
                    assert file is not None  # a regular file has content
                    data = file.read()
                    del pending[key]
                    yield key, data
        except (tarfile.TarError, EOFError, zlib.error, OSError) as error:
            logger.warning("%s is damaged (%s): %d images are lost; fetch it again", self._archive, error, len(pending))
        yield from ((key, None) for key in pending)

    def is_dicom(self, _: str) -> bool:
        return False  # the names are not known before the pass over the archive, and its official one holds PNG files

    def description(self) -> str:
        return f"the archive {self._archive}"


class ChainedImages:
    """Several stores as one: a key missing in the first is searched in the next."""

    def __init__(self, stores: Sequence[ImageStore]) -> None:
        self._stores = tuple(stores)

    def iter(self, keys: Collection[str]) -> Iterator[tuple[str, bytes | None]]:
        pending = dict.fromkeys(keys)
        for store in self._stores:
            if not pending:
                return
            for key, data in store.iter(tuple(pending)):
                if data is not None:
                    del pending[key]
                    yield key, data
        yield from ((key, None) for key in pending)

    def is_dicom(self, key: str) -> bool:
        return any(store.is_dicom(key) for store in self._stores)

    def description(self) -> str:
        return ", then ".join(store.description() for store in self._stores) or "no images"


def images_by_id(folder: Path) -> dict[str, Path]:
    """Find the image files anywhere below `folder`: file name without extension -> path.

    Where one id has several files, the first extension of `EXTENSIONS` wins, then the first path.
    """
    found: dict[str, tuple[int, Path]] = {}
    for directory, folders, files in os.walk(folder, followlinks=True):
        folders.sort()
        for name in sorted(files):
            stem, extension = os.path.splitext(name)
            if extension.lower() not in EXTENSIONS or name.startswith("."):
                continue
            candidate = (EXTENSIONS.index(extension.lower()), Path(directory, name))
            found[stem] = min(found.get(stem, candidate), candidate)
    return {key: path for key, (_, path) in found.items()}
