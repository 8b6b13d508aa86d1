"""Checkpoint files: written whole or not at all, the one before kept, read with a way out where one is damaged."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from model.files import install_file

log = logging.getLogger(__name__)


def save_atomically(content: object, path: Path, *, previous: Path | None = None) -> None:
    """``torch.save`` to a temporary file, flush it to disk, rename it to ``path``.

    Args:
        content: what to save.
        path: where.
        previous: name that the file at ``path`` gets, if there is one.

    Raises:
        OSError: it cannot be written; what was at ``path`` is still there.
    """
    beside = path.with_name(path.name + ".tmp")
    try:
        with beside.open("wb") as file:
            torch.save(content, file)
        install_file(beside, path, previous=previous)
    except BaseException as error:
        beside.unlink(missing_ok=True)
        cause = error if isinstance(error, OSError) else error.__context__
        if isinstance(cause, OSError):  # a full disk; what torch says of it does not name it
            raise OSError(cause.errno, cause.strerror, str(path)) from error
        raise


def read_newest(paths: Sequence[Path], device: torch.device) -> tuple[dict[str, Any], Path]:
    """The content of the first of ``paths`` that can be read, and which it is; those before it are warned of.

    Raises:
        ValueError: none can.
    """
    damaged = []
    for path in paths:
        try:
            content: dict[str, Any] = torch.load(path, map_location=device, weights_only=True)
        except FileNotFoundError:
            continue  # killed between two renames, or no more than one was written yet
        except Exception as error:
            damaged.append(f"{path} ({type(error).__name__}, {path.stat().st_size} bytes)")
            continue
        if damaged:
            log.warning("checkpoint %s cannot be read; going on from the one before", damaged[0])
        return content, path
    raise ValueError(
        f"checkpoint {' and '.join(damaged)} cannot be resumed. Remove {paths[0].parent} to start this stage anew; the "
        "stages before it are kept."
    )


def in_short(error: Exception) -> str:
    """Kind and first line of an error."""
    lines = str(error).strip().splitlines() or [""]
    return f"{type(error).__name__}: {lines[0][:200]}"
