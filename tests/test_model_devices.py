"""Names of devices, for commands and for the service."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch

from model.devices import choose_device, resolve_devices

AUTO = "cuda" if torch.cuda.is_available() else "cpu"


def test_resolves_available_devices() -> None:
    assert resolve_devices("cpu") == (torch.device("cpu"),)
    assert [device.type for device in resolve_devices("auto")] == [choose_device("auto").type] == [AUTO]


@pytest.mark.parametrize(
    ("names", "message"),
    [
        ("cuda:99", "REPORT_DEVICE=cuda:99, but"),
        ("cuda:0,cuda:99", "REPORT_DEVICE=cuda:0,cuda:99, but"),
        ("cpu,cpu", "REPORT_DEVICE=cpu,cpu names a device twice"),
        ("abacus", "REPORT_DEVICE=abacus: unknown device; use auto"),
    ],
)
def test_rejects_unavailable_and_repeated_devices(names: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        resolve_devices(names, option="REPORT_DEVICE=")


@pytest.mark.skipif(torch.cuda.is_available(), reason="without a GPU only")
def test_rejects_all_cuda_devices_where_there_are_none() -> None:
    with pytest.raises(ValueError, match=r"--device cuda:all, but 0 CUDA devices are usable.*use --device cpu"):
        choose_device("cuda:all")


def test_float32_convolutions_on_cuda_are_exact() -> None:
    code = (
        "import torch; from model.devices import choose_device; conv = torch.backends.cudnn.conv\n"
        "torch.cuda.is_available, torch.cuda.device_count = lambda: True, lambda: 1\n"
        "print(conv.fp32_precision); choose_device('cpu'); print(conv.fp32_precision)\n"
        "choose_device('auto'); print(conv.fp32_precision)"
    )
    printed = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout
    assert printed.split() == ["tf32", "tf32", "ieee"]
