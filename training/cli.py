"""What the commands of training and evaluation choose alike: the data set and the device."""

from __future__ import annotations

import argparse

import torch

from training.data.r2gen import open_r2gen
from training.data.studies import Source
from training.openi import open_openi


def open_source(arguments: argparse.Namespace) -> Source:
    """Open the data set named by ``dataset``, ``root``, ``annotation``, ``images`` and, where it exists, ``download``.

    ``dataset`` None means ``r2gen`` where an annotation is given, else ``openi``.

    Raises:
        ValueError: a path that the data set needs was not given.
    """
    dataset = arguments.dataset or ("r2gen" if arguments.annotation else "openi")
    if dataset == "openi":
        if arguments.root is None:
            raise ValueError("--dataset openi needs --root DIR; other data needs --annotation FILE and --images DIR")
        return open_openi(arguments.root, download=getattr(arguments, "download", False))
    if arguments.annotation is None or arguments.images is None:
        raise ValueError("--dataset r2gen needs --annotation FILE and --images DIR")
    return open_r2gen(arguments.annotation, arguments.images)


def choose_device(name: str) -> torch.device:
    """``auto``, ``cpu``, ``cuda`` or ``cuda:N`` as a device.

    Raises:
        ValueError: no such device here.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise ValueError(f"--device {name}: no such kind of device; use auto, cpu or cuda") from error
    if device.type == "cuda" and not torch.cuda.is_available():
        raise ValueError(f"--device {name}: no CUDA device is available here; use --device cpu")
    return device


def positive(text: str) -> int:
    """A command line number of 1 or more."""
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{value} must be 1 or more")
    return value


def not_negative(text: str) -> int:
    """A command line number of 0 or more."""
    value = int(text)
    if value < 0:
        raise argparse.ArgumentTypeError(f"{value} must be 0 or more")
    return value
