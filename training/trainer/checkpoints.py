"""Checkpoint files: written atomically; the previous one replaces a damaged one."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from model.files import install_file

log = logging.getLogger(__name__)


def save_atomically(content: object, path: Path, *, previous: Path | None = None) -> None:
    """``torch.save`` to a temporary file, flush it to disk, rename it to ``path``; an existing file
    moves to ``previous``.

    Raises:
        OSError: the file cannot be written; an existing file at ``path`` is unchanged.
    """
    temporary = path.with_name(path.name + ".tmp")
    try:
        with temporary.open("wb") as file:
            torch.save(content, file)
        install_file(temporary, path, previous=previous)
    except BaseException as error:
        temporary.unlink(missing_ok=True)
        cause = error if isinstance(error, OSError) else error.__context__
        if isinstance(cause, OSError):  # a full disk, which torch's error does not mention
            raise OSError(cause.errno, cause.strerror, str(path)) from error
        raise


def read_newest(paths: Sequence[Path], device: torch.device) -> tuple[dict[str, Any], Path]:
    """Content and path of the first of ``paths`` that can be read, or ValueError; logs the damaged ones."""
    damaged = []
    for path in paths:
        try:
            content: dict[str, Any] = torch.load(path, map_location=device, weights_only=True)
        except FileNotFoundError:
            continue  # killed between two renames, or only one exists yet
        except Exception as error:
            damaged.append(f"{path} ({type(error).__name__}, {path.stat().st_size} bytes)")
            continue
        if damaged:
            log.warning("checkpoint %s cannot be read; continuing from the previous one", damaged[0])
        return content, path
    raise ValueError(f"checkpoint {' and '.join(damaged)} cannot be resumed. Remove {paths[0].parent} to start this "
                     "stage again; the stages before it are kept.")  # fmt: skip


def first_line(error: Exception) -> str:
    """Type and first line of an error."""
    lines = str(error).strip().splitlines() or [""]
    return f"{type(error).__name__}: {lines[0][:200]}"
