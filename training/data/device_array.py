"""Rows of a large array (images or features), read from disk or kept on the device."""

from __future__ import annotations

import logging
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from training.trainer.context import Placement

log = logging.getLogger(__name__)

_SHARE = 0.25  # of a GPU's free memory that one array may take


class DeviceRows:
    """Rows of ``array`` (N, ...), usually memory-mapped, as tensors on a device.

    ``placement``: ``yes`` copies the whole array to the device once; ``no`` copies the rows of each batch; ``auto`` is
    ``yes`` on a GPU with enough free memory, else ``no``.
    """

    def __init__(self, array: npt.NDArray[Any], device: torch.device, placement: Placement = "auto") -> None:
        self._array, self._device = array, device
        whole = placement == "yes"
        if placement == "auto" and device.type == "cuda":
            whole = array.nbytes <= _SHARE * torch.cuda.mem_get_info(device)[0]
        self._held = torch.from_numpy(np.array(array)).to(device) if whole else None
        if whole:
            log.info("keeping %d rows (%.2f GB) on %s", len(array), array.nbytes / 1e9, device)

    def take(self, rows: npt.ArrayLike) -> Tensor:
        """Rows by number, in the order given: (n, ...)."""
        numbers = np.asarray(rows, np.int64)
        if self._held is not None:
            return self._held[torch.from_numpy(numbers).to(self._device)]
        return torch.from_numpy(self._array[numbers]).to(self._device)
