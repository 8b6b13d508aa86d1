"""Published R2GenCMN checkpoints, read without unpickling code."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor


def read_checkpoint(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The state dict of a published checkpoint, and its ``epoch`` and ``monitor_best``.

    Only tensors and plain values are unpickled. Keys lose the ``module.`` of ``nn.DataParallel``.

    Raises:
        ValueError: the file is missing, or is no published checkpoint.
    """
    if not path.is_file():
        raise ValueError(f"--checkpoint {path}: no such file")
    # monitor_best may be a NumPy number, which needs its constructor (by both names) and its types
    make = np.float64(0).__reduce__()[0]
    scalars: list[Any] = [make, (make, "numpy.core.multiarray.scalar"), np.dtype]
    scalars += [type(np.dtype(kind)) for kind in (np.float64, np.float32, np.int64, np.int32)]
    try:
        with torch.serialization.safe_globals(scalars):
            content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises many types here
        lines = [line for line in str(error).splitlines() if "WeightsUnpickler error" in line] or [str(error)]
        why = f"{type(error).__name__}: {lines[0].strip()[:200]}"
        raise ValueError(f"--checkpoint {path} cannot be read as weights ({why}); give the .pth file that the "
                         "published trainer saved") from error  # fmt: skip
    state = content.get("state_dict") if isinstance(content, dict) else None
    if not isinstance(state, Mapping) or not all(isinstance(value, Tensor) for value in state.values()):
        found = sorted(map(str, content)) if isinstance(content, dict) else type(content).__name__
        raise ValueError(f"--checkpoint {path} holds {found}; a published checkpoint is a dict with a state_dict")
    facts = {name: _plain(content[name]) for name in ("epoch", "monitor_best") if name in content}
    return {str(key).removeprefix("module."): value for key, value in state.items()}, facts


def _plain(value: Any) -> Any:
    """The value as JSON can store it; infinity, the published trainer's first best, as text."""
    if isinstance(value, np.generic) or (isinstance(value, Tensor) and value.numel() == 1):
        value = value.item()
    usable = isinstance(value, bool | int | str) or (isinstance(value, float) and math.isfinite(value))
    return value if usable else str(value)[:100]
