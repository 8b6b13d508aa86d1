"""Rows of an array that is too large to copy about: images or features, on disk or whole on the device."""

from __future__ import annotations

import logging
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

log = logging.getLogger(__name__)

Placement = Literal["auto", "yes", "no"]
_SHARE = 0.25  # of the free memory of a GPU that one array may take; the rest is for training


class DeviceRows:
    """Rows of ``array`` (N, ...) as tensors on a device, of the array's type.

    Args:
        array: memory-mapped, usually.
        device: where rows are wanted.
        placement: ``yes`` copies the array to the device once, so that a batch is one lookup there; ``no`` copies
            row by row; ``auto`` is ``yes`` on a GPU with room for it, and ``no`` on a CPU, which reads the map as fast.
    """

    def __init__(self, array: npt.NDArray[Any], device: torch.device, placement: Placement = "auto") -> None:
        self._array, self._device = array, device
        whole = placement == "yes" or (placement == "auto" and _fits(array.nbytes, device))
        self._held = torch.from_numpy(np.array(array)).to(device) if whole else None
        if whole:
            log.info("%d rows, %.2f GB, are kept on %s", len(array), array.nbytes / 1e9, device)

    def take(self, rows: npt.ArrayLike) -> Tensor:
        """The rows of these numbers, in their order: (n, ...)."""
        numbers = np.asarray(rows, np.int64)
        if self._held is not None:
            return self._held[torch.from_numpy(numbers).to(self._device)]
        return torch.from_numpy(self._array[numbers]).to(self._device)


def _fits(size: int, device: torch.device) -> bool:
    if device.type != "cuda":
        return False
    free, _ = torch.cuda.mem_get_info(device)
    return size <= _SHARE * free
