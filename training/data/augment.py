"""Augmentation of radiographs on the device, a batch at once.

Small rotation, scale, shift, contrast and brightness; never a flip, which would swap left and
right.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor


@dataclass(frozen=True)
class Augmentation:
    """Largest change of each kind, either way; 0 everywhere leaves images as they are."""

    degrees: float = 7.0  # rotation
    scale: float = 0.1  # relative zoom
    shift: float = 0.04  # share of the side
    contrast: float = 0.2  # relative gain and gamma


def to_float(pixels: Tensor, size: int | None = None) -> Tensor:
    """(N, S, S) uint8 -> (N, 1, s, s) float in 0..1, area-averaged down to ``size`` where smaller."""
    images = pixels.unsqueeze(1).float().div_(255.0)
    if size is not None and size != images.shape[-1]:
        images = F.interpolate(images, size=(size, size), mode="bilinear", antialias=True, align_corners=False)
    return images


def augment(images: Tensor, amount: Augmentation, generator: torch.Generator) -> Tensor:
    """Randomly change (N, 1, S, S) images in 0..1; what moves in from outside is black."""
    return changed(images, amount, augmentation_draws(images.shape[0], generator))


def augmentation_draws(count: int, generator: torch.Generator) -> Tensor:
    """Random numbers for ``changed``: (count, 6) in -1..1, on the CPU."""
    return torch.rand(count, 6, generator=generator).mul_(2).sub_(1)


def changed(images: Tensor, amount: Augmentation, draw: Tensor) -> Tensor:
    """``augment`` by given draws, (N, 6)."""
    angle = draw[:, 0] * math.radians(amount.degrees)
    zoom = 1 + draw[:, 1] * amount.scale
    cos, sin = torch.cos(angle) * zoom, torch.sin(angle) * zoom
    shift = draw[:, 2:4] * 2 * amount.shift
    theta = torch.stack([torch.stack([cos, -sin, shift[:, 0]], 1), torch.stack([sin, cos, shift[:, 1]], 1)], 1)
    with torch.autocast(images.device.type, enabled=False):  # in bfloat16 the grid is off by up to a pixel
        grid = F.affine_grid(theta.to(images.device), list(images.shape), align_corners=False)
    moved = F.grid_sample(images, grid, mode="bilinear", padding_mode="zeros", align_corners=False)
    gamma = torch.exp(draw[:, 4] * amount.contrast).to(images.device).view(-1, 1, 1, 1)
    gain = (1 + draw[:, 5] * amount.contrast).to(images.device).view(-1, 1, 1, 1)
    return moved.clamp(1e-4, 1).pow(gamma).mul(gain).clamp(0, 1)
