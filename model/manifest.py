"""``MANIFEST.json`` of a bundle: SHA-256 and size of every other file, written last, verified before use."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from model.files import file_sha256, sync, write_atomic

MANIFEST = "MANIFEST.json"
REQUIRED = ("config.json", "model.safetensors", "tokenizer.json")
_MAX_BYTES = 1024 * 1024  # of the manifest itself


class BundleError(RuntimeError):
    """A bundle is missing, incomplete, altered or of another version; the message names it and the remedy."""


@dataclass(frozen=True)
class FileEntry:
    """Digest and size in bytes of one file."""

    sha256: str
    size: int

    @classmethod
    def of(cls, file: Path) -> FileEntry:
        """The entry of a file on disk."""
        return cls(file_sha256(file), file.stat().st_size)


@dataclass(frozen=True)
class Manifest:
    """Every file of the bundle except ``MANIFEST.json``, by POSIX path.

    ``hydrated_from``, in a copy with report texts, is the SHA-256 of the manifest of the original.
    """

    files: Mapping[str, FileEntry]
    hydrated_from: str | None = None


def read_manifest(path: Path) -> Manifest:
    """Read ``MANIFEST.json`` of a bundle without checking the files.

    Raises:
        BundleError: there is no bundle, or the manifest cannot be read.
    """
    if not (path / MANIFEST).is_file():
        raise BundleError(
            f"{path} is not a bundle: it has no {MANIFEST}. Name a directory that training.run wrote (--bundle DIR)."
        )
    try:
        if (size := (path / MANIFEST).stat().st_size) > _MAX_BYTES:
            raise ValueError(f"{size} bytes, more than {_MAX_BYTES}")
        content = json.loads((path / MANIFEST).read_text(encoding="utf-8"))
        if content["schema_version"] != 1:
            raise BundleError(f"{path}: manifest version {content['schema_version']} is unknown; update this software")
        files = {name: FileEntry(str(e["sha256"]), int(e["size"])) for name, e in content["files"].items()}
        hydrated_from = content.get("hydrated_from")
    except (ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError) as error:
        raise BundleError(f"{path / MANIFEST} is damaged ({error!r}); restore the bundle from its source") from error
    for name in files:
        if "\\" in name or not {"", ".", ".."}.isdisjoint(name.split("/")):  # "" begins an absolute path
            raise BundleError(f"{path / MANIFEST} names a file outside the bundle: {name!r}")
    return Manifest(files, hydrated_from)


def verify_files(path: Path, manifest: Manifest) -> None:
    """Check the files of a folder against a manifest.

    Raises:
        BundleError: a file is missing, of another size, or altered; the message names it.
    """
    for name, entry in manifest.files.items():
        file = path / name
        if not file.is_file():
            raise BundleError(f"{path}: {name} is missing; restore the bundle from its source")
        if file.stat().st_size != entry.size:
            raise BundleError(
                f"{path}: {name} has {file.stat().st_size} bytes, not the {entry.size} of the manifest; "
                "the copy is incomplete, restore the bundle from its source"
            )
        if file_sha256(file) != entry.sha256:
            raise BundleError(f"{path}: {name} was altered (SHA-256 differs); restore the bundle from its source")


def verify_bundle(path: Path) -> Manifest:
    """Check every file of a bundle against its manifest.

    Raises:
        BundleError: see ``read_manifest`` and ``verify_files``, or a required file is not listed.
    """
    manifest = read_manifest(path)
    for required in REQUIRED:
        if required not in manifest.files:
            raise BundleError(f"{path}: the manifest does not list {required}; the bundle is incomplete")
    verify_files(path, manifest)
    return manifest


def write_manifest(directory: Path, *, hydrated_from: str | None = None) -> None:
    """Flush all files of ``directory`` to disk and list them in ``MANIFEST.json``."""
    files = {}
    for file in sorted(p for p in directory.rglob("*") if p.is_file() and p != directory / MANIFEST):
        sync(file)
        files[file.relative_to(directory).as_posix()] = asdict(FileEntry.of(file))
    content: dict[str, Any] = {"schema_version": 1, "files": files}
    if hydrated_from is not None:
        content["hydrated_from"] = hydrated_from
    write_atomic(directory / MANIFEST, (json.dumps(content, indent=2) + "\n").encode())
