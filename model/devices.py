"""Parses device names, for the commands and the service, and makes float32 exact on CUDA."""

from __future__ import annotations

import torch


def resolve_devices(names: str, *, option: str = "--device ") -> tuple[torch.device, ...]:
    """``auto``, ``cpu``, ``cuda:all`` or ``cuda[:N],…`` as available devices, at least one.

    Calls ``use_exact_float32`` for each. ``option`` precedes the value in messages.

    Raises:
        ValueError: a device is unknown, not available, or named twice.
    """
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if names == "auto":
        names = "cuda" if count else "cpu"
    try:
        each = [f"cuda:{number}" for number in range(count)] if names == "cuda:all" else names.split(",")
        devices = [torch.device(name) for name in each]
    except RuntimeError as error:
        raise ValueError(f"{option}{names}: unknown device; use auto, cpu, cuda or cuda:N") from error
    if not devices or any(device.type == "cuda" and (device.index or 0) >= count for device in devices):
        raise ValueError(
            f"{option}{names}, but {count} CUDA devices are usable. Check the driver "
            f"(and --gpus for a container), or use {option}cpu."
        )
    if len({(device.type, device.index or 0) for device in devices}) < len(devices):
        raise ValueError(f"{option}{names} names a device twice. Name each device once.")
    for device in devices:
        use_exact_float32(device)
    return tuple(devices)


def choose_device(name: str) -> torch.device:
    """The one device that ``--device`` names: ``auto``, ``cpu``, ``cuda`` or ``cuda:N``.

    Raises:
        ValueError: the device is unknown or not available, or several are named.
    """
    devices = resolve_devices(name)
    if len(devices) > 1:
        raise ValueError(f"--device {name} names {len(devices)} devices; this command uses one, such as cuda:0")
    return devices[0]


def use_exact_float32(device: torch.device) -> None:
    """Make float32 convolutions on CUDA float32: PyTorch's default is TF32, which keeps 10 bits of the 23.

    It holds for the process. Matrix products are exact by default.
    """
    if device.type == "cuda":
        torch.backends.cudnn.conv.fp32_precision = "ieee"  # type: ignore[attr-defined]
